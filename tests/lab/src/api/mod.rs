//! The API: from a request to an answer, in Proxmox's order of checks.

pub(crate) mod access;
pub(crate) mod backup;
pub(crate) mod cluster;
pub(crate) mod guests;
pub(crate) mod ha;
pub(crate) mod lxc;
pub(crate) mod nodes;
pub(crate) mod pools;
pub(crate) mod qemu;
pub(crate) mod route;
pub(crate) mod tasks;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::privileges::Access;
use crate::auth::{self, Caller};
use crate::control;
use crate::faults::{self, Action, CFS_LOCK, Effects};
use crate::http::envelope::{Refusal, Reply};
use crate::http::{Head, Outcome, Response, decode};
use crate::node::{Node, Timings, Work};
use crate::runtime::Vmid;
use crate::schema::check::{self, Params, Raw, RawParams};
use crate::schema::{self, Param};

/// How long pveproxy waits for the daemon that does the work.
const RELAY_WAIT: Duration = Duration::from_secs(30);

/// What a handler gets.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) node: Arc<Node>,
    pub(crate) caller: Caller,
    pub(crate) params: Params,
    pub(crate) effects: Effects,
}

/// What a handler answers.
pub(crate) type Answer = Result<Reply, Refusal>;

impl Call {
    /// The guest of the path. Its format has been checked, so it is a number.
    pub(crate) fn vmid(&self) -> Vmid {
        self.params.vmid("vmid").unwrap_or_default()
    }
    pub(crate) fn require(&self, path: &str, privilege: &str) -> Result<(), Refusal> {
        self.node.access(&self.caller, |access, _| access.require(path, privilege))
    }
    pub(crate) fn has(&self, path: &str, privilege: &str) -> bool {
        self.node.access(&self.caller, |access, _| access.has(path, privilege))
    }
    /// Refuses when user.cfg is to stay locked; `what` prefixes the text.
    pub(crate) fn user_cfg(&self, what: &str) -> Result<(), Refusal> {
        if self.effects.cfs_lock_timeout { Err(Refusal::die(format!("{what}{CFS_LOCK}"))) } else { Ok(()) }
    }
}

/// What the schema declares about who may call.
#[derive(Clone, Copy)]
pub(crate) enum Permission {
    /// Nobody needs to prove who they are.
    World,
    Authenticated,
    /// Any of the privileges on a path, whose placeholders are parameters.
    Any(&'static str, &'static [&'static str]),
    /// The agent's privileges differ by release.
    Agent,
    /// Clone: the source, and the target by number or by pool.
    Clone,
    /// The user of the path themselves, or whoever may modify users.
    UserSelf,
}

type Run = fn(Call) -> Pin<Box<dyn Future<Output = Answer> + Send>>;

/// One method on one path.
#[derive(Clone, Copy)]
pub(crate) struct Endpoint {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) permission: Permission,
    pub(crate) tables: &'static [&'static [Param]],
    pub(crate) run: Run,
}

/// `endpoint!(GET "/version", Authenticated, [NOTHING] => version)`; what containers and machines share gets the kind too.
macro_rules! endpoint {
    ($method:ident $path:literal, $permission:expr, [$($table:expr),*] => $run:path) => {
        $crate::api::Endpoint {
            method: stringify!($method),
            path: $path,
            permission: $permission,
            tables: &[$($table),*],
            run: |call| Box::pin($run(call)),
        }
    };
    ($method:ident $path:literal, $permission:expr, [$($table:expr),*] => $run:path, $kind:expr) => {
        $crate::api::Endpoint {
            method: stringify!($method),
            path: $path,
            permission: $permission,
            tables: &[$($table),*],
            run: |call| Box::pin($run(call, $kind)),
        }
    };
}
pub(crate) use endpoint;

/// Answers one request.
pub(crate) async fn handle(node: &Arc<Node>, head: &Head, body: &[u8]) -> Outcome {
    let path = decode::unescape(head.path());
    if path == "/lab" || path.starts_with("/lab/") {
        return Outcome::Answer(control::handle(node, head, &path, body).await);
    }
    let Some(rest) = path.strip_prefix("/api2") else {
        return Outcome::Answer(Response::plain(500, &format!("no such file '{path}'")));
    };
    let Some(rest) = rest.strip_prefix("/json").filter(|rest| rest.is_empty() || rest.starts_with('/')) else {
        let text = if rest.trim_matches('/').is_empty() {
            "no such uri".to_owned()
        } else {
            format!("no formatter for uri {path}")
        };
        return Outcome::Answer(Response::plain(501, &text));
    };
    let started = node.journal.request_started(&head.method, rest);
    let (outcome, names) = answer(node, head, rest, body).await;
    let status = match &outcome {
        Outcome::Answer(response) => Some(response.status),
        Outcome::Drop => None,
    };
    node.journal.request_ended(started, names, status);
    outcome
}

