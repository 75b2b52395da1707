//! The command line. Five verbs and two options are read by hand: a parser would be a tenth of the binary.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::error::{Error, Reason, Result};
use crate::files::Root;
use crate::{log, run, seal, status};

const HELP: &str = "\
ctrlable-agent: makes a clone a guest of its own, wires it, and reports its health

Usage: ctrlable-agent VERB [--root DIR] [--json]

  run       the service: first boot, enrolment, wiring, health reports
  seal      the last step of a template build: clears what makes a guest unlike others,
            records it in /var/lib/ctrlable-agent/seal.json, and looks again
  check     whether this is a sealed template, with every reason why it is not
  status    state, first-boot steps, generation, last contact, problems

  --root DIR   work on the guest whose file system is at DIR instead of /; for `seal`,
               `check` and `status` from outside of it, and for rehearsals of `run`
  --json       print JSON
  --version    print the version
  --help       print this

Exit codes: 0 done; 1 failed, see the message; 2 not a sealed template (seal, check);
3 there are problems (status); 4 the state file or rollback journal cannot be read, which
needs a person; 64 the command line is not understood.

Example: ctrlable-agent seal --root /var/lib/lxc/9000/rootfs
";

const FAILED: u8 = 1;
const NOT_A_TEMPLATE: u8 = 2;
const PROBLEMS: u8 = 3;
/// Also in `RestartPreventExitStatus=` of the unit.
const UNREADABLE: u8 = 4;
/// `EX_USAGE` of sysexits(3).
const USAGE: u8 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Run,
    Seal,
    Check,
    Status,
    Version,
    Help,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    verb: Verb,
    root: PathBuf,
    output: Output,
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Arguments> {
    let usage = |message: String| Error::new(Reason::Usage, message);
    let mut parsed = Arguments { verb: Verb::Help, root: PathBuf::from("/"), output: Output::Text };
    let mut verb = None;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let found = match argument.to_str() {
            Some("--root") => {
                let dir = arguments.next().ok_or_else(|| usage("--root wants a directory".to_owned()))?;
                parsed.root = PathBuf::from(dir);
                continue;
            }
            Some("--json") => {
                parsed.output = Output::Json;
                continue;
            }
            Some("run") => Verb::Run,
            Some("seal") => Verb::Seal,
            Some("check") => Verb::Check,
            Some("status") => Verb::Status,
            Some("--version" | "-V") => Verb::Version,
            Some("--help" | "-h" | "help") => Verb::Help,
            _ => return Err(usage(format!("`{}` is not a verb or option", argument.to_string_lossy()))),
        };
        if verb.replace(found).is_some() {
            return Err(usage("there is more than one verb".to_owned()));
        }
    }
    parsed.verb = verb.ok_or_else(|| usage("there is no verb".to_owned()))?;
    Ok(parsed)
}

/// Assignments are in memory: no core dump holds them, and no other process reads them there.
fn leave_no_core() -> rustix::io::Result<()> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
}

/// Does what the command line says.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match parse(arguments).and_then(execute) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log::warn(&error);
            ExitCode::from(match error.reason {
                Reason::Usage => USAGE,
                Reason::StateUnreadable | Reason::RollbackUnreadable => UNREADABLE,
                _ => FAILED,
            })
        }
    }
}

fn execute(arguments: Arguments) -> Result<u8> {
    let Arguments { verb, root, output } = arguments;
    match verb {
        Verb::Help => print!("{HELP}"),
        Verb::Version => println!("ctrlable-agent {}", env!("CARGO_PKG_VERSION")),
        Verb::Run => {
            if let Err(error) = leave_no_core() {
                log::info(format_args!("this process could not be kept from leaving a core dump: {error}"));
            }
            run::run(&root)?;
        }
        Verb::Seal => {
            let outcome = seal::seal(&Root::open(&root)?);
            return Ok(match outcome {
                Ok(record) => {
                    match output {
                        Output::Json => println!("{}", to_json(&record)?),
                        Output::Text => {
                            record.cleared.iter().for_each(|path| println!("cleared {path}"));
                            println!("sealed as {} of release {}", record.template, record.release);
                        }
                    }
                    0
                }
                Err(problems) => refuse("not sealed", &problems, output)?,
            });
        }
        Verb::Check => {
            let problems = seal::check(&Root::open(&root)?);
            if !problems.is_empty() {
                return refuse("not a sealed template", &problems, output);
            }
            match output {
                Output::Json => println!("{}", serde_json::json!({ "problems": [] })),
                Output::Text => println!("a sealed template"),
            }
        }
        Verb::Status => {
            let Some(overview) = status::overview(&Root::open(&root)?)? else {
                match output {
                    Output::Json => println!("null"),
                    Output::Text => println!("this guest has not had its first boot"),
                }
                return Ok(0);
            };
            match output {
                Output::Json => println!("{}", to_json(&overview)?),
                Output::Text => print!("{overview}"),
            }
            return Ok(if overview.now.problems.is_empty() { 0 } else { PROBLEMS });
        }
    }
    Ok(0)
}

fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map_err(|cause| Error::new(Reason::FileIo, format!("cannot print as JSON: {cause}")))
}

/// Prints why something is not a template.
fn refuse(what: &str, problems: &[Error], output: Output) -> Result<u8> {
    match output {
        Output::Json => {
            let problems: Vec<status::Problem> = problems.iter().map(Into::into).collect();
            println!("{}", to_json(&serde_json::json!({ "problems": problems }))?);
        }
        Output::Text => {
            eprintln!("{what}:");
            problems.iter().for_each(|error| eprintln!("  {error}: {}", error.reason.remedy()));
        }
    }
    Ok(NOT_A_TEMPLATE)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse_words(words: &str) -> Result<Arguments> {
        parse(words.split_whitespace().map(OsString::from))
    }

    #[test]
    fn understands_the_documented_command_lines() {
        let seal = parse_words("seal --root /mnt --json").unwrap();
        assert_eq!(seal, Arguments { verb: Verb::Seal, root: PathBuf::from("/mnt"), output: Output::Json });
        assert_eq!(parse_words("run").unwrap().root, PathBuf::from("/"));
        for (words, verb) in [("check", Verb::Check), ("status", Verb::Status), ("--version", Verb::Version)] {
            assert_eq!(parse_words(words).unwrap().verb, verb);
        }
    }

    #[test]
    fn refuses_everything_else() {
        for words in ["", "sael", "run seal", "seal --root", "seal --quiet"] {
            assert_eq!(parse_words(words).unwrap_err().reason, Reason::Usage, "{words}");
        }
    }

    #[test]
    fn help_names_every_exit_code() {
        for code in [FAILED, NOT_A_TEMPLATE, PROBLEMS, UNREADABLE, USAGE] {
            assert!(HELP.contains(&format!("{code} ")), "{code}");
        }
    }
}
