use std::path::{Path, PathBuf};

use contract::document::{self, Document};
use contract::ids::ReleaseId;
use contract::manifest::Manifest;
use contract::refusal::Refusal;

use super::{PUBLIC_FILE, ReleaseError, create, read};

/// Bytes of a manifest that are read at most: as many as `contract::document` takes, and one more so that it can say so.
const MANIFEST_LIMIT: usize = (1 << 20) + 1;

/// A manifest that is well-formed, and its bytes.
#[derive(Debug)]
pub struct Linted {
    /// What it says.
    pub document: Document<Manifest>,
    /// As it lies on the disk.
    pub content: Vec<u8>,
}

/// What a new manifest is made of.
#[derive(Debug, Clone)]
pub enum Origin {
    /// An example to be changed, whose builder scripts are pinned to this tag or commit.
    Example {
        /// Tag or commit.
        scripts_ref: String,
    },
    /// An older release, with everything in it but its id.
    Release(PathBuf),
}

/// Checks a manifest, wherever it lies: it must be called after the release in it.
pub fn lint(path: &Path) -> Result<Linted, ReleaseError> {
    let content = read(path, MANIFEST_LIMIT)?;
    let document = parse(path, &content)?;
    Ok(Linted { document, content })
}

/// Writes a new manifest `<id>.yaml` into `directory`. It is never overwritten, and always well-formed.
pub fn scaffold(id: &ReleaseId, origin: &Origin, directory: &Path) -> Result<PathBuf, ReleaseError> {
    let path = directory.join(format!("{id}.yaml"));
    if path.symlink_metadata().is_ok() {
        return Err(ReleaseError::Exists { path });
    }
    let text = match origin {
        Origin::Example { scripts_ref } => example(id, scripts_ref),
        Origin::Release(older) => {
            let Linted { document, content } = lint(older)?;
            let line = document.outline.place("release").line;
            renamed(&String::from_utf8_lossy(&content), line, &document.value.release, id)
        }
    };
    parse(&path, text.as_bytes())?;
    create(&path, text.as_bytes(), PUBLIC_FILE)?;
    Ok(path)
}

/// Reads a manifest as if it lay in the fleet repository, and names it in refusals as it was given here.
fn parse(path: &Path, content: &[u8]) -> Result<Document<Manifest>, ReleaseError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    document::manifest(&format!("releases/{name}"), content).map_err(|refusals| as_given(refusals, path))
}

/// Refusals of a file that is named as it was given here.
pub(super) fn as_given(mut refusals: Vec<Refusal>, path: &Path) -> ReleaseError {
    for refusal in &mut refusals {
        refusal.place.file = path.display().to_string();
    }
    ReleaseError::Documents(refusals)
}

/// The text with the id replaced where it stands first on the line of the field, so that comments and order are kept.
fn renamed(text: &str, line: usize, old: &ReleaseId, new: &ReleaseId) -> String {
    let lines = text.split_inclusive('\n').enumerate().map(|(index, content)| {
        if index + 1 == line { content.replacen(old.as_str(), new.as_str(), 1) } else { content.to_owned() }
    });
    lines.collect()
}

fn example(id: &ReleaseId, scripts_ref: &str) -> String {
    format!(
        "# Once published, a release never changes: a repaired one gets a new id, such as {id}.1.\n\
         release: \"{id}\"\n\
         # Tag or commit of the builder scripts. Never a branch.\n\
         community_scripts_ref: {}\n\
         proxmox_min_version: \"8.2\"\n\
         templates:\n\
         \x20 zigbee2mqtt:\n\
         \x20   kind: lxc\n\
         \x20   builder: ct/zigbee2mqtt.sh\n\
         \x20   os: {{ distro: debian, version: \"12\" }}\n\
         \x20   resources: {{ cpu: 2, ram: 2048, disk: 8 }}\n\
         \x20   unprivileged: true\n",
        // A JSON string is a YAML string, whatever is in it.
        serde_json::Value::from(scripts_ref)
    )
}
