//! What HQ took back stays taken back: with the ledger lost, with the markers lost, and with a guest that lies.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use contract::floor::Floor;
use serde_json::{Value, json};
use tests::run::{await_for, run};
use tests::small::{INSTANCES, SETTLES, Small, hostname};

/// Files, to be put back later.
type Kept = Vec<(PathBuf, Vec<u8>)>;

/// HQ writes the next channels and signs them, with what it says beside.
fn channels(small: &Small, change: &[&str]) -> Result<()> {
    let world = &small.world;
    let mut command = world.ctrlable(["release"]);
    run(command.args(change).arg("--dir").arg(world.checkout()))?;
    let file = world.checkout().join("channels.yaml");
    run(world.ctrlable(["release", "sign"]).arg(file).arg("--key").arg(world.dir.join("hq/hq.key")))?;
    Ok(())
}

/// Channels as they are now, to be put back later.
fn keep(small: &Small) -> Result<Kept> {
    let files = ["channels.yaml", "channels.yaml.minisig"].map(|name| small.world.checkout().join(name));
    files.into_iter().map(|file| Ok((file.clone(), fs::read(file)?))).collect()
}

fn put_back(kept: &Kept) -> Result<()> {
    kept.iter().try_for_each(|(file, content)| Ok(fs::write(file, content)?))
}

/// Descriptions of the guests, by number.
fn descriptions(small: &Small) -> Result<Vec<(u64, String)>> {
    let mut found = Vec::new();
    for (vmid, _) in small.world.guests()? {
        let config = small.world.node("GET", &format!("/api2/json/nodes/pve1/lxc/{vmid}/config"), None)?;
        found.push((vmid, config["data"]["description"].as_str().unwrap_or_default().to_owned()));
    }
    Ok(found)
}

/// A site that runs with serial 2, told to markers and guests; and serial 1, which was in force before.
fn grown() -> Result<(tempfile::TempDir, Small, Kept)> {
    let dir = tempfile::tempdir()?;
    let mut small = Small::build(&dir.path().join("world"))?;
    channels(&small, &["channel", "stable", "2026.06"])?;
    small.world.push("channels 1")?;
    small.world.start_orchestrator()?;
    small.await_settled(&INSTANCES)?;
    let old = keep(&small)?;
    channels(&small, &["revoke", "2026.01", "--why", "broker does not start"])?;
    small.world.push("channels 2")?;
    await_for("the floor is everywhere", SETTLES, || {
        let in_ledger = small.world.status()?["floor"]["c"] == 2;
        let in_markers =
            descriptions(&small)?.iter().all(|(_, text)| text.contains("\"floor\":{\"k\":1,\"c\":2,\"d\":0}"));
        let told = |name: &str| {
            let floor = small.sim.guest(&hostname(name)).ok()?.floor?;
            Some(floor.as_str().contains("ctrlable channels 2 signed"))
        };
        let in_guests = INSTANCES.iter().all(|(name, _)| told(name) == Some(true));
        Ok((in_ledger && in_markers && in_guests).then_some(()))
    })
    .with_context(|| format!("{:#?}\n{}", descriptions(&small), small.world.orchestrator_log()))?;
    Ok((dir, small, old))
}

fn lose_ledger(small: &Small) -> Result<()> {
    let state = small.world.dir.join("site/state");
    for entry in fs::read_dir(&state)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("ledger.db") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(fs::remove_dir_all(state.join("fleet.git"))?)
}

fn refused_and_then_accepted(small: &Small, new: &Kept) -> Result<()> {
    let event = small.await_event("document-rolled-back")?;
    ensure!(event["kind"] == "revision-refused", "{event}");
    ensure!(small.world.status()?["accepted"].is_null(), "the older one was accepted");
    put_back(new)?;
    let revision = small.world.push("channels 2 again")?;
    ensure!(small.world.await_verdict(&revision)?.is_none(), "the newest is refused");
    Ok(())
}

#[test]
fn a_lost_ledger_does_not_reopen_an_older_word_of_hq() -> Result<()> {
    let (_dir, mut small, old) = grown()?;
    let new = keep(&small)?;
    small.world.stop_orchestrator()?;
    lose_ledger(&small)?;
    put_back(&old)?;
    small.world.push("channels 1 again")?;
    // While nobody can be asked, nothing is accepted.
    small.world.kill_lab()?;
    small.world.start_orchestrator()?;
    small.await_event("floor-unknown")?;
    small.await_event("unreachable")?;
    ensure!(small.world.status()?["newest"].is_null(), "a revision was looked at");
    small.world.start_lab()?;
    small.await_event("floor-restored")?;
    refused_and_then_accepted(&small, &new)
}

#[test]
fn guests_know_what_ledger_and_markers_lost() -> Result<()> {
    let (_dir, mut small, old) = grown()?;
    let new = keep(&small)?;
    small.world.stop_orchestrator()?;
    lose_ledger(&small)?;
    for (vmid, text) in descriptions(&small)? {
        let (before, _) = text.split_once(",\"floor\"").context("a marker without floor")?;
        let body = json!({ "description": format!("{before}}} -->") });
        small.world.node("PUT", &format!("/api2/json/nodes/pve1/lxc/{vmid}/config"), Some(&body))?;
    }
    put_back(&old)?;
    small.world.push("channels 1 again")?;
    let (remote, away) = (small.world.remote(), small.world.dir.join("away.git"));
    fs::rename(&remote, &away)?;
    small.world.start_orchestrator()?;
    let event = small.await_event("floor-restored")?;
    ensure!(event["message"].as_str().unwrap_or_default().starts_with("the guest at"), "{event}");
    fs::rename(&away, &remote)?;
    refused_and_then_accepted(&small, &new)
}

