//! Real guests, booted. Needs root, systemd-nspawn and the other tools, and the first time a Debian mirror; without
//! them each test says why it is skipped. `TMPDIR` must be on a file system that overlayfs can write to.

#![allow(clippy::unwrap_used, clippy::panic)]

mod bench;

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use self::bench::Bench;
use super::*;
use crate::runtime::{Address, Nic};

/// Far more than anything here takes: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

const BRIDGE: &str = "vmbr0";
const SUBNET: &str = "10.77.0.0/24";

/// Polls until there is an answer.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = look() {
            return answer;
        }
        assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn guest(vmid: Vmid, address: Address) -> GuestSpec {
    let nic =
        Nic { name: "eth0".into(), mac: format!("BC:24:11:0A:00:{:02X}", vmid % 256), bridge: BRIDGE.into(), address };
    GuestSpec { vmid, hostname: format!("guest{vmid}"), nics: vec![nic], memory: 256, environment: Vec::new() }
}

fn fixed(vmid: Vmid) -> GuestSpec {
    let last = u8::try_from(vmid % 256).unwrap();
    let cidr = (Ipv4Addr::new(10, 77, 0, last), 24);
    guest(vmid, Address::Static { cidr, gateway: Some(Ipv4Addr::new(10, 77, 0, 1)) })
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_boot_meet_and_are_found_again() {
    let Some(bench) = Bench::new() else { return };
    let lab = bench.open();
    // How long each part took, for whoever looks; nothing depends on it.
    let begin = Instant::now();
    let mut lap = begin;
    let mut took = |what: &str| {
        eprintln!("{what}: {} ms", lap.elapsed().as_millis());
        lap = Instant::now();
    };
    let image = bench.image();
    took("image");
    lab.import(100, RootFs::Copy(image)).await.unwrap();
    took("import");

    // A template that was not sealed, cloned.
    let unsealed = "0123456789abcdef0123456789abcdef\n";
    let key = "etc/ssh/ssh_host_ed25519_key";
    {
        let disk = Mounted::open(&lab.lab.place, &lab.lab.disks, 100, Holder::Passing).unwrap();
        disk.write("etc/machine-id", unsealed).unwrap();
        assert!(!bench.mounts().iter().any(|mount| mount.contains("overlay")), "only the holder sees the mount");
    }
    for vmid in [101, 102, 103] {
        lab.clone_disk(100, vmid).await.unwrap();
    }
    took("three clones");
    let look = |vmid: Vmid, path: &str| {
        Mounted::open(&lab.lab.place, &lab.lab.disks, vmid, Holder::Passing).unwrap().read(path).unwrap().unwrap()
    };
    assert_eq!(look(100, "etc/machine-id"), unsealed, "the source is left as it was");
    assert_eq!(look(101, "etc/machine-id"), "");
    assert_eq!(look(101, key), look(100, key), "host keys are cloned");

    let specs = (fixed(101), fixed(102), guest(103, Address::Dhcp));
    let (a, b, c) = tokio::join!(lab.start(&specs.0), lab.start(&specs.1), lab.start(&specs.2));
    for started in [a, b, c] {
        started.unwrap();
    }
    took("three starts at once");
    assert_eq!(lab.start(&specs.0).await.unwrap_err(), "CT 101 already running");
    for vmid in [101, 102, 103] {
        bench.settled(vmid);
    }
    took("three systems up");
    eprintln!("{}", bench.says(101, "systemd-analyze"));
    eprintln!("{}", bench.says(101, "journalctl -b -p warning --no-pager --quiet"));

    // Each is itself.
    for vmid in [101, 102, 103] {
        assert_eq!(bench.says(vmid, "hostname"), format!("guest{vmid}"));
        assert_eq!(bench.says(vmid, "getent ahostsv4 $(hostname)").split_whitespace().next(), Some("127.0.1.1"));
        let name = bench.says(
            vmid,
            "busctl get-property org.freedesktop.hostname1 /org/freedesktop/hostname1 org.freedesktop.hostname1 Hostname",
        );
        assert_eq!(name, format!("s \"guest{vmid}\""));
        assert_eq!(bench.says(vmid, "cat /sys/class/net/eth0/address"), format!("bc:24:11:0a:00:{vmid:02x}"));
    }
    let mut ids: Vec<String> = [101, 102, 103].map(|vmid| bench.says(vmid, "cat /etc/machine-id")).into();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), ids[0].len()), (3, 32));

    // A command is in the guest in every respect, and its end is told.
    let place = bench.exec(101, "pwd; [ . -ef / ] && echo same");
    assert_eq!((String::from_utf8(place.stdout).unwrap().as_str(), place.stderr), ("/\nsame\n", vec![]));
    assert_eq!(bench.says(101, "echo $PATH"), mounted::PATH);
    assert!(bench.says(101, "cat /proc/self/cgroup").ends_with("/exec"));
    assert_eq!(bench.exec(101, "exit 7").status.code(), Some(7));

    // /proc/sys/net is the guest's own to set, and a talkative console does not fill the disk.
    bench.says(101, "echo 1 >/proc/sys/net/ipv4/conf/eth0/promote_secondaries");
    bench.says(101, "head -c 16000000 /dev/zero | tr '\\0' x >/dev/console");
    assert!(fs::metadata(bench.place().console(101)).unwrap().len() <= 4 << 20);

    // They reach each other, and the node reaches them.
    bench.says(101, "ping -c 1 -W 5 10.77.0.102");
    assert_eq!(bench.says(102, "bash -c 'exec 3<>/dev/tcp/10.77.0.101/22 && head -c 4 <&3'"), "SSH-");
    let argv = ["bash", "-c", "exec 3<>/dev/tcp/10.77.0.101/22"].map(str::to_owned);
    assert!(exec::netns_command(&bench.state(), &argv).unwrap().status().unwrap().success());

    // What the node sees.
    let seen = lab.interfaces(101).await;
    assert_eq!((seen[0].name.as_str(), seen[0].inet.clone()), ("lo", vec![("127.0.0.1".to_owned(), 8)]));
    assert_eq!((seen[1].name.as_str(), seen[1].mac.as_str()), ("eth0", "bc:24:11:0a:00:65"));
    assert_eq!(seen[1].inet, [("10.77.0.101".to_owned(), 24)]);
    let place = bench.place();
    let lease = until("a lease", || {
        network::sample(&place, 103).unwrap().into_iter().find(|interface| interface.name == "eth0")?.inet.pop()
    });
    let lease_address: Ipv4Addr = lease.0.parse().unwrap();
    assert!((128..=254).contains(&lease_address.octets()[3]), "{lease_address}");
    let leases = fs::read_to_string(place.root().join("dnsmasq.leases")).unwrap();
    assert!(leases.contains("bc:24:11:0a:00:67") && leases.contains(&lease.0), "{leases}");
    took("questions");

    // The lab is killed and started again.
    let init = lab.pid(101).await.unwrap();
    let parent = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse::<u32>().unwrap()
    };
    assert_ne!(parent(parent(parent(init))), std::process::id(), "a guest is nobody's child");
    drop(lab);
    let lab = bench.open();
    assert_eq!(lab.pid(101).await, Some(init));
    assert_eq!(lab.interfaces(101).await, seen);
    assert_eq!(lab.pid(100).await, None);
    assert!(lab.interfaces(100).await.is_empty());
    took("opening again");

    // A guest may reboot itself.
    let group = Group::of_guest(&place, 103).unwrap();
    let (id, old) = (bench.says(103, "cat /etc/machine-id"), group.init().unwrap());
    bench.exec(103, "systemctl reboot");
    until("another init", || group.init().filter(|new| *new != old));
    bench.settled(103);
    assert_eq!(bench.says(103, "cat /etc/machine-id"), id);
    took("reboot");

    // Or power itself off; what is left then goes with the next touch.
    bench.exec(103, "systemctl poweroff");
    until("the guest to go", || (!group.populated()).then_some(()));
    assert_eq!(lab.pid(103).await, None);
    lab.shutdown(103, 1).await.unwrap();
    assert_eq!(bench.traces(103), Vec::<String>::new());

    // And ends in three ways.
    assert!(lab.destroy(101).await.unwrap_err().contains("container is running"));
    assert!(lab.clone_disk(101, 104).await.unwrap_err().contains("running container"));
    lab.shutdown(101, 30).await.unwrap();
    took("shutdown");
    lab.stop(102).await.unwrap();
    lab.stop(102).await.unwrap();
    took("stop");
    assert_eq!((lab.pid(101).await, lab.pid(102).await), (None, None));
    assert_eq!((bench.traces(101), bench.traces(102)), (vec![], vec![]));
    lab.start(&specs.1).await.unwrap();
    bench.settled(102);
    assert!(ids.contains(&bench.says(102, "cat /etc/machine-id")), "a second start keeps the identity");
    lab.destroy(101).await.unwrap();
    assert!(lab.start(&specs.0).await.unwrap_err().contains("no disk"));
    took("second start, destroy");
    eprintln!("all: {} ms", begin.elapsed().as_millis());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_will_not_go_is_reported_and_can_be_killed() {
    let Some(bench) = Bench::new() else { return };
    let lab = bench.open();
    lab.import(100, RootFs::Copy(bench.image())).await.unwrap();
    lab.start(&guest(100, Address::Manual)).await.unwrap();
    bench.settled(100);
    // Whoever is asked to power off starts this target.
    bench.says(100, "systemctl mask --runtime poweroff.target");
    assert_eq!(lab.shutdown(100, 1).await.unwrap_err(), "container did not stop");
    assert!(lab.pid(100).await.is_some());
    lab.stop(100).await.unwrap();
    assert_eq!(bench.traces(100), Vec::<String>::new());
    lab.destroy(100).await.unwrap();
    assert!(!bench.place().guest(100).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_start_says_why_and_leaves_nothing() {
    let Some(bench) = Bench::new() else { return };
    let lab = bench.open();
    let broken = bench.directory.path().join("broken");
    fs::create_dir_all(broken.join("etc")).unwrap();
    fs::create_dir_all(broken.join("usr")).unwrap();
    lab.import(100, RootFs::Copy(broken)).await.unwrap();
    let refused = lab.start(&fixed(100)).await.unwrap_err();
    assert!(refused.starts_with("startup for container '100' failed: "), "{refused}");
    assert_eq!(bench.traces(100), Vec::<String>::new());

    let mut elsewhere = fixed(100);
    elsewhere.nics[0].bridge = "vmbr9".into();
    assert_eq!(lab.start(&elsewhere).await.unwrap_err(), "bridge 'vmbr9' does not exist");
    let mut named = fixed(100);
    named.nics[0].name = "../../x".into();
    assert!(lab.start(&named).await.unwrap_err().contains("is not the name of a network interface"));
    assert_eq!(bench.traces(100), Vec::<String>::new());
}

#[test]
fn a_link_in_a_guest_does_not_lead_out_of_it() {
    let Some(bench) = Bench::new() else { return };
    let place = Place::create(&bench.state()).unwrap();
    let disks = Disks::open(&place).unwrap();
    let outside = bench.directory.path().join("outside");
    fs::write(&outside, "untouched").unwrap();
    let evil = bench.directory.path().join("evil");
    fs::create_dir_all(evil.join("etc")).unwrap();
    std::os::unix::fs::symlink(&outside, evil.join("etc/hostname")).unwrap();
    std::os::unix::fs::symlink("/etc", evil.join("var")).unwrap();
    disks.import(100, &evil).unwrap();
    let disk = Mounted::open(&place, &disks, 100, Holder::Passing).unwrap();
    assert!(disk.write("etc/hostname", "x").is_err(), "inside, the link leads nowhere");
    disk.write("var/hosts", "y").unwrap();
    assert_eq!(disk.read("etc/hosts").unwrap().unwrap(), "y", "a link within the guest is followed");
    disk.directory("var/a/b").unwrap();
    disk.write("etc/a/b/c", "z").unwrap();
    disk.delete("etc/a/b/c").unwrap();
    disk.delete("etc/a/b/c").unwrap();
    assert_eq!(disk.read("etc/a/b/c").unwrap(), None);
    assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
}

#[test]
fn the_node_has_a_network_of_its_own() {
    let Some(bench) = Bench::new() else { return };
    let state = bench.state();
    let network_of_this_thread = || fs::read_link("/proc/thread-self/ns/net").unwrap();
    let outside = network_of_this_thread();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let thread = scope.spawn(|| {
                enter_namespace(&state, BRIDGE, SUBNET).unwrap();
                drop(bench.open());
                let child = Command::new("ip").args(["-br", "-4", "address"]).output().unwrap().stdout;
                (network_of_this_thread(), String::from_utf8(child).unwrap())
            });
            let (inside, addresses) = thread.join().unwrap();
            assert_ne!(inside, outside);
            assert!(
                addresses.contains("lo") && addresses.contains("vmbr0") && addresses.contains("10.77.0.1/24"),
                "{addresses}"
            );
        }
    });
    assert_eq!(network_of_this_thread(), outside);
    let refused = enter_namespace(&state, BRIDGE, "10.78.0.0/24").unwrap_err();
    assert!(refused.contains("already has 10.77.0.1/24") && refused.contains("down"), "{refused}");
    assert!(enter_namespace(&state, BRIDGE, "10.78.0.0").unwrap_err().contains("`10.78.0.0`"));
}

#[test]
fn a_lab_whose_directory_was_deleted_is_swept() {
    let Some(bench) = Bench::new() else { return };
    drop(bench.open());
    let place = bench.place();
    assert!(Group::of_dhcp(&place).unwrap().populated());
    fs::remove_dir_all(bench.state()).unwrap();
    sweep();
    assert!(!Group::of_dhcp(&place).unwrap().populated());
    assert!(!place.record().exists() && network::namespaces(&place).is_empty());
}
