//! HTTP/1.1 the way pveproxy speaks it. Written by hand, because what matters here is what libraries tidy away: the
//! reason phrase, answers without a length, connections that are dropped, limits that close without a word.

pub(crate) mod connection;
pub(crate) mod decode;
pub(crate) mod envelope;

/// The head of a request.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) method: String,
    /// Path and query as sent.
    pub(crate) target: String,
    pub(crate) minor: u8,
    pub(crate) headers: Vec<(String, String)>,
}

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
    pub(crate) fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }
}

/// What goes back.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) reason: String,
    pub(crate) content_type: Option<&'static str>,
    /// `None`: no body and no length either; the end of the connection is the end of the answer.
    pub(crate) body: Option<Vec<u8>>,
}

/// What the connection does after a request.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Answer(Response),
    /// Close without a word.
    Drop,
}

impl Response {
    /// An error of the HTTP layer itself: plain text equal to the reason, no content type.
    pub(crate) fn plain(status: u16, text: &str) -> Self {
        Self { status, reason: first_line(text), content_type: None, body: Some(text.as_bytes().to_vec()) }
    }
    /// A status line and nothing else.
    pub(crate) fn bare(status: u16, reason: &str) -> Self {
        Self { status, reason: first_line(reason), content_type: None, body: None }
    }
    pub(crate) fn json(status: u16, reason: &str, value: &serde_json::Value) -> Self {
        Self {
            status,
            reason: first_line(reason),
            content_type: Some("application/json;charset=UTF-8"),
            body: Some(value.to_string().into_bytes()),
        }
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().replace(|c: char| c.is_control(), " ")
}