async fn answer(node: &Arc<Node>, head: &Head, path: &str, body: &[u8]) -> (Outcome, Vec<String>) {
    let refuse = |refusal: &Refusal| Outcome::Answer(refusal.response(node.release.has_message()));
    let found = route::find(&head.method, path);
    let open = found.as_ref().is_some_and(|(endpoint, _)| matches!(endpoint.permission, Permission::World));
    let authenticated = {
        let state = node.read();
        auth::authenticate(head, state.cluster(), node.release.unified_auth_text())
    };
    let caller = match authenticated {
        Ok(caller) => caller,
        Err(_) if open => Caller::nobody(),
        Err(reason) => {
            tokio::time::sleep(auth_delay(node)).await;
            return (Outcome::Answer(Response::bare(401, &reason)), Vec::new());
        }
    };
    let sent = match parameters(head, body, node.major()) {
        Ok(sent) => sent,
        Err(response) => return (Outcome::Answer(response), Vec::new()),
    };
    let names: Vec<String> = sent.keys().cloned().collect();
    let Some((endpoint, placeholders)) = found else {
        return (refuse(&Refusal::not_implemented(&head.method, path)), names);
    };

    let actions = node.faults.strike(&head.method, path);
    for action in &actions {
        match action {
            Action::Error { status, message } => {
                return (refuse(&Refusal::of_fault(*status, message)), names);
            }
            Action::Delay { ms } => tokio::time::sleep(Duration::from_millis(*ms)).await,
            Action::Drop => return (Outcome::Drop, names),
            Action::Hang => std::future::pending::<()>().await,
            Action::StaleLock { lock } => {
                let vmid = placeholders.get("vmid").and_then(|vmid| vmid.parse().ok()).unwrap_or_default();
                if let Some(guest) = node.write().guest_mut(vmid) {
                    guest.set_lock(lock);
                }
            }
            _ => {}
        }
    }

    node.pace(if head.method == "GET" { Work::Read } else { Work::Write }).await;
    let response = match prepare(node, endpoint, caller, placeholders, sent, faults::effects(&actions)) {
        Ok(call) => run(endpoint, call, node).await,
        Err(refusal) => refusal.response(node.release.has_message()),
    };
    if response.status == 401 {
        tokio::time::sleep(auth_delay(node)).await;
    }
    for action in &actions {
        match action {
            Action::AfterSuccess596 => {
                return (Outcome::Answer(Response::bare(596, "Connection timed out")), names);
            }
            Action::DropAfter => return (Outcome::Drop, names),
            Action::SavedBut500 { message } => {
                let text = message.as_deref().unwrap_or("unable to open file '/etc/pve/nodes' - Input/output error");
                return (refuse(&Refusal::die(text)), names);
            }
            _ => {}
        }
    }
    (Outcome::Answer(response), names)
}

fn auth_delay(node: &Node) -> Duration {
    match node.timings {
        Timings::Recorded => auth::DELAY,
        Timings::Instant => Duration::from_millis(10),
    }
}

/// Runs the handler; a relay that waits too long answers 596 while the work goes on.
async fn run(endpoint: &'static Endpoint, call: Call, node: &Arc<Node>) -> Response {
    let has_message = node.release.has_message();
    let work = tokio::spawn((endpoint.run)(call));
    match tokio::time::timeout(RELAY_WAIT, work).await {
        Ok(Ok(Ok(reply))) => reply.response(),
        Ok(Ok(Err(refusal))) => refusal.response(has_message),
        Ok(Err(error)) => Refusal::die(format!("the lab failed: {error}")).response(has_message),
        Err(_) => Response::bare(596, "Connection timed out"),
    }
}

fn parameters(head: &Head, body: &[u8], major: u8) -> Result<RawParams, Response> {
    let mut params = if body.is_empty() {
        RawParams::new()
    } else {
        let content_type = head.header("content-type").unwrap_or("application/x-www-form-urlencoded");
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/x-www-form-urlencoded" => decode::form(&String::from_utf8_lossy(body)),
            "application/json" => decode::json(body, major).map_err(|text| {
                let mut response = Response::plain(500, &text);
                response.reason = text.trim_end().to_owned();
                response
            })?,
            other => {
                return Err(Response::plain(506, &format!("upload 'Content-Type '{other}' not implemented")));
            }
        }
    };
    params.extend(decode::form(head.query()));
    Ok(params)
}

