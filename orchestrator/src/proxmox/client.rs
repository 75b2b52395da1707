//! The client and its reading calls.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use contract::ids::{NodeName, PoolId, Vmid};
use contract::manifest::GuestKind;
use contract::secret::Secret;
use serde_json::Value;

use super::error::{Effect, Problem, ProxmoxError};
use super::form::Form;
use super::guest::{GuestConfig, GuestRef, GuestRow, GuestStatus, Interface};
use super::node::{Bridge, NodeRow, NodeStatus, Permissions, Pool, Storage, Version};
use super::tls::ServerTrust;
use super::transport::{BaseUrl, CALL_TIMEOUT, CONNECT_TIMEOUT, Call, Reply, Transport, Verb, path};

/// How to reach Proxmox.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it answers.
    pub url: BaseUrl,
    /// `user@realm!id=uuid`.
    pub token: Secret,
    /// How it proves itself.
    pub server: ServerTrust,
    /// Time to reach it.
    pub connect_timeout: Duration,
    /// Time for a whole call.
    pub call_timeout: Duration,
}

impl Settings {
    /// With the usual time-outs.
    pub fn new(url: BaseUrl, token: Secret, server: ServerTrust) -> Self {
        Self { url, token, server, connect_timeout: CONNECT_TIMEOUT, call_timeout: CALL_TIMEOUT }
    }
}

/// A Proxmox cluster, reached through one of its nodes. Cheap to clone; clones share connections and limits.
#[derive(Clone)]
pub struct Client {
    pub(super) transport: Arc<Transport>,
    token_id: Arc<str>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({} as {})", self.transport.base(), self.token_id)
    }
}

impl Client {
    /// Checks the settings; nothing is sent yet.
    pub fn new(settings: Settings) -> Result<Self, ProxmoxError> {
        let transport = Transport::new(&settings)
            .map_err(|problem| ProxmoxError::new(settings.url.to_string(), Effect::Read, problem))?;
        let token_id = settings.token.expose().trim().split('=').next().unwrap_or_default().into();
        Ok(Self { transport: Arc::new(transport), token_id })
    }

    /// `user@realm!id` of the token: who acts.
    pub fn token_id(&self) -> &str {
        &self.token_id
    }

    /// Where Proxmox answers.
    pub fn url(&self) -> &BaseUrl {
        self.transport.base()
    }

    /// Version of the node that answers.
    pub async fn version(&self) -> Result<Version, ProxmoxError> {
        Ok(self.version_and_clock().await?.0)
    }

    /// Version, and the `Date` of the answer.
    pub async fn version_and_clock(&self) -> Result<(Version, Option<String>), ProxmoxError> {
        let call = Call::new(Verb::Get, path(&["version"]), None);
        let Reply { data, date } = self.transport.send(&call).await?;
        Ok((readable(&call, Version::decode(&data))?, date))
    }

    /// Nodes of the cluster.
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, ProxmoxError> {
        let call = Call::new(Verb::Get, path(&["nodes"]), None);
        readable(&call, NodeRow::decode(self.data(&call).await?))
    }

    /// Load and memory of a node. Needs Sys.Audit on it.
    pub async fn node_status(&self, node: &NodeName) -> Result<NodeStatus, ProxmoxError> {
        let call = Call::new(Verb::Get, path(&["nodes", node.as_str(), "status"]), Some(node));
        Ok(NodeStatus::decode(&self.data(&call).await?))
    }

    /// Guests of the cluster that the token may see. Lock, tags and pool are live; the rest may be 10 s old.
    pub async fn guests(&self) -> Result<Vec<GuestRow>, ProxmoxError> {
        let form = Form::new().set("type", "vm");
        let call = Call::new(Verb::Get, path(&["cluster", "resources"]), None).with(form);
        readable(&call, GuestRow::decode(self.data(&call).await?, None))
    }

    /// Guests of one kind on a node, with live state, name and template flag.
    pub async fn guests_on(&self, node: &NodeName, kind: GuestKind) -> Result<Vec<GuestRow>, ProxmoxError> {
        let family = match kind {
            GuestKind::Lxc => "lxc",
            GuestKind::Vm => "qemu",
        };
        let call = Call::new(Verb::Get, path(&["nodes", node.as_str(), family]), Some(node));
        readable(&call, GuestRow::decode(self.data(&call).await?, Some((node, kind))))
    }

    /// Where a guest is, whatever its kind; none: it does not exist or the token may not see it.
    pub async fn find(&self, vmid: Vmid) -> Result<Option<GuestRow>, ProxmoxError> {
        Ok(self.guests().await?.into_iter().find(|row| row.guest.vmid == vmid))
    }

    /// Live configuration of a guest: pending changes are left out.
    pub async fn guest_config(&self, guest: &GuestRef) -> Result<GuestConfig, ProxmoxError> {
        let call = self.guest_call(Verb::Get, guest, &["config"]).with(Form::new().flag("current", true));
        readable(&call, GuestConfig::decode(guest, self.data(&call).await?))
    }

