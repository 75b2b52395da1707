//! `ctrlable release …`, alone and together with the minisign tool.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use orchestrator::trust::KeySet;
use serde_json::Value;
use tempfile::TempDir;

const MANIFEST: &str = "\
release: \"2026.06\"   # 2026.06 is the first
community_scripts_ref: \"v2026.05.3\"
proxmox_min_version: \"8.2\"
templates:
  zigbee2mqtt:
    kind: lxc
    builder: ct/zigbee2mqtt.sh
    resources: { cpu: 2, ram: 2048, disk: 8 }
";

/// A directory with a manifest, where commands are run.
struct Desk {
    directory: TempDir,
}

/// How a command ended.
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Desk {
    fn new() -> Self {
        let desk = Self { directory: TempDir::new().unwrap() };
        fs::write(desk.path("2026.06.yaml"), MANIFEST).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn ctrlable(&self, arguments: &[&str]) -> Ended {
        self.run(Path::new(env!("CARGO_BIN_EXE_ctrlable")), arguments, "")
    }

    fn release(&self, arguments: &[&str]) -> Ended {
        self.ctrlable(&[&["release"], arguments].concat())
    }

    fn minisign(&self, arguments: &[&str], stdin: &str) -> Ended {
        self.run(Path::new("minisign"), arguments, stdin)
    }

    fn run(&self, program: &Path, arguments: &[&str], stdin: &str) -> Ended {
        let mut child = Command::new(program)
            .args(arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that does not read its input closes it.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        let output = child.wait_with_output().unwrap();
        Ended {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// A key pair of ours without a password.
    fn keys(&self) {
        self.release(&["keygen", "--out", ".", "--no-password"]).fine();
    }

    fn sign(&self) -> Ended {
        self.release(&["sign", "2026.06.yaml", "--key", "hq.key"])
    }

    fn verify(&self) -> Ended {
        self.release(&["verify", "2026.06.yaml", "--pubkey", "hq.pub"])
    }
}

impl Ended {
    fn fine(self) -> Self {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self
    }

    /// Failed with this reason.
    fn refused(self, reason: &str) -> Self {
        assert_eq!(self.code, 1, "{}{}", self.stdout, self.stderr);
        assert!(self.stderr.contains(&format!("[{reason}]")), "{}", self.stderr);
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

/// Prints why a test is skipped where the tool is not installed.
fn minisign_is_here() -> bool {
    let here = Command::new("minisign").arg("-v").output().is_ok();
    if !here {
        println!("SKIPPED: minisign is not installed");
    }
    here
}

#[test]
fn ours_then_minisign() {
    if !minisign_is_here() {
        return;
    }
    let desk = Desk::new();
    desk.keys();
    desk.sign().fine();
    let comment = desk.minisign(&["-V", "-H", "-Q", "-p", "hq.pub", "-m", "2026.06.yaml"], "").fine().stdout;
    assert!(comment.starts_with("ctrlable release 2026.06 signed 20"), "{comment}");
    fs::write(desk.path("2026.06.yaml"), MANIFEST.replace("8.2", "8.3")).unwrap();
    assert_eq!(desk.minisign(&["-V", "-p", "hq.pub", "-m", "2026.06.yaml"], "").code, 1);
    desk.verify().refused("release-signature-wrong");
}

#[test]
fn minisign_then_ours() {
    if !minisign_is_here() {
        return;
    }
    let desk = Desk::new();
    desk.keys();
    desk.minisign(&["-S", "-s", "hq.key", "-m", "2026.06.yaml"], "").fine();
    let said = desk.verify().fine().stdout;
    assert!(said.contains("holds") && said.contains("ctrlable release sign"), "{said}");
    // A site wants to be told that this is a release.
    let strict = ["verify", "2026.06.yaml", "--pubkey", "hq.pub", "--strict"];
    desk.release(&strict).refused("release-comment-missing");
    // The comment may be written by hand.
    let comment = "ctrlable release 2026.06 signed 2026-11-20T12:00:00Z";
    desk.minisign(&["-S", "-s", "hq.key", "-m", "2026.06.yaml", "-t", comment], "").fine();
    desk.release(&strict).fine();
    // Any file can be signed, not only a manifest.
    fs::write(desk.path("notes"), "text").unwrap();
    desk.minisign(&["-S", "-s", "hq.key", "-m", "notes"], "").fine();
    desk.release(&["verify", "notes", "--pubkey", "hq.pub"]).fine();
}

#[test]
fn legacy_signatures_of_minisign() {
    if !minisign_is_here() {
        return;
    }
    let desk = Desk::new();
    desk.keys();
    desk.minisign(&["-S", "-l", "-s", "hq.key", "-m", "2026.06.yaml"], "").fine();
    desk.verify().fine();
    fs::write(desk.path("2026.06.yaml"), MANIFEST.replace("8.2", "8.3")).unwrap();
    desk.verify().refused("release-signature-wrong");
}

#[test]
fn keys_that_minisign_made() {
    if !minisign_is_here() {
        return;
    }
    let desk = Desk::new();
    desk.minisign(&["-G", "-W", "-p", "hq.pub", "-s", "hq.key"], "").fine();
    let signed = desk.release(&["sign", "2026.06.yaml", "--key", "hq.key", "--json"]).fine().json();
    // Both name a key alike.
    let public = fs::read_to_string(desk.path("hq.pub")).unwrap();
    assert!(public.lines().next().unwrap().ends_with(signed["key"].as_str().unwrap()), "{public}");
    desk.verify().fine();
    desk.minisign(&["-V", "-p", "hq.pub", "-m", "2026.06.yaml"], "").fine();
    // minisign leaves such a key without a checksum, so a damaged one must show when it signs.
    let good = fs::read_to_string(desk.path("hq.key")).unwrap();
    let mut damaged = good.clone().into_bytes();
    let seed = good.find('\n').unwrap() + 100;
    damaged[seed] = if damaged[seed] == b'A' { b'B' } else { b'A' };
    fs::write(desk.path("hq.key"), damaged).unwrap();
    desk.sign().refused("cryptography");
}

#[test]
fn password_of_a_key_that_minisign_made() {
    if !minisign_is_here() {
        return;
    }
    let desk = Desk::new();
    desk.minisign(&["-G", "-p", "hq.pub", "-s", "hq.key"], "correct horse\ncorrect horse\n").fine();
    fs::write(desk.path("right"), "correct horse\n").unwrap();
    fs::write(desk.path("wrong"), "battery staple\n").unwrap();
    let sign = |password| desk.release(&["sign", "2026.06.yaml", "--key", "hq.key", "--password-file", password]);
    sign("wrong").refused("password-wrong");
    sign("right").fine();
    desk.minisign(&["-V", "-p", "hq.pub", "-m", "2026.06.yaml"], "").fine();
}

#[test]
fn password_of_a_key_that_we_made() {
    if !minisign_is_here() {
        return;
    }
    let desk = Desk::new();
    fs::write(desk.path("right"), "correct horse\n").unwrap();
    desk.release(&["keygen", "--out", ".", "--password-file", "right"]).fine();
    assert_ne!(desk.minisign(&["-S", "-s", "hq.key", "-m", "2026.06.yaml"], "battery staple\n").code, 0);
    desk.minisign(&["-S", "-s", "hq.key", "-m", "2026.06.yaml"], "correct horse\n").fine();
    desk.verify().fine();
    desk.release(&["sign", "2026.06.yaml", "--key", "hq.key", "--password-file", "right"]).fine();
    desk.release(&["verify", "2026.06.yaml", "--pubkey", "hq.pub", "--strict"]).fine();
}

#[test]
fn a_password_is_asked_for_on_the_terminal_only() {
    let desk = Desk::new();
    // A session of its own has no terminal, whatever stdin is.
    let program = env!("CARGO_BIN_EXE_ctrlable");
    let arguments = ["--wait", program, "release", "keygen", "--out", "."];
    desk.run(Path::new("setsid"), &arguments, "secret\nsecret\n").refused("password-no-terminal");
    assert!(!desk.path("hq.key").exists());
    fs::write(desk.path("empty"), "\nsecond line\n").unwrap();
    desk.release(&["keygen", "--out", ".", "--password-file", "empty"]).refused("password-unusable");
    fs::write(desk.path("long"), "x".repeat(1025)).unwrap();
    desk.release(&["keygen", "--out", ".", "--password-file", "long"]).refused("password-unusable");
}

#[test]
fn any_flipped_byte() {
    let desk = Desk::new();
    desk.keys();
    desk.sign().fine();
    let keys = KeySet::parse(&[fs::read_to_string(desk.path("hq.pub")).unwrap()]).unwrap();
    let signature = fs::read(desk.path("2026.06.yaml.minisig")).unwrap();
    keys.verify(MANIFEST.as_bytes(), &signature).unwrap();
    for at in 0..MANIFEST.len() {
        let mut content = MANIFEST.as_bytes().to_vec();
        content[at] ^= 1 << (at % 8);
        assert!(keys.verify(&content, &signature).is_err(), "byte {at} of the file");
    }
    let untrusted_comment = "untrusted comment: ".len()..signature.iter().position(|byte| *byte == b'\n').unwrap();
    for at in (0..signature.len()).filter(|at| !untrusted_comment.contains(at)) {
        for bit in 0..8 {
            let mut flipped = signature.clone();
            flipped[at] ^= 1 << bit;
            assert!(keys.verify(MANIFEST.as_bytes(), &flipped).is_err(), "bit {bit} of byte {at} of the signature");
        }
    }
    for length in 0..signature.len() - 1 {
        assert!(keys.verify(MANIFEST.as_bytes(), &signature[..length]).is_err(), "cut to {length} bytes");
    }
}

#[test]
fn keys_are_never_overwritten_and_the_secret_one_is_private() {
    let desk = Desk::new();
    desk.release(&["keygen", "--out", "new/hq", "--no-password"]).fine();
    let mode = |name: &str| fs::metadata(desk.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("new/hq"), mode("new/hq/hq.key"), mode("new/hq/hq.pub")), (0o700, 0o600, 0o644));
    let before = fs::read(desk.path("new/hq/hq.key")).unwrap();
    desk.release(&["keygen", "--out", "new/hq", "--no-password"]).refused("file-exists");
    fs::remove_file(desk.path("new/hq/hq.pub")).unwrap();
    desk.release(&["keygen", "--out", "new/hq", "--no-password"]).refused("file-exists");
    assert_eq!(fs::read(desk.path("new/hq/hq.key")).unwrap(), before);
}

#[test]
fn nothing_prints_the_secret_key() {
    let desk = Desk::new();
    let made = desk.release(&["keygen", "--out", ".", "--no-password"]).fine();
    let signed = desk.sign().fine();
    let secret = fs::read_to_string(desk.path("hq.key")).unwrap();
    let secret = secret.lines().nth(1).unwrap();
    for ended in [made, signed] {
        assert!(!ended.stdout.contains(&secret[80..120]) && !ended.stderr.contains(&secret[80..120]));
    }
    assert!(!fs::read_to_string(desk.path("2026.06.yaml.minisig")).unwrap().contains(&secret[80..120]));
}

#[test]
fn what_is_not_a_secret_key() {
    let desk = Desk::new();
    desk.keys();
    let good = fs::read_to_string(desk.path("hq.key")).unwrap();
    let mut damaged = good.clone().into_bytes();
    let inside = good.find('\n').unwrap() + 150;
    damaged[inside] = if damaged[inside] == b'A' { b'B' } else { b'A' };
    for content in [b"".as_slice(), b"comment\n", b"comment\n!!!\n", b"comment\nAAAA\n", b"\xff\xfe", &damaged] {
        fs::write(desk.path("hq.key"), content).unwrap();
        desk.sign().refused("secret-key-malformed");
    }
    fs::copy(desk.path("hq.pub"), desk.path("hq.key")).unwrap();
    desk.sign().refused("secret-key-malformed");
    assert!(!desk.path("2026.06.yaml.minisig").exists());
}

#[test]
fn only_a_release_called_by_its_name_is_signed() {
    let desk = Desk::new();
    desk.keys();
    for (name, content, reason) in [
        ("notes.yaml", MANIFEST, "release-file-name"),
        ("2026.07.yaml", MANIFEST, "name-mismatch"),
        ("2026.06.yaml", "release: 2026.06\nreleased: yes\n", "unknown-field"),
        ("2026.06.yaml", "release: [", "yaml-syntax"),
    ] {
        fs::write(desk.path(name), content).unwrap();
        let ended = desk.release(&["sign", name, "--key", "hq.key"]);
        assert_eq!(ended.code, 1);
        assert!(ended.stderr.contains(&format!("[{reason}]")), "{name}: {}", ended.stderr);
        assert!(!desk.path(&format!("{name}.minisig")).exists());
    }
}

#[test]
fn signature_of_another_release() {
    let desk = Desk::new();
    desk.keys();
    desk.sign().fine();
    fs::copy(desk.path("2026.06.yaml"), desk.path("2026.07.yaml")).unwrap();
    fs::copy(desk.path("2026.06.yaml.minisig"), desk.path("2026.07.yaml.minisig")).unwrap();
    desk.release(&["verify", "2026.07.yaml", "--pubkey", "hq.pub"]).refused("release-comment-mismatch");
}

#[test]
fn unsigned_and_unknown_key() {
    let desk = Desk::new();
    desk.keys();
    desk.verify().refused("release-unsigned");
    desk.sign().fine();
    desk.release(&["keygen", "--out", "other", "--no-password"]).fine();
    let verify = |keys: &[&str]| desk.release(&[&["verify", "2026.06.yaml", "--pubkey"], keys].concat());
    verify(&["other/hq.pub"]).refused("release-key-unknown");
    // Several keys, from files or given themselves.
    verify(&["other/hq.pub", "hq.pub"]).fine();
    let encoded = fs::read_to_string(desk.path("hq.pub")).unwrap().lines().nth(1).unwrap().to_owned();
    verify(&[&encoded]).fine();
    verify(&["hq.pub", &encoded]).refused("key-duplicate");
    verify(&[&encoded[1..]]).refused("file-unreadable");
    verify(&["2026.06.yaml"]).refused("key-malformed");
    verify(&["nothing.pub"]).refused("file-unreadable");
}

#[test]
fn a_new_release_is_well_formed() {
    let desk = Desk::new();
    desk.release(&["new", "2026.07", "--scripts-ref", "v2026.06.1"]).fine();
    desk.release(&["lint", "2026.06.yaml", "2026.07.yaml"]).fine();
    desk.release(&["new", "2026.07", "--scripts-ref", "v2026.06.1"]).refused("file-exists");
    desk.release(&["new", "2026.08", "--scripts-ref", "main"]).refused("unpinned-ref");
    desk.release(&["new", "2026.08", "--scripts-ref", "x\"\ny: z"]).refused("unpinned-ref");
    assert!(!desk.path("2026.08.yaml").exists());
    desk.release(&["new", "2026.08", "--from", "2026.06.yaml"]).fine();
    let text = fs::read_to_string(desk.path("2026.08.yaml")).unwrap();
    assert_eq!(text, MANIFEST.replacen("2026.06", "2026.08", 1));
}

#[test]
fn lint_names_the_file_as_it_was_given() {
    let desk = Desk::new();
    fs::create_dir(desk.path("d")).unwrap();
    fs::write(desk.path("d/2026.07.yaml"), MANIFEST.replace("2026.06\"", "2026.07\"").replace("lxc", "pod")).unwrap();
    let ended = desk.release(&["lint", "2026.06.yaml", "d/2026.07.yaml"]).refused("bad-kind");
    assert!(ended.stderr.contains("d/2026.07.yaml:6: templates.zigbee2mqtt.kind"), "{}", ended.stderr);
    assert!(ended.stdout.contains("2026.06.yaml: release 2026.06, 1 template, fine"), "{}", ended.stdout);
    let report = desk.ctrlable(&["release", "lint", "2026.06.yaml", "d/2026.07.yaml", "--json"]).json();
    assert_eq!(report["ok"], false);
    assert_eq!(report["files"][0]["ok"], true);
    assert_eq!(report["files"][1]["refusals"][0]["reason"], "bad-kind");
    assert_eq!(report["files"][1]["refusals"][0]["line"], 6);
}

#[test]
fn json_and_exit_codes() {
    let desk = Desk::new();
    let made = desk.release(&["keygen", "--out", ".", "--no-password", "--json"]).fine().json();
    let signed = desk.release(&["sign", "2026.06.yaml", "--key", "hq.key", "--json"]).fine().json();
    let verified = desk.release(&["verify", "2026.06.yaml", "--pubkey", "hq.pub", "--json"]).fine().json();
    assert_eq!((&made["ok"], &signed["ok"], &verified["ok"]), (&true.into(), &true.into(), &true.into()));
    assert_eq!(made["key"], verified["key"]);
    assert_eq!(signed["release"], "2026.06");
    assert_eq!(signed["trusted_comment"], verified["trusted_comment"]);
    assert_eq!(verified["sha256"].as_str().unwrap().len(), 64);
    let failed = desk.release(&["verify", "2026.06.yaml", "--pubkey", "nothing.pub", "--json"]);
    assert_eq!((failed.code, failed.stderr.as_str()), (1, ""));
    assert_eq!(failed.json()["reason"], "file-unreadable");
    assert_eq!(desk.release(&["new", "June", "--scripts-ref", "v1"]).code, 64);
    assert_eq!(desk.release(&["new", "2026.08"]).code, 64);
    assert_eq!(desk.release(&["verify", "2026.06.yaml"]).code, 64);
    assert_eq!(desk.release(&["keygen"]).code, 64);
}
