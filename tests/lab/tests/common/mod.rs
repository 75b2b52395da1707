//! A lab of one's own, and a client that shows everything: reason phrases, headers, how a connection ended.
#![allow(clippy::unwrap_used, clippy::panic, dead_code, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::Value;

/// How long an event may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// An answer as it came over the wire.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub reason: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }
    pub fn data(&self) -> Value {
        self.json()["data"].clone()
    }
}

/// A running lab; ends with the value.
pub struct Lab {
    pub dir: PathBuf,
    options: Vec<String>,
    child: Child,
    address: String,
    tls: Arc<rustls::ClientConfig>,
    pub token: String,
    pub root: String,
}

impl Lab {
    /// Starts a lab on a state directory.
    pub fn start(dir: &Path, options: &[&str]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut child = Command::new(env!("CARGO_BIN_EXE_ctrlable-lab"))
            .args(["serve", "--state", dir.to_str().unwrap()])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let lab: Value = serde_json::from_str(&line).expect("the lab announces itself in JSON");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(lab["ca"].as_str().unwrap()).unwrap()).unwrap();
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let secret = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap().trim().to_owned();
        Self {
            dir: dir.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            child,
            address: lab["url"].as_str().unwrap().trim_start_matches("https://").to_owned(),
            tls: Arc::new(tls),
            token: secret("token"),
            root: secret("root-token"),
        }
    }

    /// Pulls the plug and starts it again.
    pub fn kill_and_restart(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        Self::start(&self.dir.clone(), &options)
    }

    /// Asks it to end, waits for that, and starts it again.
    pub fn end_and_restart(mut self) -> Self {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        Self::start(&self.dir.clone(), &options)
    }

    /// Sends bytes and reads to the end of the connection.
    pub fn raw(&self, request: &[u8]) -> Option<Answer> {
        let name = ServerName::try_from("localhost").unwrap();
        let connection = rustls::ClientConnection::new(Arc::clone(&self.tls), name).unwrap();
        let socket = TcpStream::connect(&self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, socket);
        stream.write_all(request).unwrap();
        let mut bytes = Vec::new();
        // A server that drops the connection sends no close_notify, which reads as an error after the last byte.
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let mut first = lines.next()?.splitn(3, ' ');
        let status = first.nth(1)?.parse().ok()?;
        Some(Answer {
            status,
            reason: first.next().unwrap_or_default().to_owned(),
            headers: lines
                .filter_map(|line| line.split_once(": "))
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            body: body.to_owned(),
        })
    }

    /// A call with a form body, as somebody.
    pub fn call(&self, token: &str, method: &str, path: &str, body: &str) -> Answer {
        self.try_call(token, method, path, body).expect("an answer")
    }

    /// The same, when the connection may be dropped.
    pub fn try_call(&self, token: &str, method: &str, path: &str, body: &str) -> Option<Answer> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\nAuthorization: PVEAPIToken={token}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.raw(request.as_bytes())
    }

    /// A call of the orchestrator's token below `/api2/json`.
    pub fn api(&self, method: &str, path: &str, body: &str) -> Answer {
        self.call(&self.token, method, &format!("/api2/json{path}"), body)
    }

    /// A call of the administrator's token.
    pub fn admin(&self, method: &str, path: &str, body: &str) -> Answer {
        self.call(&self.root, method, &format!("/api2/json{path}"), body)
    }

    /// A call of the control endpoint, which must succeed.
    pub fn control(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.call(&self.root, method, &format!("/lab{path}"), &body);
        assert_eq!(answer.status, 200, "{method} /lab{path}: {}", answer.reason);
        answer.json()
    }

    /// Waits for a task and returns how it ended.
    pub fn wait(&self, upid: &Value) -> String {
        let upid = upid.as_str().expect("a UPID");
        let node = upid.split(':').nth(1).unwrap();
        let path = format!("/nodes/{node}/tasks/{upid}/status");
        until(|| self.admin("GET", &path, "").data()["exitstatus"].as_str().map(str::to_owned))
    }

    /// Waits until no task runs.
    pub fn settle(&self, node: &str) {
        let path = format!("/nodes/{node}/tasks?source=active");
        until(|| self.admin("GET", &path, "").data().as_array().filter(|rows| rows.is_empty()).map(|_| ()));
    }

    /// A template and nothing else.
    pub fn template(&self, vmid: u32) {
        let guest = serde_json::json!({"vmid": vmid, "hostname": "tmpl", "template": true, "pool": "ctrlable"});
        self.control("POST", "/import", &guest);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls until there is something.
pub fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "it did not happen in time");
        std::thread::sleep(Duration::from_millis(10));
    }
}