/// Path conflicts, then permissions, then the node, then the schema.
fn prepare(
    node: &Arc<Node>,
    endpoint: &Endpoint,
    caller: Caller,
    placeholders: route::Placeholders,
    mut sent: RawParams,
    effects: Effects,
) -> Result<Call, Refusal> {
    for (name, value) in &placeholders {
        match sent.remove(name) {
            Some(other) if other != Raw::One(value.clone()) => {
                let text = "duplicate parameter (already defined in URI) with conflicting values!";
                return Err(Refusal::parameter(name, text));
            }
            _ => {}
        }
    }
    if matches!(endpoint.permission, Permission::World) && caller.token.is_some() {
        return Err(Refusal::needs_ticket(endpoint.path));
    }
    let mut all = sent.clone();
    all.extend(placeholders.iter().map(|(name, value)| (name.clone(), Raw::One(value.clone()))));
    {
        let state = node.read();
        let access = Access { cluster: state.cluster(), caller: &caller, major: node.major() };
        permitted(endpoint.permission, access, &all)?;
    }
    if let Some(name) = placeholders.get("node").filter(|name| **name != node.name && **name != "localhost") {
        return Err(Refusal::die(format!(
            "hostname lookup '{name}' failed - failed to get address info for: {name}: Temporary failure in name resolution"
        )));
    }
    let mut errors = check::Errors::new();
    for (name, value) in &placeholders {
        if let Some(param) = schema::find(&[schema::tables::PATH], name, node.major())
            && let Err(text) = check::check_value(param, name, value, node.major())
        {
            errors.insert(name.clone(), text);
        }
    }
    let placed = check::Params::of(placeholders);
    match check::check(sent, endpoint.tables, node.major()) {
        Ok(params) if errors.is_empty() => {
            Ok(Call { node: Arc::clone(node), caller, params: params.with(placed), effects })
        }
        Ok(_) => Err(Refusal::parameters(errors)),
        Err(more) => {
            errors.extend(more);
            Err(Refusal::parameters(errors))
        }
    }
}

fn permitted(permission: Permission, access: Access<'_>, sent: &RawParams) -> Result<(), Refusal> {
    match permission {
        Permission::World | Permission::Authenticated => Ok(()),
        Permission::Any(path, wanted) => access.require_any(&filled(path, sent)?, wanted),
        Permission::Agent => {
            let path = filled("/vms/{vmid}", sent)?;
            if access.major >= 9 {
                access.require_any(&path, &["VM.GuestAgent.Audit", "VM.GuestAgent.Unrestricted"])
            } else {
                access.require(&path, "VM.Monitor")
            }
        }
        Permission::Clone => {
            access.require(&filled("/vms/{vmid}", sent)?, "VM.Clone")?;
            let by_number = filled("/vms/{newid}", sent).is_ok_and(|path| access.has(&path, "VM.Allocate"));
            let by_pool = sent.contains_key("pool")
                && filled("/pool/{pool}", sent).is_ok_and(|path| access.has(&path, "VM.Allocate"));
            let newid_ok = !matches!(sent.get("newid"), Some(Raw::Many(_)));
            if let (true, Some(Raw::One(pool))) = (by_number, sent.get("pool"))
                && !access.cluster.pools.contains_key(pool)
                && schema::formats::pool_id(pool).is_ok()
            {
                return Err(Refusal::forbidden(&format!("pool '{pool}' does not exist")));
            }
            let pool_ok = !sent.contains_key("pool") || by_pool || by_number;
            if newid_ok && (by_number || by_pool) && pool_ok { Ok(()) } else { Err(Refusal::forbidden_bare()) }
        }
        Permission::UserSelf => {
            let own = matches!(sent.get("userid"), Some(Raw::One(user)) if *user == access.caller.user);
            if own || access.has("/access/groups", "User.Modify") { Ok(()) } else { Err(Refusal::forbidden_bare()) }
        }
    }
}

/// Puts parameters into a path; a missing one is empty, a repeated one fails the check.
fn filled(path: &str, sent: &RawParams) -> Result<String, Refusal> {
    let parts: Result<Vec<&str>, Refusal> = path
        .split('/')
        .map(|part| match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
            None => Ok(part),
            Some(name) => match sent.get(name) {
                Some(Raw::One(value)) => Ok(value.as_str()),
                None => Ok(""),
                Some(Raw::Many(_)) => Err(Refusal::forbidden_bare()),
            },
        })
        .collect();
    Ok(parts?.join("/"))
}
