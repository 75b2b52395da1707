//! Commit objects and their signatures, taken apart and put together again as an attacker would.
#![allow(clippy::unwrap_used, clippy::panic, dead_code, unreachable_pub)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::source_remote::Remote;

/// The header that a signature over `content` makes, with a private key of OpenSSH.
pub fn signature(key: &Path, namespace: &str, content: &str) -> String {
    let mut child = Command::new("ssh-keygen")
        .args(["-Y", "sign", "-q", "-n", namespace, "-f"])
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(content.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    format!("gpgsig {}\n", text.trim_end().replace('\n', "\n "))
}

/// Makes any bytes a commit, and the head.
pub fn write_commit(remote: &Remote, object: &str) -> String {
    remote.write("../object", object);
    let file = remote.path().join("object").display().to_string();
    let id = remote.git(&["hash-object", "-t", "commit", "-w", "--literally", &file]);
    remote.git(&["reset", "--quiet", "--hard", &id]);
    id
}

/// A commit object without its signature, and the header with the signature.
pub fn apart(object: &str) -> (String, String) {
    let start = object.find("gpgsig ").unwrap();
    let end = start + object[start..].find("\n\n").unwrap() + 1;
    (object[..start].to_owned() + &object[end..], object[start..end].to_owned())
}

/// Puts a header behind the committer's.
pub fn with_header(content: &str, header: &str) -> String {
    content.replacen("\n\n", &format!("\n{header}\n"), 1)
}
