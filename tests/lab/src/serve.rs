//! Brings the node up, and takes it down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::TlsAcceptor;

use crate::api::access::new_secret;
use crate::cli::{RuntimeKind, Serve};
use crate::faults::{Faults, Rule};
use crate::http::connection;
use crate::node::{Node, Parts, Timings, Work, resources};
use crate::runtime::Runtime;
use crate::runtime::none::NoneRuntime;
use crate::runtime::nspawn::NspawnRuntime;
use crate::state::{AclEntry, Bridge, Pool, State, Storage, Token, User, write_private};
use crate::{certificates, control};

/// The privileges that the orchestrator's token needs on its pool.
const POOL_ROLE: &[&str] = &[
    "VM.Allocate",
    "VM.Audit",
    "VM.Clone",
    "VM.Config.CPU",
    "VM.Config.Memory",
    "VM.Config.Disk",
    "VM.Config.Network",
    "VM.Config.Options",
    "VM.Config.HWType",
    "VM.Config.Cloudinit",
    "VM.Config.CDROM",
    "VM.PowerMgmt",
    "VM.Snapshot",
    "VM.Snapshot.Rollback",
    "VM.Backup",
    "Pool.Audit",
];
const USER: &str = "ctrlable@pve";
const TOKEN: &str = "site";

/// Runs until told to end.
pub(crate) async fn serve(options: Serve, listeners: Vec<TcpListener>) -> anyhow::Result<()> {
    let dir = std::path::absolute(&options.state)?;
    let identity = certificates::open(&dir, &options.node, node_address(&options.subnet))?;
    let mut state = State::open(&dir)?;
    if state.cluster().users.is_empty() {
        first_start(&mut state, &options, &dir)?;
        state.flush()?;
    }
    let runtime = match options.runtime {
        RuntimeKind::None => {
            let after = options.timings.of(Work::Address);
            NoneRuntime::open(&dir, &options.subnet, after).map(Runtime::None)
        }
        RuntimeKind::Nspawn => NspawnRuntime::open(&dir, &options.bridge, &options.subnet).map(Runtime::Nspawn),
    };
    let rules = match &options.faults {
        Some(file) => {
            let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
            serde_json::from_slice::<Vec<Rule>>(&text)
                .with_context(|| format!("{} is no list of rules", file.display()))?
        }
        None => Vec::new(),
    };
    let node = Node::new(Parts {
        name: options.node.clone(),
        release: options.pve,
        timings: options.timings,
        runtime: runtime.map_err(|text| anyhow!(text))?,
        fingerprint: identity.fingerprint,
        faults: Faults::new(rules),
        state,
    });
    node.sample().await;
    if node.timings == Timings::Recorded {
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(resources::SAMPLE_EVERY).await;
                node.sample().await;
            }
        });
    }

    let tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![identity.certificate], identity.key)
        .context("the lab's certificate")?;
    let tls = TlsAcceptor::from(Arc::new(tls));
    let mut urls = Vec::new();
    for listener in listeners {
        urls.push(format!("https://{}", listener.local_addr()?));
        listener.set_nonblocking(true)?;
        tokio::spawn(accept(tokio::net::TcpListener::from_std(listener)?, tls.clone(), Arc::clone(&node)));
    }
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    announce(&dir, &urls)?;

    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("ending: running tasks are interrupted");
    node.end_tasks().await;
    Ok(())
}

