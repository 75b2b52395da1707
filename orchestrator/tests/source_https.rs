//! Fetching over https from a small server that hands the requests to the git command.
#![allow(clippy::unwrap_used, clippy::panic)]

mod source_remote;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use orchestrator::source::{Fetched, Repository, Settings, SourceError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use source_remote::Remote;

/// A server with an authority of its own.
struct Server {
    remote: Remote,
    port: u16,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// On loopback, with a certificate for `name`.
    fn start(name: &str) -> Self {
        let remote = Remote::new();
        remote.write("releases/2026.06.yaml", "r").publish("a");

        let mut authority = CertificateParams::new(vec![]).unwrap();
        // libgit2 keeps one list for the process, in which OpenSSL looks for names.
        authority.distinguished_name.push(DnType::CommonName, remote.path().display().to_string());
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        fs::write(remote.path().join("ca.pem"), authority.pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let bare = remote.bare();
        let accepting = std::thread::spawn(move || {
            for connection in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let tls = ServerConnection::new(Arc::clone(&config)).unwrap();
                // A client that does not like the certificate hangs up in the middle.
                let _ = answer(StreamOwned::new(tls, connection.unwrap()), &bare);
            }
        });
        Self { remote, port, stop, accepting: Some(accepting) }
    }

    fn fetch(&self, path: &str, ca_file: Option<PathBuf>) -> Result<Fetched, SourceError> {
        let url = format!("https://localhost:{}/{path}", self.port);
        Repository::open(&self.remote.state(), Settings { url, ca_file, ..self.remote.settings() })?.fetch()
    }

    fn authority(&self) -> Option<PathBuf> {
        Some(self.remote.path().join("ca.pem"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(accepting) = self.accepting.take() {
            accepting.join().unwrap();
        }
    }
}

/// Answers the requests of one connection.
fn answer(stream: StreamOwned<ServerConnection, TcpStream>, bare: &Path) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if stream.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            stream.read_line(&mut header)?;
            if header.trim().is_empty() {
                break;
            }
            if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;

        let path = request.split(' ').nth(1).unwrap();
        let (status, more, kind, content) = match path {
            "/fleet.git/info/refs?service=git-upload-pack" => {
                let refs = upload_pack(bare, &["--advertise-refs"], b"");
                let content = [b"001e# service=git-upload-pack\n0000".as_slice(), &refs].concat();
                ("200 OK", "", "application/x-git-upload-pack-advertisement", content)
            }
            "/fleet.git/git-upload-pack" => {
                ("200 OK", "", "application/x-git-upload-pack-result", upload_pack(bare, &[], &body))
            }
            private if private.starts_with("/private.git") => {
                ("401 Unauthorized", "WWW-Authenticate: Basic realm=\"fleet\"\r\n", "text/plain", Vec::new())
            }
            moved if moved.starts_with("/moved.git") => {
                ("302 Found", "Location: /fleet.git/info/refs?service=git-upload-pack\r\n", "text/plain", Vec::new())
            }
            strayed if strayed.starts_with("/strayed.git") => {
                let elsewhere = "Location: https://127.0.0.1/fleet.git/info/refs?service=git-upload-pack\r\n";
                ("302 Found", elsewhere, "text/plain", Vec::new())
            }
            _ => ("404 Not Found", "", "text/plain", Vec::new()),
        };
        let stream = stream.get_mut();
        let length = content.len();
        write!(stream, "HTTP/1.1 {status}\r\n{more}Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n")?;
        stream.write_all(&content)?;
        stream.flush()?;
    }
}

fn upload_pack(bare: &Path, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("git")
        .args(["-c", "safe.directory=*", "upload-pack", "--stateless-rpc"])
        .args(arguments)
        .arg(bare)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap().stdout
}

#[test]
fn certificate_of_an_authority_that_is_trusted() {
    let server = Server::start("localhost");
    let fetched = server.fetch("fleet.git", server.authority()).unwrap();
    assert_eq!(fetched.head.as_str(), server.remote.git(&["rev-parse", "HEAD"]));
    assert!(fetched.bytes_received > 0);
}

#[test]
fn certificate_of_an_unknown_authority() {
    let server = Server::start("localhost");
    let error = server.fetch("fleet.git", None).unwrap_err();
    assert_eq!(error.reason(), "source-certificate", "{error}");
}

#[test]
fn certificate_of_another_host() {
    let server = Server::start("elsewhere.invalid");
    let error = server.fetch("fleet.git", server.authority()).unwrap_err();
    assert_eq!(error.reason(), "source-certificate", "{error}");
}

#[test]
fn authority_that_cannot_be_read() {
    let server = Server::start("localhost");
    let missing = server.remote.path().join("nothing.pem");
    assert_eq!(server.fetch("fleet.git", Some(missing)).unwrap_err().reason(), "source-certificate");
    let nonsense = server.remote.path().join("nonsense.pem");
    fs::write(&nonsense, "nonsense").unwrap();
    assert_eq!(server.fetch("fleet.git", Some(nonsense)).unwrap_err().reason(), "source-certificate");
}

#[test]
fn private_and_missing_repositories() {
    let server = Server::start("localhost");
    let reason = |path| server.fetch(path, server.authority()).unwrap_err().reason();
    assert_eq!(reason("private.git"), "source-auth");
    assert_eq!(reason("nothing.git"), "source-unreachable");
}

#[test]
fn redirect_to_another_host() {
    let server = Server::start("localhost");
    let error = server.fetch("strayed.git", server.authority()).unwrap_err();
    assert_eq!(error.reason(), "source-unreachable");
    assert!(error.to_string().contains("cannot redirect"), "{error}");
    // On the same host it is followed.
    server.fetch("moved.git", server.authority()).unwrap();
}
