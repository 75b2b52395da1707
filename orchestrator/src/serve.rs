//! `ctrlable serve`: the loop. Each pass starts from what is, not from what was meant to happen last time; a timer with
//! jitter, a git hook, an agent or the end of a lane only says when.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use contract::ids::InstanceName;
use jiff::Timestamp;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::agents::{self, Agents, Book, SiteCa, Wake, Witness};
use crate::apply::{Executor, NEVER_ENROLLED, Work};
use crate::config::Config;
use crate::floor::Keeper;
use crate::limits::Limits;
use crate::observe::{self, ToldFloor};
use crate::plan;
use crate::proxmox::Client;
use crate::secrets::Identities;
use crate::site::{self, Follower, Look};
use crate::status::{self, InTheWay, Phase, STANDING, Standing};
use crate::store::{Event, EventKind, Store, StoreError, now};
use crate::trust::Numbers;
use crate::web::{self, Pulse, Web};

/// Longest time between two passes: drift on the hypervisor is seen within it.
const PASS: Duration = Duration::from_secs(30);
/// Time between two passes while the hypervisor cannot be read.
const AGAIN: Duration = Duration::from_secs(5);
/// Longest pass: three guests at a time, each call at most 35 s, and a node that is in trouble anyway.
const LONGEST_PASS: Duration = Duration::from_secs(90);
/// Where the ledger keeps the names of lost instances.
const LOST: &str = "lost";
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
    let follower = Arc::new(Follower::new(&config, store.clone())?);
    let keeper = follower.keeper().clone();
    follower.restore()?;
    let client = Client::new(config.proxmox.clone())?;
    let agents = Arc::new(Agents {
        witness: Witness::new(client.clone()),
        keeper: keeper.clone(),
        ca: SiteCa::open(&config.state, &config.site)?,
        store: store.clone(),
        site: config.site.clone(),
        book: book.clone(),
        wake: wake.clone(),
        window: config.agents.window,
        interval: config.agents.interval,
        certificate_life: config.agents.certificate_life,
        turning: Default::default(),
        refused: Default::default(),
    });
    let keys = Identities::of_site(&config.state)?;
    let executor = Executor::new(client.clone(), store.clone(), book, wake.clone());
    let (agents_address, guests) =
        agents::listen(agents.clone(), config.agents.listen, &config.agents.names(), Limits::AGENTS).await?;
    let web = Arc::new(Web {
        store: store.clone(),
        pulse: pulse.clone(),
        fetch: fetch.clone(),
        hook: config.source.webhook_secret.clone(),
    });
    let (web_address, people) = web::listen(web, config.web.listen, Limits::PEOPLE)
        .await
        .map_err(|error| anyhow::anyhow!("people cannot be served on {}: {error}", config.web.listen))?;
    store.record(Event::new(
        EventKind::Started,
        format!("ctrlable {} serves guests on {agents_address}, people on {web_address}", env!("CARGO_PKG_VERSION")),
    ))?;
    tokio::spawn(guests);
    tokio::spawn(people);
    tokio::spawn(follow(follower.clone(), fetch.clone(), wake.clone(), config.source.interval));
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status("looking at the fleet repository")]);
    let turns = Loop { config, keys, client, store, keeper, follower, executor, agents, wake, fetch, pulse };
    turns.run().await
}

