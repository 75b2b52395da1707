//! A plan for people.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};

use super::{Action, InstancePlan, Plan, Setting};

/// Styles of a plan's parts. They print escape codes; `anstream` strips those where there is no terminal.
#[derive(Debug, Clone, Copy)]
pub struct Palette {
    /// Names.
    pub name: Style,
    /// Something new.
    pub add: Style,
    /// Something changes.
    pub change: Style,
    /// Something goes away.
    pub remove: Style,
    /// Something is in the way.
    pub blocked: Style,
    /// Causes and notes.
    pub quiet: Style,
}

impl Default for Palette {
    fn default() -> Self {
        let colour = |colour: AnsiColor| Style::new().fg_color(Some(colour.into()));
        Self {
            name: Style::new().bold(),
            add: colour(AnsiColor::Green),
            change: colour(AnsiColor::Yellow),
            remove: colour(AnsiColor::Red),
            blocked: colour(AnsiColor::Red).bold(),
            quiet: Style::new().dimmed(),
        }
    }
}

/// What will be done, which field caused it, what is in the way; one hash at the end.
pub fn render(plan: &Plan, palette: &Palette) -> String {
    let mut out = String::new();
    let revision: String = plan.revision.chars().take(12).collect();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "site {} at {revision}, release {}", plan.site, plan.release);
    for instance in &plan.instances {
        if !instance.steps.is_empty() || instance.blocked.is_some() || !instance.notes.is_empty() {
            part(&mut out, instance, palette);
        }
    }
    let changed = plan.instances.iter().filter(|instance| !instance.steps.is_empty()).count();
    let blocked = plan.instances.iter().filter(|instance| instance.blocked.is_some()).count();
    let steps: usize = plan.instances.iter().map(|instance| instance.steps.len()).sum();
    let _ = if plan.is_settled() {
        writeln!(out, "\nNothing to do: {} instances are as the site says.", plan.instances.len())
    } else {
        writeln!(
            out,
            "\n{steps} steps for {changed} of {} instances, {blocked} blocked. Plan {}",
            plan.instances.len(),
            &plan.hash()[..12]
        )
    };
    out
}

fn part(out: &mut String, instance: &InstancePlan, palette: &Palette) {
    let (name, quiet) = (palette.name, palette.quiet);
    let vmid = instance.vmid.map_or(String::new(), |vmid| format!(" ({vmid})"));
    let _ = writeln!(out, "\n{name}{}{name:#}{vmid}", instance.instance);
    if let Some(blocked) = &instance.blocked {
        let style = palette.blocked;
        let _ = writeln!(out, "  {style}! {} [{}]{style:#}", blocked.message, blocked.reason);
        let _ = writeln!(out, "    {}", blocked.remedy);
    }
    for note in &instance.notes {
        let _ = writeln!(out, "  {quiet}· {note}{quiet:#}");
    }
    for step in &instance.steps {
        let (sign, style) = match step.action {
            Action::Clone { .. } => ("+", palette.add),
            Action::Destroy { .. } | Action::Stop { .. } => ("-", palette.remove),
            Action::AwaitEnrolment | Action::AwaitHealthy => ("…", palette.quiet),
            _ => ("~", palette.change),
        };
        let _ = writeln!(out, "  {style}{sign} {}{style:#}", describe(&step.action));
        if let Action::Configure { changes, .. } = &step.action {
            for change in changes {
                let _ = writeln!(
                    out,
                    "      {}: {} → {}  {quiet}({}){quiet:#}",
                    change.to.word(),
                    change.from,
                    value(&change.to),
                    change.field
                );
            }
        } else {
            let _ = writeln!(out, "      {quiet}{}{quiet:#}", step.because);
        }
    }
}

/// A step as a sentence part.
pub fn describe(action: &Action) -> String {
    match action {
        Action::Clone { template, from, node, storage, pool, .. } => {
            let from = from.map_or(String::new(), |from| format!(" ({from})"));
            format!("clone {template}{from} on {node} to {storage}, pool {pool}")
        }
        Action::Configure { changes, .. } => {
            let words: Vec<&str> = changes.iter().map(|change| change.to.word()).collect();
            format!("configure {}", words.join(", "))
        }
        Action::Grow { to, .. } => format!("grow the disk to {to} GiB"),
        Action::Wire => "give it a new assignment".into(),
        Action::BackUp { storage, .. } => format!("back up to {storage}"),
        Action::Stop { .. } => "stop".into(),
        Action::Start { .. } => "start".into(),
        Action::AwaitEnrolment => "await enrolment".into(),
        Action::AwaitHealthy => "await healthy".into(),
        Action::Destroy { .. } => "destroy".into(),
    }
}

fn value(setting: &Setting) -> String {
    match setting {
        Setting::Hostname(hostname) => hostname.to_string(),
        Setting::Cores(number) => number.to_string(),
        Setting::Memory(number) => format!("{number} MiB"),
        Setting::Net0(net) => net.to_string(),
        Setting::Onboot(on) | Setting::Protection(on) => on.to_string(),
        Setting::Tags(tags) => tags.join(";"),
        Setting::NoClaim => "none".into(),
    }
}
