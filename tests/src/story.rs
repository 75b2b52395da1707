//! The story: a signed release and a merged site become healthy guests. `ci/demo` tells it, a test repeats it, and
//! both fail at the first step that does not hold.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::run::{agent, await_for, command, program, run, run_expecting};
use crate::world::{RELEASE, Runtime, SITE, World};

/// A template of the demo: number, name, Debian packages.
const TEMPLATES: [(u32, &str, &str); 3] = [
    (9001, "mqtt-broker", "mosquitto,mosquitto-clients"),
    (9002, "mqtt-bridge", "mosquitto,mosquitto-clients"),
    (9003, "sensor", "mosquitto,mosquitto-clients"),
];
/// The site's account before and after the dealer's change. Git only ever sees the names.
const SECRETS: [(&str, &str); 2] = [("mqtt-2026-06", "rain-kettle-41"), ("mqtt-2026-07", "north-paper-92")];

/// Time for a guest from clone to healthy on a busy machine.
const GUESTS: Duration = Duration::from_secs(300);
/// Time for a small change to be seen.
const SOON: Duration = Duration::from_secs(180);

/// Says what is done and what it proves.
pub trait Narrator {
    /// A chapter begins.
    fn chapter(&mut self, title: &str);
    /// Something holds.
    fn proof(&mut self, text: &str);
    /// Something to look at.
    fn show(&mut self, text: &str);
}

/// Identity of one guest, as its own files say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    machine_id: String,
    host_key: String,
    hostname: String,
    boot: String,
}

/// The files of the demo, wherever the checkout lies.
fn demo_files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

