//! `why`: revision, field, step, task, observation, for one instance; also for "why did nothing happen".

use std::process::ExitCode;

use anstyle::Style;
use contract::ids::InstanceName;
use serde_json::json;

use super::Format;
use super::look::{StateArg, time};
use crate::status;
use crate::store::{Verdict, now};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    state: StateArg,
    /// Which instance.
    instance: InstanceName,
    /// How many steps, the newest.
    #[arg(long, default_value_t = 20)]
    steps: u32,
}

pub(crate) fn run(args: &Args, format: Format) -> anyhow::Result<ExitCode> {
    let store = args.state.open()?;
    let name = &args.instance;
    let status = status::instances(&store, now())?.into_iter().find(|status| status.instance == *name);
    let plan = store.meta("plan")?.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    let part = plan
        .as_ref()
        .and_then(|plan| plan["instances"].as_array()?.iter().find(|part| part["instance"] == name.as_str()).cloned());
    let steps = store.journal(name, args.steps)?;
    let (accepted, newest) = (store.accepted_revision()?, store.newest_revision()?);
    let events = store.events(Some(name), 0, 5)?;
    if status.is_none() && part.is_none() && steps.is_empty() {
        anyhow::bail!(
            "nobody has heard of an instance {name}: it is in no accepted revision of this site. \
             `ctrlable status` lists those that are"
        );
    }
    if format == Format::Json {
        println!(
            "{}",
            json!({
                "instance": name, "status": status, "accepted": accepted, "newest": newest,
                "plan": part, "steps": steps, "events": events,
            })
        );
        return Ok(ExitCode::SUCCESS);
    }
    let (bold, quiet) = (Style::new().bold(), Style::new().dimmed());
    match &status {
        Some(status) => {
            let cause = if status.cause.is_empty() { String::new() } else { format!(": {}", status.cause) };
            anstream::println!("{bold}{name}{bold:#} is {}{cause}", status.phase.word());
        }
        None => anstream::println!("{bold}{name}{bold:#} has no guest"),
    }
    match &accepted {
        Some(record) => anstream::println!("  revision  {} accepted {}", record.revision, time(record.at)),
        None => anstream::println!("  revision  none accepted yet, so nothing is done"),
    }
    if let Some(record) = newest
        && let Verdict::Refused { reason, message } = &record.verdict
    {
        anstream::println!("  refused   {} [{reason}] {message}", record.revision);
    }
    for step in &steps {
        let end =
            step.ended_at.map_or_else(|| "still open".into(), |end| format!("{} s", (end - step.started_at).max(0)));
        anstream::println!(
            "  step      {} {bold}{}{bold:#} {} ({end})",
            time(step.started_at),
            step.action,
            step.state
        );
        anstream::println!("            {}", step.detail);
        anstream::println!("    field   {quiet}{}{quiet:#}", step.because);
        if let Some(upid) = &step.upid {
            anstream::println!("    task    {quiet}{upid}{quiet:#}");
        }
        if let (Some(reason), Some(message)) = (&step.reason, &step.message) {
            anstream::println!("    ended   [{reason}] {message}");
        }
    }
    match part {
        Some(part) => {
            if let Some(blocked) = part.get("blocked") {
                anstream::println!(
                    "  blocked   {} [{}]\n            {}",
                    blocked["message"].as_str().unwrap_or_default(),
                    blocked["reason"].as_str().unwrap_or_default(),
                    blocked["remedy"].as_str().unwrap_or_default()
                );
            }
            let next: Vec<&str> =
                part["steps"].as_array().into_iter().flatten().filter_map(|step| step["action"].as_str()).collect();
            let blocked = part.get("blocked").is_some();
            let next = if blocked {
                "it goes on by itself as soon as that is out of the way".to_owned()
            } else if next.is_empty() {
                "nothing: it is as the site says".to_owned()
            } else {
                next.join(", ")
            };
            anstream::println!("  next      {next}");
            for note in part["notes"].as_array().into_iter().flatten().filter_map(|note| note.as_str()) {
                anstream::println!("  note      {note}");
            }
        }
        None => anstream::println!("  next      nothing: the revision in force does not ask for it"),
    }
    for event in &events {
        anstream::println!("  event     {quiet}{} {} {}{quiet:#}", time(event.at), event.kind, event.message);
    }
    Ok(ExitCode::SUCCESS)
}
