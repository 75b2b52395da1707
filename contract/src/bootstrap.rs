//! What is baked into a template so that its clones find their orchestrator, and believe no other.

use serde::{Deserialize, Serialize};

use crate::ids::{ReleaseId, SiteName, TemplateName};
use crate::secret::Secret;

/// Where the file lies in a guest. Mode 0600, owner root.
pub const PATH: &str = "/etc/ctrlable/bootstrap.json";

/// The bootstrap file. `ctrlable template bootstrap` prints it; `docs/template.md` says how it gets into a template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// [`crate::PROTOCOL`] of the orchestrator that wrote it.
    pub protocol: u32,
    /// The site that this template was built for.
    pub site: SiteName,
    /// The release that this template was built from.
    pub release: ReleaseId,
    /// Its name in that release.
    pub template: TemplateName,
    /// Base URLs of the orchestrator's listener for agents, such as `https://192.168.20.2:8443`, tried in order.
    pub orchestrators: Vec<String>,
    /// The site's CA, PEM. No other is believed.
    pub ca: String,
    /// Proof at enrolment that the guest was cloned from a template of this site and release.
    pub claim: Secret,
}
