#![allow(clippy::unwrap_used, clippy::panic)]
use std::collections::BTreeMap;

use contract::assignment::FileFormat::{self, Conf, Env, Ini, Json, Toml, Yaml};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Merge, env, merge};
use crate::error::{Reason, Result};

const FORMATS: [FileFormat; 6] = [Yaml, Json, Toml, Ini, Env, Conf];

fn try_merge(format: FileFormat, text: &str, patch: &Value) -> Result<String> {
    merge(format, text.as_bytes(), patch.as_object().unwrap()).map(|bytes| String::from_utf8(bytes).unwrap())
}

fn merged(format: FileFormat, text: &str, patch: Value) -> String {
    let once = try_merge(format, text, &patch).unwrap();
    assert_eq!(try_merge(format, &once, &patch).unwrap(), once, "merging twice gives the same bytes");
    once
}

fn reason(format: FileFormat, text: &str, patch: Value) -> Reason {
    let error = try_merge(format, text, &patch).unwrap_err();
    assert!(!error.message.contains("hunter2"), "{error}");
    error.reason
}

#[test]
fn json_keeps_order_indentation_and_what_it_does_not_know() {
    let text = "{\n    \"z\": 1,\n    \"a\": { \"keep\": [1, 2], \"drop\": true }\n}";
    let got = merged(Json, text, json!({ "a": { "drop": null, "new": { "x": 1, "gone": null } }, "z": "hunter2" }));
    let expected = "{\n    \"z\": \"hunter2\",\n    \"a\": {\n        \"keep\": [\n            1,\n            2\n        ],\n        \"new\": {\n            \"x\": 1\n        }\n    }\n}";
    assert_eq!(got, expected);
    assert_eq!(merged(Json, "{\"a\":1}\n", json!({ "b": 2 })), "{\"a\":1,\"b\":2}\n");
    assert_eq!(merged(Json, "", json!({ "a": 1 })), "{\n  \"a\": 1\n}\n");
    // Read carelessly, it would come back as …955e+19.
    assert_eq!(
        merged(Json, "{\"a\":1.8446744770309554e+19}", json!({ "b": 2 })),
        "{\"a\":1.8446744770309554e+19,\"b\":2}"
    );
    let odd = "{ \"a\" :1 }";
    assert_eq!(merged(Json, odd, json!({ "a": 1, "b": null })), odd, "nothing changed, so not a byte did");
}

#[test]
fn toml_keeps_comments_and_layout() {
    let text = "# head\ntitle = 'x' # why\n\n[server]   # the server\nport   = 1883 # default\nhost=\"a\"\n\n[other]\ninline = { a = 1, b = 2 } # here\n";
    let patch =
        json!({ "server": { "port": 8883, "tls": true }, "other": { "inline": { "b": null, "c": { "d": 1 } } } });
    let got = merged(Toml, text, patch);
    for kept in [
        "# head\ntitle = 'x' # why\n",
        "[server]   # the server\nport   = 8883 # default\nhost=\"a\"\n",
        "tls = true\n",
    ] {
        assert!(got.contains(kept), "{kept:?} in\n{got}");
    }
    assert!(got.contains("inline = { a = 1") && got.contains("c = { d = 1 }") && got.contains("# here"), "{got}");
    assert_eq!(merged(Toml, "", json!({ "a": { "b": { "c": [1, 2.5, "x"] } } })), "[a.b]\nc = [1, 2.5, \"x\"]\n");
    assert_eq!(merged(Toml, "a = 1\n", json!({ "a": { "b": 1 } })), "[a]\nb = 1\n");
    assert_eq!(reason(Toml, "", json!({ "a": u64::MAX })), Reason::BadMerge);
    assert_eq!(reason(Toml, "", json!({ "a": [null] })), Reason::BadMerge);
}