async fn accept(listener: tokio::net::TcpListener, tls: TlsAcceptor, node: Arc<Node>) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => drop(tokio::spawn(connection::serve(socket, tls.clone(), Arc::clone(&node)))),
            Err(error) => {
                // Out of descriptors, most likely: let some connections end first.
                tracing::warn!("a connection could not be accepted: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// One line of JSON on standard output, and the same in a file.
fn announce(dir: &Path, urls: &[String]) -> anyhow::Result<()> {
    let url = urls.first().context("nothing to listen on")?;
    let lab = json!({
        "url": url, "urls": urls, "ca": dir.join("pve-root-ca.pem"), "token": dir.join("token"),
        "root_token": dir.join("root-token"), "control": format!("{url}/lab"),
    });
    write_private(&dir.join("lab.json"), lab.to_string().as_bytes())?;
    println!("{lab}");
    Ok(())
}

fn first_start(state: &mut State, options: &Serve, dir: &Path) -> anyhow::Result<()> {
    let major = options.pve.major();
    let secret = match &options.token_file {
        Some(file) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
            let prefix = format!("{USER}!{TOKEN}=");
            let secret = text.trim().strip_prefix(&prefix);
            secret.with_context(|| format!("{} does not hold {prefix}UUID", file.display()))?.to_owned()
        }
        None => new_secret(),
    };
    let root = new_secret();
    write_private(&dir.join("token"), format!("{USER}!{TOKEN}={secret}\n").as_bytes())?;
    write_private(&dir.join("root-token"), format!("{}={root}\n", control::ADMINISTRATOR).as_bytes())?;

    let cluster = state.cluster_mut();
    let user = |name: &str, secret: String, privsep: bool| User {
        enable: true,
        tokens: BTreeMap::from([(name.to_owned(), Token { secret, privsep, expire: 0, comment: None })]),
        ..User::default()
    };
    cluster.users.insert("root@pam".to_owned(), user("lab", root, false));
    cluster.users.insert(USER.to_owned(), user(TOKEN, secret, true));
    cluster.pools.insert(options.pool.clone(), Pool::default());
    let gib = |amount: u64| amount << 30;
    let storage = |kind: &str, content: &[&str], capacity: u64| Storage {
        kind: kind.to_owned(),
        content: content.iter().map(|name| (*name).to_owned()).collect(),
        capacity,
        disabled: false,
    };
    cluster.storages.insert("local".to_owned(), storage("dir", &["backup", "iso", "vztmpl"], gib(252)));
    cluster.storages.insert("local-lvm".to_owned(), storage("lvmthin", &["images", "rootdir"], gib(512)));
    let cidr = options.subnet.split_once('/').and_then(|(network, prefix)| {
        let network: std::net::Ipv4Addr = network.parse().ok()?;
        Some(format!("{}/{prefix}", std::net::Ipv4Addr::from(u32::from(network) + 1)))
    });
    cluster.bridges.insert(options.bridge.clone(), Bridge { cidr, mtu: 1500 });

    let mut guest: BTreeSet<String> = POOL_ROLE.iter().map(|name| (*name).to_owned()).collect();
    guest.insert(if major >= 9 { "VM.GuestAgent.Audit" } else { "VM.Monitor" }.to_owned());
    let small = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    cluster.roles.insert("CtrlableGuests".to_owned(), guest);
    cluster.roles.insert("CtrlableStorage".to_owned(), small(&["Datastore.AllocateSpace", "Datastore.Audit"]));
    cluster.roles.insert("CtrlableBridge".to_owned(), small(&["SDN.Use"]));
    cluster.roles.insert("CtrlableNode".to_owned(), small(&["Sys.Audit"]));
    let grants = [
        (format!("/pool/{}", options.pool), "CtrlableGuests"),
        ("/storage/local".to_owned(), "CtrlableStorage"),
        ("/storage/local-lvm".to_owned(), "CtrlableStorage"),
        (format!("/sdn/zones/localnetwork/{}", options.bridge), "CtrlableBridge"),
        (format!("/nodes/{}", options.node), "CtrlableNode"),
    ];
    for (path, role) in grants {
        for ugid in [USER.to_owned(), format!("{USER}!{TOKEN}")] {
            cluster.acl.push(AclEntry { path: path.clone(), ugid, role: role.to_owned(), propagate: true });
        }
    }
    Ok(())
}

/// The node's address on its bridge: the first of the subnet.
fn node_address(subnet: &str) -> Option<std::net::Ipv4Addr> {
    let network: std::net::Ipv4Addr = subnet.split('/').next()?.parse().ok()?;
    Some(std::net::Ipv4Addr::from(u32::from(network).checked_add(1)?))
}
