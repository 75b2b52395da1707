#![allow(clippy::unwrap_used, clippy::panic)]
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use age::secrecy::ExposeSecret;
use proptest::prelude::*;

use super::*;
use crate::source::Checkout;

/// A site `acme` in a checkout, with its key and one that is nobody's.
struct Place {
    dir: tempfile::TempDir,
    keys: Identities,
    recipients: Recipients,
}

fn key() -> (age::x25519::Identity, String) {
    let key = age::x25519::Identity::generate();
    let public = key.to_public().to_string();
    (key, public)
}

fn list(keys: &[&str]) -> Recipients {
    Recipients::parse("r", keys.join("\n").as_bytes()).unwrap()
}

fn secrets(pairs: &[(&str, &str)]) -> BTreeMap<SecretName, Secret> {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), Secret::new(*value))).collect()
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("sites/acme/secrets.d")).unwrap();
        let keys = Identities::of_site(dir.path()).unwrap();
        let recipients = list(&[keys.public()[0].as_str(), key().1.as_str()]);
        let place = Self { dir, keys, recipients };
        place.write("recipients.txt", place.recipients.to_string().as_bytes());
        place
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join("sites/acme").join(file)
    }

    fn write(&self, file: &str, content: &[u8]) {
        std::fs::write(self.path(file), content).unwrap();
    }

    fn seal(&self, file: &str, pairs: &[(&str, &str)]) {
        self.write(file, &seal(file, &secrets(pairs), &self.recipients).unwrap());
    }

    fn sealed(&self) -> Sealed {
        Sealed::read(&Checkout::new(self.dir.path()), &"acme".parse().unwrap())
    }

    fn local(&self, text: &str, mode: u32) -> PathBuf {
        let path = self.dir.path().join("secrets.yaml");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// What is known of a secret: its value, `none`, or the label of what is in the way.
    fn get(&self, name: &str, local: Option<&Path>) -> String {
        let secrets = Secrets::gather(&self.sealed(), &self.keys, local);
        match secrets.get(&name.parse().unwrap()) {
            Ok(Some(secret)) => secret.expose().to_owned(),
            Ok(None) => "none".to_owned(),
            Err(error) => {
                assert!(!format!("{error} {error:?}").contains("hunter"), "{error}");
                error.reason().to_owned()
            }
        }
    }

    fn lint(&self) -> Vec<&'static str> {
        let (tree, site) = (Checkout::new(self.dir.path()), "acme".parse().unwrap());
        self.sealed().lint(&tree, &site).iter().map(Finding::reason).collect()
    }
}

#[test]
fn the_sites_key_is_made_once_private_and_in_the_tools_format() {
    let dir = tempfile::tempdir().unwrap();
    let first = Identities::of_site(dir.path()).unwrap();
    assert_eq!(Identities::of_site(dir.path()).unwrap().public(), first.public());
    let file = dir.path().join("age.key");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.lines().last().unwrap().starts_with("AGE-SECRET-KEY-1"));
    assert!(!format!("{first:?}").contains("SECRET"));
    std::fs::write(&file, "AGE-SECRET-KEY-1hunter2\n").unwrap();
    let error = Identities::of_site(dir.path()).unwrap_err();
    assert_eq!(error.reason(), "secrets-identity-bad");
    assert!(!error.to_string().contains("hunter"));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(Identities::of_site(dir.path()).unwrap_err().reason(), "secrets-open-to-others");
}

#[test]
fn a_secrets_own_file_wins_over_the_common_one_and_that_over_the_local_one() {
    let place = Place::new();
    let local = place.local("one: hunter1\ntwo: hunter1\nthree: hunter1\n", 0o600);
    place.seal("secrets.age", &[("one", "hunter2"), ("two", "hunter2")]);
    place.seal("secrets.d/one.age", &[("one", "hunter3")]);
    for (name, value) in [("one", "hunter3"), ("two", "hunter2"), ("three", "hunter1"), ("four", "none")] {
        assert_eq!(place.get(name, Some(&local)), value, "{name}");
    }
    assert!(place.lint().is_empty());
    assert!(!format!("{:?}", Secrets::gather(&place.sealed(), &place.keys, Some(&local))).contains("hunter"));
}

