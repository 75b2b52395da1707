//! `/nodes/N/tasks` and `/cluster/tasks`.

use std::time::Duration;

use serde_json::{Value, json};

use super::Permission::Authenticated;
use super::{Answer, Call, Endpoint, endpoint};
use crate::http::envelope::{Refusal, Reply};
use crate::node::Work;
use crate::node::tasks::{Task, Upid};
use crate::schema::tables::{NOTHING, TASK_LIST, TASK_LOG};

/// TERM is followed by KILL after this long.
const KILL_AFTER: Duration = Duration::from_secs(5);

pub(super) const ENDPOINTS: &[Endpoint] = &[
    endpoint!(GET "/nodes/{node}/tasks", Authenticated, [TASK_LIST] => list),
    endpoint!(GET "/nodes/{node}/tasks/{upid}/status", Authenticated, [NOTHING] => status),
    endpoint!(GET "/nodes/{node}/tasks/{upid}/log", Authenticated, [TASK_LOG] => log),
    endpoint!(DELETE "/nodes/{node}/tasks/{upid}", Authenticated, [NOTHING] => stop),
    endpoint!(GET "/cluster/tasks", Authenticated, [NOTHING] => recent),
];

/// Finds a task of the path that the caller may see (or, with `Sys.Modify`, stop).
fn find(call: &Call, privilege: &str) -> Result<Task, Refusal> {
    let upid = call.params.text("upid").unwrap_or_default();
    let Some(parsed) = Upid::parse(upid) else {
        return Err(Refusal::parameter("upid", "unable to parse worker upid"));
    };
    call.node.access(&call.caller, |access, state| {
        let task = state.tasks().get(upid);
        let own = match task {
            Some(task) => task.belongs_to(&call.caller),
            None => parsed.user == call.caller.id,
        };
        if !own {
            access.require(&format!("/nodes/{}", parsed.node), privilege)?;
        }
        task.cloned().ok_or_else(|| Refusal::parameter("upid", "no such task"))
    })
}

async fn status(call: Call) -> Answer {
    Ok(find(&call, "Sys.Audit")?.status_json().into())
}

async fn log(call: Call) -> Answer {
    let task = find(&call, "Sys.Audit")?;
    let lines = if task.log.is_empty() { vec!["no content".to_owned()] } else { task.log };
    let start = call.params.whole("start").unwrap_or(0).max(0) as usize;
    // Fifty lines by default, which hides the end of a long log; zero means all.
    let limit = match call.params.whole("limit").unwrap_or(50) {
        0 => usize::MAX,
        limit => limit.max(0) as usize,
    };
    let rows = lines.iter().enumerate().skip(start).take(limit).map(|(index, line)| json!({"n": index + 1, "t": line}));
    Ok(Reply { data: Value::Array(rows.collect()), total: Some(lines.len()) })
}

async fn list(call: Call) -> Answer {
    let params = &call.params;
    let source = params.text("source").unwrap_or("archive");
    let outcomes = params.items("statusfilter");
    let audit = call.has(&format!("/nodes/{}", call.node.name), "Sys.Audit");
    let state = call.node.read();
    let mut found: Vec<&Task> = state
        .tasks()
        .values()
        .filter(|task| match source {
            "archive" => task.exit.is_some(),
            "active" => task.exit.is_none(),
            _ => true,
        })
        .filter(|task| audit || task.belongs_to(&call.caller))
        .filter(|task| params.text("vmid").is_none_or(|vmid| task.id == vmid))
        .filter(|task| params.text("typefilter").is_none_or(|kind| task.kind == kind))
        .filter(|task| params.text("userfilter").is_none_or(|user| task.user.contains(user)))
        .filter(|task| params.whole("since").is_none_or(|since| task.starttime as i64 >= since))
        .filter(|task| params.whole("until").is_none_or(|until| task.starttime as i64 <= until))
        .filter(|task| params.flag("errors") != Some(true) || task.outcome() == "error")
        .filter(|task| outcomes.is_empty() || outcomes.iter().any(|wanted| wanted == task.outcome()))
        .collect();
    // The running ones first, then the newest.
    found.sort_by_key(|task| (task.exit.is_some(), std::cmp::Reverse((task.starttime, task.pstart, task.pid))));
    let total = found.len();
    let start = params.whole("start").unwrap_or(0).max(0) as usize;
    let limit = params.whole("limit").unwrap_or(50).max(0) as usize;
    let rows = found.into_iter().skip(start).take(limit).map(Task::row);
    Ok(Reply { data: Value::Array(rows.collect()), total: Some(total) })
}

async fn stop(call: Call) -> Answer {
    let task = find(&call, "Sys.Modify")?;
    if let Some(running) = call.node.live_task(&task.upid) {
        let ended = running.ended.notified();
        running.interrupt();
        call.node.pace(Work::Interrupt).await;
        if call.node.live_task(&task.upid).is_some() {
            let _ = tokio::time::timeout(KILL_AFTER, ended).await;
        }
    }
    Ok(Value::Null.into())
}

/// A token without Sys.Audit on `/` sees nothing of its own here: Proxmox compares the bare user with the token's id.
async fn recent(call: Call) -> Answer {
    let audit = call.has("/", "Sys.Audit");
    let state = call.node.read();
    let rows = state.tasks().values().filter(|task| audit || task.user == call.caller.user).map(Task::row);
    Ok(Value::Array(rows.collect()).into())
}
