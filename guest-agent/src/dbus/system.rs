//! The real system bus: typed proxies, one connection, made when first needed and again when it was lost.

use std::cell::RefCell;
use std::time::Duration;

use contract::health::UnitHealth;
use contract::ids::{Hostname, Timezone, UnitName};
use futures_util::StreamExt;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath, connection, proxy};

use super::{Readiness, SystemBus};
use crate::error::{Error, Reason, Result};

/// Longest wait for an answer. hostnamed and timedated are started by the call, which takes a second on a slow disk.
const CALL_TIMEOUT: Duration = Duration::from_secs(25);

/// Longest wait for a unit's restart, stop included. Services that need longer are given up: the wiring is put back.
const JOB_TIMEOUT: Duration = Duration::from_secs(60);

/// A row of `ListUnitsByNames`: name, description, load state, active state, sub state, following, path, and its job.
type UnitRow = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    async fn subscribe(&self) -> zbus::Result<()>;
    async fn reload(&self) -> zbus::Result<()>;
    async fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    async fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    async fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    async fn list_units_by_names(&self, names: &[&str]) -> zbus::Result<Vec<UnitRow>>;
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;
}

#[proxy(interface = "org.freedesktop.systemd1.Service", default_service = "org.freedesktop.systemd1")]
trait Service {
    #[zbus(property, name = "Type")]
    fn kind(&self) -> zbus::Result<String>;
}

#[proxy(
    interface = "org.freedesktop.hostname1",
    default_service = "org.freedesktop.hostname1",
    default_path = "/org/freedesktop/hostname1"
)]
trait Hostname1 {
    async fn set_static_hostname(&self, hostname: &str, interactive: bool) -> zbus::Result<()>;
}

#[proxy(
    interface = "org.freedesktop.timedate1",
    default_service = "org.freedesktop.timedate1",
    default_path = "/org/freedesktop/timedate1"
)]
trait Timedate1 {
    async fn set_timezone(&self, timezone: &str, interactive: bool) -> zbus::Result<()>;
}

/// The bus at `DBUS_SYSTEM_BUS_ADDRESS`, or where every system has it.
#[derive(Default)]
pub(crate) struct SystemdBus {
    connection: RefCell<Option<Connection>>,
}

impl SystemdBus {
    async fn connection(&self) -> Result<Connection> {
        if let Some(connection) = self.connection.borrow().as_ref() {
            return Ok(connection.clone());
        }
        let connect = async {
            let connection = connection::Builder::system().method_timeout(CALL_TIMEOUT).build().await?;
            // Without this systemd sends no JobRemoved.
            ManagerProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?.subscribe().await?;
            zbus::Result::Ok(connection)
        };
        let connection = match tokio::time::timeout(CALL_TIMEOUT, connect).await {
            Ok(made) => made.map_err(|cause| unavailable("connect to", &cause))?,
            Err(_) => return Err(Error::new(Reason::BusUnavailable, "the system bus does not answer")),
        };
        self.connection.replace(Some(connection.clone()));
        Ok(connection)
    }

    async fn manager(&self) -> Result<ManagerProxy<'static>> {
        let connection = self.connection().await?;
        let manager = ManagerProxy::builder(&connection).cache_properties(CacheProperties::No).build().await;
        manager.map_err(|cause| self.fail("reach systemd", cause))
    }

    /// Sorts an error, and forgets a connection that is of no use any more.
    fn fail(&self, verb: &str, cause: zbus::Error) -> Error {
        match cause {
            zbus::Error::MethodError(name, text, _) => {
                let text = text.unwrap_or_default();
                Error::new(Reason::BusRefused, format!("cannot {verb}: {text} ({name})"))
            }
            zbus::Error::FDO(cause) => Error::new(Reason::BusRefused, format!("cannot {verb}: {cause}")),
            cause => {
                self.connection.replace(None);
                unavailable(verb, &cause)
            }
        }
    }
}

fn unavailable(verb: &str, cause: &zbus::Error) -> Error {
    Error::new(Reason::BusUnavailable, format!("cannot {verb} over the system bus: {cause}"))
}

