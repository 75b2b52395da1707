#![allow(clippy::unwrap_used)]
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::*;

const OLD_ID: &str = "0123456789abcdef0123456789abcdef";

/// A guest with all that a template build leaves behind.
struct Guest {
    dir: tempfile::TempDir,
}

impl Guest {
    fn new() -> Self {
        let guest = Self { dir: tempfile::tempdir().unwrap() };
        let sample = bootstrap::tests::sample("https://192.0.2.1:8443");
        guest.file("etc/ctrlable/bootstrap.json", &serde_json::to_string(&sample).unwrap(), 0o600);
        guest.file("usr/local/bin/ctrlable-agent", "", 0o755);
        guest.file("etc/systemd/system/ctrlable-agent.service", "", 0o644);
        std::fs::create_dir_all(guest.path("etc/systemd/system/multi-user.target.wants")).unwrap();
        symlink("/etc/systemd/system/ctrlable-agent.service", guest.path(&ENABLED[1..])).unwrap();
        guest.file("etc/machine-id", &format!("{OLD_ID}\n"), 0o444);
        guest.file("etc/ssh/sshd_config", "Port 22\n", 0o644);
        guest
    }

    /// Things to clear, each of a kind.
    fn used(&self) -> Vec<&'static str> {
        let used = vec![
            "etc/ssh/ssh_host_rsa_key",
            "etc/ssh/ssh_host_rsa_key.pub",
            "var/lib/dbus/machine-id",
            "var/lib/dhcp/dhclient.eth0.leases",
            "var/lib/NetworkManager/internal-1-eth0.lease",
            "var/lib/systemd/random-seed",
            "var/lib/systemd/credential.secret",
            "root/.bash_history",
            "root/.lesshst",
            "home/builder/.bash_history",
            "var/log/journal/0123/system.journal",
            "var/cache/apt/archives/curl.deb",
            "var/lib/ctrlable-agent/state.json",
            "var/lib/ctrlable-agent/key.pem",
            "var/lib/ctrlable-agent/rollback/0",
            "opt/app/data/instance.id",
        ];
        for path in &used {
            self.file(path, "secret of the template", 0o600);
        }
        self.file("etc/ctrlable/seal.d/app.list", "# what the app is known by\n\n/opt/app/data/*.id\n", 0o644);
        used
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn file(&self, path: &str, text: &str, mode: u32) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn root(&self) -> Root {
        Root::open(self.dir.path()).unwrap()
    }

    fn reasons(&self) -> Vec<Reason> {
        seal(&self.root()).unwrap_err().iter().map(|error| error.reason).collect()
    }
}

#[test]
fn clears_what_makes_a_guest_unlike_others_and_nothing_else() {
    let guest = Guest::new();
    let used = guest.used();
    guest.file("opt/app/data/settings.yaml", "kept", 0o644);
    let record = seal(&guest.root()).unwrap();
    for path in &used {
        assert!(!guest.path(path).exists(), "{path}");
        assert!(record.cleared.iter().any(|cleared| format!("/{path}").starts_with(cleared)), "{path}");
    }
    for path in ["opt/app/data/settings.yaml", "etc/ssh/sshd_config", "etc/ctrlable/bootstrap.json"] {
        assert!(guest.path(path).exists(), "{path}");
    }
    assert_eq!(std::fs::read(guest.path("etc/machine-id")).unwrap(), b"");
    assert_eq!(std::fs::metadata(guest.path("etc/machine-id")).unwrap().permissions().mode() & 0o7777, 0o444);
    assert_eq!(record.machine_id, Some(machine_id::digest(OLD_ID).unwrap()));
    assert!(!serde_json::to_string(&record).unwrap().contains(OLD_ID), "only its digest is kept");
    assert!(check(&guest.root()).is_empty());
}

#[test]
fn sealing_twice_keeps_what_the_first_seal_knew() {
    let guest = Guest::new();
    guest.used();
    ssh_keys::replace(&guest.root()).unwrap();
    let keys = ssh_keys::fingerprints(&guest.root()).unwrap();
    let first = seal(&guest.root()).unwrap();
    assert_eq!(first.ssh_host_keys, keys);
    let second = seal(&guest.root()).unwrap();
    assert_eq!((second.machine_id, second.ssh_host_keys), (first.machine_id, first.ssh_host_keys));
    assert!(second.cleared.is_empty());
}

