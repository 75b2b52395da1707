//! Inputs, files and units of a template.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::{Map, Value};

use super::problems::{Checked, Path, Problems};
use super::raw::{self, Given};
use crate::assignment::FileFormat;
use crate::ids::{FileMode, GuestPath, UnitName};
use crate::manifest::{Input, InputKind, Need, WiredFile, Wiring};
use crate::reference::{self, Part};
use crate::refusal::Reason;

/// Where the value of an MQTT input comes from.
const SHARED_MQTT: &str = "shared.mqtt";

/// What `${mqtt.…}` can name.
const MQTT_PARTS: &[&str] = &["host", "port", "username", "password"];

/// First parts of the builtin references: no input may be called so.
const RESERVED: &[&str] = &["site", "instance"];

/// Folders that wiring may not write into: kernel file systems, the agent's own files, access to the guest.
const FORBIDDEN_FOLDERS: &[&str] =
    &["/proc", "/sys", "/dev", "/run/systemd", "/etc/ctrlable", "/var/lib/ctrlable-agent", "/root/.ssh"];

/// Files, or beginnings of files, that wiring may not write: the agent itself, accounts, the guest's identity.
const FORBIDDEN_FILES: &[&str] = &[
    "/usr/local/bin/ctrlable-agent",
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/passwd",
    "/etc/group",
    "/etc/sudoers",
    "/etc/machine-id",
    "/etc/ssh/ssh_host_",
    "/etc/systemd/system/ctrlable-agent.service",
];

/// Checks the wiring of one template.
pub(super) fn validate(problems: &Problems<'_>, at: &Path<'_>, raw: raw::Wiring) -> Checked<Wiring> {
    let inputs_refused = problems.refused(&at.key("inputs")).is_some();
    let inputs = inputs(problems, &at.key("inputs"), raw.inputs.0.unwrap_or_default());
    let known = match &inputs {
        Ok(inputs) if !inputs_refused => Some(all_references(inputs)),
        // With broken inputs, what their references mean cannot be told: only their form is checked.
        _ => None,
    };
    let files = files(problems, &at.key("files"), raw.files.0.unwrap_or_default(), known.as_ref());
    let units = units(problems, &at.key("units"), raw.units.0.unwrap_or_default());
    Ok(Wiring { inputs: inputs?, files: files?, units: units? })
}

fn inputs(
    problems: &Problems<'_>,
    at: &Path<'_>,
    raw: BTreeMap<String, Given<raw::Input>>,
) -> Checked<BTreeMap<String, Input>> {
    let mut inputs = BTreeMap::new();
    let mut refused = None;
    for (name, raw) in raw {
        let at = at.key(&name);
        let named = if RESERVED.contains(&name.as_str()) {
            let message = format!("`{name}` is a builtin: `${{{name}.name}}`");
            Err(problems.refuse(Reason::BadName, &at, message, "choose another name"))
        } else if reference::is_name(&name) {
            Ok(())
        } else {
            let remedy = "write a lower-case letter, then letters, digits and underscores, at most 40 characters";
            Err(problems.refuse(Reason::BadName, &at, "this is not the name of an input", remedy))
        };
        match (named, problems.need(&at, raw).and_then(|raw| input(problems, &at, raw))) {
            (Ok(()), Ok(input)) => drop(inputs.insert(name, input)),
            (Err(reported), _) | (_, Err(reported)) => refused = Some(reported),
        }
    }
    refused.map_or(Ok(inputs), Err)
}

fn input(problems: &Problems<'_>, at: &Path<'_>, raw: raw::Input) -> Checked<Input> {
    let refuse = |field, message: &str, remedy: &str| {
        problems.refuse(Reason::BadInputDefinition, &at.key(field), message, remedy)
    };
    let written = problems.need(&at.key("type"), raw.kind)?;
    let schemes = raw.schemes.0.map(|raw| schemes(problems, &at.key("schemes"), raw)).transpose()?;
    let kind = match written.as_str() {
        "mqtt" => InputKind::Mqtt,
        "url" => InputKind::Url { schemes: schemes.clone().unwrap_or_default() },
        "string" => InputKind::String,
        "integer" => InputKind::Integer,
        "boolean" => InputKind::Boolean,
        "secret" => InputKind::Secret,
        _ => {
            let remedy = "write mqtt, url, string, integer, boolean or secret";
            return Err(refuse("type", "this is not a type of input", remedy));
        }
    };
    if schemes.is_some() && !matches!(kind, InputKind::Url { .. }) {
        return Err(refuse("schemes", "only inputs of type url have schemes", "take it out, or write `type: url`"));
    }
    match (&kind, raw.from.0.as_deref()) {
        (InputKind::Mqtt, Some(SHARED_MQTT)) => {}
        (InputKind::Mqtt, _) => {
            let message = "an input of type mqtt is the site's shared service";
            return Err(refuse("from", message, "write `from: shared.mqtt`"));
        }
        (_, Some(_)) => {
            let message = "only inputs of type mqtt come from a shared service";
            return Err(refuse("from", message, "take it out: an instance gives the value in its `wiring`"));
        }
        (_, None) => {}
    }
    let required = raw.required.0.unwrap_or(false);
    if let Some(default) = &raw.default.0 {
        if required {
            let message = "a required input is always given, so a default would never be used";
            return Err(refuse("default", message, "take out `default`, or `required`"));
        }
        match (&kind, default) {
            (InputKind::Mqtt | InputKind::Secret, _) => {
                let message = "an input of this type has no default";
                return Err(refuse("default", message, "take it out: a manifest is read by everybody"));
            }
            (kind, value) if value_fits(kind, value).is_err() => {
                return Err(refuse("default", "the default is not of the input's type", "correct one of the two"));
            }
            _ => {}
        }
    }
    let need = if required { Need::Required } else { Need::Optional };
    Ok(Input { kind, need, default: raw.default.0, help: raw.help.0 })
}

