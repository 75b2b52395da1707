//! What an image is made from, and the digest it is found again by.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{ImageArgs, RECIPE, is_finished};
use crate::runtime::Failure;

/// Raise this when the same recipe is to give another image than before.
const FORMAT: u32 = 1;

/// Everything that decides what is in an image, except the state of the Debian archive.
#[derive(Debug, Serialize)]
pub(super) struct Recipe {
    format: u32,
    architecture: &'static str,
    /// The suite of a fresh Debian.
    suite: Option<String>,
    /// Digest of the image to start from.
    base: Option<String>,
    /// Packages, sorted.
    pub(super) packages: Vec<String>,
    /// Digests of the trees.
    overlays: Vec<String>,
    commands: Vec<String>,
}

impl Recipe {
    /// A fresh Debian.
    pub(super) fn fresh(suite: &str, packages: Vec<String>) -> Self {
        Self { suite: Some(suite.to_owned()), ..Self::empty(packages) }
    }

    /// Something on top of another image.
    pub(super) fn derived(base: String, args: &ImageArgs) -> Result<Self, Failure> {
        let mut packages = args.include.clone();
        packages.sort();
        packages.dedup();
        if let Some(bad) = packages.iter().find(|name| !is_package(name)) {
            return Err(format!("`{bad}` is not the name of a Debian package"));
        }
        let overlays = args.overlay.iter().map(|tree| tree_digest(tree, Depth::Content)).collect::<Result<_, _>>()?;
        Ok(Self { base: Some(base), overlays, commands: args.run.clone(), ..Self::empty(packages) })
    }

    fn empty(packages: Vec<String>) -> Self {
        let architecture = std::env::consts::ARCH;
        Self {
            format: FORMAT,
            architecture,
            suite: None,
            base: None,
            packages,
            overlays: Vec::new(),
            commands: Vec::new(),
        }
    }

    /// The recipe as it is kept beside the image.
    pub(super) fn json(&self) -> Result<String, Failure> {
        serde_json::to_string_pretty(self).map_err(|error| format!("recipe: {error}"))
    }

    /// 16 hex digits: enough for the few images of one machine, short enough to read.
    pub(super) fn digest(&self) -> Result<String, Failure> {
        Ok(short(&Sha256::digest(self.json()?)))
    }
}

/// The digest of an image or of any other root file system.
pub(super) fn of_base(base: &Path) -> Result<String, Failure> {
    if is_finished(base) {
        let recipe = base.with_file_name(RECIPE);
        let json = fs::read(&recipe).map_err(|error| format!("{}: {error}", recipe.display()))?;
        return Ok(short(&Sha256::digest(json)));
    }
    if !base.join("etc").is_dir() {
        return Err(format!("{} is not a root file system: it has no /etc", base.display()));
    }
    tree_digest(base, Depth::Times)
}

/// How closely a tree is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// Every byte: for small trees that may be copied about.
    Content,
    /// Sizes and times of change: for a whole root file system.
    Times,
}

fn tree_digest(tree: &Path, depth: Depth) -> Result<String, Failure> {
    if !tree.is_dir() {
        return Err(format!("{} is not a directory", tree.display()));
    }
    let mut hasher = Sha256::new();
    hash_entry(&mut hasher, tree, Path::new(""), depth).map_err(|error| format!("{}: {error}", tree.display()))?;
    Ok(short(&hasher.finalize()))
}

fn hash_entry(hasher: &mut Sha256, root: &Path, relative: &Path, depth: Depth) -> io::Result<()> {
    let path = root.join(relative);
    let about = path.symlink_metadata()?;
    // Length before each variable part, so that no two trees can write the same bytes.
    let name = relative.as_os_str().as_encoded_bytes();
    write!(hasher, "{} ", name.len())?;
    hasher.update(name);
    write!(hasher, " {:o} ", about.permissions().mode())?;
    if about.is_symlink() {
        let target = fs::read_link(&path)?;
        let target = target.as_os_str().as_encoded_bytes();
        write!(hasher, "{} ", target.len())?;
        hasher.update(target);
    } else if about.is_dir() {
        let mut names = fs::read_dir(&path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        write!(hasher, "{} ", names.len())?;
        for name in names {
            hash_entry(hasher, root, &relative.join(name), depth)?;
        }
    } else if about.is_file() && depth == Depth::Content {
        write!(hasher, "{} ", about.len())?;
        io::copy(&mut fs::File::open(&path)?, hasher)?;
    } else {
        write!(hasher, "{} {}.{} ", about.len(), about.mtime(), about.mtime_nsec())?;
    }
    Ok(())
}

fn short(digest: &[u8]) -> String {
    hex::encode(&digest[..8])
}

/// Debian policy 5.6.1, so that no name is taken for an option.
fn is_package(name: &str) -> bool {
    name.len() >= 2
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn digest(args: &ImageArgs) -> String {
        Recipe::derived("base".into(), args).unwrap().digest().unwrap()
    }

    #[test]
    fn the_order_of_packages_does_not_matter_and_that_of_commands_does() {
        let args = |include: &[&str], run: &[&str]| ImageArgs {
            include: include.iter().map(ToString::to_string).collect(),
            run: run.iter().map(ToString::to_string).collect(),
            ..ImageArgs::default()
        };
        assert_eq!(digest(&args(&["a1", "b1"], &[])), digest(&args(&["b1", "a1", "b1"], &[])));
        assert_ne!(digest(&args(&[], &["x", "y"])), digest(&args(&[], &["y", "x"])));
        assert!(Recipe::derived("base".into(), &args(&["--option"], &[])).unwrap_err().contains("`--option`"));
    }

    #[test]
    fn a_tree_is_its_names_modes_and_bytes() {
        let tree = tempfile::tempdir().unwrap();
        let file = tree.path().join("file");
        let look = || tree_digest(tree.path(), Depth::Content).unwrap();
        fs::write(&file, "one").unwrap();
        let first = look();
        fs::write(&file, "two").unwrap();
        let second = look();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        let third = look();
        fs::write(&file, "one").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(look(), first, "the time of change is no part of it");
        assert!(first != second && second != third);
    }
}
