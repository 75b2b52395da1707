//! The agent's state and what it does with each event.

/// Certificates: the first, and the ones after it.
mod certificate;
/// Looking at the guest, and telling the orchestrator.
mod report;

use std::rc::Rc;
use std::time::{Duration, Instant as Clock};

use contract::assignment::{Assignment, MAX_WAIT};
use contract::bootstrap::Bootstrap;
use contract::enrolment::EnrolResponse;
use contract::floor::Floor;
use contract::health::{HealthResponse, WiringOutcome, WiringReport};
use contract::ids::Sha256Digest;
use contract::renewal::RenewResponse;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

use super::never;
use crate::dbus::SystemBus;
use crate::enrol::backoff::{self, Backoff};
use crate::enrol::client::{Client, Failure, Retry};
use crate::enrol::credentials::Credentials;
use crate::enrol::identity;
use crate::error::{Error, Reason, Result};
use crate::files::Root;
use crate::first_boot::cloned;
use crate::first_boot::journal::Journal;
use crate::health::{self, Observation};
use crate::seal::record::SealRecord;
use crate::state::{FirstBootReport, Phase, State, Watched};
use crate::status::{self, Status, Subject};
use crate::wiring::apply::{self, Deadlines};
use crate::wiring::transaction::Recovered;
use crate::{bootstrap, floor, layout, log};

/// Time between reports until the orchestrator says otherwise.
const FIRST_INTERVAL: Duration = Duration::from_secs(30);

/// An answer without a new assignment that comes sooner than this is not a long-poll: the next request waits.
const SHORTEST_POLL: Duration = Duration::from_secs(1);

/// While there is no network, attempts cost nobody anything, and the first one after it comes up should be early.
const NO_ROUTE_PAUSE: Duration = Duration::from_millis(25);

/// How long such attempts go on; then the usual back-off takes over.
const NO_ROUTE_PATIENCE: Duration = Duration::from_secs(15);

/// What the agent starts from.
pub(super) struct Start<B> {
    /// The guest's files.
    pub root: Rc<Root>,
    /// The system bus.
    pub bus: Rc<B>,
    /// The bootstrap file.
    pub bootstrap: Bootstrap,
    /// The seal's record.
    pub seal: Option<SealRecord>,
    /// The state file.
    pub state: State,
    /// What a crash left open.
    pub recovered: Option<Recovered>,
}

/// What a task has to say.
pub(super) enum Event {
    /// Units run with the files that were put back.
    Recovered,
    /// An attempt to enrol ended; with the key that it was for.
    Enrolled(Zeroizing<String>, std::result::Result<EnrolResponse, Failure>),
    /// An attempt to renew the certificate ended; with the key that it was for.
    Renewed(Zeroizing<String>, std::result::Result<RenewResponse, Failure>),
    /// A long-poll ended that this client began then.
    Polled(Rc<Client>, Clock, std::result::Result<Option<Box<Assignment>>, Failure>),
    /// An assignment is decided.
    Applied(Box<Decided>),
    /// Units and probes were looked at.
    Observed(Observation),
    /// A report was sent by this client.
    Reported(Rc<Client>, std::result::Result<HealthResponse, Failure>),
}

/// How an assignment went.
pub(super) struct Decided {
    report: WiringReport,
    watched: Watched,
    hostname: Result<()>,
    timezone: Result<()>,
    begin: Clock,
}

/// The agent between two events.
pub(super) struct Agent<B> {
    root: Rc<Root>,
    bus: Rc<B>,
    bootstrap: Bootstrap,
    seal: Option<SealRecord>,
    state: State,
    status: Status,
    client: Option<Rc<Client>>,
    /// Digest of the CA certificates that the client believes.
    believed: Option<Sha256Digest>,
    renewing: bool,
    floor: Option<Floor>,
    sender: UnboundedSender<Event>,
    started: Clock,
    /// Whether a wiring is under way: then nothing is observed.
    applying: bool,
    observing: bool,
    observation: Observation,
    boot_id: String,
    sequence: u64,
    report_due: Instant,
    reporting: bool,
    poll_backoff: Backoff,
    report_backoff: Backoff,
}

