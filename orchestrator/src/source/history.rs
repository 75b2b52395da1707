//! Which commits changed one directory, as git sees it.
//!
//! A commit with one parent changed it if the directory is another than its parent's; a commit without parents, if it has
//! the directory. A merge changed nothing if the directory is what git's three-way merge of its two parents makes: what
//! it brings was changed by other commits. Everything else, and everything that git would need a person for, counts as a
//! change of the merge itself: conflicts, several merge bases, more than two parents that do not agree.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use contract::ids::Revision;
use git2::{Commit, ErrorCode, FileMode, MergeFileInput, ObjectType, Oid, Sort};

use super::SourceError;
use super::repository::store_error;
use super::snapshot::mode;

/// Commits of one range at most. A fleet of a thousand sites with a change a week each has half as many in a year.
const COMMITS: usize = 100_000;
/// Bytes of a commit object at most: a hundred times what a long message and a signature need.
const COMMIT_BYTES: usize = 64 << 10;
/// Bytes of a file that is merged at most; that of a site, `contract::document` does not take longer.
const MERGED_BYTES: usize = 256 << 10;
/// Files that are merged line by line at most, in one range: a site whose people work at the same time every day.
const MERGES: u32 = 1000;
/// Levels of directories that are merged at most; a site has one.
const DEPTH: u32 = 8;

/// Which of the commits that changed the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The one that made it what it is; several, where a merge put their changes together.
    Newest,
    /// Every one.
    All,
}

/// A commit that changed the directory.
#[derive(Debug, Clone)]
pub struct Change {
    /// Which.
    pub revision: Revision,
    /// The whole object, as its id is made of it.
    pub object: Vec<u8>,
}

/// What stands at a path: object and mode; nothing where there is nothing.
type Entry = Option<(Oid, i32)>;

/// The history of one directory.
pub(super) struct History<'a> {
    git: &'a git2::Repository,
    copy: &'a Path,
    path: &'a [&'a str],
    /// By root directory: every commit is looked at twice, as itself and as a parent.
    known: RefCell<HashMap<Oid, Entry>>,
    merges: Cell<u32>,
}

