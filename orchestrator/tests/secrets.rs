//! `ctrlable secrets` in a checkout: what needs no key needs none, a value is never in the arguments or in a file
//! outside memory, and what is written is what the `age` tool reads.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A checkout with a site, the site's key and HQ's recovery key.
struct Fleet {
    dir: tempfile::TempDir,
}

const CONFIG: &str = r#"
site = "acme"
state = "state"
[source]
url = "file:///nowhere"
[trust]
keys = ["RWQ"]
[proxmox]
url = "https://192.0.2.1:8006"
token_file = "token"
fingerprint = "00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF"
[agents]
advertise = ["https://192.0.2.2:8443"]
"#;

impl Fleet {
    /// Both keys are on the list already.
    fn new() -> Self {
        let fleet = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(fleet.dir.path().join("state")).unwrap();
        fs::write(fleet.dir.path().join("orchestrator.toml"), CONFIG).unwrap();
        fs::write(fleet.dir.path().join("token"), "u@pve!t=00000000-0000-4000-8000-000000000000").unwrap();
        let site = fleet.says(&["recipients"]).trim().to_owned();
        fleet.run_in(&["recipients", "--add", &site, "--comment", "the site"]);
        fleet.run_in(&["recipients", "--add", &fleet.key("hq.key"), "--comment", "HQ's recovery key"]);
        fleet
    }

    /// Makes a key with the real tool; returns its public key.
    fn key(&self, name: &str) -> String {
        let file = self.path(name);
        let made = Command::new("age-keygen").arg("-o").arg(&file).output().unwrap();
        assert!(made.status.success());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn site(&self, name: &str) -> PathBuf {
        self.path("sites/acme").join(name)
    }

    /// `ctrlable secrets`, with nothing on standard input.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ctrlable"));
        command
            .arg("secrets")
            .args(arguments)
            .env("CTRLABLE_CONFIG", self.path("orchestrator.toml"))
            .env_remove("VISUAL")
            .env_remove("EDITOR")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// The same on the site of the checkout.
    fn command_in(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(arguments);
        command.arg("--fleet").arg(self.dir.path()).args(["--site", "acme"]);
        command
    }

    fn says(&self, arguments: &[&str]) -> String {
        good(&self.command(arguments).output().unwrap())
    }

    fn run_in(&self, arguments: &[&str]) -> String {
        good(&self.command_in(arguments).output().unwrap())
    }

    /// What a refused command said.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.command_in(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        text(&output)
    }

