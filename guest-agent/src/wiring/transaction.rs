//! Files that are replaced together and put back together, also across a power cut.
//!
//! The order on disk is what makes it safe: first a copy of every file that will change, then `journal.json`, then
//! the files one by one, each atomically. While `journal.json` is there the outcome is open, and the next start puts
//! everything back; it is the first thing to go when the outcome is decided.

use contract::ids::{Generation, GuestPath, UnitName};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Reason, Result};
use crate::files::{Attributes, FileContent, Missing, Root, temporary_name};
use crate::layout;

/// Largest file that takes part in a wiring, in bytes: settings are far smaller.
pub(crate) const FILE_LIMIT: u64 = 1024 * 1024;

/// Name of the journal in the rollback directory.
const JOURNAL: &str = "journal.json";

/// One file that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// Which.
    pub path: GuestPath,
    /// What it was; `None` when it was not there.
    pub before: Option<FileContent>,
    /// What it becomes.
    pub after: FileContent,
}

/// How far a transaction came, as far as putting it back is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// Files may have changed; no unit has seen them by our doing.
    Writing,
    /// Units may run with the new files.
    Restarting,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Journal {
    generation: Generation,
    stage: Stage,
    files: Vec<Backup>,
    units: Vec<UnitName>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Backup {
    path: GuestPath,
    /// Bits and owner of the copy; absent when there was no file.
    before: Option<Attributes>,
    /// Directories that are made for it, outermost first.
    directories: Vec<String>,
}

/// Whether there is more to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Call [`Transaction::step`] again.
    More,
    /// Every file has its new content.
    Written,
}

/// A transaction that is under way. Dropping it is what a crash does: [`recover`] puts everything back.
pub(crate) struct Transaction<'a> {
    root: &'a Root,
    changes: Vec<Change>,
    journal: Journal,
    next: usize,
}

impl<'a> Transaction<'a> {
    /// Prepares; nothing is written yet.
    pub(crate) fn new(
        root: &'a Root,
        generation: Generation,
        changes: Vec<Change>,
        units: &[UnitName],
    ) -> Result<Self> {
        let mut files = Vec::new();
        for change in &changes {
            files.push(Backup {
                path: change.path.clone(),
                before: change.before.as_ref().map(|before| before.attributes),
                directories: root.missing_parents(change.path.as_str())?,
            });
        }
        let journal = Journal { generation, stage: Stage::Writing, files, units: units.to_vec() };
        Ok(Self { root, changes, journal, next: 0 })
    }

    /// Writes one file: a copy, the journal, or a change.
    pub(crate) fn step(&mut self) -> Result<Progress> {
        let copies = self.changes.len();
        if self.next == 0 {
            make_private_directory(self.root)?;
        }
        if self.next < copies {
            if let Some(before) = &self.changes[self.next].before {
                self.root.write_own(&copy_path(self.next), &before.bytes, 0o600)?;
            }
        } else if self.next == copies {
            write_journal(self.root, &self.journal)?;
        } else if let Some(change) = self.changes.get(self.next - copies - 1) {
            self.root.write(change.path.as_str(), &change.after.bytes, change.after.attributes)?;
        }
        self.next += 1;
        Ok(if self.next > 2 * copies { Progress::Written } else { Progress::More })
    }

    /// Says that units are about to see the new files.
    pub(crate) fn restarting(&mut self) -> Result<()> {
        self.journal.stage = Stage::Restarting;
        write_journal(self.root, &self.journal)
    }

    /// Decides for the new files.
    pub(crate) fn commit(self) -> Result<()> {
        clear(self.root)
    }

    /// Decides for the old files.
    pub(crate) fn put_back(self) -> Result<()> {
        if self.next > self.changes.len() {
            restore(self.root, &self.journal)?;
        }
        clear(self.root)
    }
}

/// What was found open at the start, and put back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Of this assignment.
    pub generation: Generation,
    /// How far it had come.
    pub stage: Stage,
    /// Units that saw the new files if it had come to [`Stage::Restarting`].
    pub units: Vec<UnitName>,
}

