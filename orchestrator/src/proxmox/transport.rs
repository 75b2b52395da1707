//! HTTP, with Proxmox's habits (pve-api 1 and 2).

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use contract::ids::NodeName;
use contract::secret::Secret;

use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderValue};
use reqwest::{Method, Url};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::classify::{Answer, interpret};
use super::client::Settings;
use super::error::{Disposition, Effect, Problem, ProxmoxError};
use super::form::{Form, percent};
use super::tls::certificate_problem;

/// Time to reach the server. It stands in the same house.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a whole call: more than the 30 s after which Proxmox's relay gives up, so that its 596 is seen.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(35);
/// How long an unused connection is kept; pveproxy closes it after 5 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Calls at once per node: pveproxy and pvedaemon have 3 workers each, a fourth would wait inside.
const CALLS_PER_NODE: usize = 3;
/// Most bytes of an answer. The resources of 10,000 guests are about 5 MB.
const ANSWER_LIMIT: usize = 16 << 20;
/// How often a reading call is tried.
const READ_ATTEMPTS: u32 = 3;
/// A reading call that failed is repeated only while it is younger than this; slow failures are the caller's.
const READ_RETRY_WINDOW: Duration = Duration::from_secs(10);
/// Pause before the first repetition, doubled for the next; with [`jittered`].
const READ_PAUSE: Duration = Duration::from_millis(200);

/// Where Proxmox answers: `https://host:8006`.
#[derive(Clone, PartialEq, Eq)]
pub struct BaseUrl(Url);

/// A text that is not the URL of a Proxmox node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the URL of a Proxmox node: {0}; it looks like https://192.168.20.2:8006")]
pub struct InvalidUrl(&'static str);

impl FromStr for BaseUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let mut url: Url = text.trim().parse().map_err(|_| InvalidUrl("it cannot be read"))?;
        if url.scheme() != "https" {
            return Err(InvalidUrl("Proxmox speaks only https"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidUrl("it holds a user or password; the API token is a setting of its own"));
        }
        if !matches!(url.path(), "/" | "/api2/json" | "/api2/json/")
            || url.query().is_some()
            || url.fragment().is_some()
        {
            return Err(InvalidUrl("it has a path"));
        }
        let names_port = text.trim().trim_end_matches('/').trim_end_matches("/api2/json").ends_with(":443");
        if url.port().is_none() && !names_port {
            url.set_port(Some(8006)).map_err(|()| InvalidUrl("it has no host"))?;
        }
        url.set_path("");
        Ok(Self(url))
    }
}

impl BaseUrl {
    /// The host, without the port.
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

impl fmt::Debug for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The HTTP verbs that Proxmox has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Post,
    Put,
    Delete,
}

/// One call before it is sent.
pub(super) struct Call {
    verb: Verb,
    path: String,
    node: Option<NodeName>,
    form: Form,
    effect: Effect,
}

impl Call {
    /// `path` is below `/api2/json` and encoded; `node` is the one that does the work.
    pub(super) fn new(verb: Verb, path: String, node: Option<&NodeName>) -> Self {
        let effect = if verb == Verb::Get { Effect::Read } else { Effect::Change };
        Self { verb, path, node: node.cloned(), form: Form::new(), effect }
    }

    pub(super) fn with(mut self, form: Form) -> Self {
        self.form = form;
        self
    }

    pub(super) fn effect(mut self, effect: Effect) -> Self {
        self.effect = effect;
        self
    }

    pub(super) fn effect_of(&self) -> Effect {
        self.effect
    }

    /// Verb and path, for messages. Parameters stay out: some are secrets.
    pub(super) fn name(&self) -> String {
        let verb = match self.verb {
            Verb::Get => "GET",
            Verb::Post => "POST",
            Verb::Put => "PUT",
            Verb::Delete => "DELETE",
        };
        format!("{verb} {}", self.path)
    }
}

/// `data` of an answer and the server's clock.
pub(super) struct Reply {
    pub(super) data: Value,
    pub(super) date: Option<String>,
}

/// Sends calls.
pub(super) struct Transport {
    http: reqwest::Client,
    base: BaseUrl,
    authorization: HeaderValue,
    secret: Secret,
    permits: Mutex<HashMap<Option<NodeName>, Arc<Semaphore>>>,
}