/// Tells the whole story in `world`, which must be fresh. Leaves the site up.
pub fn tell(world: &mut World, narrator: &mut dyn Narrator) -> Result<()> {
    ensure!(world.runtime == Runtime::Nspawn, "the story needs real guests");

    narrator.chapter("HQ makes its key, a release and the fleet repository");
    world.make_fleet()?;
    fs::copy(demo_files().join("releases/2026.06.yaml"), world.manifest())?;
    world.sign()?;
    let verified = run(world
        .ctrlable(["release", "verify"])
        .arg(world.manifest())
        .arg("--pubkey")
        .arg(world.dir.join("hq/hq.pub")))?;
    narrator.proof(verified.trim());

    narrator.chapter("A Proxmox node comes up, with three sealed templates");
    build_images(world)?;
    world.start_lab()?;
    world.configure(&SECRETS, 1)?;
    let sealed = make_templates(world, narrator)?;

    narrator.chapter("A tampered release is pushed: refused, and nothing happens");
    fs::copy(demo_files().join("site/site.yaml"), world.site_file())?;
    let good = fs::read_to_string(world.manifest())?;
    fs::write(world.manifest(), good.replace("ram: 256", "ram: 255"))?;
    let tampered = world.push("release 2026.06, and the site acme-hq")?;
    world.node("DELETE", "/lab/log", None)?;
    world.start_orchestrator()?;
    let reason = world.await_verdict(&tampered)?;
    ensure!(reason.as_deref() == Some("release-signature-wrong"), "the tampered release got {reason:?}");
    let status = world.status()?;
    narrator.show(status["newest"]["message"].as_str().unwrap_or_default());
    ensure!(world.changes()?.is_empty(), "something was changed on the node: {:?}", world.changes()?);
    ensure!(world.guests()?.is_empty(), "there are guests already");
    narrator.proof("refused as release-signature-wrong; the node saw no call that changes anything");
    world.stop_orchestrator()?;

    narrator.chapter("The good release is pushed: here is the plan");
    fs::write(world.manifest(), good)?;
    let first = world.merge("the release as HQ signed it")?;
    let plan = run_expecting(&mut world.ctrlable(["plan"]), &[2])?;
    narrator.show(&String::from_utf8_lossy(&plan.stdout));
    narrator.proof("exit code 2: there is something to do");

    narrator.chapter("Applied: guests are cloned, started, reset, enrolled, wired");
    world.start_orchestrator()?;
    ensure!(world.await_verdict(&first)?.is_none(), "the good revision was refused: {}", world.status()?);
    await_healthy(world, narrator, 3, GUESTS)?;
    let plan = world.plan()?;
    ensure!(plan["settled"] == true, "there is still something to do: {plan:#}");
    narrator.proof("three healthy guests, and the plan is empty");

    narrator.chapter("Proof: three identities, and a message that crosses the wiring");
    let guests = numbers(world)?;
    let before: Vec<(String, u64, Identity)> = identities(world, &guests)?;
    prove_identities(&before, &sealed)?;
    for (name, vmid, identity) in &before {
        narrator.show(&format!(
            "{name:8} {vmid}  {}  machine-id {}…  {}",
            identity.hostname,
            &identity.machine_id[..8],
            identity.host_key
        ));
    }
    narrator.proof("machine-ids and SSH host keys are all different, and none is a template's");
    prove_claims(world, &guests)?;
    narrator.proof("two guests enrolled with a claim that was made for their start, which goes with the next one");
    prove_known_hosts(world, &before)?;
    narrator.proof("sshd of each guest shows the keys that `ctrlable known-hosts` prints");
    let (broker, gateway) = (vmid(&guests, "broker")?, vmid(&guests, "gateway")?);
    cross(world, gateway, broker, SECRETS[0].1, "the wiring holds")?;
    narrator.proof("an MQTT message published in gateway arrived in broker");

    narrator.chapter("The dealer merges a change: one more instance, a new MQTT password");
    world.node("DELETE", "/lab/log", None)?;
    change_site(world)?;
    let second = world.merge("second sensor, new MQTT password")?;
    ensure!(world.await_verdict(&second)?.is_none(), "the change was refused: {}", world.status()?);
    await_healthy(world, narrator, 4, GUESTS)?;
    let guests = numbers(world)?;
    let after = identities(world, &guests)?;
    for (name, _, identity) in &before {
        let now = after.iter().find(|(other, ..)| other == name).map(|(.., identity)| identity);
        ensure!(now == Some(identity), "{name} was {identity:?} and is {now:?}");
    }
    let new = vmid(&guests, "attic")?;
    let touched: Vec<String> = world
        .changes()?
        .iter()
        .map(|call| call["subject"].as_str().map(str::to_owned).context("a call of the lab's log has a path"))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .filter(|path| !path.contains(&format!("/{new}/")) && !path.contains("/9003/clone"))
        .collect();
    ensure!(touched.is_empty(), "other guests were touched on the node: {touched:?}");
    cross(world, gateway, broker, SECRETS[1].1, "rewired")?;
    ensure!(
        subscribe(world, broker, SECRETS[0].1, "demo/never").output()?.status.code() != Some(0),
        "the old password still works"
    );
    narrator.proof("running guests were rewired without a restart, the old password is refused, one guest was added");

    narrator.chapter("A service is broken by hand: seen, and seen to be mended");
    world.exec(gateway, &["systemctl", "stop", "mosquitto.service"])?;
    let status = await_one(world, "gateway", "degraded")?;
    let cause = World::instance(&status, "gateway")?["cause"].as_str().unwrap_or_default().to_owned();
    ensure!(cause.contains("mosquitto.service"), "the cause does not name the unit: {cause}");
    narrator.show(&run(&mut world.ctrlable(["status"]))?);
    world.exec(gateway, &["systemctl", "start", "mosquitto.service"])?;
    await_one(world, "gateway", "healthy")?;
    narrator.proof("gateway was degraded with its reason, and is healthy again");
    Ok(())
}

/// Root file systems from Debian's packages; cached, so only the first time takes long.
fn build_images(world: &World) -> Result<()> {
    for (_, name, packages) in TEMPLATES {
        let mut image = command(program("ctrlable-lab")?, ["image", "--name", name, "--include", packages, "--out"]);
        image.arg(world.dir.join("images")).arg("--overlay").arg(demo_files().join("templates").join(name));
        let units = match name {
            "mqtt-broker" => "systemctl enable mosquitto.service",
            "mqtt-bridge" => "systemctl enable mosquitto.service",
            _ => "systemctl disable mosquitto.service && systemctl enable sensor.service",
        };
        // The build says on standard error how it goes; whoever waits for it wants to see that.
        let status = image.args(["--run", units]).stdin(Stdio::null()).status()?;
        ensure!(status.success(), "image {name} was not built: {status}");
    }
    Ok(())
}

/// What a template was before it was sealed: nothing of it may show up in a clone.
#[derive(Debug)]
struct Sealed {
    machine_ids: BTreeSet<String>,
    host_keys: BTreeSet<String>,
}