impl SystemBus for SystemdBus {
    async fn set_hostname(&self, name: &Hostname) -> Result<()> {
        let fail = |cause| self.fail("set the host name", cause);
        let connection = self.connection().await?;
        let proxy = Hostname1Proxy::builder(&connection).cache_properties(CacheProperties::No).build().await;
        proxy.map_err(fail)?.set_static_hostname(name.as_str(), false).await.map_err(fail)
    }

    async fn set_timezone(&self, zone: &Timezone) -> Result<()> {
        let fail = |cause| self.fail("set the time zone", cause);
        let connection = self.connection().await?;
        let proxy = Timedate1Proxy::builder(&connection).cache_properties(CacheProperties::No).build().await;
        proxy.map_err(fail)?.set_timezone(zone.as_str(), false).await.map_err(fail)
    }

    async fn reload_manager(&self) -> Result<()> {
        self.manager().await?.reload().await.map_err(|cause| self.fail("reload systemd", cause))
    }

    async fn restart_unit(&self, unit: &UnitName) -> Result<()> {
        let fail = |cause| self.fail(&format!("restart {unit}"), cause);
        let manager = self.manager().await?;
        // A unit that hit its start limit refuses to start until this; one that is not loaded has nothing to reset.
        let _ = manager.reset_failed_unit(unit.as_str()).await;
        // Listening begins before the job does: a quick one must not end unheard.
        let mut removed = manager.receive_job_removed().await.map_err(fail)?;
        let job = manager.restart_unit(unit.as_str(), "replace").await.map_err(fail)?;
        let finished = async {
            while let Some(signal) = removed.next().await {
                if let Ok(args) = signal.args()
                    && args.job == job
                {
                    return Some(args.result.clone());
                }
            }
            None
        };
        match tokio::time::timeout(JOB_TIMEOUT, finished).await {
            Ok(Some(result)) if result == "done" => Ok(()),
            Ok(Some(result)) => {
                Err(Error::new(Reason::UnitFailed, format!("the restart of {unit} ended as `{result}`")))
            }
            Ok(None) => {
                self.connection.replace(None);
                Err(Error::new(Reason::BusUnavailable, format!("the system bus went away while {unit} was restarted")))
            }
            Err(_) => {
                let seconds = JOB_TIMEOUT.as_secs();
                Err(Error::new(Reason::UnitTimeout, format!("{unit} was not restarted within {seconds} s")))
            }
        }
    }

    async fn readiness(&self, unit: &UnitName) -> Result<Readiness> {
        let fail = |cause| self.fail(&format!("ask for the type of {unit}"), cause);
        if !unit.as_str().ends_with(".service") {
            return Ok(Readiness::Announced);
        }
        let path = self.manager().await?.load_unit(unit.as_str()).await.map_err(fail)?;
        let connection = self.connection().await?;
        let service = ServiceProxy::builder(&connection).path(path);
        let service = service.cache_properties(CacheProperties::No).build().await.map_err(fail)?;
        Ok(match service.kind().await.map_err(fail)?.as_str() {
            "simple" | "exec" | "idle" => Readiness::Assumed,
            _ => Readiness::Announced,
        })
    }

    async fn unit_states(&self, units: &[UnitName]) -> Result<Vec<UnitHealth>> {
        if units.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<&str> = units.iter().map(UnitName::as_str).collect();
        let rows = self.manager().await?.list_units_by_names(&names).await;
        let rows = rows.map_err(|cause| self.fail("ask for the state of units", cause))?;
        if rows.len() != units.len() {
            let (asked, got) = (units.len(), rows.len());
            return Err(Error::new(Reason::BusRefused, format!("systemd described {got} of {asked} units")));
        }
        let health = |(unit, row): (&UnitName, UnitRow)| {
            let (_, _, load, active, sub, ..) = row;
            let active = if load == "not-found" { load } else { active };
            UnitHealth { unit: unit.clone(), active, sub }
        };
        Ok(units.iter().zip(rows).map(health).collect())
    }
}