fn schemes(problems: &Problems<'_>, at: &Path<'_>, raw: Vec<Given<String>>) -> Checked<Vec<String>> {
    let mut schemes = Vec::with_capacity(raw.len());
    for (index, given) in raw.into_iter().enumerate() {
        let at = at.index(index);
        let scheme = problems.need(&at, given)?;
        if !is_scheme(&scheme) || scheme.bytes().any(|byte| byte.is_ascii_uppercase()) {
            let message = "this is not the scheme of a URL";
            let remedy = "write it in lower case and without `://`, such as tcp";
            return Err(problems.refuse(Reason::BadInputDefinition, &at, message, remedy));
        }
        schemes.push(scheme);
    }
    Ok(schemes)
}

/// RFC 3986, section 3.1.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+.-".contains(&byte))
}

/// Why a value does not fit an input. Nothing of the value is in it.
pub(super) struct Misfit {
    /// Label.
    pub(super) reason: Reason,
    /// What is wrong.
    pub(super) message: &'static str,
    /// What to do.
    pub(super) remedy: String,
}

/// Whether a plain value fits an input.
pub(super) fn value_fits(kind: &InputKind, value: &Value) -> Result<(), Misfit> {
    let misfit = |message, remedy: &str| Err(Misfit { reason: Reason::BadInput, message, remedy: remedy.to_owned() });
    match (kind, value) {
        (InputKind::Url { schemes }, Value::String(text)) => url_fits(schemes, text),
        (InputKind::Url { .. }, _) => misfit("this input takes a URL", "write a URL as a text"),
        (InputKind::String, Value::String(text)) if text.chars().any(char::is_control) => {
            misfit("control characters or several lines stand in this text", "write one line of text")
        }
        (InputKind::String, Value::String(_)) | (InputKind::Boolean, Value::Bool(_)) => Ok(()),
        (InputKind::Integer, Value::Number(number)) if !number.is_f64() => Ok(()),
        (InputKind::String, _) => misfit("this input takes a text", "write the value in quotes"),
        (InputKind::Integer, _) => misfit("this input takes a whole number", "write it without quotes and fraction"),
        (InputKind::Boolean, _) => misfit("this input takes a truth value", "write true or false, without quotes"),
        (InputKind::Secret, _) => Err(Misfit {
            reason: Reason::PlainSecret,
            message: "a secret stands here in plain text",
            remedy: "write `{ secret: name }` and give it a value with `ctrlable secrets set name`; what \
                     stood here is in git's history now: change it where it is used"
                .to_owned(),
        }),
        (InputKind::Mqtt, _) => {
            misfit("this input is the site's MQTT service", "take it out, and define `shared.mqtt`")
        }
    }
}

fn url_fits(schemes: &[String], text: &str) -> Result<(), Misfit> {
    let form = "write SCHEME://HOST:PORT, without blanks";
    let bad = |message| Err(Misfit { reason: Reason::BadInput, message, remedy: form.to_owned() });
    let Some((scheme, rest)) = text.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) else {
        return bad("this input takes a URL, and this is none");
    };
    if !schemes.is_empty() && !schemes.iter().any(|known| known == scheme) {
        let remedy = format!("write a URL with one of these schemes: {}", schemes.join(", "));
        return Err(Misfit { reason: Reason::BadScheme, message: "the input does not take this scheme", remedy });
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let place = authority.rsplit('@').next().unwrap_or_default();
    let (host, port) = match place.rsplit_once(':').filter(|_| !place.ends_with(']')) {
        Some((host, port)) => (host, port.parse::<u16>().is_ok_and(|port| port > 0)),
        None => (place, true),
    };
    // `file:///path` has no host; every other one has.
    if (host.is_empty() && scheme != "file") || !port || !super::manifest::is_url_text(text) {
        return bad("the host, the port or a character of this URL is wrong");
    }
    Ok(())
}

