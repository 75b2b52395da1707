//! Certificates: the first, and the ones after it. The orchestrator says when one is to be renewed, because the guest's
//! own clock may be wrong. The old one stays in force until the new one is on disk.

use std::rc::Rc;
use std::time::{Duration, Instant as Clock};

use contract::enrolment::{EnrolRequest, EnrolResponse};
use contract::renewal::{RenewRequest, RenewResponse};
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

use super::{Agent, Event, FIRST_INTERVAL};
use crate::dbus::SystemBus;
use crate::enrol::claim;
use crate::enrol::client::{Client, Failure, Retry};
use crate::enrol::credentials::{self, Credentials};
use crate::enrol::identity;
use crate::error::{Error, Reason, Result};
use crate::state::{Enrolment, Phase};
use crate::status::Subject;
use crate::{bootstrap, log};

impl<B: SystemBus + 'static> Agent<B> {
    pub(super) fn enrol_after(&mut self, pause: Duration) {
        let attempt = self.enrol_request();
        let sender = self.sender.clone();
        let (client, key, request) = match attempt {
            Ok(attempt) => attempt,
            Err(error) => {
                // Something in the guest itself is amiss. It is looked at again: somebody may put it right.
                let failure = Failure { error, retry: Retry::Slowly };
                tokio::task::spawn_local(async move {
                    sleep(pause).await;
                    let _ = sender.send(Event::Enrolled(Zeroizing::default(), Err(failure)));
                });
                return;
            }
        };
        self.spawn(async move {
            sleep(pause).await;
            let outcome = client.enrol(&request).await;
            Event::Enrolled(key, outcome)
        });
    }

    fn enrol_request(&mut self) -> Result<(Rc<Client>, Zeroizing<String>, EnrolRequest)> {
        let mac = identity::macs(&self.root)?.first().copied();
        let mac = mac.ok_or_else(|| Error::new(Reason::NoInterface, "the guest has no Ethernet interface"))?;
        let (key, csr) = credentials::request(&self.root)?;
        let request = EnrolRequest {
            protocol: contract::PROTOCOL,
            claim: claim::own(&self.root).unwrap_or_else(|| self.bootstrap.claim.clone()),
            release: self.bootstrap.release.clone(),
            template: self.bootstrap.template.clone(),
            hostname: identity::hostname(&self.root)?,
            mac,
            csr,
            identity: identity::identity(&self.root, self.seal.as_ref())?,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let client = match &self.client {
            Some(client) => Rc::clone(client),
            None => Rc::new(Client::new(&self.bootstrap.orchestrators, &self.bootstrap.ca, None)?),
        };
        self.client = Some(Rc::clone(&client));
        Ok((client, key, request))
    }

    pub(super) fn enrolled(&mut self, key: &str, response: EnrolResponse) {
        self.status.contact();
        self.poll_backoff.reset();
        if let Err(error) = self.accept_enrolment(key, response) {
            let pause = self.after(&Failure { error, retry: Retry::Slowly });
            self.enrol_after(pause);
        }
    }

    fn accept_enrolment(&mut self, key: &str, response: EnrolResponse) -> Result<()> {
        let EnrolResponse { certificate, ca, site, instance, generation } = response;
        if site != self.bootstrap.site {
            let message = format!("the certificate is for site {site}, the template for {}", self.bootstrap.site);
            return Err(Error::new(Reason::AnswerInvalid, message));
        }
        let mac = identity::macs(&self.root)?.first().copied();
        let mac = mac.ok_or_else(|| Error::new(Reason::NoInterface, "the guest lost its interface while enrolling"))?;
        let credentials = Credentials::new(key, &certificate, ca);
        // This also proves that the certificate is for our key.
        let client = Client::new(&self.bootstrap.orchestrators, &credentials.ca, Some(&credentials))?;
        credentials.save(&self.root)?;
        log::info(format_args!("enrolled as {site}/{instance}, generation {generation} waits"));
        let machine_id = identity::identity(&self.root, self.seal.as_ref())?.machine_id;
        let uuid = identity::uuid(&self.root);
        self.state.enrolment = Some(Enrolment { site, instance, mac, uuid, machine_id });
        self.become_phase(Phase::Applying);
        bootstrap::forget_claim(&self.root, &mut self.bootstrap)?;
        self.put_in_force(client, &credentials);
        self.journal("enrol", self.started, Ok(()));
        self.started = Clock::now();
        self.report_due = Instant::now() + FIRST_INTERVAL;
        self.poll_after(Duration::ZERO);
        Ok(())
    }

    /// Uses these credentials from now on.
    pub(super) fn put_in_force(&mut self, client: Client, credentials: &Credentials) {
        self.client = Some(Rc::new(client));
        self.believed = Some(credentials::ca_digest(&credentials.ca));
    }

    /// Whether another client has taken the place of this one; then its failures say nothing any more.
    pub(super) fn is_replaced(&self, client: &Rc<Client>) -> bool {
        self.client.as_ref().is_none_or(|current| !Rc::ptr_eq(current, client))
    }

    /// Asks for a new certificate, unless that is under way.
    pub(super) fn renew(&mut self) {
        let Some(client) = self.client.clone().filter(|_| !self.renewing) else { return };
        match credentials::next_request(&self.root) {
            Ok((key, csr)) => {
                self.renewing = true;
                let request = RenewRequest { protocol: contract::PROTOCOL, csr };
                self.spawn(async move { Event::Renewed(key, client.renew(&request).await) });
            }
            Err(error) => self.problem(Subject::Contact, &error),
        }
    }

    /// A failure is only shown: the orchestrator says again that it is time.
    pub(super) fn renewed(&mut self, key: &str, outcome: std::result::Result<RenewResponse, Failure>) {
        self.renewing = false;
        let outcome = match outcome {
            Ok(RenewResponse { certificate, ca }) => self.change(&Credentials::new(key, &certificate, ca)),
            Err(failure) => Err(failure.error),
        };
        match outcome {
            Ok(()) => log::info("the certificate was renewed"),
            Err(error) => self.problem(Subject::Contact, &error),
        }
    }

    /// Believes other CA certificates from now on.
    pub(super) fn believe(&mut self, ca: String) {
        let outcome = Credentials::load(&self.root).and_then(|credentials| {
            let credentials = Credentials { ca, ..credentials };
            self.change(&credentials)
        });
        match outcome {
            Ok(()) => log::info("the site's CA has changed"),
            Err(error) => self.problem(Subject::Contact, &error),
        }
    }

    fn change(&mut self, credentials: &Credentials) -> Result<()> {
        // This also proves that the certificate is for our key.
        let client = Client::new(&self.bootstrap.orchestrators, &credentials.ca, Some(credentials))?;
        credentials.save(&self.root)?;
        self.put_in_force(client, credentials);
        // The orchestrator learns of it with the next report, which comes at once.
        self.report_due = Instant::now();
        Ok(())
    }
}
