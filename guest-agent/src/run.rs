//! The service: from the start of the guest to its end. One loop takes events; short tasks make them. Nothing in the
//! loop waits for anything else, which is why it may feed systemd's watchdog.

/// What the loop does with each event.
mod agent;

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::dbus::system::SystemdBus;
use crate::error::{Error, Reason, Result};
use crate::files::Root;
use crate::notify::Notifier;
use crate::seal::record::SealRecord;
use crate::state::State;
use crate::wiring::transaction;
use crate::{bootstrap, first_boot, log};
use agent::{Agent, Start};

/// How often units and probes are looked at. One bus call and a few local connections: cheaper than following every
/// property change of systemd, and soon enough for a person who watches `ctrlable status`.
const OBSERVE_INTERVAL: Duration = Duration::from_secs(5);

/// Runs until systemd asks for the end.
pub(crate) fn run(path: &Path) -> Result<()> {
    let notifier = Notifier::from_environment();
    let root = Root::open(path)?;
    let bootstrap = bootstrap::load(&root)?;
    let seal = SealRecord::load(&root)?;
    let mut state = match (State::load(&root)?, &seal) {
        (Some(state), _) => state,
        (None, Some(_)) => State::sealed(),
        (None, None) => {
            return Err(Error::new(Reason::NotSealed, "this guest was never sealed, so it keeps its identity"));
        }
    };
    let recovered = transaction::recover(&root)?;
    if let Some(recovered) = &recovered {
        log::info(format_args!("put back what was left open of generation {}", recovered.generation));
    }
    first_boot::cloned::let_go(&root, &mut state)?;
    first_boot::reset_identity(&root, &mut state, seal.as_ref())?;
    // From here on sshd may start: it finds its keys. Nothing before this line waits for a network.
    notifier.ready();

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|cause| Error::new(Reason::FileIo, format!("cannot start the event loop: {cause}")))?;
    let start = Start { root: Rc::new(root), bus: Rc::new(SystemdBus::default()), bootstrap, seal, state, recovered };
    LocalSet::new().block_on(&runtime, turn(start, notifier))
}

async fn turn(start: Start<SystemdBus>, notifier: Notifier) -> Result<()> {
    let no_signals = |cause| Error::new(Reason::FileIo, format!("cannot listen for signals: {cause}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut observe = interval(OBSERVE_INTERVAL);
    observe.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Without a watchdog the timer is never due within the life of a guest.
    let mut watchdog = interval(notifier.watchdog_interval().unwrap_or(Duration::from_secs(u32::MAX.into())));
    let (mut agent, mut events) = Agent::new(start);
    let mut sentence = String::new();
    loop {
        let now = agent.sentence();
        if now != sentence {
            notifier.status(&now);
            log::info(&now);
            sentence = now;
        }
        tokio::select! {
            Some(event) = events.recv() => agent.on(event),
            _ = watchdog.tick() => notifier.alive(),
            _ = observe.tick() => agent.observe(),
            () = sleep_until(agent.report_due()) => agent.report(),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    // A wiring that is under way is put back at the next start.
    notifier.stopping();
    Ok(())
}

/// As far away as it takes to mean "not now": tokio has no later instant than about thirty years ahead.
fn never() -> Instant {
    Instant::now() + Duration::from_secs(60 * 60 * 24 * 365)
}