    /// Whether a guest runs.
    pub async fn guest_status(&self, guest: &GuestRef) -> Result<GuestStatus, ProxmoxError> {
        let call = self.guest_call(Verb::Get, guest, &["status", "current"]);
        readable(&call, GuestStatus::decode(&self.data(&call).await?))
    }

    /// Configuration of a guest as it will be after its next start: pending changes count.
    pub async fn next_config(&self, guest: &GuestRef) -> Result<GuestConfig, ProxmoxError> {
        let call = self.guest_call(Verb::Get, guest, &["config"]);
        readable(&call, GuestConfig::decode(guest, self.data(&call).await?))
    }

    /// Interfaces inside a running guest; `None` when it does not run. Of a virtual machine its guest agent is asked.
    pub async fn interfaces(&self, guest: &GuestRef) -> Result<Option<Vec<Interface>>, ProxmoxError> {
        let call = match guest.kind {
            GuestKind::Lxc => self.guest_call(Verb::Get, guest, &["interfaces"]),
            GuestKind::Vm => self.guest_call(Verb::Get, guest, &["agent", "network-get-interfaces"]),
        };
        match self.data(&call).await {
            Ok(Value::Null) => Ok(None),
            Ok(data) => Ok(Some(Interface::decode(&data))),
            Err(error) if matches!(error.cause(), Problem::NotRunning) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Pools that the token may see, without members.
    pub async fn pools(&self) -> Result<Vec<Pool>, ProxmoxError> {
        let call = Call::new(Verb::Get, path(&["pools"]), None);
        readable(&call, Pool::decode(self.data(&call).await?))
    }

    /// A pool with its members.
    pub async fn pool(&self, pool: &PoolId) -> Result<Pool, ProxmoxError> {
        let call = Call::new(Verb::Get, path(&["pools"]), None).with(Form::new().set("poolid", pool));
        let rows = readable(&call, Pool::decode(self.data(&call).await?))?;
        let found = rows.into_iter().find(|row| row.id == pool.as_str());
        found.ok_or_else(|| self.fail(&call, Problem::NotFound(format!("pool '{pool}' does not exist"))))
    }

    /// Storages of a node that the token may see.
    pub async fn storages(&self, node: &NodeName) -> Result<Vec<Storage>, ProxmoxError> {
        let call = Call::new(Verb::Get, path(&["nodes", node.as_str(), "storage"]), Some(node));
        readable(&call, Storage::decode(self.data(&call).await?))
    }

    /// Bridges of a node that the token may see.
    pub async fn bridges(&self, node: &NodeName) -> Result<Vec<Bridge>, ProxmoxError> {
        let form = Form::new().set("type", "any_bridge");
        let call = Call::new(Verb::Get, path(&["nodes", node.as_str(), "network"]), Some(node)).with(form);
        readable(&call, Bridge::decode(self.data(&call).await?))
    }

    /// All that the token may do, on the paths that have a rule of their own.
    pub async fn permissions(&self) -> Result<Permissions, ProxmoxError> {
        let call = Call::new(Verb::Get, path(&["access", "permissions"]), None);
        readable(&call, Permissions::decode(self.data(&call).await?))
    }

    /// What the token may do on one path, inherited rules included.
    pub async fn permissions_at(&self, acl_path: &str) -> Result<BTreeSet<String>, ProxmoxError> {
        let form = Form::new().set("path", acl_path);
        let call = Call::new(Verb::Get, path(&["access", "permissions"]), None).with(form);
        Ok(readable(&call, Permissions::decode(self.data(&call).await?))?.at(acl_path))
    }

    /// A call on a guest.
    pub(super) fn guest_call(&self, verb: Verb, guest: &GuestRef, parts: &[&str]) -> Call {
        let vmid = guest.vmid.to_string();
        let mut all = vec!["nodes", guest.node.as_str(), guest.family(), &vmid];
        all.extend(parts);
        Call::new(verb, path(&all), Some(&guest.node))
    }

    /// Sends a call and gives its `data`.
    pub(super) async fn data(&self, call: &Call) -> Result<Value, ProxmoxError> {
        Ok(self.transport.send(call).await?.data)
    }

    /// An error of a call that was itself fine.
    pub(super) fn fail(&self, call: &Call, problem: Problem) -> ProxmoxError {
        ProxmoxError::new(call.name(), Effect::Read, problem)
    }
}

/// Data that was decoded, or an answer that cannot be read.
pub(super) fn readable<T>(call: &Call, decoded: Result<T, String>) -> Result<T, ProxmoxError> {
    decoded.map_err(|why| ProxmoxError::new(call.name(), call.effect_of(), Problem::UnreadableAnswer(why)))
}