#[test]
fn ini_keeps_comments_and_order() {
    let text = "top=1\n; about a\n[a]\nkey=old\n# foreign\nkey = twice\n\n[b]\nx : y\n";
    let got =
        merged(Ini, text, json!({ "a": { "key": "new", "more": 5 }, "b": { "x": "z" }, "top": 2, "c": { "k": true } }));
    assert_eq!(got, "top=2\n; about a\n[a]\nkey=new\n# foreign\nmore=5\n\n[b]\nx : z\n\n[c]\nk=true\n");
    assert_eq!(merged(Ini, text, json!({ "a": null, "top": null })), "; about a\n[b]\nx : y\n");
    assert_eq!(merged(Ini, text, json!({ "b": { "x": null } })), text.replace("x : y\n", ""));
    assert_eq!(merged(Ini, "", json!({ "a": { "k": "v" }, "top": 1 })), "top = 1\n[a]\nk = v\n");
    assert_eq!(merged(Ini, "[a]\r\nk=v", json!({ "a": { "l": 1 } })), "[a]\r\nk=v\r\nl=1\r\n");
}

#[test]
fn env_reads_and_writes_as_systemd_does() {
    let text = "# comment\nA=plain\nexport B=not systemd's\nC=\"two\nlines\"\nD='single $x' \nE=one\\\n two\nA=last\n";
    assert_eq!(env::parse(text)["C"], "two\nlines");
    assert_eq!(env::parse(text)["D"], "single $x");
    assert_eq!(env::parse(text)["E"], "one two");
    let got = merged(Env, text, json!({ "A": "last", "C": "has \"quotes\" and $dollar \\ x", "E": null, "NEW": 5 }));
    assert_eq!(
        got,
        "# comment\nexport B=not systemd's\nC=\"has \\\"quotes\\\" and \\$dollar \\\\ x\"\nD='single $x' \nA=last\nNEW=5\n"
    );
    assert_eq!(env::parse(&got)["C"], "has \"quotes\" and $dollar \\ x");
    assert_eq!(merged(Env, "A='a b'", json!({ "A": "a b" })), "A='a b'", "the same value in other quotes is no change");
    assert_eq!(merged(Env, "A=1", json!({ "B": "" })), "A=1\nB=\n");
}

#[test]
fn conf_repeats_a_key_for_a_list() {
    let text = "# head\nlistener 1883\ntopic a in\n# mine\ntopic b out\nkeep  this\n";
    assert_eq!(
        merged(Conf, text, json!({ "topic": ["x in", "y out", "z both"], "listener": 8883, "allow": true })),
        "# head\nlistener 8883\ntopic x in\n# mine\ntopic y out\ntopic z both\nkeep  this\nallow true\n"
    );
    assert_eq!(
        merged(Conf, text, json!({ "topic": ["only"] })),
        text.replace("topic b out\n", "").replace("a in", "only")
    );
    assert_eq!(merged(Conf, text, json!({ "topic": null, "keep": [] })), "# head\nlistener 1883\n# mine\n");
    let sshd = "Port 22\nMatch User x\n  PermitTTY no\n";
    assert_eq!(
        merged(Conf, sshd, json!({ "PermitRootLogin": "no" })),
        "Port 22\nPermitRootLogin no\nMatch User x\n  PermitTTY no\n"
    );
}

#[test]
fn yaml_keeps_keys_tags_and_texts_that_look_like_something_else() {
    let text = "# head\nmqtt:\n  server: mqtt://old\n  user: 'on'\nsecret: !secret name\ndevices:\n  '0x00158d0001dc126a': {friendly_name: lamp}\nversion: '1.0'\n";
    let got = merged(Yaml, text, json!({ "mqtt": { "server": "mqtt://new", "password": "0123" } }));
    let value: serde_yaml::Value = serde_yaml::from_str(&got).unwrap();
    assert_eq!(value["mqtt"]["server"], "mqtt://new");
    assert_eq!(value["mqtt"]["password"], "0123");
    assert_eq!(value["mqtt"]["user"], "on");
    assert_eq!(value["version"], "1.0");
    assert_eq!(value["devices"]["0x00158d0001dc126a"]["friendly_name"], "lamp");
    assert!(got.contains("!secret name"), "{got}");
    assert_eq!(merged(Yaml, text, json!({ "mqtt": { "server": "mqtt://old" }, "none": null })), text);
    assert_eq!(merged(Yaml, "", json!({ "a": 1 })), "a: 1\n");
    assert_eq!(merged(Yaml, "---\n# nothing yet\n", json!({ "b": null })), "---\n# nothing yet\n");
}

