//! Looking at the guest, and telling the orchestrator what was seen.

use std::rc::Rc;

use contract::floor::Floor;
use contract::health::{HealthReport, HealthResponse};
use contract::renewal::Renew;
use tokio::time::Instant;

use super::{Agent, Event};
use crate::dbus::SystemBus;
use crate::enrol::backoff;
use crate::enrol::client::{Client, Failure, Retry};
use crate::enrol::identity;
use crate::first_boot::journal;
use crate::run::never;
use crate::state::{FirstBootReport, Phase, Watched};
use crate::status::Subject;
use crate::{floor, health};

impl<B: SystemBus + 'static> Agent<B> {
    /// Looks at units and probes, unless that is under way.
    pub(in crate::run) fn observe(&mut self) {
        let watching = self.client.is_some() && self.state.enrolment.is_some();
        if self.observing || self.applying || !watching || self.state.watched == Watched::default() {
            return;
        }
        self.observing = true;
        let (bus, watched) = (Rc::clone(&self.bus), self.state.watched.clone());
        self.spawn(async move { Event::Observed(health::observe(bus.as_ref(), &watched).await) });
    }

    /// Sends a report, unless one is under way; then the next one follows at once.
    pub(in crate::run) fn report(&mut self) {
        self.report_due = never();
        let Some(client) = self.client.clone().filter(|_| self.state.enrolment.is_some()) else { return };
        if self.reporting {
            return;
        }
        let identity = match identity::identity(&self.root, self.seal.as_ref()) {
            Ok(identity) => identity,
            Err(error) => {
                self.problem(Subject::Identity, &error);
                self.report_due = Instant::now() + backoff::slow();
                return;
            }
        };
        let first_boot = match self.state.first_boot {
            FirstBootReport::Due => journal::read(&self.root).unwrap_or_default(),
            FirstBootReport::Sent => Vec::new(),
        };
        self.sequence += 1;
        let report = HealthReport {
            protocol: contract::PROTOCOL,
            boot_id: self.boot_id.clone(),
            sequence: self.sequence,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: health::uptime(&self.root),
            generation: self.state.generation,
            wiring: self.state.wiring.clone(),
            units: self.observation.units.clone(),
            probes: self.observation.probes.clone(),
            load: health::load(&self.root),
            memory: health::memory(&self.root),
            disk: self.root.usage(),
            identity,
            first_boot,
            floor: self.floor.clone(),
            ca: self.believed.clone(),
        };
        self.reporting = true;
        self.spawn(async move {
            {
                let outcome = client.report(&report).await;
                Event::Reported(client, outcome)
            }
        });
    }

    pub(super) fn reported(&mut self, client: &Rc<Client>, outcome: std::result::Result<HealthResponse, Failure>) {
        self.reporting = false;
        if outcome.is_err() && self.is_replaced(client) {
            self.report_due = Instant::now();
            return;
        }
        let next = match outcome {
            Ok(HealthResponse { interval, renew, ca, floor, .. }) => {
                self.status.contact();
                self.report_backoff.reset();
                if let Some(floor) = floor {
                    self.keep_floor(floor);
                }
                if let Some(ca) = ca {
                    self.believe(ca);
                }
                if renew == Renew::Now {
                    self.renew();
                }
                // The first boot is over when its wiring is decided; only then the steps are complete.
                if self.state.first_boot == FirstBootReport::Due && self.state.phase == Phase::Reporting {
                    self.state.first_boot = FirstBootReport::Sent;
                    self.save();
                }
                backoff::asked(interval.max(1))
            }
            Err(failure) => {
                self.problem(Subject::Contact, &failure.error);
                match failure.retry {
                    Retry::After(seconds) => backoff::asked(seconds),
                    Retry::Slowly => backoff::slow(),
                    Retry::Soon | Retry::BackOff => self.report_backoff.next(),
                    Retry::Renewed => {
                        self.renew();
                        self.report_backoff.next()
                    }
                }
            }
        };
        // Something may have changed while the report was on its way: then the next one is due already.
        self.report_due = self.report_due.min(Instant::now() + next);
    }

    /// Only what is on disk counts as kept: it is reported, and what is not is sent again.
    fn keep_floor(&mut self, floor: Floor) {
        let outcome = floor::save(&self.root, &floor);
        if outcome.is_ok() {
            self.floor = Some(floor);
        }
        self.remembered(outcome);
    }
}
