//! `ctrlable doctor`: each check with its label, a sentence and a remedy.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use clap::Args;

use crate::doctor::gather::gather;
use crate::doctor::privileges::print_role;
use crate::doctor::{Expectation, Finding, Level, examine, worst};
use crate::proxmox::{Client, ProxmoxError};

/// Checks connection, rights, storage and network of a site. Nothing is changed.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  ctrlable doctor\n  ctrlable doctor --print-role --pve 9")]
pub struct DoctorArgs {
    /// Print the commands that make role, user, token and rules, instead of checking
    #[arg(long)]
    pub print_role: bool,

    /// Proxmox VE version that --print-role is for; asked of the node when absent
    #[arg(long, value_name = "MAJOR", requires = "print_role", value_parser = clap::value_parser!(u16).range(8..=9))]
    pub pve: Option<u16>,

    /// User that --print-role makes
    #[arg(long, default_value = "ctrlable@pve", requires = "print_role", value_parser = plain)]
    pub user: String,

    /// Token id that --print-role makes
    #[arg(long, default_value = "orchestrator", requires = "print_role", value_parser = plain)]
    pub token: String,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A name that can stand in a printed command as it is.
fn plain(text: &str) -> Result<String, String> {
    match text.chars().all(|c| c.is_ascii_alphanumeric() || "@._-".contains(c)) && !text.is_empty() {
        true => Ok(text.to_owned()),
        false => Err("letters, digits, `@`, `.`, `_` and `-` only".to_owned()),
    }
}

/// Runs the checks and prints them; exit code 0 when nothing fails, 1 otherwise. Warnings do not count.
pub async fn run(args: &DoctorArgs, client: &Client, expected: &Expectation, out: &mut impl Write) -> io::Result<u8> {
    let findings = examine(expected, &gather(client, expected).await);
    if args.json {
        let ok = worst(&findings) < Level::Failure;
        serde_json::to_writer_pretty(&mut *out, &serde_json::json!({ "ok": ok, "findings": findings }))?;
        writeln!(out)?;
    } else {
        findings.iter().try_for_each(|finding| print(finding, out))?;
    }
    Ok(u8::from(worst(&findings) == Level::Failure))
}

/// Prints the commands of `--print-role`. Without `--pve` the node is asked for its version.
pub async fn run_print_role(
    args: &DoctorArgs,
    client: Option<&Client>,
    expected: &Expectation,
    out: &mut impl Write,
) -> Result<(), PrintRoleError> {
    let major = match (args.pve, client) {
        (Some(major), _) => major,
        (None, Some(client)) => client.version().await?.release.major,
        (None, None) => return Err(PrintRoleError::NoVersion),
    };
    out.write_all(print_role(expected, major, &args.user, &args.token).as_bytes())?;
    Ok(())
}

/// `--print-role` that failed.
#[derive(Debug, thiserror::Error)]
pub enum PrintRoleError {
    /// There is neither a version nor a node to ask.
    #[error("which Proxmox VE is it for? Say --pve 8 or --pve 9")]
    NoVersion,
    /// The node could not be asked.
    #[error("{0} (or say --pve 8 or --pve 9)")]
    Proxmox(#[from] ProxmoxError),
    /// The output is closed.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

fn print(finding: &Finding, out: &mut impl Write) -> io::Result<()> {
    let (word, color) = match finding.level {
        Level::Ok => ("ok  ", AnsiColor::Green),
        Level::Warning => ("warn", AnsiColor::Yellow),
        Level::Failure => ("FAIL", AnsiColor::Red),
    };
    let style = Style::new().fg_color(Some(color.into()));
    writeln!(out, "{style}{word}{style:#}  {:<12} {}", finding.check, finding.text)?;
    match &finding.remedy {
        Some(remedy) => writeln!(out, "      {:<12} → {remedy}", ""),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        doctor: DoctorArgs,
    }

    #[test]
    fn arguments() {
        let parse = |args: &[&str]| Command::try_parse_from([&["doctor"], args].concat()).map(|command| command.doctor);
        assert_eq!(parse(&[]).unwrap().user, "ctrlable@pve");
        let role = parse(&["--print-role", "--pve", "8", "--token", "acme"]).unwrap();
        assert_eq!((role.pve, &*role.token), (Some(8), "acme"));
        for wrong in [&["--pve", "8"][..], &["--print-role", "--pve", "7"], &["--print-role", "--user", "a b"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_finding_is_a_line_with_its_remedy_below() {
        let remedy = Some("grow it".to_owned());
        let finding = Finding { check: "storage", level: Level::Failure, text: "too small".to_owned(), remedy };
        let mut out = Vec::new();
        print(&finding, &mut out).unwrap();
        let text = anstream::adapter::strip_bytes(&out).into_vec();
        assert_eq!(String::from_utf8(text).unwrap(), "FAIL  storage      too small\n                   → grow it\n");
    }
}
