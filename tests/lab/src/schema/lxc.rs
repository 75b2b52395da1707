//! Parameters of containers.

use super::formats as f;
use super::{Param, flag, number, text, whole};

/// `netN`.
pub(crate) const NET: &[Param] = &[
    text("bridge").pattern(f::is_interface),
    flag("firewall"),
    text("gw").format(f::ipv4),
    text("gw6").format(f::ipv6),
    flag("host-managed").only_on(9),
    text("hwaddr").format(f::mac),
    text("ip").format(f::ipv4_config),
    text("ip6").format(f::ipv6_config),
    flag("link_down"),
    whole("mtu").between(64, 65535),
    text("name").required().pattern(f::is_interface),
    number("rate"),
    whole("tag").between(1, 4094),
    text("trunks").pattern(f::is_vlan_list),
    text("type").one_of(&["veth"]),
];

/// `mpN`.
pub(crate) const MOUNT: &[Param] = &[
    flag("acl"),
    flag("backup"),
    text("idmap").only_on(9),
    flag("keepattrs").only_on(9),
    text("mountoptions").pattern(f::is_mount_options),
    text("mp").required().format(f::mount_path),
    flag("quota"),
    flag("replicate"),
    flag("ro"),
    flag("shared"),
    text("size").format(f::disk_size),
    text("volume").required().format(f::mount_path).default_key(),
];

/// `rootfs`.
pub(crate) const ROOTFS: &[Param] = &[
    flag("acl"),
    text("idmap").only_on(9),
    text("mountoptions").pattern(f::is_mount_options),
    flag("quota"),
    flag("replicate"),
    flag("ro"),
    flag("shared"),
    text("size").format(f::disk_size),
    text("volume").required().format(f::mount_path).default_key(),
];

/// `features`.
pub(crate) const FEATURES: &[Param] = &[
    flag("force_rw_sys"),
    flag("fuse"),
    flag("keyctl"),
    flag("mknod"),
    text("mount").pattern(f::is_file_systems),
    flag("nesting"),
];

const DEVICE: &[Param] = &[
    flag("deny-write"),
    whole("gid").at_least(0),
    text("mode").pattern(f::is_octal_mode),
    text("path").default_key(),
    whole("uid").at_least(0),
];

const UNUSED: &[Param] = &[text("volume").required().format(f::volume_id).default_key()];

/// Configuration keys.
pub(crate) const CONFIG: &[Param] = &[
    text("arch").one_of(&["amd64", "i386", "arm64", "armhf", "riscv32", "riscv64"]),
    text("cmode").one_of(&["shell", "console", "tty"]),
    flag("console"),
    whole("cores").between(1, 8192),
    number("cpulimit").between(0, 8192),
    whole("cpuunits").between(0, 500_000),
    flag("debug"),
    text("description").max_len(8192),
    text("dev").indexed(256).properties(DEVICE),
    text("entrypoint").pattern(f::is_printable).only_on(9),
    text("env").pattern(f::is_environment).only_on(9),
    text("features").properties(FEATURES),
    text("hookscript").format(f::volume_id),
    text("hostname").format(f::dns_name).max_len(255),
    text("lock").one_of(&[
        "backup",
        "create",
        "destroyed",
        "disk",
        "fstrim",
        "migrate",
        "mounted",
        "rollback",
        "snapshot",
        "snapshot-delete",
    ]),
    whole("memory").at_least(16),
    text("mp").indexed(256).properties(MOUNT),
    text("nameserver").list_of(f::address),
    text("net").indexed(32).properties(NET),
    flag("onboot"),
    text("ostype").one_of(&[
        "debian",
        "devuan",
        "ubuntu",
        "centos",
        "fedora",
        "opensuse",
        "archlinux",
        "alpine",
        "gentoo",
        "nixos",
        "unmanaged",
    ]),
    flag("protection"),
    text("rootfs").properties(ROOTFS),
    text("searchdomain").list_of(f::dns_name),
    text("startup").format(f::startup),
    whole("swap").at_least(0),
    text("tags").list_of(f::tag),
    flag("template"),
    text("timezone").format(f::timezone),
    whole("tty").between(0, 6),
    flag("unprivileged"),
    text("unused").indexed(256).properties(UNUSED),
];

/// Clone.
pub(crate) const CLONE: &[Param] = &[
    number("bwlimit").at_least(0),
    text("description"),
    flag("full"),
    text("hostname").format(f::dns_name),
    whole("newid").required().format(f::vmid),
    text("pool").format(f::pool_id),
    text("snapname").format(f::config_id).max_len(40),
    text("storage").format(f::storage_id),
    text("target").format(f::node),
];

/// Grow a volume.
pub(crate) const RESIZE: &[Param] = &[
    text("digest").max_len(40),
    text("disk").required().pattern(is_volume_key),
    text("size").required().pattern(f::is_resize),
];

/// Move a volume to another storage or container.
pub(crate) const MOVE_VOLUME: &[Param] = &[
    number("bwlimit").at_least(0),
    flag("delete"),
    text("digest").max_len(40),
    text("storage").format(f::storage_id),
    text("target-digest").max_len(40),
    whole("target-vmid").format(f::vmid),
    text("target-volume").pattern(is_volume_key),
    text("volume").required().pattern(is_volume_key),
];

/// Destroy.
pub(crate) const DESTROY: &[Param] = &[flag("destroy-unreferenced-disks"), flag("force"), flag("purge")];

/// Power.
pub(crate) const START: &[Param] = &[flag("debug"), flag("skiplock")];
pub(crate) const STOP: &[Param] = &[flag("overrule-shutdown"), flag("skiplock")];
pub(crate) const SHUTDOWN: &[Param] = &[flag("forceStop"), whole("timeout").at_least(0)];
pub(crate) const REBOOT: &[Param] = &[whole("timeout").at_least(0)];

fn is_volume_key(value: &str) -> bool {
    value == "rootfs" || text("mp").indexed(256).describes(value) || text("unused").indexed(256).describes(value)
}
