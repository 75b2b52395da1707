//! Guests and their agents, honest and other; the fleet repository, honest and other.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use contract::secret::Secret;
use hmac::{Hmac, Mac};
use rcgen::{CertificateParams, Issuer, KeyPair};
use serde_json::json;
use sha2::Sha256;
use tests::run::{await_for, command, run, run_expecting};
use tests::sim::{self, Conduct, Credentials, Refused};
use tests::small::{INSTANCES, SETTLES, Small, hostname, site};
use tests::world::{SITE, Tuning, World};

fn settled() -> Result<(tempfile::TempDir, Small)> {
    let dir = tempfile::tempdir()?;
    let mut small = Small::build(&dir.path().join("world"))?;
    small.world.start_orchestrator()?;
    small.await_settled(&INSTANCES)?;
    Ok((dir, small))
}

fn block<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// The label of a refusal; an acceptance is an error.
fn refusal<T>(outcome: Result<T>) -> Result<String> {
    match outcome {
        Ok(_) => bail!("it was accepted"),
        Err(error) => match error.downcast::<Refused>() {
            Ok(Refused(problem)) => Ok(problem.reason),
            Err(error) => Err(error),
        },
    }
}

#[test]
fn only_the_guest_that_was_just_started_gets_a_certificate_and_only_once() -> Result<()> {
    let (_dir, small) = settled()?;
    let before = small.sim.guest(&hostname("attic"))?;
    let bootstrap = small.sim.bootstrap("sensor")?;
    let key = KeyPair::generate()?.serialize_pem();
    let claim = before.claim.clone().context("a sensor has a claim of its own")?;
    let own = |key: &str, seed| -> Result<contract::enrolment::EnrolRequest> {
        let request = sim::enrol_request(bootstrap, &hostname("attic"), &before.mac, key, seed)?;
        Ok(contract::enrolment::EnrolRequest { claim: Secret::new(claim.as_str()), ..request })
    };
    let honest = own(&key, 77)?;
    let replayed = own(&before.key, 1)?;
    let mut cases = 0;
    let mut refused = |request: &contract::enrolment::EnrolRequest, wanted: &str| -> Result<()> {
        let reason = refusal(block(sim::enrol(bootstrap, request, before.address)))?;
        ensure!(reason == wanted, "{reason} instead of {wanted}");
        let events = small.world.events()?;
        let shown = events.iter().any(|event| event["kind"] == "enrolment-refused" && event["reason"] == wanted);
        ensure!(shown, "{wanted} is not in the event log");
        cases += 1;
        Ok(())
    };
    // Its claim was for the first enrolment, and the release's is not its.
    refused(&honest, "enrol-claim-used")?;
    // The first guest's own request once more, after its first report.
    refused(&replayed, "enrol-claim-used")?;
    refused(
        &contract::enrolment::EnrolRequest { claim: Secret::new(bootstrap.claim.expose()), ..honest.clone() },
        "enrol-claim-wrong",
    )?;
    refused(
        &contract::enrolment::EnrolRequest { claim: Secret::new("guessed"), ..honest.clone() },
        "enrol-claim-wrong",
    )?;
    let mac = "02:00:00:00:00:99".parse()?;
    refused(&contract::enrolment::EnrolRequest { mac, ..honest.clone() }, "enrol-mac-mismatch")?;
    let unknown = hostname("garage").parse()?;
    let release = Secret::new(bootstrap.claim.expose());
    refused(
        &contract::enrolment::EnrolRequest { hostname: unknown, claim: release, ..honest.clone() },
        "enrol-unknown-host",
    )?;
    let template = "broker".parse()?;
    refused(&contract::enrolment::EnrolRequest { template, ..honest.clone() }, "enrol-template-mismatch")?;
    refused(&contract::enrolment::EnrolRequest { protocol: 99, ..honest.clone() }, "enrol-protocol")?;
    let mut unreset = honest.clone();
    unreset.identity.sealed_machine_id = Some(unreset.identity.machine_id.clone());
    refused(&unreset, "enrol-not-reset")?;
    small.await_settled(&INSTANCES)?;
    let after = small.sim.guest(&hostname("attic"))?;
    ensure!(after.certificate == before.certificate && after.starts == before.starts, "the right guest was disturbed");
    println!("{cases} enrolments refused, each with its own reason");
    Ok(())
}