/// Puts back what a crash left open; `None` when nothing was.
pub(crate) fn recover(root: &Root) -> Result<Option<Recovered>> {
    let path = format!("{}/{JOURNAL}", layout::ROLLBACK_DIR);
    let Some(content) = root.read(&path, FILE_LIMIT)? else {
        // Copies without a journal: the crash came before the first change.
        clear(root)?;
        return Ok(None);
    };
    let journal: Journal = serde_json::from_slice(&content.bytes)
        .map_err(|cause| Error::new(Reason::RollbackUnreadable, format!("{path}: {cause}")))?;
    restore(root, &journal)?;
    clear(root)?;
    Ok(Some(Recovered { generation: journal.generation, stage: journal.stage, units: journal.units }))
}

/// Restores every file that can be; the first error is reported, and the journal then stays for the next start.
fn restore(root: &Root, journal: &Journal) -> Result<()> {
    let mut outcome = Ok(());
    for (index, backup) in journal.files.iter().enumerate().rev() {
        outcome = outcome.and(restore_one(root, index, backup));
    }
    outcome
}

fn restore_one(root: &Root, index: usize, backup: &Backup) -> Result<()> {
    let path = backup.path.as_str();
    if let Some((parent, name)) = path.rsplit_once('/') {
        root.remove(&format!("{parent}/{}", temporary_name(name)))?;
    }
    match backup.before {
        Some(attributes) => {
            let copy = root.read(&copy_path(index), FILE_LIMIT)?.ok_or_else(|| {
                Error::new(Reason::RollbackUnreadable, format!("the copy of {path} is gone from {}", copy_path(index)))
            })?;
            let before = FileContent { bytes: copy.bytes, attributes };
            if root.read(path, FILE_LIMIT)?.as_ref() != Some(&before) {
                root.write(path, &before.bytes, attributes)?;
            }
        }
        None => root.remove(path)?,
    }
    for directory in backup.directories.iter().rev() {
        root.remove_empty_directory(directory)?;
    }
    Ok(())
}

/// Removes the journal first: from then on the copies mean nothing.
fn clear(root: &Root) -> Result<()> {
    let Some(dir) = root.directory(layout::ROLLBACK_DIR, Missing::Accept)? else { return Ok(()) };
    dir.remove(JOURNAL)?;
    for name in dir.names()? {
        dir.remove(&name)?;
    }
    Ok(())
}

fn write_journal(root: &Root, journal: &Journal) -> Result<()> {
    let text = serde_json::to_vec(journal)
        .map_err(|cause| Error::new(Reason::FileIo, format!("cannot write the rollback journal: {cause}")))?;
    root.write_own(&format!("{}/{JOURNAL}", layout::ROLLBACK_DIR), &text, 0o600)
}

fn make_private_directory(root: &Root) -> Result<()> {
    match root.directory(layout::ROLLBACK_DIR, Missing::Create)? {
        Some(dir) => dir.set_mode(0o700),
        None => Ok(()),
    }
}