impl<'a> History<'a> {
    /// Of the directory `path` in the copy that lies in `copy`.
    pub(super) fn new(git: &'a git2::Repository, copy: &'a Path, path: &'a [&'a str]) -> Self {
        Self { git, copy, path, known: RefCell::default(), merges: Cell::new(0) }
    }

    /// The commits that changed the directory, among those that are reachable from `head` and not from `after`.
    pub(super) fn changes(&self, after: Option<Oid>, head: Oid, which: Which) -> Result<Vec<Change>, SourceError> {
        let found = match (which, after) {
            (Which::Newest, None) => self.newest(head, |_| true)?,
            (Which::Newest, after) => {
                let range: HashSet<Oid> = self.range(after, head)?.into_iter().collect();
                self.newest(head, |commit| range.contains(&commit))?
            }
            (Which::All, after) => {
                let mut found = Vec::new();
                for id in self.range(after, head)? {
                    if self.changed(&self.commit(id)?)? {
                        found.push(id);
                    }
                }
                found
            }
        };
        found.into_iter().map(|id| self.read(id)).collect()
    }

    /// All commits between, parents before their children.
    fn range(&self, after: Option<Oid>, head: Oid) -> Result<Vec<Oid>, SourceError> {
        let broken = |cause| store_error(self.copy, &cause);
        let mut walk = self.git.revwalk().map_err(broken)?;
        walk.set_sorting(Sort::TOPOLOGICAL | Sort::REVERSE).map_err(broken)?;
        walk.push(head).map_err(broken)?;
        if let Some(after) = after {
            walk.hide(after).map_err(broken)?;
        }
        let range: Vec<Oid> = walk.take(COMMITS + 1).collect::<Result<_, _>>().map_err(broken)?;
        if range.len() > COMMITS { Err(too_many(head)) } else { Ok(range) }
    }

    /// From the head back along what has the same content, to the commits that made it.
    fn newest(&self, head: Oid, within: impl Fn(Oid) -> bool) -> Result<Vec<Oid>, SourceError> {
        let (mut found, mut seen, mut waiting) = (Vec::new(), HashSet::new(), vec![head]);
        while let Some(id) = waiting.pop() {
            if !within(id) || !seen.insert(id) {
                continue;
            }
            if seen.len() > COMMITS {
                return Err(too_many(head));
            }
            let commit = self.commit(id)?;
            if self.changed(&commit)? {
                found.push(id);
                continue;
            }
            let here = self.entry(&commit)?;
            let mut same = None;
            for parent in commit.parents() {
                if same.is_none() && self.entry(&parent)? == here {
                    same = Some(parent.id());
                }
            }
            match same {
                Some(parent) => waiting.push(parent),
                None => waiting.extend(commit.parent_ids()),
            }
        }
        Ok(found)
    }

    /// Whether this commit changed the directory.
    fn changed(&self, commit: &Commit<'_>) -> Result<bool, SourceError> {
        let here = self.entry(commit)?;
        let parents: Vec<Commit<'_>> = commit.parents().collect();
        let entries: Vec<Entry> = parents.iter().map(|parent| self.entry(parent)).collect::<Result<_, _>>()?;
        match (entries.as_slice(), parents.as_slice()) {
            ([], _) => Ok(here.is_some()),
            (entries, _) if entries.iter().all(|entry| *entry == here) => Ok(false),
            ([ours, theirs], [one, other]) => match self.base(one, other)? {
                Some(base) => Ok(!self.is_merge(base, *ours, *theirs, here, DEPTH)?),
                None => Ok(true),
            },
            _ => Ok(true),
        }
    }

    /// The directory in the one merge base; nothing in it where the histories have none in common. None where there are
    /// several: git would merge those first, and its answer depends on how.
    fn base(&self, one: &Commit<'_>, other: &Commit<'_>) -> Result<Option<Entry>, SourceError> {
        let bases: Vec<Oid> = match self.git.merge_bases(one.id(), other.id()) {
            Ok(bases) => bases.iter().copied().collect(),
            Err(cause) if cause.code() == ErrorCode::NotFound => Vec::new(),
            Err(cause) => return Err(store_error(self.copy, &cause)),
        };
        match bases.as_slice() {
            [] => Ok(Some(None)),
            [base] => self.entry(&self.commit(*base)?).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether `here` is what git makes of `ours` and `theirs`, which both come from `base`.
    fn is_merge(&self, base: Entry, ours: Entry, theirs: Entry, here: Entry, depth: u32) -> Result<bool, SourceError> {
        if ours == theirs || base == theirs {
            return Ok(here == ours);
        }
        if base == ours {
            return Ok(here == theirs);
        }
        let (Some(ours), Some(theirs), Some(here)) = (ours, theirs, here) else { return Ok(false) };
        let is = |kind: i32| [ours, theirs, here].into_iter().chain(base).all(|(_, mode)| mode & mode::TYPE == kind);
        if is(mode::DIRECTORY) && depth > 0 {
            let tree = |entry: Entry| {
                let tree = entry.map(|(id, _)| self.git.find_tree(id)).transpose();
                tree.map_err(|cause| store_error(self.copy, &cause))
            };
            let trees = [tree(base)?, tree(Some(ours))?, tree(Some(theirs))?, tree(Some(here))?];
            let names: BTreeSet<Vec<u8>> =
                trees.iter().flatten().flatten().map(|entry| entry.name_bytes().to_vec()).collect();
            for name in names {
                let [base, ours, theirs, here] = trees.each_ref().map(|tree| named(tree.as_ref(), &name));
                if !self.is_merge(base, ours, theirs, here, depth - 1)? {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        let Some(base) = base else { return Ok(false) };
        let modes_agree = [base.1, theirs.1, here.1].iter().all(|mode| *mode == ours.1);
        if !is(mode::FILE) || !modes_agree || self.merges.get() >= MERGES {
            return Ok(false);
        }
        self.merges.set(self.merges.get() + 1);
        self.is_merged_file(base.0, ours.0, theirs.0, here.0)
    }

    /// The same for the lines of a file.
    fn is_merged_file(&self, base: Oid, ours: Oid, theirs: Oid, here: Oid) -> Result<bool, SourceError> {
        let broken = |cause| store_error(self.copy, &cause);
        let odb = self.git.odb().map_err(broken)?;
        for id in [base, ours, theirs] {
            if odb.read_header(id).map_err(broken)?.0 > MERGED_BYTES {
                return Ok(false);
            }
        }
        let read = |id| self.git.find_blob(id).map_err(broken);
        let (base, ours, theirs) = (read(base)?, read(ours)?, read(theirs)?);
        let [base, ours, theirs] = [&base, &ours, &theirs].map(|blob| {
            let mut input = MergeFileInput::new();
            input.content(blob.content()).path("file").mode(Some(FileMode::Blob));
            input
        });
        let merged = git2::merge_file(&base, &ours, &theirs, None).map_err(broken)?;
        let id = Oid::hash_object(ObjectType::Blob, merged.content()).map_err(broken)?;
        Ok(merged.is_automergeable() && id == here)
    }

    fn commit(&self, id: Oid) -> Result<Commit<'a>, SourceError> {
        self.git.find_commit(id).map_err(|cause| store_error(self.copy, &cause))
    }

    /// What stands at the path in a commit.
    fn entry(&self, commit: &Commit<'_>) -> Result<Entry, SourceError> {
        let root = commit.tree_id();
        if let Some(entry) = self.known.borrow().get(&root) {
            return Ok(*entry);
        }
        let mut at = Some((root, mode::DIRECTORY));
        for part in self.path {
            at = match at {
                Some((id, kind)) if kind & mode::TYPE == mode::DIRECTORY => {
                    let tree = self.git.find_tree(id).map_err(|cause| store_error(self.copy, &cause))?;
                    named(Some(&tree), part.as_bytes())
                }
                _ => None,
            };
        }
        self.known.borrow_mut().insert(root, at);
        Ok(at)
    }

    fn read(&self, id: Oid) -> Result<Change, SourceError> {
        let broken = |cause| store_error(self.copy, &cause);
        let odb = self.git.odb().map_err(broken)?;
        let (size, _) = odb.read_header(id).map_err(broken)?;
        if size > COMMIT_BYTES {
            return Err(SourceError::TooLarge { what: format!("commit {id}"), limit: format!("{COMMIT_BYTES} bytes") });
        }
        let object = odb.read(id).map_err(broken)?.data().to_vec();
        let revision = id.to_string().parse().map_err(|cause: contract::ids::InvalidId| SourceError::Store {
            path: self.copy.to_owned(),
            cause: cause.to_string(),
        })?;
        Ok(Change { revision, object })
    }
}

fn named(tree: Option<&git2::Tree<'_>>, name: &[u8]) -> Entry {
    let tree = tree?;
    // Names are sorted, and looked up by halving; one that is not UTF-8 is looked for.
    let entry = match std::str::from_utf8(name) {
        Ok(name) => tree.get_name(name),
        Err(_) => tree.iter().find(|entry| entry.name_bytes() == name),
    }?;
    Some((entry.id(), entry.filemode_raw()))
}

fn too_many(head: Oid) -> SourceError {
    SourceError::TooLarge { what: format!("the new history of {head}"), limit: format!("{COMMITS} commits") }
}
