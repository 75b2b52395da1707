//! The lab's own endpoint, `/lab/...`, for what an administrator does at the host's shell and a test at its leisure.
//! Only the administrator's token may use it. Bodies and answers are JSON.
//!
//! | Call | Body | What it does |
//! |---|---|---|
//! | `POST /lab/import` | [`import::Import`] | makes a guest |
//! | `GET`, `POST`, `DELETE /lab/faults` | a [`Rule`] or a list | shows, adds, forgets faults |
//! | `GET`, `DELETE /lab/log` | | every request and task with the order of starts and ends |
//! | `POST /lab/lock`, `/lab/unlock` | `{vmid, lock}`, `{vmid}` | sets and clears a lock, as `pct unlock` does |
//! | `POST /lab/hold` | `{vmid, ms}` | holds the guest's configuration file |
//! | `POST /lab/agent` | `{vmid, agent: absent or responding}` | the agent of a virtual machine |
//! | `GET /lab/addresses` | | addresses of records by number, as the guests themselves know them |
//! | `POST /lab/interface` | `{vmid, shows: [cidr…] or null}` | lets a record's interface show other addresses, or none |
//! | `POST /lab/storage` | `{storage, type, content, capacity, disabled}` | adds or changes a storage |
//! | `POST /lab/bridge` | `{bridge, cidr, mtu}` | adds or changes a bridge |
//! | `POST /lab/revoke`, `/lab/restore` | `{privilege}` | takes a privilege from all but root, and gives it back |
//! | `GET`, `POST /lab/settings` | [`Settings`] | lag, lock wait, first id |

pub(crate) mod client;
pub(crate) mod import;
pub(crate) mod log;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::auth;
use crate::faults::Rule;
use crate::http::{Head, Response};
use crate::node::Node;
use crate::node::guests::{Agent, Kind};
use crate::runtime::Vmid;
use crate::state::{Bridge, Settings, Storage};

/// Identity that may use it.
pub(crate) const ADMINISTRATOR: &str = "root@pam!lab";

/// Why a control call was refused: status and text.
pub(crate) type Refused = (u16, String);

