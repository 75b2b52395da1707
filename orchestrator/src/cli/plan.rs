//! `plan`: on a laptop from a checkout, on a site against what is there.

use std::path::PathBuf;
use std::process::ExitCode;

use contract::ids::SiteName;
use serde_json::json;

use super::{CHANGES, ConfigArg, Format};
use crate::agents::SiteCa;
use crate::observe::{self, View};
use crate::plan::{self, Desired, Palette, Wished};
use crate::proxmox::Client;
use crate::secrets::Identities;
use crate::site::{self, Follower};
use crate::source::Checkout;
use crate::store::Store;
use crate::trust;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// A checkout of the fleet repository: plan for an empty node, offline.
    #[arg(long, value_name = "DIR", requires = "site")]
    fleet: Option<PathBuf>,
    /// Which site of the checkout.
    #[arg(long, requires = "fleet")]
    site: Option<SiteName>,
}

pub(crate) fn run(args: &Args, format: Format) -> anyhow::Result<ExitCode> {
    let plan = match (&args.fleet, &args.site) {
        (Some(fleet), Some(site)) => rehearse(fleet, site)?,
        _ => live(args)?,
    };
    if format == Format::Json {
        println!("{}", json!({ "hash": plan.hash(), "settled": plan.is_settled(), "plan": plan }));
    } else {
        anstream::print!("{}", plan::render(&plan, &Palette::default()));
    }
    Ok(if plan.is_settled() { ExitCode::SUCCESS } else { ExitCode::from(CHANGES) })
}

fn rehearse(fleet: &std::path::Path, site: &SiteName) -> anyhow::Result<plan::Plan> {
    let checked = trust::check(&Checkout::new(fleet), site).map_err(|error| {
        let refusals: Vec<String> = error.refusals().iter().map(ToString::to_string).collect();
        if refusals.is_empty() {
            anyhow::anyhow!("{error}. To do: {} [{}]", error.remedy(), error.reason())
        } else {
            anyhow::anyhow!("the site is refused:\n{}", refusals.join("\n"))
        }
    })?;
    let desired = Desired::of(&checked, |_| Wished::Unknown)?;
    let View { observed, ledger, .. } = View::default();
    Ok(plan::plan(&desired, &observed, &ledger))
}

/// What the newest revision of the remote would change, without accepting it.
fn live(args: &Args) -> anyhow::Result<plan::Plan> {
    let config = args.config.load()?;
    let store = Store::open(&config.state)?;
    let follower = Follower::new(&config, store.clone())?;
    let verified = follower.preview()?;
    let ca = SiteCa::open(&config.state, &config.site)?;
    let keys = Identities::of_site(&config.state)?;
    let wishes = site::wishes(&verified, None, &ca, &site::secrets(&verified, &keys, &config))?;
    let client = Client::new(config.proxmox.clone())?;
    let window = i64::try_from(config.agents.window.as_secs()).unwrap_or(i64::MAX);
    let view = observe::ledger(&store, window)?;
    let view = super::block_on(observe::hypervisor(&client, verified.site().proxmox.vmids, view))??;
    Ok(plan::plan(&wishes.desired, &view.observed, &view.ledger))
}
