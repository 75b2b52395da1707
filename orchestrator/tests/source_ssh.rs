//! Fetching over ssh from a real sshd, whose host key is or is not the one that a person accepted.
#![allow(clippy::unwrap_used, clippy::panic)]

mod source_remote;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use orchestrator::source::{Fetched, Repository, Settings, SourceError, SshAccess};
use source_remote::Remote;

/// One sshd per connection, on a port of loopback. It lives in a mount namespace of its own, because Debian's sshd wants
/// a directory below /run that need not be there.
struct Sshd {
    remote: Remote,
    port: u16,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Sshd {
    /// None, with the reason printed, where this machine cannot run one.
    fn start(host_keys: &[&str]) -> Option<Self> {
        let remote = Remote::new();
        remote.write("releases/2026.06.yaml", "r").publish("a");
        let at = |name: &str| remote.path().join(name).display().to_string();
        for key in ["ed25519", "ecdsa", "other", "client", "stranger"] {
            let kind = if key == "ecdsa" { "ecdsa" } else { "ed25519" };
            let arguments = ["-q", "-t", kind, "-N", "", "-C", "test", "-f"];
            let made = Command::new("ssh-keygen").args(arguments).arg(at(key)).status();
            if !made.is_ok_and(|status| status.success()) {
                println!("SKIPPED: ssh-keygen is not there");
                return None;
            }
        }
        fs::copy(at("client.pub"), at("authorized_keys")).unwrap();
        let mut config = format!(
            "UsePAM no\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\nPidFile none\n\
             AuthorizedKeysFile {}\nKbdInteractiveAuthentication no\n",
            at("authorized_keys")
        );
        for key in host_keys {
            config.push_str(&format!("HostKey {}\n", at(key)));
        }
        fs::write(at("sshd_config"), config).unwrap();

        let config = remote.path().join("sshd_config");
        match sshd(&config, &["-t"]).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                println!("SKIPPED: sshd does not start: {}", String::from_utf8_lossy(&output.stderr));
                return None;
            }
            Err(cause) => {
                println!("SKIPPED: sshd does not start: {cause}");
                return None;
            }
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let accepting = std::thread::spawn(move || {
            let mut serving = Vec::new();
            for connection in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let socket = OwnedFd::from(connection.unwrap());
                let mut command = sshd(&config, &["-i", "-e"]);
                command.stdin(socket.try_clone().unwrap()).stdout(socket).stderr(Stdio::null());
                serving.push(command.spawn().unwrap());
            }
            for mut server in serving {
                // A client that broke off leaves sshd waiting for its own time-out.
                let _ = server.kill();
                server.wait().unwrap();
            }
        });
        Some(Self { remote, port, stop, accepting: Some(accepting) })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.remote.path().join(name)
    }

    /// A known_hosts file with these keys for this server.
    fn known_hosts(&self, keys: &[&str]) -> PathBuf {
        let lines: String = keys.iter().map(|key| self.line("", key)).collect();
        self.write_known_hosts(&lines)
    }

    fn write_known_hosts(&self, lines: &str) -> PathBuf {
        let path = self.path("known_hosts");
        fs::write(&path, lines).unwrap();
        path
    }

    fn line(&self, marker: &str, key: &str) -> String {
        let public = fs::read_to_string(self.path(&format!("{key}.pub"))).unwrap();
        format!("{marker}[127.0.0.1]:{} {public}", self.port)
    }

    fn fetch(&self, key: &str, known_hosts: PathBuf) -> Result<Fetched, SourceError> {
        let user = Command::new("id").arg("-un").output().unwrap().stdout;
        let settings = Settings {
            url: format!(
                "ssh://{}@127.0.0.1:{}{}",
                String::from_utf8(user).unwrap().trim(),
                self.port,
                self.remote.bare().display()
            ),
            ssh: Some(SshAccess { key: self.path(key), known_hosts }),
            ..self.remote.settings()
        };
        Repository::open(&self.remote.state(), settings)?.fetch()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(accepting) = self.accepting.take() {
            accepting.join().unwrap();
        }
    }
}

