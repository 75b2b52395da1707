//! Starting and stopping.

use std::sync::Arc;

use serde_json::json;

use super::super::{Answer, Call};
use super::clone::no_machine;
use super::{refuse_root_only, write};
use crate::clock;
use crate::http::envelope::Refusal;
use crate::node::guests::{Kind, Running};
use crate::node::tasks::Handle;
use crate::node::{Node, Work};
use crate::runtime::Vmid;

/// Seconds a guest gets to shut down when nobody says otherwise.
const SHUTDOWN_SECONDS: u64 = 60;

pub(crate) async fn start_lxc(call: Call) -> Answer {
    refuse_root_only(&call)?;
    let (node, vmid) = (Arc::clone(&call.node), call.vmid());
    if node.guest(Kind::Lxc, vmid).is_ok() && node.pid(vmid).await.is_some() {
        return Err(Refusal::die(format!("CT {vmid} already running")));
    }
    let upid =
        call.node.start_task(&call.caller, call.effects.clone(), ("vzstart", &vmid.to_string()), |task| async move {
            let _held = node.lock_config(Kind::Lxc, vmid).await?;
            start(&node, &task, vmid).await
        });
    Ok(json!(upid).into())
}

/// Starts a container whose file is held.
pub(crate) async fn start(node: &Arc<Node>, task: &Handle, vmid: Vmid) -> Result<u32, String> {
    let guest = node.guest(Kind::Lxc, vmid)?;
    if guest.is_template() {
        return Err("you can't start a CT if it's a template".to_owned());
    }
    guest.check_lock()?;
    node.change(Kind::Lxc, vmid, |guest| guest.apply_pending())?;
    let guest = node.guest(Kind::Lxc, vmid)?;
    write::rebuild_check(&node.read(), &guest)?;
    task.interruptible(task.work(Work::Start)).await?;
    if let Err(text) = node.runtime.start(&guest.spec()).await {
        task.log(text);
        return Err(format!("startup for container '{vmid}' failed"));
    }
    node.change(Kind::Lxc, vmid, |guest| guest.started = Some(clock::epoch()))?;
    if node.major() >= 9 && guest.lacks_nesting() {
        task.log("WARN: Systemd 252 detected. You may need to enable nesting.");
        return Ok(1);
    }
    Ok(0)
}

pub(crate) async fn stop_lxc(call: Call) -> Answer {
    refuse_root_only(&call)?;
    let (node, vmid) = (Arc::clone(&call.node), call.vmid());
    running_lxc(&node, vmid).await?;
    if call.params.flag("overrule-shutdown") == Some(true) {
        end_shutdowns(&call, "vzshutdown", vmid);
    }
    let upid =
        call.node.start_task(&call.caller, call.effects.clone(), ("vzstop", &vmid.to_string()), |task| async move {
            let _held = node.lock_config(Kind::Lxc, vmid).await?;
            node.guest(Kind::Lxc, vmid)?.check_lock()?;
            task.interruptible(task.work(Work::Stop)).await?;
            node.runtime.stop(vmid).await?;
            Ok(0)
        });
    Ok(json!(upid).into())
}

async fn running_lxc(node: &Node, vmid: Vmid) -> Result<(), Refusal> {
    if node.guest(Kind::Lxc, vmid).is_ok() && node.pid(vmid).await.is_some() {
        return Ok(());
    }
    Err(Refusal::die(format!("CT {vmid} not running")))
}

/// Ends pending shutdowns of a guest: the caller's own, and everybody's with `Sys.Modify`.
fn end_shutdowns(call: &Call, kind: &str, vmid: Vmid) {
    let all = call.has(&format!("/nodes/{}", call.node.name), "Sys.Modify");
    let pending: Vec<String> = {
        let state = call.node.read();
        let tasks = state.tasks().values();
        tasks
            .filter(|task| task.exit.is_none() && task.kind == kind && task.id == vmid.to_string())
            .filter(|task| all || task.belongs_to(&call.caller))
            .map(|task| task.upid.clone())
            .collect()
    };
    for task in pending.iter().filter_map(|upid| call.node.live_task(upid)) {
        task.interrupt();
    }
}

fn patience(call: &Call) -> u64 {
    call.params.whole("timeout").map_or(SHUTDOWN_SECONDS, i64::unsigned_abs)
}