impl<B: SystemBus + 'static> Agent<B> {
    /// The agent, its first task under way, and where events come from.
    pub(super) fn new(start: Start<B>) -> (Self, UnboundedReceiver<Event>) {
        let (sender, events) = unbounded_channel();
        let Start { root, bus, bootstrap, seal, state, recovered } = start;
        let boot_id = health::boot_id(&root);
        let floor = floor::load(&root);
        let mut agent = Self {
            root,
            bus,
            bootstrap,
            seal,
            state,
            status: Status::default(),
            client: None,
            believed: None,
            renewing: false,
            floor,
            sender,
            started: Clock::now(),
            applying: false,
            observing: false,
            observation: Observation::default(),
            boot_id,
            sequence: 0,
            report_due: never(),
            reporting: false,
            poll_backoff: Backoff::default(),
            report_backoff: Backoff::default(),
        };
        match recovered {
            Some(recovered) => {
                agent.applying = true;
                let bus = Rc::clone(&agent.bus);
                agent.spawn(async move {
                    apply::finish_recovery(bus.as_ref(), &recovered).await;
                    Event::Recovered
                });
            }
            None => agent.begin(),
        }
        agent.show_status();
        (agent, events)
    }

    /// A sentence about how things are.
    pub(super) fn sentence(&self) -> String {
        status::sentence(&self.state, &self.status)
    }

    /// When the next report is due.
    pub(super) fn report_due(&self) -> Instant {
        self.report_due
    }

    /// Takes one event.
    pub(super) fn on(&mut self, event: Event) {
        match event {
            Event::Recovered => {
                self.applying = false;
                self.begin();
            }
            Event::Enrolled(key, Ok(response)) => self.enrolled(&key, response),
            Event::Enrolled(_, Err(failure)) => {
                let pause = self.after(&failure);
                self.journal("enrol", self.started, Err(&failure.error));
                self.enrol_after(pause);
            }
            Event::Renewed(key, outcome) => self.renewed(&key, outcome),
            Event::Polled(_, begin, Ok(assignment)) => self.polled(begin, assignment),
            Event::Polled(client, _, Err(_)) if self.is_replaced(&client) => self.poll_after(Duration::ZERO),
            Event::Polled(_, _, Err(failure)) => {
                let pause = self.after(&failure);
                self.poll_after(pause);
            }
            Event::Applied(decided) => self.applied(*decided),
            Event::Observed(observation) => {
                self.observing = false;
                // What was seen while a wiring began says nothing about its outcome.
                if !self.applying && observation != self.observation {
                    self.observation = observation;
                    self.report_due = Instant::now();
                }
            }
            Event::Reported(client, outcome) => self.reported(&client, outcome),
        }
        self.show_status();
    }

    fn show_status(&self) {
        if let Err(error) = self.status.save(&self.root) {
            log::warn(&error);
        }
    }

    /// Goes on from where the state file says.
    fn begin(&mut self) {
        match self.state.phase {
            Phase::Sealed | Phase::FirstBoot | Phase::Cloned | Phase::Enrolling => self.enrol_after(Duration::ZERO),
            Phase::Applying | Phase::Reporting => {
                if let Err(error) = self.resume() {
                    self.problem(Subject::Identity, &error);
                }
            }
        }
    }

    /// Uses the certificate of an earlier start, if this is still the guest that it was given to.
    fn resume(&mut self) -> Result<()> {
        let Some(enrolment) = &self.state.enrolment else {
            let message = format!("{} knows of no enrolment", layout::STATE);
            return Err(Error::new(Reason::StateUnreadable, message));
        };
        // An interface that came too late for the look at the start.
        if let Some(why) = cloned::difference(&self.root, enrolment)? {
            return Err(Error::new(
                Reason::IdentityChanged,
                format!("this is a copy of {}: {why}", enrolment.instance),
            ));
        }
        if !self.bootstrap.claim.expose().is_empty() {
            bootstrap::forget_claim(&self.root, &mut self.bootstrap)?;
        }
        let credentials = Credentials::load(&self.root)?;
        let client = Client::new(&self.bootstrap.orchestrators, &credentials.ca, Some(&credentials))?;
        self.put_in_force(client, &credentials);
        self.report_due = Instant::now();
        self.poll_after(Duration::ZERO);
        Ok(())
    }

    fn poll_after(&mut self, pause: Duration) {
        let Some(client) = self.client.clone() else { return };
        let after = self.state.decided();
        self.spawn(async move {
            sleep(pause).await;
            let begin = Clock::now();
            let outcome = client.assignment(after, MAX_WAIT).await;
            Event::Polled(client, begin, outcome.map(|assignment| assignment.map(Box::new)))
        });
    }

    fn polled(&mut self, begin: Clock, assignment: Option<Box<Assignment>>) {
        self.status.contact();
        self.poll_backoff.reset();
        let Some(assignment) = assignment else {
            self.poll_after(SHORTEST_POLL.saturating_sub(begin.elapsed()));
            return;
        };
        if let Err(error) = self.check(&assignment) {
            let pause = self.after(&Failure { error, retry: Retry::Slowly });
            self.poll_after(pause);
            return;
        }
        self.journal("assignment", self.started, Ok(()));
        if self.state.phase != Phase::Applying {
            self.become_phase(Phase::Applying);
        }
        self.applying = true;
        let (root, bus) = (Rc::clone(&self.root), Rc::clone(&self.bus));
        self.spawn(async move { Event::Applied(Box::new(decide(&root, bus.as_ref(), &assignment).await)) });
    }

    /// An assignment that is not for this guest, or not newer, is never applied.
    fn check(&self, assignment: &Assignment) -> Result<()> {
        let Assignment { site, instance, generation, .. } = assignment;
        let ours = self.state.enrolment.as_ref();
        if !ours.is_some_and(|ours| ours.site == *site && ours.instance == *instance) {
            return Err(Error::new(Reason::AnswerInvalid, format!("the assignment is for {site}/{instance}")));
        }
        if *generation <= self.state.decided() {
            let message = format!("generation {generation} came although {} is decided", self.state.decided());
            return Err(Error::new(Reason::AnswerInvalid, message));
        }
        Ok(())
    }

    fn applied(&mut self, decided: Decided) {
        let Decided { report, watched, hostname, timezone, begin } = decided;
        self.applying = false;
        for (subject, outcome) in [(Subject::Hostname, hostname), (Subject::Timezone, timezone)] {
            match outcome {
                Ok(()) => drop(self.status.problems.remove(&subject)),
                Err(error) => self.problem(subject, &error),
            }
        }
        let failure = match &report.outcome {
            WiringOutcome::Applied { changed } => {
                self.state.generation = report.generation;
                log::info(format_args!(
                    "generation {} is in force, {} files changed",
                    report.generation,
                    changed.len()
                ));
                None
            }
            WiringOutcome::PutBack { reason, detail } => Some(format!("put back: {detail} [{reason}]")),
            WiringOutcome::Refused { reason, detail } => Some(format!("refused: {detail} [{reason}]")),
        };
        if let Some(failure) = &failure {
            log::info(format_args!("generation {} was {failure}", report.generation));
        }
        if self.state.first_boot == FirstBootReport::Due {
            self.record("wiring", begin, failure);
        }
        self.state.wiring = Some(report);
        self.state.watched = watched;
        self.become_phase(Phase::Reporting);
        // The report follows as soon as units and probes were looked at, also when they look as before.
        self.observation = Observation::default();
        self.report_due = never();
        let (bus, watched) = (Rc::clone(&self.bus), self.state.watched.clone());
        self.observing = true;
        self.spawn(async move { Event::Observed(health::observe(bus.as_ref(), &watched).await) });
        if self.state.watched == Watched::default() {
            self.report_due = Instant::now();
        }
        self.poll_after(Duration::ZERO);
    }

    /// Notes a failure of enrolment or long-poll, and says how long to wait.
    fn after(&mut self, failure: &Failure) -> Duration {
        self.problem(Subject::Contact, &failure.error);
        match failure.retry {
            Retry::Soon if self.started.elapsed() < NO_ROUTE_PATIENCE => NO_ROUTE_PAUSE,
            Retry::Soon | Retry::BackOff => self.poll_backoff.next(),
            Retry::Renewed => {
                self.renew();
                self.poll_backoff.next()
            }
            Retry::After(seconds) => backoff::asked(seconds),
            Retry::Slowly => backoff::slow(),
        }
    }

    /// Shows a problem; says it aloud when it is new.
    fn problem(&mut self, subject: Subject, error: &Error) {
        let known = self.status.problems.insert(subject, error.into());
        if known.is_none_or(|known| known.reason != error.reason.label() || known.message != error.message) {
            log::warn(error);
        }
    }

    /// Goes on even when the disk is full: the guest serves, and what is not remembered is done again after a restart.
    fn become_phase(&mut self, next: Phase) {
        let outcome = self.state.become_phase(next, &self.root);
        self.remembered(outcome);
    }

    fn save(&mut self) {
        let outcome = self.state.save(&self.root);
        self.remembered(outcome);
    }

    fn remembered(&mut self, outcome: Result<()>) {
        match outcome {
            Ok(()) => drop(self.status.problems.remove(&Subject::Disk)),
            Err(error) => self.problem(Subject::Disk, &error),
        }
    }

    /// Notes a step of the first boot, while that lasts.
    fn journal(&mut self, step: &str, begin: Clock, outcome: std::result::Result<(), &Error>) {
        if self.state.generation.0 == 0 && self.state.first_boot == FirstBootReport::Due {
            self.record(step, begin, outcome.err().map(ToString::to_string));
        }
    }

    fn record(&mut self, step: &str, begin: Clock, failure: Option<String>) {
        let outcome = Journal::new(&self.root).record(step, begin, failure);
        self.remembered(outcome);
    }

    fn spawn(&self, task: impl Future<Output = Event> + 'static) {
        let sender = self.sender.clone();
        tokio::task::spawn_local(async move {
            // The loop has ended when nobody listens any more.
            let _ = sender.send(task.await);
        });
    }
}