/// As docs/template.md says: agent, unit, bootstrap file, seal, `pct template`, adopt.
fn make_templates(world: &World, narrator: &mut dyn Narrator) -> Result<Sealed> {
    let mut sealed = Sealed { machine_ids: BTreeSet::new(), host_keys: BTreeSet::new() };
    for (vmid, name, _) in TEMPLATES {
        let root = world.dir.join("templates").join(name);
        fs::create_dir_all(root.parent().context("a root has a parent")?)?;
        let image = world.dir.join("images").join(name).canonicalize()?;
        // Hard links where that can be: whatever is changed below is written anew beside the old file.
        if run(command("cp", ["--archive", "--link"]).arg(&image).arg(&root)).is_err() {
            run(command("rm", ["--recursive", "--force"]).arg(&root))?;
            run(command("cp", ["--archive", "--reflink=auto"]).arg(&image).arg(&root))?;
        }
        let install = |from: &Path, to: &str, mode: u32| -> Result<()> {
            let to = root.join(to);
            fs::create_dir_all(to.parent().context("a file has a parent")?)?;
            let _ = fs::remove_file(&to);
            fs::copy(from, &to)?;
            Ok(fs::set_permissions(to, fs::Permissions::from_mode(mode))?)
        };
        install(&agent()?, "usr/local/bin/ctrlable-agent", 0o755)?;
        let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd");
        install(&units.join("ctrlable-agent.service"), "etc/systemd/system/ctrlable-agent.service", 0o644)?;
        let dropin = "etc/systemd/system/ctrlable-agent.service.d/nesting.conf";
        install(&units.join("nesting/ctrlable-agent.conf"), dropin, 0o644)?;
        run(command("systemctl", ["enable", "ctrlable-agent.service", "--root"]).arg(&root))?;
        let scratch = world.dir.join("site/bootstrap.json");
        let mut bootstrap = world.ctrlable(["template", "bootstrap", "--release", RELEASE, "--name", name, "--out"]);
        run(bootstrap.arg(&scratch))?;
        install(&scratch, "etc/ctrlable/bootstrap.json", 0o600)?;
        fs::remove_file(scratch)?;
        // A template that is being built has an identity, as after its first boot.
        fs::remove_file(root.join("etc/machine-id"))?;
        fs::write(root.join("etc/machine-id"), format!("{:032x}\n", 0x1234_5678_u128 << 64 | u128::from(vmid)))?;
        run(command("ssh-keygen", ["-A", "-f"]).arg(&root))?;
        sealed.machine_ids.insert(fs::read_to_string(root.join("etc/machine-id"))?.trim().to_owned());
        sealed.host_keys.insert(fs::read_to_string(root.join("etc/ssh/ssh_host_ed25519_key.pub"))?.trim().to_owned());
        run(command(root.join("usr/local/bin/ctrlable-agent"), ["seal", "--root"]).arg(&root))?;
        let mut import = command(program("ctrlable-lab")?, ["template", "--template", "--state"]);
        import
            .arg(world.dir.join("lab"))
            .args(["--vmid", &vmid.to_string(), "--hostname", name, "--rootfs"])
            .arg(&root);
        import.args(["--storage", "local-lvm", "--size", "2G", "--pool", "ctrlable", "--memory", "256"]);
        import.args(["--set", "unprivileged=1", "--set", "features=nesting=1", "--set", "ostype=debian"]);
        import.args(["--set", "net0=name=eth0,bridge=vmbr0,ip=dhcp,type=veth"]);
        // Bridge and sensor start with a claim of their own, the broker with its release's.
        if name != "mqtt-broker" {
            import.args(["--set", "env=CTRLABLE_CLAIM=none"]);
        }
        run(&mut import)?;
        let adopted = run(&mut adopt(world, vmid, name))?;
        narrator.show(adopted.trim());
    }
    narrator.proof("each template was sealed by the agent and adopted through the API");
    Ok(sealed)
}

fn adopt(world: &World, vmid: u32, name: &str) -> std::process::Command {
    let mut adopt = world.ctrlable(["template", "adopt", "--release", RELEASE, "--name", name]);
    adopt.arg(vmid.to_string()).arg("--manifest").arg(world.manifest());
    adopt
}

