//! The system bus: host name, time zone and units, without a child process.

/// A bus of make-believe for unit tests.
#[cfg(test)]
pub(crate) mod fake;
/// The real bus.
pub(crate) mod system;

use contract::health::UnitHealth;
use contract::ids::{Hostname, Timezone, UnitName};

use crate::error::Result;

/// What it means when systemd calls a unit active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// The service said so itself (`Type=notify`, `dbus`, `forking`, `oneshot`), or the unit is no service.
    Announced,
    /// The process was started (`Type=simple`, `exec`, `idle`); it may still fall over its settings.
    Assumed,
}

/// What the agent asks of its guest's services.
pub(crate) trait SystemBus {
    /// `org.freedesktop.hostname1`: sets the static host name.
    async fn set_hostname(&self, name: &Hostname) -> Result<()>;
    /// `org.freedesktop.timedate1`: sets the time zone.
    async fn set_timezone(&self, zone: &Timezone) -> Result<()>;
    /// `org.freedesktop.systemd1`: reads unit files and drop-ins again.
    async fn reload_manager(&self) -> Result<()>;
    /// `org.freedesktop.systemd1`: restarts a unit and waits for the end of the job.
    async fn restart_unit(&self, unit: &UnitName) -> Result<()>;
    /// `org.freedesktop.systemd1`: what this unit's being active means.
    async fn readiness(&self, unit: &UnitName) -> Result<Readiness>;
    /// `org.freedesktop.systemd1`: the state of units, in the order asked.
    async fn unit_states(&self, units: &[UnitName]) -> Result<Vec<UnitHealth>>;
}
