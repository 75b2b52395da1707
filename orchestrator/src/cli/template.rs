//! `template bootstrap` and `template adopt`: making templates by hand, as docs/template.md says.

use std::process::ExitCode;

use contract::PROTOCOL;
use contract::bootstrap::Bootstrap;
use contract::ids::{ReleaseId, TemplateName};

use super::ConfigArg;
use crate::agents::SiteCa;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Print the bootstrap file of a template: where its clones find this orchestrator, and their claim. Keep it 0600.
    ///
    /// Example: ctrlable template bootstrap --release 2026.06 --name zigbee2mqtt > bootstrap.json
    #[command(verbatim_doc_comment)]
    Bootstrap(BootstrapArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct BootstrapArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// The release that the template is built from.
    #[arg(long)]
    release: ReleaseId,
    /// Its name in that release.
    #[arg(long)]
    name: TemplateName,
}

pub(crate) fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Bootstrap(args) => bootstrap(args),
    }
}

fn bootstrap(args: &BootstrapArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    std::fs::create_dir_all(&config.state)?;
    let ca = SiteCa::open(&config.state, &config.site)?;
    let bootstrap = Bootstrap {
        protocol: PROTOCOL,
        release: args.release.clone(),
        template: args.name.clone(),
        orchestrators: config.agents.advertise,
        ca: ca.certificate().to_owned(),
        claim: ca.claim(&config.site, &args.release),
        site: config.site,
    };
    println!("{}", serde_json::to_string_pretty(&bootstrap)?);
    Ok(ExitCode::SUCCESS)
}
