//! `site lint`: a site, its release and both together, from a checkout; every mistake with file, line, field, remedy.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use contract::ids::SiteName;
use contract::refusal::Refusal;
use serde_json::json;

use super::Format;
use crate::secrets::Finding;
use crate::source::{Checkout, Tree};
use crate::trust;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Check site definitions of a checkout against their releases.
    ///
    /// Example: ctrlable site lint                         (every site of the checkout here)
    /// Example: ctrlable site lint --fleet ../fleet acme-hq
    #[command(verbatim_doc_comment)]
    Lint {
        /// The checkout of the fleet repository.
        #[arg(long, value_name = "DIR", default_value = ".")]
        fleet: PathBuf,
        /// Which sites; all of them when none is given.
        sites: Vec<SiteName>,
    },
    /// Print the JSON Schema of site.yaml, for editors.
    ///
    /// Example: ctrlable site schema > site.schema.json
    Schema,
}

pub(crate) fn run(command: &Command, format: Format) -> anyhow::Result<ExitCode> {
    match command {
        Command::Lint { fleet, sites } => lint(fleet, sites, format),
        Command::Schema => {
            println!("{}", serde_json::to_string_pretty(&contract::document::site_schema())?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn lint(fleet: &Path, sites: &[SiteName], format: Format) -> anyhow::Result<ExitCode> {
    let checkout = Checkout::new(fleet);
    let sites = if sites.is_empty() { all(&checkout)? } else { sites.to_vec() };
    if sites.is_empty() {
        anyhow::bail!("{} has no sites/<site>/site.yaml: is it a checkout of the fleet repository?", fleet.display());
    }
    let mut wrong = 0;
    for site in &sites {
        match trust::check(&checkout, site) {
            Ok(checked) => {
                let findings = checked.sealed().lint(&checkout, site);
                for finding in &findings {
                    find(site, finding, format);
                }
                let ok = !findings.iter().any(|finding| matches!(finding, Finding::Wrong(_)));
                wrong += usize::from(!ok);
                if format == Format::Json {
                    println!("{}", json!({ "site": site, "ok": ok }));
                } else if ok {
                    anstream::println!("sites/{site}/site.yaml: all is well");
                }
            }
            Err(error) => {
                wrong += 1;
                report(site, &error, format);
            }
        }
    }
    if format == Format::Text && wrong > 0 {
        anstream::eprintln!("{} of {} sites are refused", wrong, sites.len());
    }
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn all(checkout: &Checkout) -> anyhow::Result<Vec<SiteName>> {
    let mut sites = Vec::new();
    for entry in checkout.list("sites")? {
        let name = entry.trim_end_matches('/');
        match name.parse() {
            Ok(site) => sites.push(site),
            Err(error) => anyhow::bail!("sites/{name}: {error}"),
        }
    }
    Ok(sites)
}

fn find(site: &SiteName, finding: &Finding, format: Format) {
    let (reason, remedy) = (finding.reason(), finding.remedy());
    let level = if matches!(finding, Finding::Wrong(_)) { "error" } else { "warning" };
    if format == Format::Json {
        let message = finding.to_string();
        println!("{}", json!({ "site": site, "level": level, "reason": reason, "message": message, "remedy": remedy }));
    } else {
        anstream::println!("{level}: {finding}. To do: {remedy} [{reason}]");
    }
}

fn report(site: &SiteName, error: &trust::TrustError, format: Format) {
    let refusals: &[Refusal] = error.refusals();
    if refusals.is_empty() {
        if format == Format::Json {
            println!("{}", json!({ "site": site, "reason": error.reason(), "message": error.to_string() }));
        } else {
            anstream::println!("sites/{site}: {error} [{}]", error.reason());
        }
    }
    for refusal in refusals {
        if format == Format::Json {
            println!("{}", json!(refusal));
        } else {
            anstream::println!("{refusal}");
        }
    }
}
