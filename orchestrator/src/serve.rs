//! `ctrlable serve`: the loop. Each pass starts from what is, not from what was meant to happen last time; a timer with
//! jitter, a git hook, an agent or the end of a lane only says when.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use contract::ids::{InstanceName, Vmid};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::agents::{self, Agents, Book, SiteCa, Wake};
use crate::apply::{Executor, NEVER_ENROLLED, Work};
use crate::config::Config;
use crate::observe;
use crate::plan;
use crate::proxmox::Client;
use crate::site::{self, Follower, Look};
use crate::status;
use crate::store::{Event, EventKind, Store, StoreError, now};
use crate::trust::VerifiedSite;
use crate::web::{self, Pulse, Web};

/// Longest time between two passes: drift on the hypervisor is seen within it.
const PASS: Duration = Duration::from_secs(30);
/// Wake-ups within this time make one pass: a site of fifty guests reports fifty times after a merge.
const GATHER: Duration = Duration::from_millis(50);

/// Runs until it is told to stop.
pub fn run(config: Config) -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,hyper=warn,rustls=warn")),
        )
        // journald has the time already; a terminal wants it.
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&config.state)?;
    let store = Store::open(&config.state)?;
    store.set_meta("site", config.site.as_str())?;
    store.set_meta("report-interval", &config.agents.interval.as_secs().to_string())?;
    let (wake, fetch): (Wake, Arc<Notify>) = Default::default();
    let (book, pulse) = (Arc::<Book>::default(), Arc::<Pulse>::default());
    let agents = Arc::new(Agents {
        ca: SiteCa::open(&config.state, &config.site)?,
        store: store.clone(),
        site: config.site.clone(),
        book: book.clone(),
        wake: wake.clone(),
        window: config.agents.window,
        interval: config.agents.interval,
    });
    let client = Client::new(config.proxmox.clone())?;
    let follower = Arc::new(Follower::new(&config, store.clone())?);
    follower.restore()?;
    let executor = Executor::new(client.clone(), store.clone(), book, wake.clone());
    let (agents_address, guests) = agents::listen(agents.clone(), config.agents.listen, &config.agents.names()).await?;
    let web = Arc::new(Web {
        store: store.clone(),
        pulse: pulse.clone(),
        fetch: fetch.clone(),
        hook: config.source.webhook_secret.clone(),
    });
    let (web_address, people) = web::listen(web, config.web.listen)
        .await
        .map_err(|error| anyhow::anyhow!("people cannot be served on {}: {error}", config.web.listen))?;
    store.record(Event::new(
        EventKind::Started,
        format!("ctrlable {} serves guests on {agents_address}, people on {web_address}", env!("CARGO_PKG_VERSION")),
    ))?;
    executor.resume()?;
    tokio::spawn(guests);
    tokio::spawn(people);
    tokio::spawn(follow(follower.clone(), fetch, wake.clone(), config.source.interval));
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status("looking at the fleet repository")]);
    let turns = Loop { config, client, store, follower, executor, agents, wake, pulse };
    turns.run().await
}

/// Looks at the remote regularly, and when somebody says so.
async fn follow(follower: Arc<Follower>, fetch: Arc<Notify>, wake: Wake, interval: Duration) {
    loop {
        let looking = follower.clone();
        match tokio::task::spawn_blocking(move || looking.look()).await {
            Ok(Ok(Look::Accepted(_) | Look::Refused)) => wake.notify_one(),
            Ok(Ok(Look::Same | Look::Unreachable)) => {}
            Ok(Err(error)) => tracing::error!(reason = error.reason(), %error, "the ledger cannot be used"),
            Err(error) => tracing::error!(%error, "the look at the remote ended badly"),
        }
        // Up to a tenth more, by chance: a thousand sites must not fetch in step.
        let pause = interval.mul_f64(1.0 + rand::random::<f64>() / 10.0);
        let _ = tokio::time::timeout(pause, fetch.notified()).await;
    }
}

struct Loop {
    config: Config,
    client: Client,
    store: Store,
    follower: Arc<Follower>,
    executor: Executor,
    agents: Arc<Agents>,
    wake: Wake,
    pulse: Arc<Pulse>,
}

