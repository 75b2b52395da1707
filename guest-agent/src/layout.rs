//! Where things lie in a guest. Every path is absolute in the guest and reached through [`crate::files::Root`].

/// Everything durable of the agent.
pub(crate) const STATE_DIR: &str = "/var/lib/ctrlable-agent";
/// The one state file.
pub(crate) const STATE: &str = "/var/lib/ctrlable-agent/state.json";
/// What the seal recorded.
pub(crate) const SEAL: &str = "/var/lib/ctrlable-agent/seal.json";
/// Steps of the first boot, one JSON object per line, written while they happen.
pub(crate) const FIRST_BOOT: &str = "/var/lib/ctrlable-agent/first-boot.jsonl";
/// The newest private key; it may still wait for its certificate.
pub(crate) const KEY: &str = "/var/lib/ctrlable-agent/key.pem";
/// The private key in force, then its certificate.
pub(crate) const CLIENT: &str = "/var/lib/ctrlable-agent/client.pem";
/// The CA certificates of the site that are believed.
pub(crate) const CA: &str = "/var/lib/ctrlable-agent/ca.pem";
/// What the agent keeps for its orchestrator.
pub(crate) const FLOOR: &str = "/var/lib/ctrlable-agent/floor";
/// What a wiring that is not decided yet would be put back to.
pub(crate) const ROLLBACK_DIR: &str = "/var/lib/ctrlable-agent/rollback";
/// What is true only now: last contact, problems. Lost at shutdown, and never waited for.
pub(crate) const STATUS: &str = "/run/ctrlable-agent/status.json";
/// Lists of what a template counts as its own identity.
pub(crate) const SEAL_LISTS: &str = "/etc/ctrlable/seal.d";

/// The guest's id: machine-id(5).
pub(crate) const MACHINE_ID: &str = "/etc/machine-id";
/// The guest's host name: hostname(5).
pub(crate) const HOSTNAME: &str = "/etc/hostname";
/// SSH host keys and the server's settings.
pub(crate) const SSH_DIR: &str = "/etc/ssh";
/// The time zone, as a link into the zone database.
pub(crate) const LOCALTIME: &str = "/etc/localtime";
/// Network interfaces, as the kernel shows them.
pub(crate) const INTERFACES: &str = "/sys/class/net";

/// The serial number that a virtual machine was given.
pub(crate) const SERIAL_NUMBER: &str = "/sys/class/dmi/id/product_serial";
/// The UUID that a virtual machine was given.
pub(crate) const MACHINE_UUID: &str = "/sys/class/dmi/id/product_uuid";

/// systemd's note that this is a container, and of which kind.
pub(crate) const CONTAINER: &str = "/run/systemd/container";

/// Largest small file that is read (state, seal, lists, keys), in bytes: real ones stay below 64 KiB.
pub(crate) const SMALL_FILE: u64 = 1024 * 1024;
