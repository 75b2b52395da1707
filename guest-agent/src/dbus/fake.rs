//! A bus of make-believe: it records what it is asked and answers as a test wishes.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::BTreeMap;

use contract::health::UnitHealth;
use contract::ids::{Hostname, Timezone, UnitName};

use super::{Readiness, SystemBus};
use crate::error::{Error, Reason, Result};

/// Decides how a unit is after its restart: `active`, `failed`, …
type AfterRestart = Box<dyn Fn(&UnitName) -> &'static str>;

/// See the module.
pub(crate) struct FakeBus {
    /// Calls as text, in order.
    pub calls: RefCell<Vec<String>>,
    /// State of each unit; `inactive` when not named.
    pub units: RefCell<BTreeMap<String, String>>,
    /// What being active means.
    pub readiness: RefCell<Readiness>,
    after_restart: AfterRestart,
}

impl FakeBus {
    /// A bus on which a restart leads to the state that `after_restart` says.
    pub(crate) fn new(after_restart: impl Fn(&UnitName) -> &'static str + 'static) -> Self {
        Self {
            calls: RefCell::default(),
            units: RefCell::default(),
            readiness: RefCell::new(Readiness::Announced),
            after_restart: Box::new(after_restart),
        }
    }

    /// Calls so far, as text.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.borrow().clone()
    }

    fn record(&self, call: String) {
        self.calls.borrow_mut().push(call);
    }
}

impl SystemBus for FakeBus {
    async fn set_hostname(&self, name: &Hostname) -> Result<()> {
        self.record(format!("hostname {name}"));
        Ok(())
    }

    async fn set_timezone(&self, zone: &Timezone) -> Result<()> {
        self.record(format!("timezone {zone}"));
        Ok(())
    }

    async fn reload_manager(&self) -> Result<()> {
        self.record("reload".to_owned());
        Ok(())
    }

    async fn restart_unit(&self, unit: &UnitName) -> Result<()> {
        self.record(format!("restart {unit}"));
        let state = (self.after_restart)(unit);
        self.units.borrow_mut().insert(unit.to_string(), state.to_owned());
        if state == "failed" { Err(Error::new(Reason::UnitFailed, format!("{unit} failed"))) } else { Ok(()) }
    }

    async fn readiness(&self, _unit: &UnitName) -> Result<Readiness> {
        Ok(*self.readiness.borrow())
    }

    async fn unit_states(&self, units: &[UnitName]) -> Result<Vec<UnitHealth>> {
        let known = self.units.borrow();
        let state = |unit: &UnitName| known.get(unit.as_str()).map_or("inactive", String::as_str).to_owned();
        Ok(units
            .iter()
            .map(|unit| UnitHealth { unit: unit.clone(), active: state(unit), sub: String::new() })
            .collect())
    }
}