#[test]
fn what_cannot_be_read_is_in_the_way_of_what_comes_after_it_and_of_nothing_else() {
    let place = Place::new();
    let local = place.local("two: hunter1\n", 0o600);
    place.seal("secrets.age", &[("one", "hunter2"), ("two", "hunter2")]);
    place.seal("secrets.d/one.age", &[("one", "hunter3")]);
    // Encrypted for somebody else.
    let whole = std::fs::read(place.path("secrets.age")).unwrap();
    let foreign = seal("f", &secrets(&[("one", "hunter4")]), &list(&[&key().1, &key().1])).unwrap();
    place.write("secrets.age", &foreign);
    assert_eq!(place.get("one", Some(&local)), "hunter3");
    assert_eq!(place.get("two", Some(&local)), "secrets-wrong-recipient", "a value of old does not come back");
    place.write("secrets.d/one.age", &foreign);
    assert_eq!(place.get("one", Some(&local)), "secrets-wrong-recipient");
    assert_eq!(place.lint(), ["secrets-wrong-recipient"; 2]);
    // Cut off, changed, no age file at all.
    for damaged in [&whole[..whole.len() / 2], b"mqtt: hunter2\n".as_slice(), b"".as_slice()] {
        place.write("secrets.age", damaged);
        assert_eq!(place.get("two", Some(&local)), "secrets-damaged");
        assert_eq!(place.lint()[0], "secrets-damaged");
    }
    place.write("secrets.age", &vec![b'x'; files::LIMIT + 1]);
    assert_eq!(place.get("two", Some(&local)), "secrets-too-large");
    // Readable, but no mapping of strings.
    for bad in ["[hunter", "two: [hunter]", "two: {a: hunter}", "Two: hunter\n"] {
        place.write("secrets.age", &sealed_text(bad, &place.recipients));
        assert_eq!(place.get("two", Some(&local)), "secrets-form", "{bad}");
    }
    place.write("secrets.age", &whole);
    assert_eq!(place.get("two", Some(&local)), "hunter2", "repaired");
}

/// Any text, encrypted.
fn sealed_text(text: &str, recipients: &Recipients) -> Vec<u8> {
    use std::io::Write;
    let keys = recipients.keys().iter().map(|key| key as &dyn age::Recipient);
    let mut sealed = Vec::new();
    let mut writer = age::Encryptor::with_recipients(keys).unwrap().wrap_output(&mut sealed).unwrap();
    writer.write_all(text.as_bytes()).unwrap();
    writer.finish().unwrap();
    sealed
}

#[test]
fn any_flipped_byte_of_the_header_or_content_is_noticed() {
    let place = Place::new();
    let keys = place.recipients.keys().iter().map(|key| key as &dyn age::Recipient);
    let mut binary = Vec::new();
    let mut writer = age::Encryptor::with_recipients(keys).unwrap().wrap_output(&mut binary).unwrap();
    std::io::Write::write_all(&mut writer, b"mqtt: hunter2\n").unwrap();
    writer.finish().unwrap();
    for at in 0..binary.len() {
        let mut changed = binary.clone();
        changed[at] ^= 1;
        let outcome = open("f", &changed, &place.keys).map_err(|error| error.reason());
        assert!(matches!(outcome, Err("secrets-damaged" | "secrets-wrong-recipient")), "byte {at}: {outcome:?}");
    }
}

#[test]
fn a_secret_cannot_be_put_in_another_ones_place_by_renaming_its_file() {
    let place = Place::new();
    place.seal("secrets.d/one.age", &[("two", "hunter2")]);
    assert_eq!(place.get("one", None), "secrets-form");
    place.seal("secrets.d/one.age", &[("one", "hunter2"), ("two", "hunter2")]);
    assert_eq!(place.get("one", None), "secrets-form");
    place.seal("secrets.d/one.age", &[("one", "hunter2")]);
    assert_eq!(place.get("one", None), "hunter2");
    std::fs::write(place.path("secrets.d/One.age"), "").unwrap();
    assert_eq!(place.get("two", None), "secrets-unreadable", "a file that nobody would ever read");
    assert_eq!(place.get("one", None), "secrets-unreadable");
}

