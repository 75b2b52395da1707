//! What is committed but made from code, and the examples of the file references.
//!
//! `UPDATE_SCHEMAS=1 cargo test -p contract --features documents --test generated` writes the files anew.
#![cfg(feature = "documents")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use contract::document;
use contract::manifest::Manifest;
use contract::refusal::Reason;
use serde_json::Value;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(file: &str) -> String {
    fs::read_to_string(repository().join(file)).unwrap_or_default()
}

/// Compares a file with what it should hold, or writes it.
fn is_up_to_date(file: &str, wanted: &str) {
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        fs::write(repository().join(file), wanted).unwrap();
    }
    assert!(read(file) == wanted, "{file} is not what the code says: run the tests once with UPDATE_SCHEMAS=1");
}

/// The text with what stands between `<!-- NAME -->` and `<!-- /NAME -->` replaced.
fn with_block(text: &str, name: &str, block: &str) -> String {
    let (open, close) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) = text.split_once(&open).unwrap_or_else(|| panic!("{open} is missing"));
    let (_, after) = rest.split_once(&close).unwrap_or_else(|| panic!("{close} is missing"));
    format!("{before}{open}{block}{close}{after}")
}

#[test]
fn schemas_are_up_to_date() {
    for (name, schema) in [
        ("site", document::site_schema()),
        ("release", document::manifest_schema()),
        ("keys", document::key_list_schema()),
        ("channels", document::channels_schema()),
        ("dealers", document::dealers_schema()),
    ] {
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        is_up_to_date(&format!("docs/schema/{name}.schema.json"), &text);
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    }
}

#[test]
fn field_references_are_up_to_date() {
    for (file, block, schema) in [
        ("docs/site.md", "fields", document::site_schema()),
        ("docs/release.md", "fields", document::manifest_schema()),
        ("docs/hq.md", "fields of keys", document::key_list_schema()),
        ("docs/hq.md", "fields of channels", document::channels_schema()),
        ("docs/dealers.md", "fields", document::dealers_schema()),
    ] {
        let mut rows = String::from("| Field | | Type | Meaning |\n|---|---|---|---|\n");
        fields(&schema, &schema, "", &mut rows);
        is_up_to_date(file, &with_block(&read(file), block, &rows));
    }
}

#[test]
fn the_table_of_refusals_is_up_to_date() {
    let mut rows = String::from("| Label | Meaning |\n|---|---|\n");
    for reason in Reason::ALL {
        writeln!(rows, "| `{reason}` | {} |", reason.meaning().replace('|', "\\|")).unwrap();
        assert!(!reason.meaning().is_empty(), "{reason}");
    }
    is_up_to_date("docs/refusals.md", &with_block(&read("docs/refusals.md"), "refusals", &rows));
}

/// One row for each field of an object, depth first.
fn fields(root: &Value, object: &Value, prefix: &str, rows: &mut String) {
    let required = object["required"].as_array().cloned().unwrap_or_default();
    let Some(properties) = object["properties"].as_object() else { return };
    for (name, property) in properties {
        let mut path = format!("{prefix}{name}");
        let need = if required.contains(&Value::from(name.as_str())) { "required" } else { "" };
        let meaning = property["description"].as_str().unwrap_or_else(|| panic!("{path} has no description"));
        let meaning = meaning.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
        let mut inner = resolved(root, property);
        writeln!(rows, "| `{path}` | {need} | {} | {meaning} |", kind(root, property)).unwrap();
        loop {
            if inner["additionalProperties"].is_object() {
                path.push_str(".*");
                inner = resolved(root, &inner["additionalProperties"]);
            } else if inner["items"].is_object() {
                path.push_str("[]");
                inner = resolved(root, &inner["items"]);
            } else {
                break;
            }
        }
        fields(root, inner, &format!("{path}."), rows);
    }
}

/// A schema without its `$ref`.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

/// The type of a field in the words of the file references.
fn kind(root: &Value, property: &Value) -> String {
    let schema = resolved(root, property);
    if let Some(choices) = schema["enum"].as_array() {
        let choices: Vec<String> = choices.iter().map(|choice| format!("`{}`", choice.as_str().unwrap())).collect();
        return choices.join(", ");
    }
    let name = match &schema["type"] {
        Value::String(name) => name.as_str(),
        Value::Array(_) => return "text, number or truth value".into(),
        _ => return "any".into(),
    };
    let range = match (schema["minimum"].as_u64(), schema["maximum"].as_u64()) {
        (Some(least), Some(most)) => format!(", {least} to {most}"),
        _ => String::new(),
    };
    match name {
        "string" => "text".into(),
        "boolean" => "true or false".into(),
        "integer" => format!("whole number{range}"),
        "array" => format!("list of {}", plural(&kind(root, &schema["items"]))),
        "object" if schema["additionalProperties"].is_object() => "mapping by name".into(),
        "object" => "mapping".into(),
        other => panic!("{other} has no words"),
    }
}

fn plural(kind: &str) -> String {
    format!("{kind}s")
}

/// The YAML blocks of a Markdown file, each with the line where it begins.
fn examples(file: &str) -> Vec<(usize, String)> {
    let mut examples = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in (1..).zip(read(file).lines()) {
        match &mut open {
            None if line == "```yaml" => open = Some((number, String::new())),
            None => {}
            Some(_) if line == "```" => examples.extend(open.take()),
            Some((_, text)) => *text += &format!("{line}\n"),
        }
    }
    assert!(!examples.is_empty(), "{file} has no examples");
    examples
}

/// The value of a field at the beginning of a line.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap().trim_matches('"')
}

#[test]
fn the_examples_of_the_site_reference_load() {
    let release = release();
    for (line, text) in examples("docs/site.md") {
        let file = format!("sites/{}/site.yaml", field(&text, "site"));
        let site =
            document::site(&file, text.as_bytes()).unwrap_or_else(|found| panic!("example at {line}: {found:?}"));
        let found = document::against(&site, &release);
        assert!(found.is_empty(), "example at {line}: {found:?}");
    }
}

#[test]
fn the_examples_of_the_release_reference_load() {
    for (line, text) in examples("docs/release.md") {
        let file = format!("releases/{}.yaml", field(&text, "release"));
        document::manifest(&file, text.as_bytes()).unwrap_or_else(|found| panic!("example at {line}: {found:?}"));
    }
}

#[test]
fn the_examples_of_the_reference_of_dealers_load() {
    for (line, text) in examples("docs/dealers.md") {
        document::dealers("dealers.yaml", text.as_bytes())
            .unwrap_or_else(|found| panic!("example at {line}: {found:?}"));
    }
}

fn release() -> Manifest {
    document::manifest("releases/2026.06.yaml", read("releases/2026.06.yaml").as_bytes()).unwrap().value
}

/// The real release is the sample of the specification, and wiring and probes; nothing else differs.
#[test]
fn the_real_release_keeps_the_sample_of_the_specification() {
    let sample = read("tests/data/documents/spec-sample/releases/2026.06.yaml");
    let sample = document::manifest("releases/2026.06.yaml", sample.as_bytes()).unwrap().value;
    let mut release = release();
    assert!(release.templates.values().any(|template| !template.wiring.files.is_empty()));
    for template in release.templates.values_mut() {
        template.wiring = Default::default();
        template.probes.clear();
    }
    assert_eq!(release, sample);
}