/// Applies an assignment. Host name and time zone are the guest's own and are not put back with the wiring.
async fn decide<B: SystemBus>(root: &Root, bus: &B, assignment: &Assignment) -> Decided {
    let begin = Clock::now();
    let hostname = match identity::hostname(root) {
        Ok(current) if current == assignment.hostname => Ok(()),
        _ => bus
            .set_hostname(&assignment.hostname)
            .await
            .map_err(|error| Error::new(Reason::HostnameNotSet, error.message)),
    };
    let timezone = match &assignment.timezone {
        Some(zone) if !in_zone(root, zone.as_str()) => {
            bus.set_timezone(zone).await.map_err(|error| Error::new(Reason::TimezoneNotSet, error.message))
        }
        _ => Ok(()),
    };
    let outcome = apply::apply(root, bus, assignment, Deadlines::default()).await;
    Decided {
        report: WiringReport { generation: assignment.generation, outcome },
        watched: Watched { units: assignment.units.clone(), probes: assignment.probes.clone() },
        hostname,
        timezone,
        begin,
    }
}

/// Whether the guest is in a time zone already: localtime(5).
fn in_zone(root: &Root, zone: &str) -> bool {
    let target = root.link_target(layout::LOCALTIME).ok().flatten();
    target.is_some_and(|target| target.strip_suffix(zone).is_some_and(|rest| rest.ends_with("zoneinfo/")))
}