fn copy_path(index: usize) -> String {
    format!("{}/{index}", layout::ROLLBACK_DIR)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    /// Everything below a directory outside the agent's own: path to kind, bytes and mode.
    fn snapshot(dir: &Path) -> BTreeMap<String, (Vec<u8>, u32)> {
        use std::os::unix::fs::PermissionsExt;
        let mut found = BTreeMap::new();
        let mut open = vec![dir.to_owned()];
        while let Some(next) = open.pop() {
            for entry in std::fs::read_dir(next).unwrap().map(|entry| entry.unwrap()) {
                let path = entry.path();
                let name = path.strip_prefix(dir).unwrap().display().to_string();
                if name == "var" {
                    continue;
                }
                let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
                if path.is_dir() {
                    open.push(path);
                    found.insert(name + "/", (Vec::new(), mode));
                } else {
                    found.insert(name, (std::fs::read(&path).unwrap(), mode));
                }
            }
        }
        found
    }

    fn guest() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        root.write_own("/etc/app/a.conf", b"old a", 0o640).unwrap();
        root.write_own("/etc/app/b.conf", b"old b", 0o600).unwrap();
        (dir, root)
    }

    fn changes(root: &Root) -> Vec<Change> {
        let change = |path: &str, text: &str| Change {
            path: path.parse().unwrap(),
            before: root.read(path, FILE_LIMIT).unwrap(),
            after: FileContent {
                bytes: text.as_bytes().to_vec().into(),
                attributes: Attributes { mode: 0o600, owner: root.owner() },
            },
        };
        vec![
            change("/etc/app/a.conf", "new a"),
            change("/opt/new/deep/c.conf", "new c"),
            change("/etc/app/b.conf", "new b"),
            change("/opt/new/d.conf", "new d"),
        ]
    }

    fn transaction(root: &Root) -> Transaction<'_> {
        let units = ["app.service".parse().unwrap()];
        Transaction::new(root, Generation(7), changes(root), &units).unwrap()
    }

    /// Writes in a whole transaction of four files: four copies, the journal, four changes.
    const STEPS: usize = 9;

    #[test]
    fn a_crash_after_any_write_is_put_back_byte_for_byte() {
        for crash_after in 0..=STEPS {
            let (dir, root) = guest();
            let before = snapshot(dir.path());
            let mut running = transaction(&root);
            for step in 0..crash_after {
                let expected = if step + 1 == STEPS { Progress::Written } else { Progress::More };
                assert_eq!(running.step().unwrap(), expected);
            }
            drop(running);
            let recovered = recover(&root).unwrap();
            assert_eq!(recovered.is_some(), crash_after > 4, "after {crash_after}");
            assert_eq!(snapshot(dir.path()), before, "after {crash_after}");
            assert_eq!(recover(&root).unwrap(), None, "recovering twice changes nothing");
        }
    }

    #[test]
    fn a_crash_in_the_middle_of_recovery_is_recovered_too() {
        let (dir, root) = guest();
        let before = snapshot(dir.path());
        let mut running = transaction(&root);
        while running.step().unwrap() == Progress::More {}
        running.restarting().unwrap();
        let journal = running.journal.clone();
        drop(running);
        // Half of the files are back, and a temporary file of the next one is left.
        restore_one(&root, 3, &journal.files[3]).unwrap();
        restore_one(&root, 2, &journal.files[2]).unwrap();
        root.write_own("/etc/app/.a.conf.ctrlable-new", b"old", 0o600).unwrap();
        let recovered = recover(&root).unwrap().unwrap();
        assert_eq!((recovered.generation, recovered.stage), (Generation(7), Stage::Restarting));
        assert_eq!(recovered.units[0].as_str(), "app.service");
        assert_eq!(snapshot(dir.path()), before);
    }

    #[test]
    fn commit_keeps_the_new_files_and_no_copy_of_the_old() {
        let (dir, root) = guest();
        let mut running = transaction(&root);
        while running.step().unwrap() == Progress::More {}
        running.commit().unwrap();
        assert_eq!(recover(&root).unwrap(), None);
        let after = snapshot(dir.path());
        assert_eq!(after["etc/app/a.conf"], (b"new a".to_vec(), 0o600));
        assert_eq!(after["opt/new/deep/c.conf"], (b"new c".to_vec(), 0o600));
        assert_eq!(after["opt/new/"].1, 0o755);
        let rollback = dir.path().join(&layout::ROLLBACK_DIR[1..]);
        assert_eq!(std::fs::read_dir(rollback).unwrap().count(), 0);
    }

    #[test]
    fn put_back_at_any_point_restores_everything() {
        for steps in 0..=STEPS {
            let (dir, root) = guest();
            let before = snapshot(dir.path());
            let mut running = transaction(&root);
            for _ in 0..steps {
                running.step().unwrap();
            }
            running.put_back().unwrap();
            assert_eq!(snapshot(dir.path()), before, "after {steps}");
        }
    }

    #[test]
    fn a_journal_that_cannot_be_read_is_never_none() {
        let (_dir, root) = guest();
        root.write_own(&format!("{}/{JOURNAL}", layout::ROLLBACK_DIR), b"{", 0o600).unwrap();
        assert_eq!(recover(&root).unwrap_err().reason, Reason::RollbackUnreadable);
    }
}