    fn set(&self, name: &str, value: &str) {
        let mut child = self.command_in(&["set", name]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(value.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(!good(&output).contains(value.trim()));
    }

    /// What the age tool reads in a file with a key.
    fn opened(&self, file: &str, key: &str) -> String {
        good(&Command::new("age").args(["-d", "-i"]).arg(self.path(key)).arg(self.site(file)).output().unwrap())
    }

    /// A script for $EDITOR.
    fn editor(&self, script: &str) -> String {
        let file = self.path("editor");
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        file.display().to_string()
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Directories that an editor was given.
fn in_memory() -> Vec<PathBuf> {
    let entries = fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("ctrlable-")).collect()
}

#[test]
fn a_secret_is_set_and_rotated_without_any_key() {
    let fleet = Fleet::new();
    fleet.set("mqtt", "rain-kettle-41\n");
    for key in ["state/age.key", "hq.key"] {
        assert_eq!(fleet.opened("secrets.d/mqtt.age", key), "mqtt: \"rain-kettle-41\"\n");
    }
    let said = fleet.run_in(&["rotate", "mqtt"]);
    let rotated = fleet.opened("secrets.d/mqtt.age", "hq.key");
    let value = rotated.trim().strip_prefix("mqtt: ").unwrap().trim_matches('"').to_owned();
    assert!(value.len() == 32 && value.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{value}");
    assert!(!said.contains(&value));
    // Kind and length as before, for who can read it.
    fleet.set("pin", "004711");
    fleet.run_in(&["rotate", "pin", "--identity", fleet.path("hq.key").to_str().unwrap()]);
    let pin = fleet.opened("secrets.d/pin.age", "hq.key");
    let digits = pin.trim().trim_start_matches("pin: ").trim_matches('"');
    assert!(digits.len() == 6 && digits.bytes().all(|byte| byte.is_ascii_digit()) && digits != "004711", "{pin}");
    assert!(fleet.refused(&["rotate", "other"]).contains("no secret `other`"));
    assert!(fleet.refused(&["set", "empty"]).contains("nothing"));
}

#[test]
fn an_edit_is_in_memory_and_gathers_everything_in_one_file() {
    let fleet = Fleet::new();
    let hq = fleet.path("hq.key").display().to_string();
    fleet.set("mqtt", "rain-kettle-41");
    fleet.set("pin", "4711");
    assert!(fleet.refused(&["edit"]).contains("--identity"));
    let copy = fleet.path("seen");
    let script = fleet.editor(&format!(
        "stat -c '%a %U' \"$1\" > {copy}; echo \"$1\" >> {copy}; cp \"$1\" \"$1~\"\n\
         sed -i -e '/^pin/d' -e 's/rain-kettle-41/north-paper-92/' \"$1\"; echo 'fresh: new' >> \"$1\"",
        copy = copy.display()
    ));
    let output = fleet.command_in(&["edit", "--identity", &hq]).env("EDITOR", &script).output().unwrap();
    let said = good(&output);
    for part in ["pin is gone", "mqtt changed", "fresh is new"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(!text(&output).contains("paper"));
    let seen = fs::read_to_string(&copy).unwrap();
    let (mode, path) = seen.trim().split_once('\n').unwrap();
    assert!(mode.starts_with("600 ") && path.starts_with("/dev/shm/ctrlable-"), "{seen}");
    assert!(!Path::new(path).parent().unwrap().exists(), "what the editor saw is still there");
    assert_eq!(fleet.opened("secrets.age", "state/age.key"), "fresh: \"new\"\nmqtt: \"north-paper-92\"\n");
    assert_eq!(fs::read_dir(fleet.site("secrets.d")).unwrap().count(), 0, "single files are gathered");
    // What is no mapping, and an editor that fails, change nothing.
    let before = fs::read(fleet.site("secrets.age")).unwrap();
    for script in ["echo '[' > \"$1\"", "exit 3"] {
        let editor = fleet.editor(script);
        let output = fleet.command_in(&["edit", "--identity", &hq]).env("EDITOR", editor).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    }
    assert_eq!(fs::read(fleet.site("secrets.age")).unwrap(), before);
}

#[test]
fn an_edit_that_is_told_to_stop_leaves_nothing_behind() {
    let fleet = Fleet::new();
    fleet.set("mqtt", "rain-kettle-41");
    let told = fleet.path("told");
    let editor = fleet.editor(&format!("echo \"$1\" > {0}.new; mv {0}.new {0}; exec sleep 60", told.display()));
    let hq = fleet.path("hq.key").display().to_string();
    let child = fleet.command_in(&["edit", "--identity", &hq]).env("EDITOR", editor).spawn().unwrap();
    let began = Instant::now();
    while !told.exists() {
        assert!(began.elapsed() < Duration::from_secs(30), "the editor was not started");
        std::thread::sleep(Duration::from_millis(20));
    }
    let file = PathBuf::from(fs::read_to_string(&told).unwrap().trim());
    assert!(file.exists() && in_memory().iter().any(|path| file.starts_with(path)));
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(!file.parent().unwrap().exists(), "the file in memory is still there");
}

#[test]
fn a_list_that_changes_brings_the_secrets_along() {
    let fleet = Fleet::new();
    let hq = fleet.path("hq.key").display().to_string();
    fleet.set("mqtt", "rain-kettle-41");
    let new = fleet.key("new.key");
    assert!(fleet.refused(&["recipients", "--add", &new]).contains("--identity"));
    let list = fs::read_to_string(fleet.site("recipients.txt")).unwrap();
    assert!(!list.contains(&new), "a list that nobody encrypted for");
    fleet.run_in(&["recipients", "--add", &new, "--comment", "the new one", "--identity", &hq]);
    assert_eq!(fleet.opened("secrets.age", "new.key"), "mqtt: \"rain-kettle-41\"\n");
    assert!(fleet.run_in(&["recipients"]).contains(&format!("{new}  the new one")));
    fleet.run_in(&["recipients", "--remove", &new, "--identity", &hq]);
    let mut opened = Command::new("age");
    opened.args(["-d", "-i"]).arg(fleet.path("new.key")).arg(fleet.site("secrets.age"));
    assert!(!opened.output().unwrap().status.success(), "who was taken off still reads it");
    assert_eq!(fs::read_to_string(fleet.site("recipients.txt")).unwrap(), list);
    let private = fs::read_to_string(fleet.path("hq.key")).unwrap();
    let said = fleet.refused(&["recipients", "--add", private.lines().last().unwrap()]);
    assert!(!said.contains("KEY-1"), "{said}");
}
