//! Root file systems for guests: a small Debian with systemd, D-Bus and sshd, and whatever is put on top of it.
//!
//!     <cache>/images/<digest>/rootfs        an image; never changed once it is there
//!     <cache>/images/<digest>/recipe.json   what it was made from; the digest is this file's
//!     <cache>/apt/                          package lists and packages, shared by all builds
//!     <out>/<name>                          a symbolic link to the image
//!
//! An image is built under another name and renamed when it is complete, so that an interrupted build is never taken
//! for one. Nothing expires: to have newer packages, delete the cache.

mod apt;
mod build;
mod recipe;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

use self::build::Workshop;
use self::recipe::Recipe;
use crate::runtime::Failure;

/// Where images are kept, unless `CTRLABLE_LAB_CACHE` says otherwise.
const CACHE: &str = "/var/cache/ctrlable-lab";

/// What every guest gets. ping is for the person who looks for a fault.
const BASE_PACKAGES: [&str; 8] =
    ["ca-certificates", "dbus", "iproute2", "iputils-ping", "openssh-server", "systemd", "systemd-sysv", "tzdata"];

/// The suite on a machine that is not Debian.
const FALLBACK_SUITE: &str = "bookworm";

/// Build a root file system for guests. Made once: the same recipe is found again at once.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ImageArgs {
    /// Directory in which a link to the image is put.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Name of that link.
    #[arg(long)]
    pub(crate) name: String,
    /// Debian suite; this machine's own by default.
    #[arg(long)]
    pub(crate) suite: Option<String>,
    /// Additional Debian packages.
    #[arg(long, value_name = "PACKAGE", value_delimiter = ',')]
    pub(crate) include: Vec<String>,
    /// Directory whose content is copied over the image, after the packages: owned by root, modes kept.
    #[arg(long, value_name = "TREE")]
    pub(crate) overlay: Vec<PathBuf>,
    /// Shell command to run in the image, after the trees.
    #[arg(long, value_name = "CMD")]
    pub(crate) run: Vec<String>,
    /// Root file system to start from, instead of a fresh Debian.
    #[arg(long, value_name = "DIR", conflicts_with = "suite")]
    pub(crate) base: Option<PathBuf>,
}

/// Builds an image, or finds it, links it as `<out>/<name>` and returns the root file system's path.
pub(crate) fn run(args: &ImageArgs) -> Result<PathBuf, Failure> {
    if args.name.is_empty() || args.name.starts_with('.') || args.name.contains('/') {
        return Err(format!("`{}` cannot be the name of an image", args.name));
    }
    let store = Store::open()?;
    let rootfs = store.ensure(args)?;
    link(&args.out, &args.name, &rootfs)?;
    eprintln!("image {}: {}", args.name, rootfs.display());
    Ok(rootfs)
}

/// Whether a directory is the root file system of a finished image: one that nobody will change.
pub(crate) fn is_finished(rootfs: &Path) -> bool {
    rootfs.file_name().is_some_and(|name| name == "rootfs") && rootfs.with_file_name(RECIPE).is_file()
}

const RECIPE: &str = "recipe.json";

/// How directories of unfinished builds are named; leftovers are removed by the next build.
const UNFINISHED: &str = ".building-";

/// The cache, held for this process alone: two builds at once would do the same work twice.
struct Store {
    root: PathBuf,
    _lock: fs::File,
}