#[test]
fn a_guest_reads_its_own_assignment_and_nobody_elses() -> Result<()> {
    let (_dir, small) = settled()?;
    let bootstrap = small.sim.bootstrap("sensor")?;
    let attic = small.sim.guest(&hostname("attic"))?.credentials().context("attic is enrolled")?;
    // There is no parameter for it; whatever is tried, it gets its own.
    for query in ["after=0", "after=0&instance=hub", "after=0&instance=cellar&hostname=ctrlable-acme-hq-hub"] {
        let got = block(sim::assignment(bootstrap, query, Some(&attic)))?;
        ensure!(got.instance.as_str() == "attic", "{query} gave the assignment of {}", got.instance);
    }
    let reason = refusal(block(sim::assignment(bootstrap, "after=0", None)))?;
    ensure!(reason == "certificate-missing", "{reason}");
    // Signed by the site's own CA and never handed out: only somebody who has the CA's key could make it.
    let state = small.world.dir.join("site/state");
    let ca = fs::read_to_string(state.join("ca.pem"))?;
    let issuer = Issuer::from_ca_cert_pem(&ca, KeyPair::from_pem(&fs::read_to_string(state.join("ca.key"))?)?)?;
    let key = KeyPair::generate()?;
    let forged = CertificateParams::new(vec!["attic.acme-hq".to_owned()])?.signed_by(&key, &issuer)?;
    let forged = Credentials { key: key.serialize_pem(), certificate: forged.pem() };
    let reason = refusal(block(sim::assignment(bootstrap, "after=0", Some(&forged))))?;
    ensure!(reason == "certificate-unknown", "{reason}");
    // Another CA's: the handshake itself fails.
    let own = CertificateParams::new(vec!["attic.acme-hq".to_owned()])?.self_signed(&key)?;
    let foreign = Credentials { key: key.serialize_pem(), certificate: own.pem() };
    let error = block(sim::assignment(bootstrap, "after=0", Some(&foreign))).err().context("a foreign certificate")?;
    ensure!(error.downcast_ref::<Refused>().is_none(), "a foreign certificate got past the handshake: {error}");
    println!("own assignment only; without, unknown and foreign certificates are refused");
    Ok(())
}

#[test]
fn what_a_guest_reports_is_what_status_says() -> Result<()> {
    let (_dir, small) = settled()?;
    let (attic, cellar) = (hostname("attic"), hostname("cellar"));
    small.sim.behave(&attic, Conduct::Unhealthy);
    let row = small.await_reason("attic", "guest-degraded")?;
    ensure!(
        row["phase"] == "degraded" && row["cause"].as_str().unwrap_or_default().contains("sensor.service"),
        "{row}"
    );
    let hub = small.world.status()?;
    ensure!(World::instance(&hub, "hub")?["phase"] == "healthy", "{hub:#}");
    small.sim.behave(&attic, Conduct::Well);
    small.await_healthy("attic")?;
    // A wiring that does not hold is put back, shown, and the next one heals it.
    small.sim.behave(&cellar, Conduct::PutBack);
    let mut changed = INSTANCES;
    changed[2].1 = "{ template: sensor, network: { ip: dhcp }, wiring: { topic: cellar/other } }";
    small.change_site(&changed)?;
    let row = small.await_reason("cellar", "guest-degraded")?;
    ensure!(row["cause"].as_str().unwrap_or_default().contains("put back"), "{row}");
    ensure!(row["generation"] == 2 && row["in_force"] == 1, "{row}");
    small.await_event("wiring-put-back")?;
    small.sim.behave(&cellar, Conduct::Well);
    small.change_site(&INSTANCES)?;
    small.await_settled(&INSTANCES)?;
    small.check(&INSTANCES)?;
    println!("unhealthy and put back are shown with their reasons, and heal");
    Ok(())
}