/// Waits for health and tells how it goes.
fn await_healthy(world: &World, narrator: &mut dyn Narrator, count: usize, deadline: Duration) -> Result<()> {
    let mut said = BTreeSet::new();
    let found = await_for(&format!("{count} instances are healthy"), deadline, || {
        let status = world.status()?;
        let instances = status["instances"].as_array().map(Vec::as_slice).unwrap_or_default();
        for instance in instances {
            let line = format!(
                "{:8} {:13} {}",
                instance["instance"].as_str().unwrap_or_default(),
                instance["phase"].as_str().unwrap_or_default(),
                instance["cause"].as_str().unwrap_or_default()
            );
            if said.insert(line.clone()) {
                narrator.show(line.trim_end());
            }
        }
        let healthy = instances.iter().filter(|instance| instance["phase"] == "healthy").count();
        Ok((instances.len() == count && healthy == count).then_some(()))
    });
    found.with_context(|| format!("{:#}\n{}", world.status().unwrap_or_default(), world.orchestrator_log()))
}

/// Waits until one instance is in a phase.
fn await_one(world: &World, name: &str, phase: &str) -> Result<Value> {
    await_for(&format!("{name} is {phase}"), SOON, || {
        let status = world.status()?;
        let there = World::instance(&status, name)?["phase"] == phase;
        Ok(there.then_some(status))
    })
    .with_context(|| world.orchestrator_log())
}

/// Numbers of the site's guests by instance.
fn numbers(world: &World) -> Result<Vec<(String, u64)>> {
    let status = world.status()?;
    let instances = status["instances"].as_array().context("status has no instances")?;
    instances
        .iter()
        .map(|instance| {
            let name = instance["instance"].as_str().context("an instance has a name")?;
            Ok((name.to_owned(), instance["vmid"].as_u64().context("an instance has a number")?))
        })
        .collect()
}

fn vmid(guests: &[(String, u64)], name: &str) -> Result<u64> {
    guests.iter().find(|(other, _)| other == name).map(|(_, vmid)| *vmid).with_context(|| format!("{name} is missing"))
}

fn identities(world: &World, guests: &[(String, u64)]) -> Result<Vec<(String, u64, Identity)>> {
    guests
        .iter()
        .map(|(name, vmid)| {
            let read = |path: &str| world.exec(*vmid, &["cat", path]).map(|text| text.trim().to_owned());
            let key = world.exec(*vmid, &["ssh-keygen", "-l", "-f", "/etc/ssh/ssh_host_ed25519_key.pub"])?;
            let fingerprint = key.split_whitespace().nth(1).unwrap_or_default().to_owned();
            let identity = Identity {
                machine_id: read("/etc/machine-id")?,
                host_key: fingerprint,
                hostname: world.exec(*vmid, &["hostname"])?.trim().to_owned(),
                // When the guest's init started: another value would mean that the guest was restarted.
                boot: read("/proc/1/stat")?.split_whitespace().nth(21).unwrap_or_default().to_owned(),
            };
            Ok((name.clone(), *vmid, identity))
        })
        .collect()
}

fn prove_identities(guests: &[(String, u64, Identity)], sealed: &Sealed) -> Result<()> {
    let machine_ids: BTreeSet<&String> = guests.iter().map(|(.., identity)| &identity.machine_id).collect();
    let host_keys: BTreeSet<&String> = guests.iter().map(|(.., identity)| &identity.host_key).collect();
    ensure!(machine_ids.len() == guests.len(), "machine-ids are shared: {guests:?}");
    ensure!(host_keys.len() == guests.len(), "SSH host keys are shared: {guests:?}");
    for (name, _, identity) in guests {
        ensure!(identity.machine_id.len() == 32, "{name} has no machine-id: {identity:?}");
        ensure!(!sealed.machine_ids.contains(&identity.machine_id), "{name} has its template's machine-id");
        ensure!(identity.hostname == format!("ctrlable-{SITE}-{name}"), "{name} is called {}", identity.hostname);
    }
    for key in &sealed.host_keys {
        let printed = fingerprint_of(key)?;
        ensure!(!host_keys.contains(&printed), "a guest has its template's SSH host key {printed}");
    }
    Ok(())
}