/// How a pass went.
enum Passed {
    /// Through.
    Well(String),
    /// There is nothing to follow yet.
    NoRevision,
    /// Something could not be read: label and words.
    Badly(&'static str, String),
}

impl Loop {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut trouble = String::new();
        let mut planned = String::new();
        loop {
            let passed = self.pass(&mut planned).await?;
            self.pulse.beat(matches!(passed, Passed::Well(_)));
            let sentence = match passed {
                Passed::Well(sentence) => {
                    trouble.clear();
                    sentence
                }
                Passed::NoRevision => "no revision accepted yet".to_owned(),
                Passed::Badly(reason, text) => {
                    if trouble != text {
                        self.store.record(Event::new(EventKind::ProxmoxFailed, &text).reason(reason))?;
                        trouble.clone_from(&text);
                    }
                    text
                }
            };
            // The watchdog is fed by the loop itself: a timer would feed it while the loop hangs.
            let _ = sd_notify::notify(&[NotifyState::Status(&sentence), NotifyState::Watchdog]);
            tokio::select! {
                () = self.wake.notified() => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep(self.pause()?) => {}
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        // Lanes need no farewell: every step is journalled and taken up at the next start.
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        Ok(ExitCode::SUCCESS)
    }

    /// Until the next pass: soon when an instance is to be tried again, regularly otherwise.
    fn pause(&self) -> Result<Duration, StoreError> {
        let next = self.store.instances()?.values().filter_map(|record| Some(record.trouble.as_ref()?.retry_at)).min();
        let until = next.map_or(PASS, |at| Duration::from_secs(u64::try_from(at - now()).unwrap_or(0).max(1)));
        Ok(until.min(PASS).mul_f64(1.0 + rand::random::<f64>() / 10.0))
    }

    async fn pass(&self, planned: &mut String) -> anyhow::Result<Passed> {
        let Some(verified) = self.follower.current() else { return Ok(Passed::NoRevision) };
        self.close_windows()?;
        let secrets = match site::secrets(&self.config) {
            Ok(secrets) => secrets,
            Err(error) => return Ok(Passed::Badly(error.reason(), error.to_string())),
        };
        let wishes = site::wishes(&verified, &self.agents.ca, &secrets)?;
        drop(secrets);
        let window = i64::try_from(self.config.agents.window.as_secs()).unwrap_or(i64::MAX);
        let busy = self.executor.busy();
        let range = verified.site().proxmox.vmids;
        let view = match observe::hypervisor(&self.client, range, observe::ledger(&self.store, window)?).await {
            Ok(view) => view,
            Err(error) => return Ok(Passed::Badly(error.reason(), error.to_string())),
        };
        let mut plan = plan::plan(&wishes.desired, &view.observed, &view.ledger);
        let summary = summary(&plan);
        self.store.set_meta("plan", &serde_json::to_string(&plan)?)?;
        self.forget_gone(&verified, &view.observed, &busy)?;
        // What was observed of a busy instance may be out of date before its lane ends.
        plan.instances.retain(|part| !busy.contains(&part.instance));
        self.note_blocked(&plan)?;
        let hash = plan.hash();
        let work = Arc::new(Work { plan, assignments: wishes.assignments });
        if self.executor.start(&work)? > 0 && *planned != hash {
            self.store.record(
                Event::new(EventKind::Planned, format!("{summary}, plan {}", &hash[..12]))
                    .revision(verified.revision()),
            )?;
            *planned = hash;
        }
        Ok(Passed::Well(summary))
    }

    /// Forgets instances that nobody asks for and that have no guest: the end of a destruction may have been lost with
    /// an earlier process or with an answer, and a person may have destroyed the guest.
    fn forget_gone(
        &self,
        wanted: &VerifiedSite,
        observed: &plan::Observed,
        busy: &BTreeSet<InstanceName>,
    ) -> Result<(), StoreError> {
        for (name, record) in self.store.instances()? {
            if !wanted.site().instances.contains_key(&name)
                && !observed.guests.contains_key(&record.vmid)
                && !busy.contains(&name)
            {
                self.store.release_instance(&name)?;
                self.store.record(
                    Event::new(EventKind::StepDone, format!("{name}: is neither asked for nor there; forgotten"))
                        .instance(&name),
                )?;
            }
        }
        Ok(())
    }

    /// A guest that did not enrol in its time is in trouble; the next plan starts it again.
    fn close_windows(&self) -> Result<(), StoreError> {
        let window = i64::try_from(self.config.agents.window.as_secs()).unwrap_or(i64::MAX);
        for (name, record) in self.store.instances()? {
            if record.window_opened_at.is_some_and(|opened| now() - opened > window) {
                let message = format!(
                    "it was started and did not enrol within {window} s: look at its console and network, and at \
                     `ctrlable-agent status` in it; it is started again"
                );
                self.store.close_window(&name)?;
                self.store.note_trouble(&name, NEVER_ENROLLED, &message)?;
                self.store.record(
                    Event::new(EventKind::StepFailed, format!("{name}: {message}"))
                        .instance(&name)
                        .reason(NEVER_ENROLLED),
                )?;
            }
        }
        Ok(())
    }

    /// What is in the way stands in `status` and in the event log, once.
    fn note_blocked(&self, plan: &plan::Plan) -> Result<(), StoreError> {
        let blocked: BTreeMap<&InstanceName, status::InTheWay> = plan
            .instances
            .iter()
            .filter_map(|part| {
                let reason = part.blocked.as_ref()?;
                let (vmid, message) = (part.vmid.map(Vmid::get), format!("{}; {}", reason.message, reason.remedy));
                Some((&part.instance, status::InTheWay { reason: reason.reason.into(), message, vmid }))
            })
            .collect();
        let known = status::in_the_way(&self.store)?;
        if blocked.iter().map(|(name, what)| (*name, what)).eq(&known) {
            return Ok(());
        }
        for part in &plan.instances {
            if let Some(reason) = &part.blocked
                && known.get(&part.instance) != blocked.get(&part.instance)
            {
                self.store.record(
                    Event::new(
                        EventKind::StepFailed,
                        format!("{}: {}. {}", part.instance, reason.message, reason.remedy),
                    )
                    .instance(&part.instance)
                    .reason(reason.reason),
                )?;
            }
        }
        self.store.set_meta(status::IN_THE_WAY, &serde_json::to_string(&blocked).unwrap_or_default())
    }
}

/// One sentence for `systemctl status`.
fn summary(plan: &plan::Plan) -> String {
    let steps: usize = plan.instances.iter().map(|part| part.steps.len()).sum();
    let blocked = plan.instances.iter().filter(|part| part.blocked.is_some()).count();
    match (steps, blocked) {
        (0, 0) => format!("{} instances are as the site says", plan.instances.len()),
        (steps, 0) => format!("{steps} steps to go for {} instances", plan.instances.len()),
        (steps, blocked) => format!("{steps} steps to go, {blocked} instances blocked"),
    }
}