#[test]
fn yaml_keeps_comments_quotes_and_layout_of_what_it_does_not_touch() {
    let text = "\
# zigbee2mqtt, by hand
homeassistant: yes   # a YAML 1.1 reader takes this for true
mqtt:
  # where the broker is
  server: 'mqtt://old'   # the old one
  user:   app
  tls: {ca: a, key: b}

list:
  - one   # first
  - two
text: |
  two
  lines
empty:
serial: # none yet
  port: /dev/ttyUSB0
# the end
";
    let patch = json!({
        "mqtt": { "server": "mqtt://new:1883", "password": "on", "user": null, "tls": { "key": "c" } },
        "serial": { "port": "tcp://192.0.2.1:6638" },
        "list": ["three"],
        "text": "one\nmore\n",
        "empty": 5,
        "frontend": { "port": 8080, "names": ["a", "b"] },
    });
    let expected = "\
# zigbee2mqtt, by hand
homeassistant: yes   # a YAML 1.1 reader takes this for true
mqtt:
  # where the broker is
  server: mqtt://new:1883   # the old one
  tls:
    ca: a
    key: c
  password: \"on\"

list:
  - three
text: \"one\\nmore\\n\"
empty: 5
serial: # none yet
  port: tcp://192.0.2.1:6638
frontend:
  port: 8080
  names:
    - a
    - b
# the end
";
    // What stands between braces is replaced as a whole, so it is left out here.
    let simple = text.replace("  tls: {ca: a, key: b}\n", "  tls:\n    ca: a\n    key: b\n");
    assert_eq!(merged(Yaml, &simple, patch), expected);
    let empty = "a:\n  b:   # nothing\n\n  # about c\n  c: 1\n";
    assert_eq!(merged(Yaml, empty, json!({ "a": { "b": null, "c": 5 } })), "a:\n\n  # about c\n  c: 5\n");
    assert_eq!(merged(Yaml, empty, json!({ "a": { "b": [1] } })), empty.replace("b:   # nothing\n", "b:\n    - 1\n"));
    assert_eq!(merged(Yaml, "# only this", json!({ "a": { "b": 1 } })), "# only this\na:\n  b: 1\n");
    assert_eq!(merged(Yaml, "a: 1 # x\nb: 2", json!({ "c": "é" })), "a: 1 # x\nb: 2\nc: é\n");
    assert_eq!(merged(Yaml, "é: 1 # é\nb: x\n", json!({ "b": "z" })), "é: 1 # é\nb: z\n");
}

#[test]
fn yaml_beyond_a_simple_edit_is_still_merged() {
    for (text, patch) in [
        ("{a: 1, b: {c: 2}}\n", json!({ "b": { "c": 3 } })),
        ("a: &x {k: 1}\nb: *x\n", json!({ "a": { "k": 2 } })),
        ("a: 1\n", json!({ "a": null })),
        ("a: {b: 1}\n", json!({ "a": { "c": 2 } })),
        ("? a\n: 1\n", json!({ "a": 2, "b": 3 })),
        ("1: x\n", json!({ "1": "y" })),
        ("a: >-\n  folded\n  text\n\nb: 1\n", json!({ "a": "x", "c": 1 })),
    ] {
        let read: serde_yaml::Value = serde_yaml::from_str(&merged(Yaml, text, patch.clone())).unwrap();
        for (key, value) in patch.as_object().unwrap().iter().filter(|(_, value)| value.is_string()) {
            assert_eq!(read[key.as_str()], serde_yaml::to_value(value).unwrap());
        }
    }
}