#[test]
fn a_bad_revision_leaves_the_running_site_alone() -> Result<()> {
    let (_dir, small) = settled()?;
    small.world.node("DELETE", "/lab/log", None)?;
    let good = site(&INSTANCES);
    let tampered = fs::read_to_string(small.world.manifest())?;
    let mut reasons = Vec::new();
    for (wanted, text) in [
        ("yaml-syntax", good.replace("dealer: acme", "dealer: [acme")),
        ("unknown-field", good.replace("dealer: acme", "dealer: acme\ncolour: red")),
        ("unknown-template", good.replace("template: broker", "template: teapot")),
        ("unknown-release", good.replace("release: \"2026.06\"", "release: \"2026.07\"")),
    ] {
        small.world.write_site(&text)?;
        let revision = small.world.push(wanted)?;
        reasons.push((wanted, small.world.await_verdict(&revision)?));
    }
    small.world.write_site(&good)?;
    fs::write(small.world.manifest(), tampered.replace("ram: 256", "ram: 257"))?;
    let revision = small.world.push("a tampered release")?;
    reasons.push(("release-signature-wrong", small.world.await_verdict(&revision)?));
    for (wanted, reason) in &reasons {
        ensure!(reason.as_deref() == Some(wanted), "{wanted}: {reason:?}");
        small.await_event(wanted)?;
    }
    ensure!(small.world.changes()?.is_empty(), "the node was changed: {:?}", small.world.changes()?);
    small.world.await_phase("healthy", INSTANCES.len(), SETTLES)?;
    fs::write(small.world.manifest(), tampered)?;
    let revision = small.world.push("all is well again")?;
    ensure!(small.world.await_verdict(&revision)?.is_none(), "{:#}", small.world.status()?);
    small.await_settled(&INSTANCES)?;
    small.check(&INSTANCES)?;
    println!("{} bad revisions were refused, no call changed anything", reasons.len());
    Ok(())
}

/// ```text
///   A───B    main, B is in force
///    ╲
///     C      pushed by force
/// ```
#[test]
fn a_rewritten_history_is_refused_until_a_person_accepts_it() -> Result<()> {
    let (_dir, small) = settled()?;
    let with = |name| INSTANCES.iter().copied().chain([(name, INSTANCES[1].1)]).collect::<Vec<_>>();
    let b = small.change_site(&with("porch"))?;
    ensure!(small.world.await_verdict(&b)?.is_none(), "B is refused");
    small.await_settled(&with("porch"))?;
    small.world.git(&["reset", "--quiet", "--hard", "HEAD~1"])?;
    small.world.write_site(&(site(&with("porch")) + "# rewritten\n"))?;
    small.world.git(&["commit", "--quiet", "--all", "--message", "C"])?;
    small.world.git(&["push", "--quiet", "--force", "origin", "HEAD:main"])?;
    let c = small.world.git(&["rev-parse", "HEAD"])?.trim().to_owned();
    let reason = small.world.await_verdict(&c)?;
    ensure!(reason.as_deref() == Some("history-rewritten"), "{reason:?}");
    ensure!(small.world.status()?["accepted"]["revision"] == b.as_str(), "B is no longer in force");
    small.world.await_phase("healthy", 4, SETTLES)?;
    run(small.world.ctrlable(["accept-rewrite"]).arg(&c))?;
    await_for("C is in force", SETTLES, || {
        Ok((small.world.status()?["accepted"]["revision"] == c.as_str()).then_some(()))
    })
    .with_context(|| small.world.orchestrator_log())?;
    small.await_settled(&with("porch"))?;
    println!("history-rewritten, and accepted by command");
    Ok(())
}