impl Transport {
    pub(super) fn new(settings: &Settings) -> Result<Self, Problem> {
        let secret = check_token(&settings.token)?;
        let header = format!("PVEAPIToken={}", settings.token.expose().trim().replace('%', "%25"));
        let mut authorization = HeaderValue::from_str(&header)
            .map_err(|_| Problem::Settings("the API token holds characters that no header takes".to_owned()))?;
        authorization.set_sensitive(true);
        let tls = settings.server.client_config().map_err(Problem::Settings)?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .https_only(true)
            // The node is on the site's network; a proxy of the environment would only see the token.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(settings.connect_timeout)
            .timeout(settings.call_timeout)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(CALLS_PER_NODE)
            .user_agent(concat!("ctrlable/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Problem::Settings(root_cause(&error)))?;
        Ok(Self { http, base: settings.url.clone(), authorization, secret, permits: Mutex::default() })
    }

    pub(super) fn base(&self) -> &BaseUrl {
        &self.base
    }

    /// Sends a call; one that only reads is repeated after a passing failure, any other is sent once.
    pub(super) async fn send(&self, call: &Call) -> Result<Reply, ProxmoxError> {
        let begin = Instant::now();
        let mut attempt = 1;
        loop {
            let problem = match self.send_once(call).await {
                Ok(reply) => return Ok(reply),
                Err(problem) => problem,
            };
            let passes = matches!(problem.disposition(call.effect), Disposition::Retry { .. });
            if call.effect != Effect::Read || !passes || attempt == READ_ATTEMPTS || begin.elapsed() > READ_RETRY_WINDOW
            {
                return Err(ProxmoxError::new(call.name(), call.effect, problem));
            }
            let pause = READ_PAUSE * 2u32.pow(attempt - 1);
            tokio::time::sleep(jittered(pause)).await;
            attempt += 1;
        }
    }

    async fn send_once(&self, call: &Call) -> Result<Reply, Problem> {
        let permits = {
            let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
            permits.entry(call.node.clone()).or_insert_with(|| Arc::new(Semaphore::new(CALLS_PER_NODE))).clone()
        };
        // The semaphore is never closed, so there is always a permit in the end.
        let _permit = permits.acquire().await;
        let begin = Instant::now();
        let (answer, date) = self.exchange(call).await?;
        tracing::debug!(call = call.name(), status = answer.status, ms = begin.elapsed().as_millis(), "proxmox");
        Ok(Reply { data: interpret(&answer)?, date })
    }

    async fn exchange(&self, call: &Call) -> Result<(Answer, Option<String>), Problem> {
        let (method, has_body) = match call.verb {
            Verb::Get => (Method::GET, false),
            Verb::Post => (Method::POST, true),
            Verb::Put => (Method::PUT, true),
            // Proxmox refuses a body here: its options go into the query.
            Verb::Delete => (Method::DELETE, false),
        };
        let mut url = format!("{}/api2/json{}", self.base, call.path);
        if !has_body && !call.form.is_empty() {
            url = format!("{url}?{}", call.form.encode());
        }
        let mut request = self.http.request(method, url).header(AUTHORIZATION, self.authorization.clone());
        if has_body {
            let body = call.form.encode();
            // Left to itself the HTTP library sends no length with an empty body; Proxmox should always see one.
            request = request
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .header(CONTENT_LENGTH, body.len())
                .body(body);
        }
        let mut response = request.send().await.map_err(|error| of_transport(&error))?;
        let status = response.status().as_u16();
        let phrase = response.extensions().get::<hyper::ext::ReasonPhrase>();
        let reason = phrase.map(|phrase| String::from_utf8_lossy(phrase.as_bytes()).into_owned());
        let date = response.headers().get(DATE).and_then(|date| date.to_str().ok()).map(str::to_owned);
        let mut body = Vec::new();
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                // The status of an error says enough. A refused token is answered without a length, and the connection
                // may end without TLS's good-bye.
                Err(_) if status >= 400 => break,
                Err(error) => return Err(of_transport(&error)),
            };
            if body.len() + chunk.len() > ANSWER_LIMIT {
                return Err(Problem::UnreadableAnswer(format!("it is longer than {ANSWER_LIMIT} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        let mut answer = Answer { status, reason, body };
        if status >= 400 {
            self.redact(&mut answer);
        }
        Ok((answer, date))
    }

    /// A server that repeats the token in an error must not get it into our log.
    fn redact(&self, answer: &mut Answer) {
        let hide = |text: &str| text.replace(self.secret.expose(), "[secret]");
        answer.reason = answer.reason.as_deref().map(hide);
        if let Ok(body) = std::str::from_utf8(&answer.body) {
            answer.body = hide(body).into_bytes();
        }
    }
}

/// A pause of half to one and a half of this, so that many callers do not come back together.
pub(super) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..1.5))
}

/// Checks the form `user@realm!id=uuid` and gives the secret part.
fn check_token(token: &Secret) -> Result<Secret, Problem> {
    let wrong = |why: &str| Problem::Settings(format!("the API token {why}; it looks like user@realm!id=uuid"));
    let (id, secret) = token.expose().trim().split_once('=').ok_or_else(|| wrong("has no `=`"))?;
    let (user, name) = id.split_once('!').ok_or_else(|| wrong("has no `!`"))?;
    if !user.contains('@') || name.is_empty() || id.contains(char::is_whitespace) {
        return Err(wrong("has no user, realm or id"));
    }
    if secret.len() != 36 || !secret.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return Err(wrong("has no UUID as its secret"));
    }
    Ok(Secret::new(secret))
}

/// What a failed exchange means: before the request was sent nothing can have happened.
fn of_transport(error: &reqwest::Error) -> Problem {
    if let Some(why) = certificate_problem(error) {
        return Problem::TlsPin(why);
    }
    if error.is_builder() {
        return Problem::Settings(root_cause(error));
    }
    if error.is_connect() {
        return Problem::Unreachable(if error.is_timeout() { "time ran out".to_owned() } else { root_cause(error) });
    }
    Problem::NoAnswer(if error.is_timeout() { "time ran out".to_owned() } else { root_cause(error) })
}

/// The innermost error; the outer ones repeat the URL.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// A path below `/api2/json` from its parts.
pub(super) fn path(parts: &[&str]) -> String {
    // Task ids hold `:`, `@` and `!`, which Proxmox takes as they are.
    parts.iter().map(|part| format!("/{}", percent(part, ":@!"))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn urls() {
        for (text, printed) in [
            ("https://192.168.20.2:8006", "https://192.168.20.2:8006"),
            ("https://pve1.example.org/", "https://pve1.example.org:8006"),
            ("https://pve1.example.org:443", "https://pve1.example.org"),
            ("https://pve1:8006/api2/json", "https://pve1:8006"),
            ("https://[fd00::2]:8006", "https://[fd00::2]:8006"),
        ] {
            assert_eq!(text.parse::<BaseUrl>().unwrap().to_string(), printed);
        }
        for text in
            ["", "pve1:8006", "http://pve1:8006", "https://root:x@pve1:8006", "https://pve1/?x", "https://pve1/pve"]
        {
            assert!(text.parse::<BaseUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn tokens() {
        let uuid = "01234567-89ab-cdef-0123-456789abcdef";
        let check = |text: String| check_token(&Secret::new(text));
        assert_eq!(check(format!("ctrlable@pve!site={uuid}")).unwrap().expose(), uuid);
        for wrong in
            [uuid.to_owned(), format!("ctrlable@pve={uuid}"), format!("ctrlable!site={uuid}"), "a@b!c=d".to_owned()]
        {
            let problem = check(wrong.clone()).unwrap_err();
            assert_eq!(problem.reason(), "settings", "{wrong}");
            assert!(!problem.to_string().contains(uuid));
        }
    }

    #[test]
    fn a_path_cannot_be_left() {
        assert_eq!(path(&["nodes", "pve1", "tasks", "UPID:a:b@c!d:"]), "/nodes/pve1/tasks/UPID:a:b@c!d:");
        assert_eq!(path(&["pools", "a/../b?c#d"]), "/pools/a%2F..%2Fb%3Fc%23d");
    }
}