fn files(
    problems: &Problems<'_>,
    at: &Path<'_>,
    raw: Vec<raw::WiredFile>,
    known: Option<&BTreeSet<String>>,
) -> Checked<Vec<WiredFile>> {
    let mut files: Vec<WiredFile> = Vec::with_capacity(raw.len());
    let mut seen = HashSet::new();
    let mut refused = None;
    for (index, raw) in raw.into_iter().enumerate() {
        let at = at.index(index);
        match file(problems, &at, raw, known) {
            Ok(file) if !seen.insert(file.path.clone()) => {
                let message = format!("{} stands in this wiring already", file.path);
                let remedy = "write one file with both merges";
                refused = Some(problems.refuse(Reason::DuplicatePath, &at.key("path"), message, remedy));
            }
            Ok(file) => files.push(file),
            Err(reported) => refused = Some(reported),
        }
    }
    refused.map_or(Ok(files), Err)
}

fn file(
    problems: &Problems<'_>,
    at: &Path<'_>,
    raw: raw::WiredFile,
    known: Option<&BTreeSet<String>>,
) -> Checked<WiredFile> {
    let path_at = at.key("path");
    let path = problems.need_parsed(&path_at, Reason::BadPath, raw.path).and_then(|path: GuestPath| {
        if is_forbidden(path.as_str()) {
            let message = format!("wiring may not write {path}");
            let remedy =
                "kernel file systems, accounts, SSH keys and the agent's own files are not an appliance's wiring";
            return Err(problems.refuse(Reason::ForbiddenPath, &path_at, message, remedy));
        }
        Ok(path)
    });
    let format_at = at.key("format");
    let format = problems.need(&format_at, raw.format).and_then(|text| match text.as_str() {
        "yaml" => Ok(FileFormat::Yaml),
        "json" => Ok(FileFormat::Json),
        "toml" => Ok(FileFormat::Toml),
        "ini" => Ok(FileFormat::Ini),
        "env" => Ok(FileFormat::Env),
        "conf" => Ok(FileFormat::Conf),
        _ => {
            let message = "this is not a file format that can be merged into";
            Err(problems.refuse(Reason::BadFormat, &format_at, message, "write yaml, json, toml, ini, env or conf"))
        }
    });
    let mode_at = at.key("mode");
    let mode = problems.parsed(&mode_at, Reason::BadMode, raw.mode).and_then(|mode: Option<FileMode>| {
        let bits = mode.as_ref().map_or(0, FileMode::bits);
        let message = if bits & 0o7000 != 0 {
            "set-uid, set-gid and sticky bits are not for wired files"
        } else if bits & 0o002 != 0 {
            "everybody in the guest could write this file"
        } else {
            return Ok(mode);
        };
        Err(problems.refuse(Reason::BadMode, &mode_at, message, "write a mode such as \"0600\" or \"0644\""))
    });
    let owner = problems.parsed(&at.key("owner"), Reason::BadOwner, raw.owner);
    let merge_at = at.key("merge");
    let merge = problems.need(&merge_at, raw.merge).and_then(|merge| {
        if merge.is_empty() {
            let message = "there is nothing to merge";
            return Err(problems.refuse(Reason::BadMerge, &merge_at, message, "name what must stand in the file"));
        }
        if let Ok(format) = format {
            fits(problems, &merge_at, format, &merge)?;
        }
        let merge = Value::Object(merge);
        references(problems, &merge_at, &merge, known)?;
        Ok(merge)
    });
    Ok(WiredFile { path: path?, format: format?, mode: mode?, owner: owner?, merge: merge? })
}

fn is_forbidden(path: &str) -> bool {
    let within = |folder: &str| path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    FORBIDDEN_FOLDERS.iter().any(|folder| within(folder)) || FORBIDDEN_FILES.iter().any(|file| path.starts_with(file))
}

/// Whether a format can hold a merge.
fn fits(problems: &Problems<'_>, at: &Path<'_>, format: FileFormat, merge: &Map<String, Value>) -> Checked<()> {
    let levels = match format {
        FileFormat::Yaml | FileFormat::Json | FileFormat::Toml => return Ok(()),
        FileFormat::Ini => 2,
        FileFormat::Env | FileFormat::Conf => 1,
    };
    level_fits(problems, at, format, merge, levels)
}