pub(crate) async fn shutdown_lxc(call: Call) -> Answer {
    let (node, vmid, timeout) = (Arc::clone(&call.node), call.vmid(), patience(&call));
    let force = call.params.flag("forceStop") == Some(true);
    running_lxc(&node, vmid).await?;
    let upid = call.node.start_task(
        &call.caller,
        call.effects.clone(),
        ("vzshutdown", &vmid.to_string()),
        |task| async move {
            // The file stays held while the guest takes its time, so other calls on it time out.
            let _held = node.lock_config(Kind::Lxc, vmid).await?;
            node.guest(Kind::Lxc, vmid)?.check_lock()?;
            task.interruptible(task.work(Work::Shutdown)).await?;
            match task.interruptible(node.runtime.shutdown(vmid, timeout)).await {
                Ok(()) => Ok(0),
                Err(_) if force => node.runtime.stop(vmid).await.map(|()| 0),
                Err(text) => {
                    task.log(text);
                    Err("container did not stop".to_owned())
                }
            }
        },
    );
    Ok(json!(upid).into())
}

pub(crate) async fn reboot_lxc(call: Call) -> Answer {
    let (node, vmid, timeout) = (Arc::clone(&call.node), call.vmid(), patience(&call));
    node.guest(Kind::Lxc, vmid).map_err(Refusal::die)?;
    if node.pid(vmid).await.is_none() {
        return Err(Refusal::die(format!("VM {vmid} not running")));
    }
    let upid =
        call.node.start_task(&call.caller, call.effects.clone(), ("vzreboot", &vmid.to_string()), |task| async move {
            let _held = node.lock_config(Kind::Lxc, vmid).await?;
            node.guest(Kind::Lxc, vmid)?.check_lock()?;
            task.interruptible(task.work(Work::Shutdown)).await?;
            if node.runtime.shutdown(vmid, timeout).await.is_err() {
                node.runtime.stop(vmid).await?;
            }
            start(&node, &task, vmid).await
        });
    Ok(json!(upid).into())
}

pub(crate) async fn start_qemu(call: Call) -> Answer {
    refuse_root_only(&call)?;
    let (node, vmid) = (Arc::clone(&call.node), call.vmid());
    let upid =
        call.node.start_task(&call.caller, call.effects.clone(), ("qmstart", &vmid.to_string()), |task| async move {
            let _held = node.lock_config(Kind::Qemu, vmid).await?;
            let guest = node.guest(Kind::Qemu, vmid)?;
            if guest.is_template() {
                return Err("you can't start a vm if it's a template".to_owned());
            }
            guest.check_lock()?;
            if guest.running.is_some() {
                return Err(format!("VM {vmid} already running"));
            }
            task.interruptible(task.work(Work::Start)).await?;
            let pid = {
                let mut state = node.write();
                let cluster = state.cluster_mut();
                cluster.next_pid += 1;
                cluster.next_pid
            };
            node.change(Kind::Qemu, vmid, |guest| {
                guest.apply_pending();
                guest.running = Some(Running { pid, since: clock::epoch() });
            })?;
            Ok(0)
        });
    Ok(json!(upid).into())
}

pub(crate) async fn stop_qemu(call: Call) -> Answer {
    if call.params.flag("overrule-shutdown") == Some(true) {
        end_shutdowns(&call, "qmshutdown", call.vmid());
    }
    end_qemu(call, "qmstop", Work::Stop).await
}

pub(crate) async fn shutdown_qemu(call: Call) -> Answer {
    end_qemu(call, "qmshutdown", Work::Shutdown).await
}

/// A machine that is not running is already what was asked for: the task ends well.
async fn end_qemu(call: Call, kind: &'static str, work: Work) -> Answer {
    refuse_root_only(&call)?;
    let (node, vmid) = (Arc::clone(&call.node), call.vmid());
    let upid = call.node.start_task(&call.caller, call.effects.clone(), (kind, &vmid.to_string()), |task| async move {
        let _held = node.lock_config(Kind::Qemu, vmid).await?;
        let guest = node.guest(Kind::Qemu, vmid).map_err(|_| no_machine(&node, vmid))?;
        if guest.running.is_none() {
            return Ok(0);
        }
        guest.check_lock()?;
        task.interruptible(task.work(work)).await?;
        node.change(Kind::Qemu, vmid, |guest| {
            guest.running = None;
            guest.apply_pending();
        })?;
        Ok(0)
    });
    Ok(json!(upid).into())
}