#[test]
fn what_a_format_cannot_hold_is_refused_without_its_value() {
    for format in [Ini, Env, Conf] {
        for value in [json!("hunter2\nEVIL=1"), json!("hunter2\r"), json!("\u{1b}hunter2")] {
            let patch = if format == Ini { json!({ "s": { "k": value } }) } else { json!({ "k": value }) };
            assert_eq!(reason(format, "", patch), Reason::BadMerge, "{format:?}");
        }
        for key in ["", "a\nb", "#a", " a", "a\u{0}"] {
            assert_eq!(reason(format, "", json!({ key: "hunter2" })), Reason::BadMerge, "{format:?} {key:?}");
        }
    }
    assert_eq!(reason(Env, "", json!({ "a": { "b": "hunter2" } })), Reason::BadMerge);
    assert_eq!(reason(Env, "", json!({ "a=b": "hunter2" })), Reason::BadMerge);
    assert_eq!(reason(Conf, "", json!({ "a b": "hunter2" })), Reason::BadMerge);
    assert_eq!(reason(Ini, "", json!({ "a": { "b": ["hunter2"] } })), Reason::BadMerge);
    assert_eq!(reason(Ini, "", json!({ "a]\n[b": { "c": 1 } })), Reason::BadMerge);
}

#[test]
fn a_file_that_is_not_of_its_format_is_refused_without_its_content() {
    for (format, text) in [
        (Json, "{\"a\": hunter2}"),
        (Json, "[\"hunter2\"]"),
        (Toml, "a = hunter2"),
        (Env, "a='hunter2\nb=1\n"),
        (Yaml, "a: [hunter2"),
        (Yaml, "- hunter2\n"),
        (Yaml, "a: 1\na: hunter2\n"),
    ] {
        let reason = reason(format, text, json!({ "x": 1 }));
        assert!(matches!(reason, Reason::FileSyntax | Reason::BadMerge), "{format:?} {text}");
    }
    for format in FORMATS {
        assert_eq!(merge(format, b"\xff\xfe", &Merge::new()).unwrap_err().reason, Reason::FileSyntax);
    }
}

fn key() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9_]{0,6}"
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[ -~äé✓]{0,12}".prop_map(Value::from),
        prop_oneof![
            Just("on"),
            Just("null"),
            Just("~"),
            Just("0x1f"),
            Just("1e3"),
            Just(""),
            Just("- a"),
            Just("a: b #c")
        ]
        .prop_map(Value::from),
    ]
}

fn nested() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![4 => scalar(), 1 => Just(Value::Null)];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            vec(scalar(), 0..4).prop_map(Value::from),
            btree_map(key(), inner, 0..4).prop_map(|map| map.into_iter().collect::<Merge>().into()),
        ]
    })
}

/// An object as a nested format holds it.
fn tree() -> impl Strategy<Value = Value> {
    btree_map(key(), nested(), 0..5).prop_map(|map| map.into_iter().collect::<Merge>().into())
}

/// Texts that all line formats can hold: not empty, no blanks at the ends.
fn flat() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map(key(), "[!-~]([ -~]{0,10}[!-~])?", 0..6)
}

/// The same merge by the book (RFC 7396), to compare with.
fn by_the_book(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let object = target.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            object.remove(key);
        } else {
            by_the_book(object.entry(key).or_insert(Value::Null), value);
        }
    }
}