#[test]
fn lint_tells_without_a_key_whom_a_file_is_for() {
    let place = Place::new();
    place.seal("secrets.age", &[("one", "hunter2")]);
    assert!(place.lint().is_empty());
    let told_of = |recipients: &Recipients| {
        let sealed = seal("f", &secrets(&[("one", "hunter2")]), recipients).unwrap();
        told("f", &sealed, &place.recipients).unwrap()
    };
    let [site, hq] = [place.recipients.keys()[0].to_string(), place.recipients.keys()[1].to_string()];
    assert_eq!(told_of(&list(&[&hq, &site])), Told::AsListed, "the order is immaterial");
    let Told::Otherwise(said) = told_of(&list(&[&site, &key().1])) else { panic!("another recipient was not told") };
    assert!(said.contains(&hq), "{said}");
    assert!(matches!(told_of(&list(&[&site])), Told::Otherwise(_)), "one is missing");
    assert!(matches!(told_of(&list(&[&site, &hq, &key().1])), Told::Otherwise(_)), "one too many");
    // Made by another tool: only the number of its recipients can be told.
    place.write("secrets.age", &sealed_text("one: hunter2\n", &place.recipients));
    assert_eq!(place.lint(), ["secrets-recipients-unknown"]);
    assert_eq!(place.get("one", None), "hunter2");
    place.write("secrets.age", &sealed_text("one: hunter2\n", &list(&[&site])));
    assert_eq!(place.lint(), ["secrets-wrong-recipient"]);
    std::fs::remove_file(place.path("recipients.txt")).unwrap();
    assert_eq!(place.lint(), ["secrets-recipients-bad"]);
    std::fs::remove_file(place.path("secrets.age")).unwrap();
    assert!(place.lint().is_empty(), "a site without secrets needs no list");
}

#[test]
fn a_local_file_that_others_may_read_is_refused() {
    let place = Place::new();
    assert_eq!(place.get("mqtt", Some(&place.local("mqtt: hunter2\n", 0o600))), "hunter2");
    assert_eq!(place.get("mqtt", Some(&place.local("mqtt: hunter2\n", 0o640))), "secrets-open-to-others");
}

#[test]
fn an_error_does_not_quote_the_file() {
    let place = Place::new();
    // `get` looks into every error for the value.
    for text in ["mqtt: [hunter2\n", "mqtt: {a: hunter2}\n", "hunter2\n", "- hunter2\n", "mqtt: &hunter2 *hunter2\n"] {
        assert_eq!(place.get("mqtt", Some(&place.local(text, 0o600))), "secrets-form", "{text}");
    }
}

proptest! {
    #[test]
    fn any_value_comes_back_as_it_was_or_is_refused(
        values in proptest::collection::btree_map("[a-z][a-z0-9._-]{0,8}", any::<String>(), 0..6)
    ) {
        let (key, public) = key();
        let pairs: Vec<(&str, &str)> = values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        match seal("f", &secrets(&pairs), &list(&[&public])) {
            Ok(sealed) => {
                let dir = tempfile::tempdir().unwrap();
                let file = dir.path().join("key");
                crate::files::write_private(&file, key.to_string().expose_secret().as_bytes()).unwrap();
                prop_assert_eq!(open("f", &sealed, &Identities::load(&file).unwrap()).unwrap(), secrets(&pairs));
            }
            Err(error) => prop_assert!(
                values.values().any(|value| value.chars().any(|c| c.is_control() || !c.is_ascii())),
                "{error}"
            ),
        }
    }
}

/// Runs the real tool. Debian has it in `age`; `ci/bootstrap` installs it.
fn age(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut child = Command::new("age")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("age cannot be run, is it installed (ci/bootstrap)? {error}"));
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "age {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn the_age_tool_reads_what_we_make_and_we_what_it_makes() {
    let place = Place::new();
    let (list, key) = (place.path("recipients.txt"), place.dir.path().join("age.key"));
    place.seal("secrets.age", &[("mqtt", "hunter2"), ("null", "~"), ("pin", "007"), ("true", "no")]);
    assert_eq!(["null", "pin", "true"].map(|name| place.get(name, None)), ["~", "007", "no"]);
    let sealed = std::fs::read(place.path("secrets.age")).unwrap();
    let plain = age(&["-d", "-i", key.to_str().unwrap()], &sealed);
    assert_eq!(String::from_utf8(plain).unwrap(), "mqtt: \"hunter2\"\nnull: \"~\"\npin: \"007\"\ntrue: \"no\"\n");
    for more in [&[][..], &["-a"]] {
        let arguments = [&["-R", list.to_str().unwrap()], more].concat();
        place.write("secrets.age", &age(&arguments, b"mqtt: hunter3\n"));
        assert_eq!(place.get("mqtt", None), "hunter3");
        assert_eq!(place.lint(), ["secrets-recipients-unknown"]);
    }
}
