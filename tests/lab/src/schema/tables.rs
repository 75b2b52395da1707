//! Parameters of everything that is not a guest.

use super::formats as f;
use super::{Param, flag, list, text, whole};

/// No parameters at all.
pub(crate) const NOTHING: &[Param] = &[];

/// What the placeholders of a path may be.
pub(crate) const PATH: &[Param] = &[
    text("node").format(f::node),
    whole("vmid").format(f::vmid),
    text("storage").format(f::storage_id),
    text("upid"),
    text("snapname").format(f::config_id).max_len(40),
    text("volume"),
    text("roleid").format(f::role_id),
    text("userid").format(f::user_id).max_len(64),
    text("tokenid").pattern(f::is_token_name),
    text("sid").format(f::ha_sid),
];

pub(crate) const RESOURCES: &[Param] = &[text("type").one_of(&["vm", "storage", "node", "sdn"])];
pub(crate) const NEXTID: &[Param] = &[whole("vmid").format(f::vmid)];
pub(crate) const STORAGE_LIST: &[Param] = &[
    text("content").list_of(f::content),
    flag("enabled"),
    flag("format"),
    text("storage").format(f::storage_id),
    text("target").format(f::node),
];
pub(crate) const STORAGE_CONTENT: &[Param] = &[text("content").format(f::content), whole("vmid").format(f::vmid)];
pub(crate) const STORAGE_DELETE: &[Param] = &[whole("delay").between(1, 30)];
pub(crate) const NETWORK: &[Param] = &[text("type").one_of(&[
    "bridge",
    "bond",
    "eth",
    "alias",
    "vlan",
    "fabric",
    "OVSBridge",
    "OVSBond",
    "OVSPort",
    "OVSIntPort",
    "vnet",
    "any_bridge",
    "any_local_bridge",
    "include_sdn",
])];
pub(crate) const TASK_LIST: &[Param] = &[
    flag("errors"),
    whole("limit").at_least(0),
    whole("since"),
    text("source").one_of(&["archive", "active", "all"]),
    whole("start").at_least(0),
    text("statusfilter").list_of(f::task_status),
    text("typefilter"),
    whole("until"),
    text("userfilter"),
    whole("vmid").format(f::vmid),
];
pub(crate) const TASK_LOG: &[Param] = &[flag("download"), whole("limit").at_least(0), whole("start").at_least(0)];
pub(crate) const VZDUMP: &[Param] = &[
    flag("all"),
    whole("bwlimit").at_least(0),
    text("compress").one_of(&["0", "1", "gzip", "lzo", "zstd"]),
    text("dumpdir"),
    text("exclude").list_of(f::vmid),
    list("exclude-path"),
    text("fleecing"),
    whole("ionice").between(0, 8),
    text("job-id").pattern(f::is_word).max_len(50),
    whole("lockwait").at_least(0),
    text("mailnotification").one_of(&["always", "failure"]),
    text("mailto"),
    whole("maxfiles").at_least(1).only_on(8),
    text("mode").one_of(&["snapshot", "suspend", "stop"]),
    text("notes-template").max_len(1024).needs("storage"),
    text("notification-mode").one_of(&["auto", "legacy-sendmail", "notification-system"]),
    text("notification-policy").one_of(&["always", "failure", "never"]).only_on(8),
    text("notification-target").format(f::config_id).only_on(8),
    text("pbs-change-detection-mode").one_of(&["legacy", "data", "metadata"]),
    text("performance"),
    whole("pigz"),
    text("pool"),
    flag("protected").needs("storage"),
    text("prune-backups"),
    flag("quiet"),
    flag("remove"),
    text("script"),
    flag("stdexcludes"),
    flag("stdout"),
    flag("stop"),
    whole("stopwait").at_least(0),
    text("storage").format(f::storage_id),
    text("tmpdir"),
    text("vmid").list_of(f::vmid),
    whole("zstd"),
];
pub(crate) const POOL_LIST: &[Param] =
    &[text("poolid").format(f::pool_id), text("type").one_of(&["qemu", "lxc", "storage"])];
pub(crate) const POOL_CREATE: &[Param] = &[text("comment"), text("poolid").required().format(f::pool_id)];
pub(crate) const POOL_UPDATE: &[Param] = &[
    flag("allow-move"),
    text("comment"),
    flag("delete"),
    text("poolid").required().format(f::pool_id),
    text("storage").list_of(f::storage_id),
    text("vms").list_of(f::vmid),
];
pub(crate) const POOL_DELETE: &[Param] = &[text("poolid").required().format(f::pool_id)];
pub(crate) const PERMISSIONS: &[Param] = &[text("path"), text("userid")];
pub(crate) const ROLE_CREATE: &[Param] = &[text("privs"), text("roleid").required().format(f::role_id)];
pub(crate) const ROLE_UPDATE: &[Param] = &[flag("append").needs("privs"), text("privs")];
pub(crate) const USER_CREATE: &[Param] = &[
    text("comment").max_len(2048),
    text("email").max_len(254),
    flag("enable"),
    whole("expire").at_least(0),
    text("firstname").max_len(1024),
    text("groups"),
    text("keys"),
    text("lastname").max_len(1024),
    text("password").min_len(8).max_len(64),
    text("userid").required().format(f::user_id).max_len(64),
];
pub(crate) const TOKEN_CREATE: &[Param] = &[text("comment"), whole("expire").at_least(0), flag("privsep")];
pub(crate) const TOKEN_UPDATE: &[Param] = &[
    text("comment"),
    text("delete").only_on(9),
    whole("expire").at_least(0),
    flag("privsep"),
    flag("regenerate").only_on(9),
];
pub(crate) const ACL_UPDATE: &[Param] = &[
    flag("delete"),
    text("groups"),
    text("path").required(),
    flag("propagate"),
    text("roles").required().list_of(f::role_id),
    text("tokens").list_of(f::token_id),
    text("users").list_of(f::user_id),
];
pub(crate) const TICKET: &[Param] = &[
    flag("new-format"),
    text("otp"),
    text("password").required(),
    text("path").max_len(64),
    text("privs").max_len(64),
    text("realm"),
    text("tfa-challenge"),
    text("username").required().max_len(64),
];
pub(crate) const HA_LIST: &[Param] = &[text("type").one_of(&["ct", "vm"])];
pub(crate) const HA_CREATE: &[Param] = &[
    text("comment").max_len(4096),
    flag("failback").only_on(9),
    text("group").format(f::config_id),
    whole("max_relocate").at_least(0),
    whole("max_restart").at_least(0),
    text("sid").required().format(f::ha_sid),
    text("state").one_of(&["started", "stopped", "enabled", "disabled", "ignored"]),
    text("type").one_of(&["ct", "vm"]),
];
pub(crate) const HA_DELETE: &[Param] = &[flag("purge").only_on(9)];
