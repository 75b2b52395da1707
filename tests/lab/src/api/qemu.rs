//! `/nodes/N/qemu`: virtual machines, which are records only.

use super::Permission::{Agent, Any, Authenticated, Clone};
use super::guests::{agent, clone, destroy, power, read, snapshots, template, write};
use super::{Endpoint, Permission, endpoint};
use crate::node::guests::Kind::Qemu;
use crate::schema::guests::{FEATURE, READ, ROLLBACK, SNAPSHOT, SNAPSHOT_DELETE, WRITE};
use crate::schema::qemu as table;
use crate::schema::tables::NOTHING;

const GUEST: &str = "/vms/{vmid}";
const AUDIT: Permission = Any(GUEST, &["VM.Audit"]);
const POWER: Permission = Any(GUEST, &["VM.PowerMgmt"]);
const ALLOCATE: Permission = Any(GUEST, &["VM.Allocate"]);
const SNAP: Permission = Any(GUEST, &["VM.Snapshot"]);
const BACK: Permission = Any(GUEST, &["VM.Snapshot", "VM.Snapshot.Rollback"]);
const CONFIG: Permission = Any(
    GUEST,
    &[
        "VM.Config.Disk",
        "VM.Config.CDROM",
        "VM.Config.CPU",
        "VM.Config.Memory",
        "VM.Config.Network",
        "VM.Config.HWType",
        "VM.Config.Options",
        "VM.Config.Cloudinit",
    ],
);

pub(super) const ENDPOINTS: &[Endpoint] = &[
    endpoint!(GET "/nodes/{node}/qemu", Authenticated, [table::LIST] => read::list, Qemu),
    endpoint!(DELETE "/nodes/{node}/qemu/{vmid}", ALLOCATE, [table::DESTROY] => destroy::destroy, Qemu),
    endpoint!(GET "/nodes/{node}/qemu/{vmid}/config", AUDIT, [READ] => read::config, Qemu),
    endpoint!(PUT "/nodes/{node}/qemu/{vmid}/config", CONFIG, [WRITE, table::WRITE, table::CONFIG] => write::put, Qemu),
    endpoint!(POST "/nodes/{node}/qemu/{vmid}/config", CONFIG, [WRITE, table::WRITE, table::POST_WRITE, table::CONFIG] => write::post),
    endpoint!(GET "/nodes/{node}/qemu/{vmid}/pending", AUDIT, [NOTHING] => read::pending, Qemu),
    endpoint!(GET "/nodes/{node}/qemu/{vmid}/feature", AUDIT, [FEATURE] => read::feature, Qemu),
    endpoint!(POST "/nodes/{node}/qemu/{vmid}/clone", Clone, [table::CLONE] => clone::qemu),
    endpoint!(POST "/nodes/{node}/qemu/{vmid}/template", ALLOCATE, [table::TEMPLATE] => template::qemu),
    endpoint!(GET "/nodes/{node}/qemu/{vmid}/snapshot", AUDIT, [NOTHING] => snapshots::list, Qemu),
    endpoint!(POST "/nodes/{node}/qemu/{vmid}/snapshot", SNAP, [SNAPSHOT] => snapshots::create, Qemu),
    endpoint!(DELETE "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}", SNAP, [SNAPSHOT_DELETE] => snapshots::delete, Qemu),
    endpoint!(POST "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}/rollback", BACK, [ROLLBACK] => snapshots::rollback, Qemu),
    endpoint!(GET "/nodes/{node}/qemu/{vmid}/status/current", AUDIT, [NOTHING] => read::status, Qemu),
    endpoint!(POST "/nodes/{node}/qemu/{vmid}/status/start", POWER, [table::START] => power::start_qemu),
    endpoint!(POST "/nodes/{node}/qemu/{vmid}/status/stop", POWER, [table::STOP] => power::stop_qemu),
    endpoint!(POST "/nodes/{node}/qemu/{vmid}/status/shutdown", POWER, [table::SHUTDOWN] => power::shutdown_qemu),
    endpoint!(POST "/nodes/{node}/qemu/{vmid}/agent/ping", Agent, [NOTHING] => agent::ping),
    endpoint!(GET "/nodes/{node}/qemu/{vmid}/agent/network-get-interfaces", Agent, [NOTHING] => agent::interfaces),
];
