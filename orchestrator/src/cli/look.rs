//! `status`, `events`, `accept-rewrite`: what the ledger says, read beside the running orchestrator.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use contract::ids::{InstanceName, Revision};
use serde_json::json;

use super::{ConfigArg, Format};
use crate::status::{self, InstanceStatus, Phase, Standing};
use crate::store::{Event, EventKind, Store, StoredEvent, Verdict, now};

/// Where the ledger lies: told directly, or by the configuration.
#[derive(Debug, clap::Args)]
pub(crate) struct StateArg {
    #[command(flatten)]
    config: ConfigArg,
    /// The state directory, instead of the configuration's.
    #[arg(long, value_name = "DIR", env = "CTRLABLE_STATE")]
    state: Option<PathBuf>,
}

impl StateArg {
    fn directory(&self) -> anyhow::Result<PathBuf> {
        match &self.state {
            Some(state) => Ok(state.clone()),
            None => Ok(self.config.load()?.state),
        }
    }

    pub(crate) fn open(&self) -> anyhow::Result<Store> {
        Ok(Store::open_read_only(&self.directory()?)?)
    }

    pub(crate) fn open_for_writing(&self) -> anyhow::Result<Store> {
        Ok(Store::open(&self.directory()?)?)
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    state: StateArg,
    /// Print again whenever something changes; with --json one object per line.
    #[arg(long)]
    watch: bool,
}

pub(crate) fn status(args: &StatusArgs, format: Format) -> anyhow::Result<ExitCode> {
    let store = args.state.open()?;
    let mut seen = None;
    loop {
        // Ages grow without a commit, so a watch also prints anew every few seconds.
        let version = (store.data_version()?, now() / 5);
        if seen != Some(version) {
            seen = Some(version);
            print(&store, args, format)?;
        }
        if !args.watch {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

fn print(store: &Store, args: &StatusArgs, format: Format) -> anyhow::Result<()> {
    let instances = status::instances(store, now())?;
    let (accepted, newest) = (store.accepted_revision()?, store.newest_revision()?);
    let (standing, floor) = (Standing::known(store)?, store.floor()?);
    if format == Format::Json {
        let value = json!({
            "site": store.meta("site")?,
            "accepted": accepted,
            "newest": newest,
            "hq": standing,
            "floor": floor.map(|known| known.floor.numbers()),
            "instances": instances,
            "conflicts": store.conflicts()?,
        });
        println!("{value}");
        return Ok(());
    }
    if args.watch {
        // Clear the screen and go to its corner; without a terminal `anstream` drops the codes.
        anstream::print!("\x1b[2J\x1b[H");
    }
    let quiet = Style::new().dimmed();
    let site = store.meta("site")?.unwrap_or_default();
    match &accepted {
        Some(record) => {
            let (release, signer) = match &record.verdict {
                Verdict::Accepted { release, signer } => (release.to_string(), signer.clone()),
                Verdict::Refused { .. } => Default::default(),
            };
            anstream::println!(
                "site {site}: revision {} in force, release {release} signed by {signer}",
                short(&record.revision)
            );
        }
        None if floor.is_none() => {
            anstream::println!("site {site}: no revision accepted; Proxmox is to say first what was accepted before");
        }
        None => anstream::println!("site {site}: no revision accepted yet"),
    }
    let red = Style::new().fg_color(Some(AnsiColor::Red.into()));
    if let Some(Standing { frozen: true, expires: Some(expires), .. }) = &standing {
        anstream::println!("{red}upgrades are frozen [channels-expired]{red:#}: channels.yaml expired at {expires}");
    }
    if let Some(Standing { clock_behind: true, .. }) = &standing {
        anstream::println!("{red}the clock is behind what HQ has signed [clock-behind]{red:#}: check the time service");
    }
    if let Some(record) = newest
        && let Verdict::Refused { reason, message } = &record.verdict
    {
        let style = Style::new().fg_color(Some(AnsiColor::Red.into()));
        anstream::println!("{style}revision {} is refused [{reason}]{style:#}: {message}", short(&record.revision));
    }
    anstream::println!();
    table(&instances);
    if instances.is_empty() {
        anstream::println!("{quiet}no instances yet{quiet:#}");
    }
    let conflicts = store.conflicts()?;
    if !conflicts.is_empty() {
        let style = Style::new().fg_color(Some(AnsiColor::Red.into()));
        anstream::println!(
            "\n{style}somebody asked in the name of a guest that he is not{style:#}; `ctrlable conflicts --clear` once you have looked:"
        );
        conflicts.iter().for_each(super::guests::show);
    }
    Ok(())
}

fn short(revision: &Revision) -> &str {
    &revision.as_str()[..12]
}

/// Columns as wide as their widest cell; the cause comes last and may wrap.
fn table(instances: &[InstanceStatus]) {
    if instances.is_empty() {
        return;
    }
    let head = ["INSTANCE", "PHASE", "VMID", "TEMPLATE", "ADDRESS", "WIRED", "SEEN", "CAUSE"].map(str::to_owned);
    let rows: Vec<[String; 8]> = instances
        .iter()
        .map(|instance| {
            let wired = if instance.in_force == instance.generation {
                instance.generation.to_string()
            } else {
                format!("{} of {}", instance.in_force, instance.generation)
            };
            [
                instance.instance.to_string(),
                instance.phase.word().into(),
                instance.vmid.map_or_else(|| "-".into(), |vmid| vmid.to_string()),
                match (&instance.template, &instance.release) {
                    (Some(template), Some(release)) => format!("{template} {release}"),
                    _ => "-".into(),
                },
                instance.address.clone().unwrap_or_else(|| "-".into()),
                wired,
                instance.last_seen.map_or_else(|| "-".into(), |at| format!("{} s ago", (now() - at).max(0))),
                match &instance.reason {
                    Some(reason) => format!("{} [{reason}]", instance.cause),
                    None => instance.cause.clone(),
                },
            ]
        })
        .collect();
    let mut widths = [0; 8];
    for row in rows.iter().chain([&head]) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let bold = Style::new().bold();
    line(&head, &widths, bold, bold);
    for (row, instance) in rows.iter().zip(instances) {
        let colour = match instance.phase {
            Phase::Healthy => AnsiColor::Green,
            Phase::Pending | Phase::Provisioning => AnsiColor::Yellow,
            Phase::Degraded | Phase::Lost => AnsiColor::Red,
        };
        line(row, &widths, Style::new(), Style::new().fg_color(Some(colour.into())));
    }
}

fn line(cells: &[String; 8], widths: &[usize; 8], style: Style, phase: Style) {
    let mut text = String::new();
    for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let style = if index == 1 { phase } else { style };
        let pad = if index == cells.len() - 1 { 0 } else { width.saturating_sub(cell.chars().count()) + 2 };
        text.push_str(&format!("{style}{cell}{style:#}{}", " ".repeat(pad)));
    }
    anstream::println!("{}", text.trim_end());
}

#[derive(Debug, clap::Args)]
pub(crate) struct EventsArgs {
    #[command(flatten)]
    state: StateArg,
    /// Only those of one instance.
    #[arg(long)]
    instance: Option<InstanceName>,
    /// How many, the newest.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Go on printing new ones.
    #[arg(long)]
    follow: bool,
}

pub(crate) fn events(args: &EventsArgs, format: Format) -> anyhow::Result<ExitCode> {
    let store = args.state.open()?;
    let (mut last, mut limit) = (0, args.limit);
    loop {
        for event in store.events(args.instance.as_ref(), last, limit)? {
            last = event.id;
            show(&event, format)?;
        }
        if !args.follow {
            return Ok(ExitCode::SUCCESS);
        }
        limit = u32::MAX;
        std::thread::sleep(Duration::from_millis(250));
    }
}

fn show(event: &StoredEvent, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        println!("{}", serde_json::to_string(event)?);
        return Ok(());
    }
    let quiet = Style::new().dimmed();
    let at = time(event.at);
    let revision = event.revision.as_ref().map_or("", |revision| &revision[..revision.len().min(8)]);
    let reason = event.reason.as_ref().map_or(String::new(), |reason| format!(" [{reason}]"));
    anstream::println!("{quiet}{at} {revision:8}{quiet:#} {:18} {}{reason}", event.kind, event.message);
    Ok(())
}

/// A point in time as the site's clock shows it.
pub(super) fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(
        |_| seconds.to_string(),
        |at| at.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

#[derive(Debug, clap::Args)]
pub(crate) struct AcceptArgs {
    #[command(flatten)]
    state: StateArg,
    /// The revision, whole: 40 hex digits.
    revision: Revision,
}

pub(crate) fn accept(args: &AcceptArgs) -> anyhow::Result<ExitCode> {
    let store = args.state.open_for_writing()?;
    store.set_meta(ACCEPTED_REWRITE, args.revision.as_str())?;
    store.record(
        Event::new(EventKind::Operator, format!("the rewrite to {} was accepted", short(&args.revision)))
            .revision(&args.revision),
    )?;
    eprintln!("{} will be accepted when it is fetched next, if everything else about it holds.", short(&args.revision));
    Ok(ExitCode::SUCCESS)
}

/// Where the ledger keeps the one revision that may rewrite history.
pub(crate) const ACCEPTED_REWRITE: &str = "accepted-rewrite";