#[test]
fn refuses_before_it_clears_when_something_is_missing() {
    type Damage = (fn(&Guest), Reason);
    let damages: [Damage; 6] = [
        (|guest| std::fs::remove_file(guest.path("etc/ctrlable/bootstrap.json")).unwrap(), Reason::BootstrapMissing),
        (|guest| guest.file("etc/ctrlable/bootstrap.json", "{}", 0o600), Reason::BootstrapInvalid),
        (
            |guest| {
                let mode = std::fs::Permissions::from_mode(0o644);
                std::fs::set_permissions(guest.path("etc/ctrlable/bootstrap.json"), mode).unwrap();
            },
            Reason::BootstrapMode,
        ),
        (
            |guest| {
                let root = guest.root();
                bootstrap::forget_claim(&root, &mut bootstrap::load(&root).unwrap()).unwrap();
            },
            Reason::BootstrapClaimUsed,
        ),
        (|guest| std::fs::remove_file(guest.path(&ENABLED[1..])).unwrap(), Reason::UnitNotEnabled),
        (|guest| std::fs::remove_file(guest.path(&AGENT[1..])).unwrap(), Reason::AgentMissing),
    ];
    for (damage, reason) in damages {
        let guest = Guest::new();
        let used = guest.used();
        damage(&guest);
        assert_eq!(guest.reasons(), [reason]);
        assert!(used.iter().all(|path| guest.path(path).exists()), "{reason}: nothing was cleared");
    }
}

#[test]
fn refuses_a_list_that_names_too_much() {
    let guest = Guest::new();
    guest.file("etc/ctrlable/seal.d/bad.list", "/opt/app\n/etc\n", 0o644);
    let errors = seal(&guest.root()).unwrap_err();
    assert_eq!(errors[0].reason, Reason::SealList);
    assert!(errors[0].message.contains("bad.list:2"), "{}", errors[0]);
}

#[test]
fn never_leaves_the_root_through_a_link() {
    let guest = Guest::new();
    let outside = tempfile::tempdir().unwrap();
    let theirs = outside.path().join("app.id");
    std::fs::write(&theirs, "theirs").unwrap();
    std::fs::create_dir_all(guest.path("opt")).unwrap();
    std::fs::create_dir_all(guest.path("var/lib/dhcp")).unwrap();

    // A link as the last part is removed itself.
    symlink(&theirs, guest.path("var/lib/dhcp/lease")).unwrap();
    // A link on the way is refused by name, because what lies behind it would stay.
    symlink(outside.path(), guest.path("opt/app")).unwrap();
    guest.file("etc/ctrlable/seal.d/app.list", "/opt/app/*.id\n", 0o644);
    let errors = seal(&guest.root()).unwrap_err();
    assert_eq!(errors[0].reason, Reason::SymlinkInPath);
    assert!(errors[0].message.contains("/opt/app"));

    std::fs::remove_file(guest.path("opt/app")).unwrap();
    seal(&guest.root()).unwrap();
    assert!(!Path::exists(&guest.path("var/lib/dhcp/lease")));
    assert!(theirs.exists());
}

#[test]
fn a_machine_id_that_is_a_link_is_refused() {
    let guest = Guest::new();
    let outside = tempfile::tempdir().unwrap();
    let theirs = outside.path().join("machine-id");
    std::fs::write(&theirs, OLD_ID).unwrap();
    std::fs::remove_file(guest.path("etc/machine-id")).unwrap();
    symlink(&theirs, guest.path("etc/machine-id")).unwrap();
    assert_eq!(guest.reasons(), [Reason::SymlinkInPath]);
    assert_eq!(std::fs::read_to_string(theirs).unwrap(), OLD_ID);
}

#[test]
fn check_names_everything_that_is_wrong() {
    let guest = Guest::new();
    guest.file("etc/ssh/ssh_host_rsa_key", "", 0o600);
    let reasons: Vec<Reason> = check(&guest.root()).iter().map(|error| error.reason).collect();
    assert_eq!(reasons, [Reason::NotSealed, Reason::SealLeftover, Reason::SealLeftover]);
}