fn sshd(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs run /run && mkdir -m 755 /run/sshd && exec /usr/sbin/sshd \"$@\"";
    command.args(["--mount", "sh", "-c", script, "sshd", "-f"]).arg(config).args(arguments);
    command
}

#[test]
fn key_and_host_key_that_are_known() {
    let Some(sshd) = Sshd::start(&["ed25519"]) else { return };
    let fetched = sshd.fetch("client", sshd.known_hosts(&["ed25519"])).unwrap();
    assert_eq!(fetched.head.as_str(), sshd.remote.git(&["rev-parse", "HEAD"]));
    assert!(fetched.bytes_received > 0);
}

#[test]
fn hashed_host_names() {
    let Some(sshd) = Sshd::start(&["ed25519"]) else { return };
    let known_hosts = sshd.known_hosts(&["ed25519"]);
    assert!(Command::new("ssh-keygen").args(["-q", "-H", "-f"]).arg(&known_hosts).status().unwrap().success());
    assert!(fs::read_to_string(&known_hosts).unwrap().starts_with("|1|"));
    sshd.fetch("client", known_hosts).unwrap();
}

#[test]
fn unknown_host_key() {
    let Some(sshd) = Sshd::start(&["ed25519"]) else { return };
    let error = sshd.fetch("client", sshd.known_hosts(&[])).unwrap_err();
    assert_eq!(error.reason(), "source-host-key-unknown", "{error}");
    let output = Command::new("ssh-keygen").arg("-lf").arg(sshd.path("ed25519.pub")).output().unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    let fingerprint = listed.split_whitespace().nth(1).unwrap();
    assert!(error.to_string().contains(fingerprint), "{error} has no {fingerprint}");
    assert!(error.remedy().contains(&format!("ssh-keyscan -t ssh-ed25519 -p {} 127.0.0.1", sshd.port)), "{error}");
}

#[test]
fn host_key_of_another_kind_only() {
    let Some(sshd) = Sshd::start(&["ed25519"]) else { return };
    let error = sshd.fetch("client", sshd.known_hosts(&["ecdsa"])).unwrap_err();
    assert_eq!(error.reason(), "source-host-key-unknown", "{error}");
    assert!(error.to_string().contains("it lists ecdsa-sha2-nistp256 for this host"), "{error}");
}

#[test]
fn changed_host_key() {
    let Some(sshd) = Sshd::start(&["ed25519"]) else { return };
    let error = sshd.fetch("client", sshd.known_hosts(&["other"])).unwrap_err();
    assert_eq!(error.reason(), "source-host-key-changed", "{error}");
}

#[test]
fn revoked_host_key() {
    let Some(sshd) = Sshd::start(&["ed25519"]) else { return };
    let lines = sshd.line("", "ed25519") + &sshd.line("@revoked ", "ed25519");
    let error = sshd.fetch("client", sshd.write_known_hosts(&lines)).unwrap_err();
    assert_eq!(error.reason(), "source-host-key-revoked", "{error}");
}

#[test]
fn wrong_client_key() {
    let Some(sshd) = Sshd::start(&["ed25519"]) else { return };
    let error = sshd.fetch("stranger", sshd.known_hosts(&["ed25519"])).unwrap_err();
    assert_eq!(error.reason(), "source-auth", "{error}");
}

#[test]
fn files_that_cannot_be_used() {
    let Some(sshd) = Sshd::start(&["ed25519"]) else { return };
    let reason = |key, known_hosts| sshd.fetch(key, known_hosts).unwrap_err().reason();
    assert_eq!(reason("nobody", sshd.known_hosts(&["ed25519"])), "source-ssh-key");
    assert_eq!(reason("client.pub", sshd.known_hosts(&["ed25519"])), "source-ssh-key");
    assert_eq!(reason("client", sshd.path("nothing")), "source-known-hosts");
    assert_eq!(reason("client", sshd.write_known_hosts("127.0.0.1 ssh-ed25519")), "source-known-hosts");
}
/// A list with only the ed25519 line of a forge is what people have.
#[test]
fn the_ed25519_key_is_asked_for_first() {
    let Some(sshd) = Sshd::start(&["ecdsa", "ed25519"]) else { return };
    sshd.fetch("client", sshd.known_hosts(&["ed25519"])).unwrap();
}
