//! Parameters of virtual machines.

use super::formats as f;
use super::{Param, flag, number, text, whole};

const MODELS: &[&str] = &[
    "e1000",
    "e1000-82540em",
    "e1000-82544gc",
    "e1000-82545em",
    "e1000e",
    "i82551",
    "i82557b",
    "i82559er",
    "ne2k_isa",
    "ne2k_pci",
    "pcnet",
    "rtl8139",
    "virtio",
    "vmxnet3",
];

const fn model(name: &'static str) -> Param {
    text(name).key_alias("model").alias("macaddr")
}

/// `netN`.
pub(crate) const NET: &[Param] = &[
    text("bridge").pattern(f::is_interface),
    model("e1000"),
    model("e1000e"),
    flag("firewall"),
    flag("link_down"),
    text("macaddr").format(f::mac),
    text("model").required().one_of(MODELS).default_key(),
    whole("mtu").between(1, 65520),
    whole("queues").between(0, 64),
    number("rate").at_least(0),
    model("rtl8139"),
    whole("tag").between(1, 4094),
    text("trunks").pattern(f::is_vlan_list),
    model("virtio"),
    model("vmxnet3"),
];

/// Disks of any bus.
pub(crate) const DISK: &[Param] = &[
    text("aio").one_of(&["native", "threads", "io_uring"]),
    flag("backup"),
    text("cache").one_of(&["none", "writethrough", "writeback", "unsafe", "directsync"]),
    text("discard").one_of(&["ignore", "on"]),
    text("file").required().default_key(),
    text("format").one_of(&["raw", "qcow", "qed", "qcow2", "vmdk", "cloop"]),
    text("import-from"),
    flag("iothread"),
    text("media").one_of(&["cdrom", "disk"]),
    flag("replicate"),
    flag("ro"),
    text("serial"),
    flag("shared"),
    text("size").format(f::disk_size),
    flag("snapshot"),
    flag("ssd"),
];

const AGENT: &[Param] = &[
    flag("enabled").required().default_key(),
    flag("freeze-fs-on-backup"),
    flag("fstrim_cloned_disks"),
    text("type").one_of(&["virtio", "isa"]),
];
const MEMORY: &[Param] = &[whole("current").required().at_least(16).default_key()];
const IP_CONFIG: &[Param] = &[
    text("gw").format(f::ipv4),
    text("gw6").format(f::ipv6),
    text("ip").format(f::ipv4_config),
    text("ip6").format(f::ipv6_config),
];
/// `smbios1`.
pub(crate) const SMBIOS: &[Param] = &[
    flag("base64"),
    text("family"),
    text("manufacturer"),
    text("product"),
    text("serial"),
    text("sku"),
    text("uuid").pattern(f::is_uuid),
    text("version"),
];

/// Configuration keys.
pub(crate) const CONFIG: &[Param] = &[
    flag("acpi"),
    text("affinity"),
    text("agent").properties(AGENT),
    flag("allow-ksm").only_on(9),
    text("amd-sev"),
    text("arch").one_of(&["x86_64", "aarch64"]),
    text("args"),
    flag("autostart"),
    whole("balloon").at_least(0),
    text("bios").one_of(&["seabios", "ovmf"]),
    text("boot"),
    text("cicustom"),
    text("cipassword"),
    text("citype").one_of(&["configdrive2", "nocloud", "opennebula"]),
    flag("ciupgrade"),
    text("ciuser"),
    whole("cores").at_least(1),
    text("cpu"),
    number("cpulimit").between(0, 128),
    whole("cpuunits").between(1, 262_144),
    text("description").max_len(8192),
    text("efidisk0").properties(DISK),
    flag("freeze"),
    text("hookscript").format(f::volume_id),
    text("hostpci").indexed(16),
    text("hotplug"),
    text("hugepages").one_of(&["any", "2", "1024"]),
    text("ide").indexed(4).properties(DISK),
    text("intel-tdx").only_on(9),
    text("ipconfig").indexed(32).properties(IP_CONFIG),
    text("ivshmem"),
    flag("keephugepages"),
    flag("kvm"),
    flag("localtime"),
    text("lock").one_of(&[
        "backup",
        "clone",
        "create",
        "migrate",
        "rollback",
        "snapshot",
        "snapshot-delete",
        "suspending",
        "suspended",
    ]),
    text("machine"),
    text("memory").properties(MEMORY),
    text("name").format(f::dns_name),
    text("nameserver").list_of(f::address),
    text("net").indexed(32).properties(NET),
    flag("numa"),
    flag("onboot"),
    text("ostype").one_of(&[
        "other", "wxp", "w2k", "w2k3", "w2k8", "wvista", "win7", "win8", "win10", "win11", "l24", "l26", "solaris",
    ]),
    text("parallel").indexed(3),
    flag("protection"),
    text("rng0"),
    text("sata").indexed(6).properties(DISK),
    text("scsi").indexed(31).properties(DISK),
    text("scsihw").one_of(&["lsi", "lsi53c810", "virtio-scsi-pci", "virtio-scsi-single", "megasas", "pvscsi"]),
    text("searchdomain"),
    text("serial").indexed(4).pattern(f::is_serial),
    text("smbios1").properties(SMBIOS).max_len(512),
    whole("sockets").at_least(1),
    text("spice_enhancements"),
    text("sshkeys").format(f::urlencoded),
    text("startup").format(f::startup),
    flag("tablet"),
    text("tags").list_of(f::tag),
    flag("template"),
    text("tpmstate0"),
    text("unused").indexed(256),
    text("usb").indexed(14),
    whole("vcpus").at_least(1),
    text("vga"),
    text("virtio").indexed(16).properties(DISK),
    text("vmgenid").pattern(f::is_uuid_or_switch),
    text("watchdog"),
];

/// What a write takes besides the keys.
pub(crate) const WRITE: &[Param] = &[flag("force").needs("delete"), flag("skiplock")];
pub(crate) const POST_WRITE: &[Param] =
    &[whole("background_delay").between(1, 30), text("import-working-storage").format(f::storage_id)];

/// Clone.
pub(crate) const CLONE: &[Param] = &[
    whole("bwlimit").at_least(0),
    text("description"),
    text("format").one_of(&["raw", "qcow2", "vmdk"]),
    flag("full"),
    text("name").format(f::dns_name),
    whole("newid").required().format(f::vmid),
    text("pool").format(f::pool_id),
    text("snapname").format(f::config_id).max_len(40),
    text("storage").format(f::storage_id),
    text("target").format(f::node),
];

pub(crate) const TEMPLATE: &[Param] = &[text("disk")];
pub(crate) const LIST: &[Param] = &[flag("full")];
pub(crate) const DESTROY: &[Param] = &[flag("destroy-unreferenced-disks"), flag("purge"), flag("skiplock")];
pub(crate) const START: &[Param] = &[
    text("force-cpu"),
    text("machine"),
    text("migratedfrom").format(f::node),
    text("migration_network"),
    text("migration_type").one_of(&["secure", "insecure"]),
    flag("nets-host-mtu").only_on(9),
    flag("skiplock"),
    text("stateuri"),
    text("targetstorage"),
    whole("timeout").at_least(0),
    flag("with-conntrack-state").only_on(9),
];
pub(crate) const STOP: &[Param] = &[
    flag("keepActive"),
    text("migratedfrom").format(f::node),
    flag("overrule-shutdown"),
    flag("skiplock"),
    whole("timeout").at_least(0),
];
pub(crate) const SHUTDOWN: &[Param] =
    &[flag("forceStop"), flag("keepActive"), flag("skiplock"), whole("timeout").at_least(0)];
