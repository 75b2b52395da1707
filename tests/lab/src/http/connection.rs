//! One client connection: TLS, heads, bodies, keep-alive.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::{Head, Outcome, Response};
use crate::api;
use crate::node::Node;

/// Bytes of all header lines together; beyond it pveproxy goes silent and closes.
const HEAD_LIMIT: usize = 8 * 1024;
/// Header lines.
const LINE_LIMIT: usize = 64;
/// How long a too large head keeps its connection, and how long an idle connection lives.
const IDLE: Duration = Duration::from_secs(5);
/// Requests on one connection.
const REQUESTS: usize = 100;
/// A client that stops in the middle of a request is cut off, so that the lab can end.
const BODY_WAIT: Duration = Duration::from_secs(60);

/// Serves a connection until either side ends it.
pub(crate) async fn serve(socket: TcpStream, tls: TlsAcceptor, node: Arc<Node>) {
    let _ = socket.set_nodelay(true);
    let mut first = [0_u8; 1];
    // A TLS client opens with a handshake record; anything else is somebody who speaks plain HTTP to an HTTPS port.
    match tokio::time::timeout(IDLE, socket.peek(&mut first)).await {
        Ok(Ok(1)) if first != [0x16] => return redirect(socket).await,
        Ok(Ok(1)) => {}
        _ => return,
    }
    let Ok(Ok(mut stream)) = tokio::time::timeout(BODY_WAIT, tls.accept(socket)).await else {
        return;
    };
    let mut buffer = Vec::new();
    for served in 1..=REQUESTS {
        let Some((head, rest)) = read_head(&mut stream, buffer).await else {
            return;
        };
        buffer = rest;
        let last = served == REQUESTS || wants_close(&head);
        let outcome = match transport_error(&head, node.release.body_limit()) {
            Some(error) => Outcome::Answer(error),
            None => {
                let length = head.header("content-length").and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
                match read_body(&mut stream, &mut buffer, length).await {
                    Some(body) => api::handle(&node, &head, &body).await,
                    None => return,
                }
            }
        };
        let Outcome::Answer(response) = outcome else {
            return;
        };
        let close = last || response.status >= 400;
        if stream.write_all(&render(&response, close)).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        if close {
            let _ = stream.shutdown().await;
            return;
        }
    }
}

fn wants_close(head: &Head) -> bool {
    head.minor == 0 || head.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
}

async fn redirect(mut socket: TcpStream) {
    let mut seen = vec![0_u8; 1024];
    let read = tokio::time::timeout(IDLE, socket.read(&mut seen)).await;
    let Ok(Ok(read)) = read else { return };
    let line = String::from_utf8_lossy(&seen[..read]);
    let status = if line.starts_with("GET ") || line.starts_with("HEAD ") {
        "301 Moved Permanently"
    } else {
        "308 Permanent Redirect"
    };
    let path = line.split(' ').nth(1).unwrap_or("/");
    let host = socket.local_addr().map(|address| address.to_string()).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 {status}\r\nLocation: https://{host}{path}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    let _ = socket.write_all(answer.as_bytes()).await;
}

/// Reads up to the empty line; also returns what already arrived of the body.
async fn read_head<S: tokio::io::AsyncRead + Unpin>(stream: &mut S, mut buffer: Vec<u8>) -> Option<(Head, Vec<u8>)> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = buffer.split_off(end + 4);
            let head = parse_head(&buffer[..end]);
            if end > HEAD_LIMIT || head.as_ref().is_some_and(|head| head.headers.len() >= LINE_LIMIT) {
                tokio::time::sleep(IDLE).await;
                return None;
            }
            return head.map(|head| (head, rest));
        }
        if buffer.len() > HEAD_LIMIT {
            tokio::time::sleep(IDLE).await;
            return None;
        }
        let mut chunk = [0_u8; 4096];
        match tokio::time::timeout(IDLE, stream.read(&mut chunk)).await {
            Ok(Ok(read)) if read > 0 => buffer.extend_from_slice(&chunk[..read]),
            _ => return None,
        }
    }
}

fn parse_head(bytes: &[u8]) -> Option<Head> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target, version) = (first.next()?, first.next()?, first.next()?);
    let minor = match version {
        "HTTP/1.0" => 0,
        _ => 1,
    };
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        .collect();
    let headers =
        if version.starts_with("HTTP/1.") { headers } else { vec![("x-version".to_owned(), version.to_owned())] };
    Some(Head { method: method.to_owned(), target: target.to_owned(), minor, headers })
}

/// What pveproxy refuses before it looks at credentials.
fn transport_error(head: &Head, body_limit: usize) -> Option<Response> {
    if head.header("x-version").is_some_and(|version| version.starts_with("HTTP/")) {
        return Some(Response::plain(506, "http protocol version not supported"));
    }
    if !matches!(head.method.as_str(), "GET" | "POST" | "PUT" | "DELETE") {
        return Some(Response::bare(501, &format!("method '{}' not available", head.method)));
    }
    if head.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        return Some(Response::plain(501, "chunked transfer encoding not supported"));
    }
    let length = head.header("content-length").and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
    if length > 0 && matches!(head.method.as_str(), "GET" | "DELETE") {
        return Some(Response::plain(501, &format!("Unexpected content for method '{}'", head.method)));
    }
    (length > body_limit).then(|| Response::plain(501, "for data too large"))
}

async fn read_body<S: tokio::io::AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut Vec<u8>,
    length: usize,
) -> Option<Vec<u8>> {
    while buffer.len() < length {
        let mut chunk = vec![0_u8; (length - buffer.len()).min(64 * 1024)];
        match tokio::time::timeout(BODY_WAIT, stream.read(&mut chunk)).await {
            Ok(Ok(read)) if read > 0 => buffer.extend_from_slice(&chunk[..read]),
            _ => return None,
        }
    }
    let rest = buffer.split_off(length);
    Some(std::mem::replace(buffer, rest))
}

fn render(response: &Response, close: bool) -> Vec<u8> {
    let date = crate::clock::http_date();
    let connection = if close { "close" } else { "Keep-Alive" };
    let mut head = format!(
        "HTTP/1.1 {} {}\r\nCache-Control: max-age=0\r\nConnection: {connection}\r\nDate: {date}\r\nPragma: no-cache\r\n\
         Server: pve-api-daemon/3.0\r\nExpires: {date}\r\n",
        response.status, response.reason
    );
    if let Some(content_type) = response.content_type {
        head.push_str(&format!("Content-Type: {content_type}\r\n"));
    }
    if let Some(body) = &response.body {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(response.body.as_deref().unwrap_or_default());
    bytes
}