/// A guest that could carry a claim had one, and will have none after its next start.
fn prove_claims(world: &World, guests: &[(String, u64)]) -> Result<()> {
    let mut carried = 0;
    for (name, vmid) in guests {
        let env = |query: &str| -> Result<String> {
            let path = format!("/api2/json/nodes/pve1/lxc/{vmid}/config{query}");
            Ok(world.node("GET", &path, None)?["data"]["env"].as_str().unwrap_or_default().to_owned())
        };
        if !env("?current=1")?.contains("CTRLABLE_CLAIM=ctrlable-claim-") {
            ensure!(name == "broker", "{name} was started without a claim of its own");
            continue;
        }
        carried += 1;
        await_for(&format!("the claim of {name} is taken out"), SOON, || {
            Ok((env("")? == "CTRLABLE_CLAIM=none").then_some(()))
        })?;
    }
    ensure!(carried == guests.len() - 1, "{carried} guests had a claim of their own");
    Ok(())
}

/// What the real sshd of each guest shows to the real client stands in the lines that are printed.
fn prove_known_hosts(world: &World, guests: &[(String, u64, Identity)]) -> Result<()> {
    for (name, vmid, identity) in guests {
        let lines = run(&mut world.ctrlable(["known-hosts", name]))?;
        let scanned = world.exec(*vmid, &["ssh-keyscan", "-t", "ed25519", "127.0.0.1"])?;
        let shown = scanned.lines().find(|line| !line.starts_with('#')).context("ssh-keyscan found no key")?;
        let (_, key) = shown.split_once(' ').context("a line of ssh-keyscan has a host")?;
        let wanted = lines.lines().find(|line| line.ends_with(key)).context("the key is not among the known hosts")?;
        ensure!(wanted.starts_with(&format!("{},", identity.hostname)), "{name}: {wanted}");
    }
    Ok(())
}

/// What `ssh-keygen -l` prints for a public key.
fn fingerprint_of(public_key: &str) -> Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), public_key)?;
    let text = run(command("ssh-keygen", ["-l", "-f"]).arg(file.path()))?;
    text.split_whitespace().nth(1).map(str::to_owned).context("ssh-keygen printed no fingerprint")
}

/// A subscriber in the broker's guest that ends with the first message. Its options stand in a file of the guest.
fn subscribe(world: &World, broker: u64, password: &str, topic: &str) -> std::process::Command {
    let script = format!(
        "mkdir -p /run/subscriber && umask 077 && printf -- '-u ctrlable\\n-P {password}\\n' > /run/subscriber/mosquitto_sub \
         && XDG_CONFIG_HOME=/run/subscriber exec mosquitto_sub -h 127.0.0.1 -t {topic} -C 1 -W 10"
    );
    world.exec_command(broker, &["sh", "-c", &script]).unwrap_or_else(|_| std::process::Command::new("false"))
}

/// A message published in one guest arrives in another.
fn cross(world: &World, from: u64, to: u64, password: &str, text: &str) -> Result<()> {
    // The bridge reconnects on its own time after the broker's restart, so a message may be lost before: publish
    // until one arrives.
    await_for("an MQTT message crosses the bridge", SOON, || {
        let mut subscriber = subscribe(world, to, password, "demo/hello");
        let child = subscriber.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let publish = || world.exec(from, &["mosquitto_pub", "-h", "127.0.0.1", "-r", "-t", "demo/hello", "-m", text]);
        publish()?;
        let output = child.wait_with_output()?;
        let heard = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match heard.as_str() {
            heard if heard == text => Ok(Some(())),
            "" => Ok(None),
            // The retained message of an earlier chapter.
            _ => Ok(None),
        }
    })
}

/// The dealer's edit: another password by name, one more sensor.
fn change_site(world: &World) -> Result<()> {
    let site = fs::read_to_string(world.site_file())?;
    if !site.contains("mqtt-2026-06") {
        bail!("the site is not the one of the demo");
    }
    let site = site.replace("mqtt-2026-06", "mqtt-2026-07")
        + "  attic:\n    template: sensor\n    network: { ip: dhcp }\n    wiring: { topic: attic/load }\n";
    Ok(fs::write(world.site_file(), site)?)
}

/// Commands that a person may want to try after the story.
pub fn around(world: &World) -> Vec<String> {
    let (config, lab) = (world.config(), world.dir.join("lab"));
    let (config, lab) = (config.display(), lab.display());
    vec![
        format!("target/debug/ctrlable status --watch --config {config}"),
        format!("target/debug/ctrlable why gateway --config {config}"),
        format!("target/debug/ctrlable events --config {config}"),
        format!("target/debug/ctrlable-lab exec --state {lab} 2000 -- bash"),
        format!("target/debug/ctrlable-lab netns --state {lab} -- curl http://127.0.0.1:8080/metrics"),
    ]
}