fn without_nulls(value: Value) -> Value {
    let mut clean = json!({});
    by_the_book(&mut clean, &value);
    clean
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nested_formats_merge_by_the_book_and_once(file in tree(), patch in tree()) {
        let file = without_nulls(file);
        let mut expected = file.clone();
        by_the_book(&mut expected, &patch);
        for format in [Json, Yaml, Toml] {
            let text = match format {
                Json => serde_json::to_string(&file).unwrap(),
                Yaml => serde_yaml::to_string(&file).unwrap(),
                _ => try_merge(Toml, "", &file).unwrap(),
            };
            let got = merged(format, &text, patch.clone());
            let read: Value = match format {
                Json => serde_json::from_str(&got).unwrap(),
                Yaml => serde_yaml::from_str::<Option<Value>>(&got).unwrap().unwrap_or_else(|| json!({})),
                _ => toml_to_json(&got),
            };
            prop_assert_eq!(&read, &expected, "{:?}\n{}", format, got);
            if expected == file {
                prop_assert_eq!(got, text);
            }
        }
    }

    #[test]
    fn line_formats_set_what_they_are_told_and_keep_the_rest(file in flat(), patch in flat(), gone in key()) {
        let mut wanted: Merge = patch.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
        wanted.insert(gone.clone(), Value::Null);
        let mut expected = file.clone();
        expected.extend(patch);
        expected.remove(&gone);

        let text = format!("# mine\n{}\n# end\n", conf_lines(&file));
        let got = merged(Conf, &text, wanted.clone().into());
        prop_assert_eq!(conf_parse(&got), expected.clone());
        prop_assert!(got.starts_with("# mine\n") && got.contains("# end\n"));

        let text = merged(Env, "# mine\n", file.iter().map(|(k, v)| (k.clone(), Value::from(v.clone()))).collect::<Merge>().into());
        let got = merged(Env, &text, wanted.clone().into());
        prop_assert_eq!(env::parse(&got), expected.clone());
        prop_assert!(got.starts_with("# mine\n"));

        let pairs: Vec<String> = file.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        let text = format!("; mine\n[other]\nx = 1\n[s]\n{}\n\n[end]\ny = 2\n", pairs.join("\n"));
        let got = merged(Ini, &text, json!({ "s": wanted }));
        let (_, section) = got.split_once("[s]\n").unwrap();
        let (section, end) = section.split_once("[end]").unwrap();
        let read: BTreeMap<String, String> = section
            .lines()
            .filter_map(|line| line.split_once(" = "))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        prop_assert_eq!(read, expected);
        prop_assert_eq!(end, "\ny = 2\n");
        prop_assert!(got.starts_with("; mine\n[other]\nx = 1\n"));
    }

    #[test]
    fn nothing_panics_on_any_bytes_and_twice_is_once(bytes in vec(any::<u8>(), 0..200), patch in tree()) {
        for format in FORMATS {
            if let Ok(once) = merge(format, &bytes, patch.as_object().unwrap()) {
                prop_assert_eq!(merge(format, &once, patch.as_object().unwrap()).unwrap(), once, "{:?}", format);
            }
        }
    }

    #[test]
    fn nothing_panics_on_lines_of_syntax(text in "([a-z\\[\\]{}=:#;\"'\\\\&*!|>%@, -]{0,8}\r?\n){0,12}", patch in tree()) {
        for format in FORMATS {
            if let Ok(once) = merge(format, text.as_bytes(), patch.as_object().unwrap()) {
                prop_assert_eq!(merge(format, &once, patch.as_object().unwrap()).unwrap(), once, "{:?}", format);
            }
        }
    }
}

fn conf_lines(file: &BTreeMap<String, String>) -> String {
    file.iter().map(|(key, value)| format!("{key} {value}")).collect::<Vec<_>>().join("\n")
}

fn conf_parse(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(' '));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn toml_to_json(text: &str) -> Value {
    fn value(item: &toml_edit::Value) -> Value {
        match item {
            toml_edit::Value::String(text) => text.value().as_str().into(),
            toml_edit::Value::Integer(number) => (*number.value()).into(),
            toml_edit::Value::Float(number) => (*number.value()).into(),
            toml_edit::Value::Boolean(flag) => (*flag.value()).into(),
            toml_edit::Value::Datetime(date) => date.value().to_string().into(),
            toml_edit::Value::Array(list) => list.iter().map(value).collect::<Vec<_>>().into(),
            toml_edit::Value::InlineTable(table) => {
                table.iter().map(|(key, item)| (key.to_owned(), value(item))).collect::<Merge>().into()
            }
        }
    }
    fn table(items: &dyn toml_edit::TableLike) -> Value {
        let convert = |item: &toml_edit::Item| match item.as_table_like() {
            Some(inner) => table(inner),
            None => value(item.as_value().unwrap()),
        };
        items.iter().map(|(key, item)| (key.to_owned(), convert(item))).collect::<Merge>().into()
    }
    table(text.parse::<toml_edit::DocumentMut>().unwrap().as_table())
}