/// HQ signs channels that expired a while ago; then fresh ones; then takes back the release that is in force.
#[test]
fn an_expired_word_freezes_and_a_revoked_release_gets_no_new_guests() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut small = Small::build(&dir.path().join("world"))?;
    channels(&small, &["channel"])?;
    small.world.push("channels 1")?;
    small.world.start_orchestrator()?;
    small.await_settled(&INSTANCES)?;

    let file = small.world.checkout().join("channels.yaml");
    let old = "serial: 2\nissued: 2025-11-20T12:00:00Z\nexpires: 2025-12-20T12:00:00Z\nchannels: {}\n";
    fs::write(&file, old)?;
    let sign = || {
        run(small.world.ctrlable(["release", "sign"]).arg(&file).arg("--key").arg(small.world.dir.join("hq/hq.key")))
    };
    sign()?;
    let revision = small.world.push("channels 2, out of date")?;
    ensure!(small.world.await_verdict(&revision)?.is_none(), "the release in force does not go on");
    let event = small.await_event("channels-expired")?;
    ensure!(event["kind"] == "freshness", "{event}");
    ensure!(small.world.status()?["hq"]["frozen"] == true, "{:#}", small.world.status()?);
    let text = fs::read_to_string(small.world.manifest())?;
    let next = small.world.checkout().join("releases/2026.07.yaml");
    fs::write(&next, text.replace("2026.06", "2026.07"))?;
    run(small.world.ctrlable(["release", "sign"]).arg(&next).arg("--key").arg(small.world.dir.join("hq/hq.key")))?;
    let site = fs::read_to_string(small.world.site_file())?;
    fs::write(small.world.site_file(), site.replace("2026.06", "2026.07"))?;
    let revision = small.world.push("an upgrade on a word that is out of date")?;
    ensure!(small.world.await_verdict(&revision)?.as_deref() == Some("channels-expired"), "the upgrade is not refused");
    INSTANCES.iter().try_for_each(|(name, _)| small.await_healthy(name))?;

    fs::write(small.world.site_file(), site)?;
    channels(&small, &["revoke", "2026.06", "--why", "broker does not start"])?;
    let revision = small.world.push("channels 3")?;
    ensure!(
        small.world.await_verdict(&revision)?.as_deref() == Some("release-revoked"),
        "a revoked release is accepted"
    );
    INSTANCES.iter().try_for_each(|(name, _)| small.await_healthy(name))?;
    let status = small.world.status()?;
    ensure!(status["hq"]["frozen"] == false && status["hq"]["channels"] == 3, "{status:#}");
    // Somebody destroys a guest by hand: it is not made anew from what was taken back, the others go on.
    let (vmid, _) =
        small.world.guests()?.into_iter().find(|(_, row)| row["name"] == hostname("attic")).context("attic")?;
    small.world.node("DELETE", &format!("/api2/json/nodes/pve1/lxc/{vmid}?force=1"), None)?;
    let row = small.await_reason("attic", "release-revoked")?;
    ensure!(row["cause"].as_str().unwrap_or_default().contains("broker does not start"), "{row}");
    // After a restart it is the same: what HQ said last is read again.
    small.world.stop_orchestrator()?;
    small.world.start_orchestrator()?;
    small.await_reason("attic", "release-revoked")?;
    ensure!(small.world.guests()?.len() == 2, "{:?}", small.world.guests()?);
    small.await_healthy("hub")
}

#[test]
fn a_guest_that_lies_changes_nothing() -> Result<()> {
    let (dir, small, old) = grown()?;
    let stranger = dir.path().join("stranger");
    run(small.world.ctrlable(["release", "keygen", "--no-password", "--out"]).arg(&stranger))?;
    let public = fs::read_to_string(stranger.join("hq.pub"))?;
    // A list of keys of its own, and channels of the far future signed with these.
    let fake = dir.path().join("fake");
    fs::create_dir(&fake)?;
    let key = public.lines().nth(1).context("a public key has two lines")?;
    run(small.world.ctrlable(["release", "keys", "--pubkey", key, "--dir"]).arg(&fake))?;
    run(small
        .world
        .ctrlable(["release", "sign"])
        .arg(fake.join("keys/2.yaml"))
        .arg("--key")
        .arg(stranger.join("hq.key")))?;
    let evidence: Value = ["keys/2.yaml", "keys/2.yaml.minisig"]
        .iter()
        .map(|path| Ok(((*path).to_owned(), Value::from(fs::read_to_string(fake.join(path))?))))
        .collect::<Result<serde_json::Map<_, _>>>()?
        .into();
    let right = |name: &str| Ok::<_, anyhow::Error>(small.sim.guest(&hostname(name))?.floor);
    let ours = right("hub")?.context("it keeps a floor")?;
    // One that is proved, but older: what was in force before.
    let older = json!({ "channels.yaml.minisig": String::from_utf8(old[1].1.clone())? });
    for (name, lie) in [("hub", evidence.to_string()), ("attic", older.to_string()), ("cellar", "{".repeat(99))] {
        small.sim.falsify_floor(&hostname(name), Floor::new(lie)?)?;
    }
    small.await_event("floor-unproved")?;
    await_for("every guest keeps the right floor again", SETTLES, || {
        let repaired = INSTANCES.iter().all(|(name, _)| right(name).is_ok_and(|floor| floor.as_ref() == Some(&ours)));
        Ok(repaired.then_some(()))
    })?;
    ensure!(small.world.status()?["floor"] == json!({ "k": 1, "c": 2, "d": 0 }), "the floor moved");
    ensure!(small.world.events()?.iter().all(|event| event["reason"] != "floor-restored"), "a lie was believed");
    small.await_settled(&INSTANCES)
}