type Outcome = Result<Value, Refused>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GuestRef {
    vmid: Vmid,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LockRequest {
    vmid: Vmid,
    lock: String,
}

/// Holds a guest's configuration file, as a long call would.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HoldRequest {
    vmid: Vmid,
    ms: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentRequest {
    vmid: Vmid,
    agent: Agent,
}

/// What the interfaces of a record show; absent: what they have.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct InterfaceRequest {
    vmid: Vmid,
    shows: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StorageRequest {
    storage: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    content: Option<BTreeSet<String>>,
    /// Bytes.
    capacity: Option<u64>,
    disabled: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BridgeRequest {
    bridge: String,
    cidr: Option<String>,
    mtu: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PrivilegeRequest {
    privilege: String,
}

/// Answers a control call.
pub(crate) async fn handle(node: &Arc<Node>, head: &Head, path: &str, body: &[u8]) -> Response {
    let caller = {
        let state = node.read();
        auth::authenticate(head, state.cluster(), true)
    };
    let allowed = caller.is_ok_and(|caller| caller.id == ADMINISTRATOR);
    let outcome = if allowed {
        answer(node, &head.method, path, body).await
    } else {
        Err((403, "the control endpoint is for the administrator's token alone".to_owned()))
    };
    match outcome {
        Ok(value) => Response::json(200, "OK", &value),
        Err((status, text)) => Response::json(status, &text, &json!({"error": text})),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(|error| (400, format!("the request does not fit: {error}")))
}

async fn answer(node: &Arc<Node>, method: &str, path: &str, body: &[u8]) -> Outcome {
    match (method, path) {
        ("POST", "/lab/import") => import::import(node, parse(body)?).await,
        ("GET", "/lab/faults") => Ok(json!(node.faults.list())),
        ("POST", "/lab/faults") => {
            rules(body)?.into_iter().for_each(|rule| node.faults.add(rule));
            Ok(json!(node.faults.list()))
        }
        ("DELETE", "/lab/faults") => {
            node.faults.clear();
            Ok(json!([]))
        }
        ("GET", "/lab/log") => Ok(json!(node.journal.entries())),
        ("DELETE", "/lab/log") => {
            node.journal.clear();
            Ok(json!([]))
        }
        ("POST", "/lab/unlock") => {
            let GuestRef { vmid } = parse(body)?;
            with_guest(node, vmid, |guest| guest.clear_lock())
        }
        ("POST", "/lab/lock") => {
            let LockRequest { vmid, lock } = parse(body)?;
            with_guest(node, vmid, |guest| guest.set_lock(&lock))
        }
        ("POST", "/lab/hold") => hold(node, parse(body)?).await,
        ("POST", "/lab/agent") => {
            let AgentRequest { vmid, agent } = parse(body)?;
            with_guest(node, vmid, |guest| guest.agent = agent)
        }
        ("GET", "/lab/addresses") => Ok(json!(node.runtime.own_addresses())),
        ("POST", "/lab/interface") => {
            let InterfaceRequest { vmid, shows } = parse(body)?;
            let cidr = |text: String| {
                let (address, prefix) = text.split_once('/')?;
                Some((address.parse().ok()?, prefix.parse().ok()?))
            };
            let shown = shows.map(|list| list.into_iter().map(cidr).collect::<Option<Vec<_>>>());
            if shown == Some(None) {
                return Err((400, "`shows` is a list of addresses such as 10.77.0.9/24".to_owned()));
            }
            node.runtime.pretend(vmid, shown.flatten()).map(|()| Value::Null).map_err(|text| (400, text))
        }
        ("POST", "/lab/storage") => storage(node, parse(body)?),
        ("POST", "/lab/bridge") => {
            let BridgeRequest { bridge, cidr, mtu } = parse(body)?;
            node.write().cluster_mut().bridges.insert(bridge, Bridge { cidr, mtu: mtu.unwrap_or(1500) });
            Ok(Value::Null)
        }
        ("POST", "/lab/revoke") => {
            let PrivilegeRequest { privilege } = parse(body)?;
            node.write().cluster_mut().revoked.insert(privilege);
            Ok(Value::Null)
        }
        ("POST", "/lab/restore") => {
            let PrivilegeRequest { privilege } = parse(body)?;
            node.write().cluster_mut().revoked.remove(&privilege);
            Ok(Value::Null)
        }
        ("GET", "/lab/settings") => Ok(json!(node.read().cluster().settings)),
        ("POST", "/lab/settings") => {
            let settings: Settings = parse(body)?;
            node.write().cluster_mut().settings = settings;
            Ok(Value::Null)
        }
        _ => Err((404, format!("the lab has no '{method} {path}'"))),
    }
}

fn rules(body: &[u8]) -> Result<Vec<Rule>, Refused> {
    let value: Value = parse(body)?;
    let wrong = |error: serde_json::Error| (400, format!("the rule does not fit: {error}"));
    if value.is_array() {
        serde_json::from_value(value).map_err(wrong)
    } else {
        serde_json::from_value(value).map(|rule| vec![rule]).map_err(wrong)
    }
}

fn with_guest(node: &Node, vmid: Vmid, change: impl FnOnce(&mut crate::node::guests::Guest)) -> Outcome {
    match node.write().guest_mut(vmid) {
        Some(guest) => {
            change(guest);
            Ok(Value::Null)
        }
        None => Err((404, format!("there is no guest {vmid}"))),
    }
}

async fn hold(node: &Arc<Node>, request: HoldRequest) -> Outcome {
    let kind = node.read().guest(request.vmid).map_or(Kind::Lxc, |guest| guest.kind);
    let held = node.lock_config(kind, request.vmid).await.map_err(|text| (409, text))?;
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(request.ms)).await;
        drop(held);
    });
    Ok(Value::Null)
}

fn storage(node: &Node, request: StorageRequest) -> Outcome {
    let mut state = node.write();
    let storages = &mut state.cluster_mut().storages;
    match storages.get_mut(&request.storage) {
        Some(found) => {
            if let Some(kind) = request.kind {
                found.kind = kind;
            }
            if let Some(content) = request.content {
                found.content = content;
            }
            if let Some(capacity) = request.capacity {
                found.capacity = capacity;
            }
            if let Some(disabled) = request.disabled {
                found.disabled = disabled;
            }
        }
        None => {
            let (Some(kind), Some(content)) = (request.kind, request.content) else {
                return Err((400, format!("'{}' is a new storage: give its type and content", request.storage)));
            };
            let new = Storage {
                kind,
                content,
                capacity: request.capacity.unwrap_or(256 << 30),
                disabled: request.disabled.unwrap_or(false),
            };
            storages.insert(request.storage, new);
        }
    }
    Ok(Value::Null)
}
