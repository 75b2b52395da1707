//! Talks to a running lab's control endpoint from the command line: one request, one connection.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends one request to the lab whose state is in `state`.
pub(crate) async fn call(state: &Path, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
    let lab = std::fs::read(state.join("lab.json"))
        .with_context(|| format!("no lab has run in {}; start `ctrlable-lab serve` there", state.display()))?;
    let lab: Value = serde_json::from_slice(&lab).context("lab.json")?;
    let address = lab["url"].as_str().and_then(|url| url.strip_prefix("https://")).context("lab.json has no url")?;
    let token = std::fs::read_to_string(state.join("root-token")).context("read the administrator's token")?;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(state.join("pve-root-ca.pem")).context("read the lab's CA")?)?;
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let socket = TcpStream::connect(address)
        .await
        .with_context(|| format!("the lab does not answer at {address}; is it still running?"))?;
    let name = ServerName::try_from("localhost").context("server name")?;
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, socket).await?;

    let body = body.map(Value::to_string).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: PVEAPIToken={}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        token.trim(),
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("the lab's answer was cut off")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    let value: Value = serde_json::from_str(body).unwrap_or(Value::Null);
    if status != "200" {
        bail!("the lab refused ({status}): {}", value["error"].as_str().unwrap_or(body));
    }
    Ok(value)
}
