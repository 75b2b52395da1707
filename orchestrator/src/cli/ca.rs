//! `ctrlable ca`: the site's CA and its rotation. The commands say what is wanted; the running orchestrator does it.

use std::process::ExitCode;

use serde_json::json;

use super::{ConfigArg, Format};
use crate::agents::{InForce, SiteCa, Stage, rotation};
use crate::store::{Event, EventKind, Store};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show which CA is in force, and whom its rotation waits for.
    ///
    /// Example: ctrlable ca status
    Status(#[command(flatten)] ConfigArg),
    /// Replace the site's CA while every guest stays connected.
    ///
    /// It ends by itself when every agent has changed. Example: ctrlable ca rotate
    Rotate(RotateArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct RotateArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// End the rotation that is under way, if nobody is awaited any more.
    #[arg(long)]
    finish: bool,
    /// Do not wait for agents that are away: they are cut off, and their instances must be made anew.
    #[arg(long, requires = "finish")]
    leave_behind: bool,
}

pub(crate) fn run(command: &Command, format: Format) -> anyhow::Result<ExitCode> {
    match command {
        Command::Status(config) => status(config, format),
        Command::Rotate(args) => rotate(args),
    }
}

fn status(config: &ConfigArg, format: Format) -> anyhow::Result<ExitCode> {
    let config = config.load()?;
    let store = Store::open_read_only(&config.state)?;
    let ca = SiteCa::open(&config.state, &config.site)?;
    let InForce { number, stage } = ca.in_force();
    let (awaited, wanted) = (rotation::awaited(&store, &ca)?, store.meta(rotation::WANTED)?);
    if format == Format::Json {
        println!("{}", json!({ "number": number, "stage": stage, "wanted": wanted, "awaited": awaited }));
        return Ok(ExitCode::SUCCESS);
    }
    match stage {
        Stage::Settled => println!("CA {number} is in force"),
        Stage::Switching => println!("CA {number} signs; CA {} is accepted until every agent has changed", number - 1),
    }
    for (name, why) in awaited {
        println!("  {name} {why}");
    }
    if let Some(wanted) = wanted {
        println!("`ctrlable serve` is to take it up: {wanted}");
    }
    Ok(ExitCode::SUCCESS)
}

fn rotate(args: &RotateArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    let store = Store::open(&config.state)?;
    let ca = SiteCa::open(&config.state, &config.site)?;
    let InForce { number, stage } = ca.in_force();
    match (stage, args.finish) {
        (Stage::Settled, true) => anyhow::bail!("no rotation is under way: CA {number} is in force"),
        (Stage::Switching, false) => {
            anyhow::bail!(
                "a rotation to CA {number} is under way already; `ctrlable ca status` shows whom it waits for"
            )
        }
        (Stage::Settled, false) => {
            store.set_meta(rotation::WANTED, rotation::ROTATE)?;
            store.record(Event::new(EventKind::Operator, format!("the rotation of CA {number} was asked for")))?;
            eprintln!("`ctrlable serve` makes CA {} and ends the rotation when every agent has changed.", number + 1);
        }
        (Stage::Switching, true) => {
            let awaited = rotation::awaited(&store, &ca)?;
            let names: Vec<String> = awaited.keys().map(ToString::to_string).collect();
            if !names.is_empty() && !args.leave_behind {
                anyhow::bail!("{} would be cut off: wait for them, or give --leave-behind as well", names.join(", "));
            }
            store.set_meta(rotation::WANTED, rotation::LEAVE_BEHIND)?;
            let left = if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
            let text = format!("the rotation to CA {number} is ended by command; left behind: {left}");
            store.record(Event::new(EventKind::Operator, text))?;
            eprintln!("`ctrlable serve` ends the rotation; left behind: {left}.");
        }
    }
    Ok(ExitCode::SUCCESS)
}