/// Looks at the remote regularly, and when somebody says so.
async fn follow(follower: Arc<Follower>, fetch: Arc<Notify>, wake: Wake, interval: Duration) {
    loop {
        let looking = follower.clone();
        match tokio::task::spawn_blocking(move || looking.look()).await {
            Ok(Ok(Look::Accepted(_) | Look::Refused)) => wake.notify_one(),
            Ok(Ok(Look::Same | Look::Unreachable | Look::FloorUnknown)) => {}
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
    keys: Identities,
    client: Client,
    store: Store,
    keeper: Arc<Keeper>,
    follower: Arc<Follower>,
    executor: Executor,
    agents: Arc<Agents>,
    wake: Wake,
    fetch: Arc<Notify>,
    pulse: Arc<Pulse>,
}

/// How a pass went.
enum Passed {
    /// Through.
    Well(String),
    /// There is nothing to follow yet.
    NoRevision,
    /// Something could not be read: its label, and words.
    Badly(&'static str, String),
}

impl Loop {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut trouble = String::new();
        loop {
            let passed = tokio::select! {
                passed = tokio::time::timeout(LONGEST_PASS, self.pass()) => match passed {
                    Ok(passed) => self.bearable(passed)?,
                    Err(_) => {
                        let text = format!("a pass took longer than {} s and was given up", LONGEST_PASS.as_secs());
                        Passed::Badly("pass-too-long", text)
                    }
                },
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            };
            self.pulse.beat(matches!(passed, Passed::Well(_)));
            // What could not be read is looked at again soon: most often the node was only restarted.
            let longest = if matches!(passed, Passed::Badly(..)) { AGAIN } else { PASS };
            let sentence = match passed {
                Passed::Well(sentence) => {
                    trouble.clear();
                    sentence
                }
                Passed::NoRevision => "no revision accepted yet".to_owned(),
                Passed::Badly(reason, text) => {
                    if trouble != text {
                        self.record(Event::new(EventKind::ProxmoxFailed, &text).reason(reason));
                        trouble.clone_from(&text);
                    }
                    text
                }
            };
            // The watchdog is fed by the loop itself: a timer would feed it while the loop hangs.
            let _ = sd_notify::notify(&[NotifyState::Status(&sentence), NotifyState::Watchdog]);
            tokio::select! {
                () = self.wake.notified() => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep(self.pause(longest)) => {}
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        // Lanes need no farewell: every step is journalled and taken up at the next start.
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        Ok(ExitCode::SUCCESS)
    }

    /// A full disk or a busy ledger passes; a ledger that is damaged does not, and stops the loop loudly.
    fn bearable(&self, passed: anyhow::Result<Passed>) -> anyhow::Result<Passed> {
        match passed {
            Err(error) => match error.downcast_ref::<StoreError>() {
                Some(StoreError::Sqlite { .. }) => {
                    tracing::error!(reason = "ledger-io", "{error:#}");
                    Ok(Passed::Badly("ledger-io", error.to_string()))
                }
                _ => Err(error),
            },
            passed => passed,
        }
    }

    /// Records an event; when the ledger cannot be written, the log has it at least.
    fn record(&self, event: Event) {
        if let Err(error) = self.store.record(event) {
            tracing::error!(reason = error.reason(), %error, "an event could not be recorded");
        }
    }

    /// Until the next pass: soon when an instance is to be tried again, regularly otherwise.
    fn pause(&self, longest: Duration) -> Duration {
        let next = self.store.instances().ok().and_then(|records| {
            let now = now();
            let troubles = records.into_values().filter_map(|record| record.trouble);
            troubles.filter(|trouble| trouble.is_resting(now)).map(|trouble| trouble.retry_at - now).min()
        });
        let until = next.and_then(|seconds| u64::try_from(seconds).ok()).map_or(longest, Duration::from_secs);
        // Up to a tenth more, by chance, and never before the instance's time has come.
        until.min(longest).mul_f64(1.0 + rand::random::<f64>() / 10.0)
    }

    async fn pass(&self) -> anyhow::Result<Passed> {
        self.executor.resume()?;
        self.note_lost()?;
        agents::rotation::turn(&self.agents)?;
        self.note_standing()?;
        if self.keeper.known()?.is_none() {
            match observe::floor(&self.client, &self.config.site).await {
                Ok(numbers) => self.keeper.told_by_proxmox(numbers)?,
                Err(error) => return Ok(Passed::Badly(error.reason(), error.to_string())),
            }
            self.fetch.notify_one();
        }
        let Some(verified) = self.follower.current() else { return Ok(Passed::NoRevision) };
        self.close_windows()?;
        let wishes = {
            let secrets = site::secrets(&verified, &self.keys, &self.config);
            site::wishes(&verified, self.follower.hq().as_deref(), &self.agents.ca, &secrets)?
        };
        let window = i64::try_from(self.config.agents.window.as_secs()).unwrap_or(i64::MAX);
        // What is observed of an instance that is busy now may be out of date before its lane ends.
        let busy = self.executor.busy();
        let range = verified.site().proxmox.vmids;
        let view = match observe::hypervisor(&self.client, range, observe::ledger(&self.store, window)?).await {
            Ok(view) => view,
            Err(error) => return Ok(Passed::Badly(error.reason(), error.to_string())),
        };
        self.note_floors(&view, &busy).await?;
        let plan = plan::plan(&wishes.desired, &view.observed, &view.ledger);
        let wanted: BTreeSet<InstanceName> = verified.site().instances.keys().cloned().collect();
        self.forget_ghosts(&view, &wanted, &busy)?;
        let summary = summary(&plan);
        let text = serde_json::to_string(&plan)?;
        if self.store.meta("plan")?.as_ref() != Some(&text) {
            self.store.set_meta("plan", &text)?;
        }
        self.note_blocked(&plan, &busy)?;
        let hash = plan.hash();
        let prune = verified.site().prune;
        let work = Arc::new(Work { plan, wanted, prune, assignments: wishes.assignments });
        if self.executor.start(&work, &busy)? > 0 {
            self.store.record(
                Event::new(EventKind::Planned, format!("{summary}, plan {}", &hash[..12]))
                    .revision(verified.revision()),
            )?;
        }
        Ok(Passed::Well(summary))
    }

    /// What markers know and the ledger does not is believed; what they do not know is written there.
    async fn note_floors(&self, view: &observe::View, busy: &BTreeSet<InstanceName>) -> Result<(), StoreError> {
        let ours: Vec<&ToldFloor> = view.floors.iter().filter(|told| told.site == self.config.site).collect();
        let told = ours.iter().filter_map(|told| told.numbers).fold(Numbers::default(), Numbers::max);
        self.keeper.told_by_proxmox(told)?;
        let is_free = |told: &&&ToldFloor| {
            let locked = view.observed.guests.get(&told.guest.vmid).is_some_and(|guest| guest.lock.is_some());
            !locked && !busy.contains(&told.instance)
        };
        let free: Vec<&ToldFloor> = ours.iter().filter(is_free).copied().collect();
        self.keeper.repair(&self.client, &free).await
    }

    /// Whether HQ's word is fresh and the clock plausible: shown by `status`, and once in the event log.
    fn note_standing(&self) -> Result<(), StoreError> {
        let Some(hq) = self.follower.hq() else { return Ok(()) };
        let now = Timestamp::now();
        let standing = Standing::of(&hq, now);
        let before = Standing::known(&self.store)?.unwrap_or_default();
        if standing == before {
            return Ok(());
        }
        self.store.set_meta(STANDING, &serde_json::to_string(&standing).unwrap_or_default())?;
        let tell = |message: String| Event::new(EventKind::Freshness, message);
        match (standing.frozen, before.frozen) {
            (true, false) => {
                let message = "channels.yaml is out of date: the site stays as it is, and goes to no other release before \
                               HQ signs a newer one";
                self.store.record(tell(message.to_owned()).reason("channels-expired"))?;
            }
            (false, true) => self.store.record(tell("channels.yaml is fresh again".to_owned()))?,
            (true, true) | (false, false) => {}
        }
        match (hq.floor().clock_behind(now), before.clock_behind) {
            (Some(behind), false) => {
                let message = format!(
                    "the clock is {} min behind what HQ has signed, and that time is taken until it is right: check the \
                     site's time service",
                    behind.as_mins()
                );
                self.store.record(tell(message).reason("clock-behind"))
            }
            (None, true) => self.store.record(tell("the clock is right again".to_owned())),
            (Some(_), true) | (None, false) => Ok(()),
        }
    }

    /// Gives up reservations of what is neither asked for nor there.
    fn forget_ghosts(
        &self,
        view: &observe::View,
        wanted: &BTreeSet<InstanceName>,
        busy: &BTreeSet<InstanceName>,
    ) -> Result<(), StoreError> {
        for (name, held) in &view.ledger.reservations {
            if !wanted.contains(name) && !busy.contains(name) && !view.observed.guests.contains_key(&held.vmid) {
                self.store.release_instance(name)?;
                self.store.record(
                    Event::new(
                        EventKind::Released,
                        format!("{name} is neither asked for nor there; number {} is free again", held.vmid),
                    )
                    .instance(name),
                )?;
            }
        }
        Ok(())
    }

    /// Instances that stopped reporting stand in the event log, once.
    fn note_lost(&self) -> Result<(), StoreError> {
        let lost: BTreeMap<String, String> = status::instances(&self.store, now())?
            .into_iter()
            .filter(|status| status.phase == Phase::Lost)
            .map(|status| (status.instance.to_string(), status.cause))
            .collect();
        let known: BTreeSet<String> =
            self.store.meta(LOST)?.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let names: BTreeSet<String> = lost.keys().cloned().collect();
        if names == known {
            return Ok(());
        }
        for (name, cause) in lost.iter().filter(|(name, _)| !known.contains(*name)) {
            let event = Event::new(EventKind::Lost, format!("{name}: {cause}")).reason("guest-lost");
            self.store.record(match name.parse() {
                Ok(instance) => event.instance(&instance),
                Err(_) => event,
            })?;
        }
        // Serialising strings cannot fail.
        self.store.set_meta(LOST, &serde_json::to_string(&names).unwrap_or_default())
    }

    /// A guest that did not enrol in its time is in trouble; the next plan starts it again.
    fn close_windows(&self) -> Result<(), StoreError> {
        let window = i64::try_from(self.config.agents.window.as_secs()).unwrap_or(i64::MAX);
        for (name, record) in self.store.instances()? {
            if record.window_opened_at.is_some() && !record.window_is_open(now(), window) {
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

    /// What is in the way stands in `status`, and once in the event log.
    fn note_blocked(&self, plan: &plan::Plan, busy: &BTreeSet<InstanceName>) -> Result<(), StoreError> {
        let known = status::in_the_way(&self.store)?;
        let mut found: BTreeMap<String, InTheWay> = known
            .iter()
            .filter(|(name, _)| busy.iter().any(|busy| busy.as_str() == *name))
            .map(|(name, way)| (name.clone(), way.clone()))
            .collect();
        for part in &plan.instances {
            let Some(blocked) = part.blocked.as_ref().filter(|_| !busy.contains(&part.instance)) else { continue };
            let way = InTheWay {
                reason: blocked.reason.to_owned(),
                message: blocked.message.clone(),
                remedy: blocked.remedy.clone(),
            };
            // Figures in the text change all the time; and a backup's lock is no news.
            let news = known.get(part.instance.as_str()).is_none_or(|before| before.reason != way.reason);
            if news && !status::PASSING.contains(&blocked.reason) {
                self.store.record(
                    Event::new(EventKind::Blocked, format!("{}: {}. {}", part.instance, way.message, way.remedy))
                        .instance(&part.instance)
                        .reason(blocked.reason),
                )?;
            }
            found.insert(part.instance.to_string(), way);
        }
        if found != known {
            // Serialising strings cannot fail.
            self.store.set_meta(status::BLOCKED, &serde_json::to_string(&found).unwrap_or_default())?;
        }
        Ok(())
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