/// One level of a format of lines.
fn level_fits(
    problems: &Problems<'_>,
    at: &Path<'_>,
    format: FileFormat,
    merge: &Map<String, Value>,
    levels: usize,
) -> Checked<()> {
    for (key, value) in merge {
        let at = at.key(key);
        let refuse = |message: &str, remedy: &str| Err(problems.refuse(Reason::BadMerge, &at, message, remedy));
        let good_key = match format {
            FileFormat::Env => {
                !key.is_empty()
                    && !key.starts_with(|first: char| first.is_ascii_digit())
                    && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            }
            _ => {
                let blank = |letter: char| format == FileFormat::Conf && letter.is_whitespace();
                let usual = |letter: char| !letter.is_control() && !"=[]".contains(letter) && !blank(letter);
                !key.is_empty() && !key.starts_with(['#', ';']) && key.trim() == key && key.chars().all(usual)
            }
        };
        if !good_key {
            return refuse("this format has no key like that", "write the key as it stands in the file");
        }
        let one_line = |text: &str| !text.contains(['\n', '\r', '\0']);
        match value {
            Value::String(text) if !one_line(text) => {
                return refuse("this format has one line for a value", "write one line");
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            Value::Array(items) if format == FileFormat::Conf => {
                let line = |item: &Value| match item {
                    Value::String(text) => one_line(text),
                    Value::Bool(_) | Value::Number(_) => true,
                    Value::Null | Value::Array(_) | Value::Object(_) => false,
                };
                if !items.iter().all(line) {
                    return refuse("a list of this format holds one line for each item", "write texts and numbers");
                }
            }
            Value::Array(_) => return refuse("this format has no lists", "write one text as the file has it"),
            Value::Object(fields) if levels > 1 => level_fits(problems, &at, format, fields, levels - 1)?,
            Value::Object(_) => return refuse("this format is not nested that deep", "write `key: value`"),
        }
    }
    Ok(())
}

/// Checks every `${…}` of a merge.
fn references(problems: &Problems<'_>, at: &Path<'_>, merge: &Value, known: Option<&BTreeSet<String>>) -> Checked<()> {
    let mut last = Ok(());
    match merge {
        Value::String(text) => return references_of_text(problems, at, text, known),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                last = references(problems, &at.index(index), item, known).and(last);
            }
        }
        Value::Object(fields) => {
            for (key, field) in fields {
                let at = at.key(key);
                if key.contains("${") {
                    let message = "a reference stands in the name of a field";
                    let remedy = "references are replaced in values only";
                    last = Err(problems.refuse(Reason::BadReference, &at, message, remedy));
                }
                last = references(problems, &at, field, known).and(last);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    last
}

fn references_of_text(
    problems: &Problems<'_>,
    at: &Path<'_>,
    text: &str,
    known: Option<&BTreeSet<String>>,
) -> Checked<()> {
    let parts = reference::parse(text).map_err(|error| {
        let remedy = "write `${input}` or `${mqtt.host}`; for the text `${` itself write `$${`";
        problems.refuse(Reason::BadReference, at, error.to_string(), remedy)
    })?;
    let Some(known) = known else { return Ok(()) };
    for part in parts {
        if let Part::Reference(name) = part
            && !known.contains(name)
        {
            let remedy = super::read::nearest(name, known.iter().map(String::as_str));
            let message = format!("`${{{name}}}` names nothing");
            return Err(problems.refuse(Reason::BadReference, at, message, remedy));
        }
    }
    Ok(())
}

/// Everything that a template's strings may refer to.
fn all_references(inputs: &BTreeMap<String, Input>) -> BTreeSet<String> {
    let mut all: BTreeSet<String> = reference::BUILTINS.iter().map(|&builtin| builtin.to_owned()).collect();
    for (name, input) in inputs {
        match input.kind {
            InputKind::Mqtt => all.extend(MQTT_PARTS.iter().map(|part| format!("{name}.{part}"))),
            _ => drop(all.insert(name.clone())),
        }
    }
    all
}

fn units(problems: &Problems<'_>, at: &Path<'_>, raw: Vec<Given<String>>) -> Checked<Vec<UnitName>> {
    let mut units = Vec::with_capacity(raw.len());
    let mut refused = None;
    for (index, given) in raw.into_iter().enumerate() {
        let at = at.index(index);
        let unit = problems.need_parsed::<UnitName>(&at, Reason::BadUnit, given).and_then(|unit| {
            if unit.as_str().starts_with("ctrlable-agent.") {
                let message = "the agent cannot restart itself as a part of its own wiring";
                return Err(problems.refuse(Reason::BadUnit, &at, message, "take it out"));
            }
            Ok(unit)
        });
        match unit {
            Ok(unit) => units.push(unit),
            Err(reported) => refused = Some(reported),
        }
    }
    refused.map_or(Ok(units), Err)
}