impl Store {
    fn open() -> Result<Self, Failure> {
        let root = std::env::var_os("CTRLABLE_LAB_CACHE").map_or_else(|| PathBuf::from(CACHE), PathBuf::from);
        let say = |error: io::Error| {
            format!("image cache {}: {error} (choose another with CTRLABLE_LAB_CACHE)", root.display())
        };
        fs::create_dir_all(root.join("images")).map_err(say)?;
        let lock = fs::File::create(root.join("lock")).map_err(say)?;
        lock.lock().map_err(say)?;
        let root = root.canonicalize().map_err(say)?;
        for entry in fs::read_dir(root.join("images")).map_err(say)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                fs::remove_dir_all(entry.path()).map_err(say)?;
            }
        }
        Ok(Self { root, _lock: lock })
    }

    fn ensure(&self, args: &ImageArgs) -> Result<PathBuf, Failure> {
        let suite = args.suite.clone().or_else(apt::host_suite).unwrap_or_else(|| FALLBACK_SUITE.to_owned());
        let (base, base_digest) = match &args.base {
            Some(base) => {
                let base = base.canonicalize().map_err(|error| format!("base {}: {error}", base.display()))?;
                let digest = recipe::of_base(&base)?;
                (base, digest)
            }
            None => {
                let packages: Vec<String> = BASE_PACKAGES.iter().map(|&name| name.to_owned()).collect();
                let recipe = Recipe::fresh(&suite, packages);
                let rootfs = self.find_or_build(&recipe, |workshop| workshop.debootstrap(&suite, &recipe.packages))?;
                (rootfs, recipe.digest()?)
            }
        };
        if args.base.is_none() && args.include.is_empty() && args.overlay.is_empty() && args.run.is_empty() {
            return Ok(base);
        }
        let recipe = Recipe::derived(base_digest, args)?;
        let name = &args.name;
        self.find_or_build(&recipe, |workshop| {
            eprintln!("image {name}: copying {}", base.display());
            workshop.copy(&base)?;
            if !recipe.packages.is_empty() {
                eprintln!("image {name}: installing {}", recipe.packages.join(" "));
                workshop.install(&recipe.packages)?;
            }
            for tree in &args.overlay {
                eprintln!("image {name}: copying {}", tree.display());
                workshop.overlay(tree)?;
            }
            for command in &args.run {
                eprintln!("image {name}: running {command}");
                workshop.shell(command)?;
            }
            workshop.clean()
        })
    }

    fn find_or_build(
        &self,
        recipe: &Recipe,
        build: impl FnOnce(&Workshop) -> Result<(), Failure>,
    ) -> Result<PathBuf, Failure> {
        let digest = recipe.digest()?;
        let images = self.root.join("images");
        let finished = images.join(&digest);
        if finished.join(RECIPE).is_file() {
            return Ok(finished.join("rootfs"));
        }
        let unfinished = images.join(format!("{UNFINISHED}{digest}"));
        let say = |error: io::Error| format!("{}: {error}", unfinished.display());
        fs::create_dir_all(&unfinished).map_err(say)?;
        let workshop = Workshop::new(unfinished.join("rootfs"), self.root.join("apt"))?;
        let built = build(&workshop)
            .and_then(|()| fs::write(unfinished.join(RECIPE), recipe.json()?).map_err(say))
            .and_then(|()| fs::rename(&unfinished, &finished).map_err(say));
        match built {
            Ok(()) => Ok(finished.join("rootfs")),
            Err(failure) => {
                let _ = fs::remove_dir_all(&unfinished);
                Err(failure)
            }
        }
    }
}

/// Puts a symbolic link in the place of an older one, at once.
fn link(out: &Path, name: &str, rootfs: &Path) -> Result<(), Failure> {
    let link = out.join(name);
    let say = |error: io::Error| format!("{}: {error}", link.display());
    fs::create_dir_all(out).map_err(say)?;
    if link.symlink_metadata().is_ok_and(|present| !present.is_symlink()) {
        return Err(format!("{} is in the way: it is not a link to an image", link.display()));
    }
    let next = out.join(format!(".{name}.{}", std::process::id()));
    std::os::unix::fs::symlink(rootfs, &next).and_then(|()| fs::rename(&next, &link)).map_err(say)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_link_replaces_a_link_and_nothing_else() {
        let out = tempfile::tempdir().unwrap();
        link(out.path(), "one", Path::new("/a")).unwrap();
        link(out.path(), "one", Path::new("/b")).unwrap();
        assert_eq!(fs::read_link(out.path().join("one")).unwrap(), Path::new("/b"));
        fs::create_dir(out.path().join("two")).unwrap();
        assert!(link(out.path(), "two", Path::new("/a")).unwrap_err().contains("in the way"));
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 2);
    }

    #[test]
    fn only_what_has_a_recipe_beside_it_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        fs::create_dir(&rootfs).unwrap();
        assert!(!is_finished(&rootfs));
        fs::write(dir.path().join(RECIPE), "{}").unwrap();
        assert!(is_finished(&rootfs));
        assert!(!is_finished(dir.path()));
    }
}
