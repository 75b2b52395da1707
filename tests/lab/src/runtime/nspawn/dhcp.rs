//! The DHCP server on the bridge: dnsmasq, as a process of its own that outlives the lab.

use std::path::Path;
use std::process::Command;

use super::cgroup::{Group, JOIN};
use super::network::Network;
use super::place::Place;
use super::tool;
use crate::runtime::Failure;

/// Starts dnsmasq unless it runs.
pub(super) fn ensure(place: &Place, network: &Network) -> Result<(), Failure> {
    let group = Group::of_dhcp(place)?;
    if group.populated() {
        return Ok(());
    }
    let root = place.root();
    let (first, last) = network.subnet.leases();
    let file = |option: &str, name: &str| format!("--{option}={}", root.join(name).display());
    // It puts itself into the background once it is ready to answer.
    let mut command = Command::new("sh");
    command.current_dir("/").args(["-c", JOIN]).arg(group.leaf("")?);
    command.arg("nsenter").arg(format!("--net={}", Place::namespace_path(&place.namespace()).display()));
    command.args(["dnsmasq", "--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--port=0", "--user=root"]);
    command.arg(format!("--interface={}", network.bridge)).args(["--except-interface=lo", "--bind-interfaces"]);
    command.arg(format!("--dhcp-range={first},{last},{},1h", network.subnet.mask()));
    // Nobody else serves this network, and nobody uses an address that was not given: so no waiting, no probing.
    command.args([
        "--dhcp-authoritative",
        "--no-ping",
        "--quiet-dhcp",
        // Otherwise guests are told the name they sent, and wake hostnamed to set it.
        "--dhcp-ignore-names",
    ]);
    command.args([
        file("pid-file", "dnsmasq.pid"),
        file("dhcp-leasefile", "dnsmasq.leases"),
        file("log-facility", "dnsmasq.log"),
    ]);
    tool::finish(&mut command, "sh").map(drop).map_err(|error| {
        let missing = !Path::new("/usr/sbin/dnsmasq").exists();
        if missing {
            "cannot run dnsmasq: it is not installed; install it with: apt-get install dnsmasq-base".to_owned()
        } else {
            error
        }
    })
}
