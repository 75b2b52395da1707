//! Answers of the API: `{"data": ...}` and the shapes of errors.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Response;

/// An API call that was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    /// Text without its trailing newline.
    pub(crate) message: String,
    pub(crate) errors: BTreeMap<String, String>,
}

impl Refusal {
    fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), errors: BTreeMap::new() }
    }
    /// Any `die` in Proxmox's code.
    pub(crate) fn die(message: impl Into<String>) -> Self {
        Self::new(500, message)
    }
    /// A failed permission check; `what` is what stands in the parentheses.
    pub(crate) fn forbidden(what: &str) -> Self {
        Self::new(403, format!("Permission check failed ({what})"))
    }
    /// A failed either-or check, which does not say what was missing.
    pub(crate) fn forbidden_bare() -> Self {
        Self::new(403, "Permission check failed")
    }
    /// The ticket call, which tokens may not make. The line feed before the parenthesis is Proxmox's.
    pub(crate) fn needs_ticket(path: &str) -> Self {
        Self::forbidden(&format!("URI '{path}' not available with API token, need proper ticket.\n"))
    }
    /// One bad parameter.
    pub(crate) fn parameter(name: &str, text: impl Into<String>) -> Self {
        Self::parameters(BTreeMap::from([(name.to_owned(), text.into())]))
    }
    /// Bad parameters.
    pub(crate) fn parameters(errors: BTreeMap<String, String>) -> Self {
        Self { status: 400, message: "Parameter verification failed.".to_owned(), errors }
    }
    pub(crate) fn not_implemented(method: &str, path: &str) -> Self {
        Self::new(501, format!("Method '{method} {path}' not implemented"))
    }
    pub(crate) fn unauthorized(message: &str) -> Self {
        Self::new(401, message)
    }
    /// Any status and text: what a fault asked for.
    pub(crate) fn of_fault(status: u16, message: &str) -> Self {
        Self::new(status, message)
    }

    /// The answer. Nodes up to 8.3 have the text in the reason phrase only.
    pub(crate) fn response(&self, has_message: bool) -> Response {
        let mut body = Map::new();
        body.insert("data".to_owned(), Value::Null);
        if has_message {
            let newline = if self.status == 501 { "" } else { "\n" };
            body.insert("message".to_owned(), json!(format!("{}{newline}", self.message)));
        }
        if !self.errors.is_empty() {
            body.insert("errors".to_owned(), json!(self.errors));
        }
        Response::json(self.status, &self.message, &Value::Object(body))
    }
}

/// What a call answers when it went well.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reply {
    pub(crate) data: Value,
    pub(crate) total: Option<usize>,
}

impl Reply {
    pub(crate) fn response(&self) -> Response {
        let mut body = Map::new();
        body.insert("data".to_owned(), self.data.clone());
        if let Some(total) = self.total {
            body.insert("total".to_owned(), json!(total));
        }
        Response::json(200, "OK", &Value::Object(body))
    }
}

impl From<Value> for Reply {
    fn from(data: Value) -> Self {
        Self { data, total: None }
    }
}