/// ```text
///   A───d───B          B is in nobody's name
///        ╲──B'──C'     B' and C' are signed by the dealer, and C' asks for more than HQ allows
/// ```
#[test]
fn only_what_the_dealer_signed_reaches_the_site() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let tuning = Tuning { commits: Some("every"), ..Tuning::default() };
    let mut small = Small::build_with(&dir.path().join("world"), 1, tuning, &INSTANCES)?;
    let key = small.world.dir.join("dealer").display().to_string();
    run(&mut command("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "dealer", "-f", &key]))?;
    let dealers = format!(
        "serial: 1\nissued: 2026-11-20T12:00:00Z\nlimits: {{ instances: 4 }}\ndealers:\n  acme:\n    sites: \
         [{SITE}]\n    keys:\n      - {}",
        fs::read_to_string(format!("{key}.pub"))?
    );
    fs::write(small.world.checkout().join("dealers.yaml"), &dealers)?;
    let (file, hq) = (small.world.checkout().join("dealers.yaml"), small.world.dir.join("hq/hq.key"));
    run(small.world.ctrlable(["release", "sign"]).arg(file).arg("--key").arg(hq))?;
    let d = small.world.push("HQ publishes its dealers")?;
    small.world.start_orchestrator()?;
    // A itself, which made the site, is not signed.
    let reason = small.world.await_verdict(&d)?;
    ensure!(reason.as_deref() == Some("commit-unsigned"), "{reason:?}");
    let sign = [("gpg.format", "ssh"), ("user.signingKey", key.as_str()), ("commit.gpgSign", "true")];
    let signing = |on: bool| -> Result<()> {
        for (name, value) in sign {
            let value = if name == "commit.gpgSign" && !on { "false" } else { value };
            small.world.git(&["config", name, value])?;
        }
        Ok(())
    };
    signing(true)?;
    fs::write(small.world.site_file(), site(&INSTANCES) + "# ours\n")?;
    let own = small.world.push("the dealer takes the site over")?;
    let reason = small.world.await_verdict(&own)?;
    ensure!(reason.is_none(), "{reason:?}");
    small.await_settled(&INSTANCES)?;
    small.world.node("DELETE", "/lab/log", None)?;

    let more: Vec<(&str, &str)> = INSTANCES.iter().copied().chain([("porch", INSTANCES[1].1)]).collect();
    signing(false)?;
    let b = small.change_site(&more)?;
    let reason = small.world.await_verdict(&b)?;
    ensure!(reason.as_deref() == Some("commit-unsigned"), "{reason:?}");
    small.await_event("commit-unsigned")?;
    ensure!(small.world.changes()?.is_empty(), "the node was changed: {:?}", small.world.changes()?);
    ensure!(small.world.status()?["accepted"]["revision"] == own.as_str(), "what was accepted is no longer in force");

    small.world.git(&["reset", "--quiet", "--hard", &own])?;
    signing(true)?;
    fs::write(small.world.site_file(), site(&more))?;
    small.world.git(&["commit", "--quiet", "--all", "--message", "B, signed"])?;
    small.world.git(&["push", "--quiet", "--force", "origin", "HEAD:main"])?;
    let signed = small.world.git(&["rev-parse", "HEAD"])?.trim().to_owned();
    let reason = small.world.await_verdict(&signed)?;
    ensure!(reason.is_none(), "{reason:?}");
    small.await_settled(&more)?;

    let most: Vec<(&str, &str)> = more.iter().copied().chain([("garage", INSTANCES[1].1)]).collect();
    let c = small.change_site(&most)?;
    let reason = small.world.await_verdict(&c)?;
    ensure!(reason.as_deref() == Some("limit-instances"), "{reason:?}");
    println!("unsigned and beyond HQ's limits: refused; signed: in force, {} guests", more.len());
    Ok(())
}

#[test]
fn a_git_hook_wakes_the_source_at_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let tuning = Tuning { webhook_secret: Some("paper-kettle"), ..Tuning::default() };
    // Once an hour: whatever is seen in this test was seen because of the hook.
    let mut small = Small::build_with(&dir.path().join("world"), 3600, tuning, &INSTANCES)?;
    small.world.start_orchestrator()?;
    small.await_settled(&INSTANCES)?;
    let began = Instant::now();
    let more: Vec<(&str, &str)> = INSTANCES.iter().copied().chain([("porch", INSTANCES[1].1)]).collect();
    let revision = small.change_site(&more)?;
    let url = format!("http://127.0.0.1:{}/hooks/git", small.world.ports[2]);
    let body = json!({ "ref": "refs/heads/main" }).to_string();
    let post = |secret: &str| -> Result<u16> {
        let mac = <Hmac<Sha256> as Mac>::new_from_slice(secret.as_bytes())?.chain_update(&body).finalize();
        let signature = format!("sha256={}", hex::encode(mac.into_bytes()));
        let request = reqwest::Client::new().post(&url).header("X-Hub-Signature-256", signature).body(body.clone());
        Ok(block(request.send())?.status().as_u16())
    };
    ensure!(post("guessed")? == 403, "a wrong signature was taken");
    ensure!(small.world.status()?["newest"]["revision"] != revision.as_str(), "it looked without the hook");
    ensure!(post("paper-kettle")? == 202, "the right signature was refused");
    ensure!(small.world.await_verdict(&revision)?.is_none(), "{SITE} was refused");
    small.await_settled(&more)?;
    println!("from the hook to healthy: {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

#[test]
fn certificates_are_renewed_and_one_that_expired_is_no_dead_end() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let tuning = Tuning { certificate_life: Some(20), ..Tuning::default() };
    let mut small = Small::build_with(&dir.path().join("world"), 1, tuning, &INSTANCES)?;
    small.world.start_orchestrator()?;
    small.await_settled(&INSTANCES)?;
    small.world.node("DELETE", "/lab/log", None)?;
    let renewed = |small: &Small, times: u64| {
        await_for(&format!("{times} renewals of each guest"), SETTLES, || {
            let all = INSTANCES
                .iter()
                .all(|(name, _)| small.sim.guest(&hostname(name)).is_ok_and(|guest| guest.renewals >= times));
            Ok(all.then_some(()))
        })
        .with_context(|| small.world.orchestrator_log())
    };
    renewed(&small, 1)?;
    // Away for longer than any certificate lives.
    small.world.kill_orchestrator()?;
    let before = small.sim.guest(&hostname("attic"))?.renewals;
    std::thread::sleep(std::time::Duration::from_secs(22));
    small.world.start_orchestrator()?;
    renewed(&small, before + 1)?;
    ensure!(small.world.events()?.iter().any(|event| event["kind"] == "renewed"), "no event of it");
    small.world.await_phase("healthy", INSTANCES.len(), SETTLES)?;
    ensure!(small.world.changes()?.is_empty(), "a guest was touched: {:?}", small.world.changes()?);
    println!("renewed while connected, and after its end");
    Ok(())
}

#[test]
fn a_revoked_guest_is_cut_off_and_its_neighbours_are_not() -> Result<()> {
    let (_dir, small) = settled()?;
    let bootstrap = small.sim.bootstrap("sensor")?;
    let attic = small.sim.guest(&hostname("attic"))?.credentials().context("attic is enrolled")?;
    run(small.world.ctrlable(["agent", "revoke"]).arg("attic"))?;
    let reason = refusal(block(sim::assignment(bootstrap, "after=0", Some(&attic))))?;
    ensure!(reason == "certificate-revoked", "{reason}");
    small.await_reason("attic", "guest-revoked")?;
    small.await_event("guest-revoked")?;
    let listed = run(&mut small.world.ctrlable(["agent", "list"]))?;
    ensure!(listed.lines().any(|line| line.starts_with("attic") && line.contains("revoked")), "{listed}");
    let status = small.world.status()?;
    for neighbour in ["hub", "cellar"] {
        ensure!(World::instance(&status, neighbour)?["phase"] == "healthy", "{status:#}");
    }
    // Admitted again, with an identity of its own, it is a guest like any other; the old certificate is not.
    let guest = small.sim.guest(&hostname("attic"))?;
    let key = KeyPair::generate()?.serialize_pem();
    let request = sim::enrol_request(bootstrap, &hostname("attic"), &guest.mac, &key, 4711)?;
    let reason = refusal(block(sim::enrol(bootstrap, &request, guest.address)))?;
    // The claim of its start is used up, and until it is admitted again the release's claim is not enough.
    ensure!(reason == "enrol-claim-wrong", "{reason}");
    run(small.world.ctrlable(["agent", "readmit"]).arg("attic"))?;
    block(sim::enrol(bootstrap, &request, guest.address))?;
    let reason = refusal(block(sim::assignment(bootstrap, "after=0", Some(&attic))))?;
    ensure!(reason == "certificate-revoked", "{reason}");
    println!("cut off at once, shown, and admitted again as a new guest");
    Ok(())
}

#[test]
fn the_ca_is_replaced_under_a_running_site_that_is_killed_at_each_stage() -> Result<()> {
    let (_dir, mut small) = settled()?;
    small.world.node("DELETE", "/lab/log", None)?;
    let status = |small: &Small| -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&run(&mut small.world.ctrlable(["--json", "ca", "status"]))?)?)
    };
    // Asked for while nobody is there to do it.
    small.world.kill_orchestrator()?;
    run(&mut small.world.ctrlable(["ca", "rotate"]))?;
    ensure!(status(&small)?["wanted"] == "rotate", "{}", status(&small)?);
    // One guest is away: it holds the end up.
    small.sim.behave(&hostname("cellar"), Conduct::Away);
    small.world.start_orchestrator()?;
    let waits = |small: &Small| {
        await_for("only cellar is awaited", SETTLES, || {
            let now = status(small)?;
            let awaited = now["awaited"].as_object().context("awaited")?;
            Ok((now["number"] == 2 && awaited.keys().eq(["cellar"])).then_some(()))
        })
        .with_context(|| small.world.orchestrator_log())
    };
    waits(&small)?;
    small.world.kill_orchestrator()?;
    small.world.start_orchestrator()?;
    waits(&small)?;
    let refused = run_expecting(&mut small.world.ctrlable(["ca", "rotate", "--finish"]), &[1])?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("cellar would be cut off"), "{refused:?}");
    small.sim.behave(&hostname("cellar"), Conduct::Well);
    await_for("the new CA alone is in force", SETTLES, || {
        let now = status(&small)?;
        Ok((now["number"] == 2 && now["stage"] == "settled").then_some(()))
    })
    .with_context(|| small.world.orchestrator_log())?;
    small.world.kill_orchestrator()?;
    small.world.start_orchestrator()?;
    small.world.await_phase("healthy", INSTANCES.len(), SETTLES)?;
    let state = small.world.dir.join("site/state");
    let new = fs::read_to_string(state.join("ca-2.pem"))?;
    await_for("every guest believes the new CA alone", SETTLES, || {
        let all = INSTANCES
            .iter()
            .all(|(name, _)| small.sim.guest(&hostname(name)).is_ok_and(|guest| guest.ca.as_ref() == Some(&new)));
        Ok(all.then_some(()))
    })?;
    ensure!(!state.join("ca.key").exists(), "the old CA's key is still there");
    ensure!(small.world.changes()?.is_empty(), "a guest was touched: {:?}", small.world.changes()?);
    // A template that knows the old CA alone makes guests as before.
    let more: Vec<(&str, &str)> = INSTANCES.iter().copied().chain([("porch", INSTANCES[1].1)]).collect();
    small.change_site(&more)?;
    small.await_settled(&more)?;
    println!("a new CA, no guest lost, none started again");
    Ok(())
}
