//! `/nodes/N/lxc`.

use super::Permission::{Any, Authenticated, Clone};
use super::guests::{clone, destroy, power, read, snapshots, template, volumes, write};
use super::{Endpoint, Permission, endpoint};
use crate::node::guests::Kind::Lxc;
use crate::schema::guests::{FEATURE, READ, ROLLBACK, SNAPSHOT, SNAPSHOT_DELETE, WRITE};
use crate::schema::lxc as table;
use crate::schema::tables::NOTHING;

const GUEST: &str = "/vms/{vmid}";
const AUDIT: Permission = Any(GUEST, &["VM.Audit"]);
const POWER: Permission = Any(GUEST, &["VM.PowerMgmt"]);
const ALLOCATE: Permission = Any(GUEST, &["VM.Allocate"]);
const DISK: Permission = Any(GUEST, &["VM.Config.Disk"]);
const SNAP: Permission = Any(GUEST, &["VM.Snapshot"]);
const BACK: Permission = Any(GUEST, &["VM.Snapshot", "VM.Snapshot.Rollback"]);
const CONFIG: Permission =
    Any(GUEST, &["VM.Config.Disk", "VM.Config.CPU", "VM.Config.Memory", "VM.Config.Network", "VM.Config.Options"]);

pub(super) const ENDPOINTS: &[Endpoint] = &[
    endpoint!(GET "/nodes/{node}/lxc", Authenticated, [NOTHING] => read::list, Lxc),
    endpoint!(DELETE "/nodes/{node}/lxc/{vmid}", ALLOCATE, [table::DESTROY] => destroy::destroy, Lxc),
    endpoint!(GET "/nodes/{node}/lxc/{vmid}/config", AUDIT, [READ] => read::config, Lxc),
    endpoint!(PUT "/nodes/{node}/lxc/{vmid}/config", CONFIG, [WRITE, table::CONFIG] => write::put, Lxc),
    endpoint!(GET "/nodes/{node}/lxc/{vmid}/pending", AUDIT, [NOTHING] => read::pending, Lxc),
    endpoint!(GET "/nodes/{node}/lxc/{vmid}/feature", AUDIT, [FEATURE] => read::feature, Lxc),
    endpoint!(GET "/nodes/{node}/lxc/{vmid}/interfaces", AUDIT, [NOTHING] => read::interfaces),
    endpoint!(POST "/nodes/{node}/lxc/{vmid}/clone", Clone, [table::CLONE] => clone::lxc),
    endpoint!(POST "/nodes/{node}/lxc/{vmid}/template", ALLOCATE, [NOTHING] => template::lxc),
    endpoint!(PUT "/nodes/{node}/lxc/{vmid}/resize", DISK, [table::RESIZE] => volumes::resize),
    endpoint!(POST "/nodes/{node}/lxc/{vmid}/move_volume", DISK, [table::MOVE_VOLUME] => volumes::move_volume),
    endpoint!(GET "/nodes/{node}/lxc/{vmid}/snapshot", AUDIT, [NOTHING] => snapshots::list, Lxc),
    endpoint!(POST "/nodes/{node}/lxc/{vmid}/snapshot", SNAP, [SNAPSHOT] => snapshots::create, Lxc),
    endpoint!(DELETE "/nodes/{node}/lxc/{vmid}/snapshot/{snapname}", SNAP, [SNAPSHOT_DELETE] => snapshots::delete, Lxc),
    endpoint!(POST "/nodes/{node}/lxc/{vmid}/snapshot/{snapname}/rollback", BACK, [ROLLBACK] => snapshots::rollback, Lxc),
    endpoint!(GET "/nodes/{node}/lxc/{vmid}/status/current", AUDIT, [NOTHING] => read::status, Lxc),
    endpoint!(POST "/nodes/{node}/lxc/{vmid}/status/start", POWER, [table::START] => power::start_lxc),
    endpoint!(POST "/nodes/{node}/lxc/{vmid}/status/stop", POWER, [table::STOP] => power::stop_lxc),
    endpoint!(POST "/nodes/{node}/lxc/{vmid}/status/shutdown", POWER, [table::SHUTDOWN] => power::shutdown_lxc),
    endpoint!(POST "/nodes/{node}/lxc/{vmid}/status/reboot", POWER, [table::REBOOT] => power::reboot_lxc),
];
