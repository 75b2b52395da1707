//! Files beneath a root, reached part by part without following a symbolic link, and written so that a power cut
//! leaves either the old or the new file.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::error::{Error, Reason, Result};

/// Who owns a file, as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A file's permission bits and owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub owner: Owner,
}

/// A regular file that was read, or is to be written.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct FileContent {
    /// All of it; it may hold secrets.
    pub bytes: Zeroizing<Vec<u8>>,
    /// Bits and owner.
    pub attributes: Attributes,
}

impl std::fmt::Debug for FileContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, {:?}", self.bytes.len(), self.attributes)
    }
}

/// What to do about a directory that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Make it: 0755, owner as the root directory.
    Create,
    /// Say that there is none.
    Accept,
}

/// Whether a write waits for the disk. A flush takes milliseconds, and a first boot is made of few of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// The new file survives a power cut.
    Now,
    /// After a power cut the file may be old, new or empty: for what merely informs.
    Never,
}

/// Mode of directories that the agent makes on behalf of a file.
const DIRECTORY_MODE: u32 = 0o755;

/// Largest file of the kernel's that is read, in bytes: a page, as sysfs(5) has it.
const KERNEL_FILE_LIMIT: u64 = 4096;

/// The file system of a guest: `/`, or a directory that holds one.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    owner: Owner,
}

impl Root {
    /// Opens `path`. Files that the agent makes belong to the owner of this directory: root in a running guest, and
    /// the shifted root of an unprivileged container when it is sealed from its host.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let fail = |errno: Errno| io_error("open", &path.display().to_string(), errno);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(fail)?;
        let stat = rustix::fs::fstat(&fd).map_err(fail)?;
        Ok(Self { fd, owner: owner_of(&stat) })
    }

    /// Who new files belong to.
    pub(crate) fn owner(&self) -> Owner {
        self.owner
    }

    /// A directory by its absolute path; `None` when it is missing and that is accepted.
    pub(crate) fn directory(&self, path: &str, missing: Missing) -> Result<Option<Dir>> {
        let fd = self.fd.try_clone().map_err(|cause| file_error("open", "/", &cause))?;
        let mut dir = Dir { fd, path: String::new() };
        for part in path.split('/').filter(|part| !part.is_empty()) {
            dir = match dir.child(part)? {
                Some(child) => child,
                None if missing == Missing::Create => dir.create_child(part, self.owner)?,
                None => return Ok(None),
            };
        }
        Ok(Some(dir))
    }

    /// The directory of a file, and the file's name in it.
    fn parent<'a>(&self, path: &'a str, missing: Missing) -> Result<Option<(Dir, &'a str)>> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok(self.directory(parent, missing)?.map(|dir| (dir, name)))
    }

    /// Reads a regular file of at most `limit` bytes; `None` when there is none.
    pub(crate) fn read(&self, path: &str, limit: u64) -> Result<Option<FileContent>> {
        match self.parent(path, Missing::Accept)? {
            Some((dir, name)) => dir.read(name, limit),
            None => Ok(None),
        }
    }

    /// Reads a text file; `None` when there is none.
    pub(crate) fn read_text(&self, path: &str, limit: u64) -> Result<Option<String>> {
        let Some(content) = self.read(path, limit)? else { return Ok(None) };
        std::str::from_utf8(&content.bytes)
            .map(|text| Some(text.to_owned()))
            .map_err(|_| Error::new(Reason::FileSyntax, format!("{path} is not UTF-8 text")))
    }

    /// A line of a file of the kernel's (`/sys`, `/proc`), where links are the rule and lead where the kernel says.
    pub(crate) fn read_kernel_file(&self, path: &str) -> Option<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, path.trim_start_matches('/'), flags, Mode::empty()).ok()?;
        let mut text = String::new();
        File::from(fd).take(KERNEL_FILE_LIMIT).read_to_string(&mut text).ok()?;
        Some(text.trim().to_owned())
    }

    /// Replaces or makes a file, durably, and makes missing directories.
    pub(crate) fn write(&self, path: &str, bytes: &[u8], attributes: Attributes) -> Result<()> {
        match self.parent(path, Missing::Create)? {
            Some((dir, name)) => dir.replace(name, bytes, attributes),
            None => Err(Error::new(Reason::FileIo, format!("cannot make the directory of {path}"))),
        }
    }

    /// Replaces or makes a file of the agent's own.
    pub(crate) fn write_own(&self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        self.write(path, bytes, Attributes { mode, owner: self.owner })
    }

    /// Replaces or makes a file of the agent's own that merely informs: it does not wait for the disk.
    pub(crate) fn write_note(&self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        match self.parent(path, Missing::Create)? {
            Some((dir, name)) => {
                dir.replace_all(&[(name, bytes, Attributes { mode, owner: self.owner })], Flush::Never)
            }
            None => Err(Error::new(Reason::FileIo, format!("cannot make the directory of {path}"))),
        }
    }

    /// Removes a file or link; fine when there is none.
    pub(crate) fn remove(&self, path: &str) -> Result<()> {
        match self.parent(path, Missing::Accept)? {
            Some((dir, name)) => dir.remove(name),
            None => Ok(()),
        }
    }

    /// What stands at `path`, links not followed; `None` when there is nothing.
    pub(crate) fn stat(&self, path: &str) -> Result<Option<Stat>> {
        match self.parent(path, Missing::Accept)? {
            Some((dir, name)) => dir.stat(name),
            None => Ok(None),
        }
    }

    /// Where the link at `path` points; `None` when it is no link.
    pub(crate) fn link_target(&self, path: &str) -> Result<Option<String>> {
        let Some((dir, name)) = self.parent(path, Missing::Accept)? else { return Ok(None) };
        match rustix::fs::readlinkat(&dir.fd, name, Vec::new()) {
            Ok(target) => Ok(Some(target.to_string_lossy().into_owned())),
            Err(Errno::INVAL | Errno::NOENT) => Ok(None),
            Err(errno) => Err(io_error("read the link", path, errno)),
        }
    }

    /// The directories on the way to the file `path` that do not exist, outermost first.
    pub(crate) fn missing_parents(&self, path: &str) -> Result<Vec<String>> {
        let mut missing = Vec::new();
        for (end, _) in path.match_indices('/').skip(1) {
            if self.directory(&path[..end], Missing::Accept)?.is_none() {
                missing.push(path[..end].to_owned());
            }
        }
        Ok(missing)
    }

    /// Removes an empty directory; fine when it is missing or holds something.
    pub(crate) fn remove_empty_directory(&self, path: &str) -> Result<()> {
        let Some((dir, name)) = self.parent(path, Missing::Accept)? else { return Ok(()) };
        match rustix::fs::unlinkat(&dir.fd, name, AtFlags::REMOVEDIR) {
            Ok(()) => dir.sync(),
            Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            Err(errno) => Err(io_error("remove", path, errno)),
        }
    }

    /// Blocks and their use of the file system.
    pub(crate) fn usage(&self) -> contract::health::Usage {
        match rustix::fs::fstatvfs(&self.fd) {
            Ok(stat) => contract::health::Usage {
                total: stat.f_blocks.saturating_mul(stat.f_frsize),
                used: stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize),
            },
            Err(_) => contract::health::Usage::default(),
        }
    }
}

/// An open directory. Work inside it cannot be led elsewhere by a link.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: String,
}

impl Dir {
    /// Opens the directory `name`; `None` when there is none.
    pub(crate) fn child(&self, name: &str) -> Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, path: self.join(name) })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno @ (Errno::NOTDIR | Errno::LOOP)) => Err(match self.stat(name)?.map(|stat| kind_of(&stat)) {
                Some(FileType::Symlink) => symlink(&self.join(name)),
                _ => io_error("open the directory", &self.join(name), errno),
            }),
            Err(errno) => Err(io_error("open the directory", &self.join(name), errno)),
        }
    }

    fn create_child(&self, name: &str, owner: Owner) -> Result<Self> {
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(DIRECTORY_MODE)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(io_error("make the directory", &self.join(name), errno)),
        }
        let Some(child) = self.child(name)? else {
            return Err(Error::new(Reason::FileIo, format!("{} vanished while it was made", self.join(name))));
        };
        set_attributes(&child.fd, Attributes { mode: DIRECTORY_MODE, owner }, &child.path)?;
        self.sync()?;
        Ok(child)
    }

    /// Names of everything inside, sorted.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let fail = |errno| io_error("list", &self.path, errno);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            // A name that is not UTF-8 cannot be named in a list either.
            if let Ok(name) = entry.file_name().to_str()
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// What stands at `name`, links not followed.
    pub(crate) fn stat(&self, name: &str) -> Result<Option<Stat>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(io_error("look at", &self.join(name), errno)),
        }
    }

    /// Reads a regular file of at most `limit` bytes; `None` when there is none.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<FileContent>> {
        let path = self.join(name);
        // NONBLOCK: a pipe of that name must not hold the agent.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(symlink(&path)),
            Err(Errno::NXIO) => return Err(not_regular(&path)),
            Err(errno) => return Err(io_error("open", &path, errno)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|errno| io_error("look at", &path, errno))?;
        if kind_of(&stat) != FileType::RegularFile {
            return Err(not_regular(&path));
        }
        // Room for all of it from the start: a buffer that grows leaves pieces behind that nobody wipes.
        let size = u64::try_from(stat.st_size).unwrap_or(0).min(limit) + 1;
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or(0)));
        File::from(fd).take(limit + 1).read_to_end(&mut bytes).map_err(|cause| file_error("read", &path, &cause))?;
        if bytes.len() as u64 > limit {
            return Err(Error::new(Reason::FileTooLarge, format!("{path} is larger than {limit} bytes")));
        }
        Ok(Some(FileContent { bytes, attributes: Attributes { mode: stat.st_mode & 0o7777, owner: owner_of(&stat) } }))
    }

    /// Replaces or makes a file: beside it first, then renamed, both flushed to the disk.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8], attributes: Attributes) -> Result<()> {
        self.replace_all(&[(name, bytes, attributes)], Flush::Now)
    }

    /// Replaces or makes files: all of them beside the old ones first, then renamed one by one.
    pub(crate) fn replace_all(&self, files: &[(&str, &[u8], Attributes)], flush: Flush) -> Result<()> {
        let written = files.iter().try_for_each(|(name, bytes, attributes)| {
            if let Some(stat) = self.stat(name)? {
                match kind_of(&stat) {
                    FileType::RegularFile => {}
                    FileType::Symlink => return Err(symlink(&self.join(name))),
                    _ => return Err(not_regular(&self.join(name))),
                }
            }
            let temporary = temporary_name(name);
            self.unlink(&temporary)?;
            self.write_new(&temporary, bytes, *attributes, flush)
        });
        let renamed = written.and_then(|()| {
            files.iter().try_for_each(|(name, ..)| {
                rustix::fs::renameat(&self.fd, temporary_name(name), &self.fd, *name)
                    .map_err(|errno| io_error("replace", &self.join(name), errno))
            })
        });
        if renamed.is_err() {
            // The first error is the one to report.
            files.iter().for_each(|(name, ..)| drop(self.unlink(&temporary_name(name))));
        }
        renamed?;
        match flush {
            Flush::Now => self.sync(),
            Flush::Never => Ok(()),
        }
    }

    fn write_new(&self, name: &str, bytes: &[u8], attributes: Attributes, flush: Flush) -> Result<()> {
        let path = self.join(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| io_error("make", &path, errno))?;
        let mut file = File::from(fd);
        file.write_all(bytes).map_err(|cause| file_error("write", &path, &cause))?;
        set_attributes(&file, attributes, &path)?;
        match flush {
            Flush::Now => file.sync_all().map_err(|cause| file_error("flush", &path, &cause)),
            Flush::Never => Ok(()),
        }
    }

    /// Removes a file or link and flushes that to the disk; fine when there is none.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        if self.unlink(name)? { self.sync() } else { Ok(()) }
    }

    /// Removes a file or link; whether there was one.
    fn unlink(&self, name: &str) -> Result<bool> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(io_error("remove", &self.join(name), errno)),
        }
    }

    /// Removes whatever stands at `name`, with everything below it; links are removed, not followed.
    pub(crate) fn remove_tree(&self, name: &str) -> Result<()> {
        let Some(stat) = self.stat(name)? else { return Ok(()) };
        if kind_of(&stat) != FileType::Directory {
            return self.remove(name);
        }
        if let Some(child) = self.child(name)? {
            for entry in child.names()? {
                child.remove_tree(&entry)?;
            }
        }
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(io_error("remove", &self.join(name), errno)),
        }
    }

    /// Sets the permission bits of the directory itself.
    pub(crate) fn set_mode(&self, mode: u32) -> Result<()> {
        rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(mode))
            .map_err(|errno| io_error("change the mode of", &self.path, errno))
    }

    fn sync(&self) -> Result<()> {
        rustix::fs::fsync(&self.fd).map_err(|errno| io_error("flush", &self.path, errno))
    }

    fn join(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }
}

/// Name of the file that is written before it takes the place of `name`. It is always the same, so that one left by
/// a power cut is found again.
pub(crate) fn temporary_name(name: &str) -> String {
    format!(".{name}.ctrlable-new")
}

/// What kind of file a `stat` describes.
pub(crate) fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Owner in a `stat`.
pub(crate) fn owner_of(stat: &Stat) -> Owner {
    Owner { uid: stat.st_uid, gid: stat.st_gid }
}

fn set_attributes(fd: impl std::os::fd::AsFd, attributes: Attributes, path: &str) -> Result<()> {
    let stat = rustix::fs::fstat(&fd).map_err(|errno| io_error("look at", path, errno))?;
    if owner_of(&stat) != attributes.owner {
        let Owner { uid, gid } = attributes.owner;
        rustix::fs::fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .map_err(|errno| io_error("change the owner of", path, errno))?;
    }
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(attributes.mode))
        .map_err(|errno| io_error("change the mode of", path, errno))
}

fn symlink(path: &str) -> Error {
    Error::new(Reason::SymlinkInPath, format!("{path} is a symbolic link, which is not followed"))
}

fn not_regular(path: &str) -> Error {
    Error::new(Reason::NotRegularFile, format!("{path} is not a regular file"))
}

fn io_error(verb: &str, path: &str, errno: Errno) -> Error {
    Error::new(Reason::FileIo, format!("cannot {verb} {path}: {errno}"))
}

fn file_error(verb: &str, path: &str, cause: &std::io::Error) -> Error {
    Error::new(Reason::FileIo, format!("cannot {verb} {path}: {cause}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn writes_with_mode_and_leaves_no_temporary() {
        let (dir, root) = root();
        root.write_own("/etc/app/a.conf", b"one", 0o640).unwrap();
        root.write_own("/etc/app/a.conf", b"two", 0o600).unwrap();
        let content = root.read("/etc/app/a.conf", 10).unwrap().unwrap();
        assert_eq!((content.bytes.as_slice(), content.attributes.mode), (b"two".as_slice(), 0o600));
        assert_eq!(std::fs::read_dir(dir.path().join("etc/app")).unwrap().count(), 1);
        assert_eq!(std::fs::metadata(dir.path().join("etc/app")).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn follows_no_link_anywhere_on_the_way() {
        let (dir, root) = root();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("file"), "theirs").unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        symlink(outside.path(), dir.path().join("etc/app")).unwrap();
        symlink(outside.path().join("file"), dir.path().join("etc/file")).unwrap();
        for path in ["/etc/app/file", "/etc/file"] {
            assert_eq!(root.read(path, 100).unwrap_err().reason, Reason::SymlinkInPath);
            assert_eq!(root.write_own(path, b"ours", 0o600).unwrap_err().reason, Reason::SymlinkInPath);
        }
        assert_eq!(std::fs::read_to_string(outside.path().join("file")).unwrap(), "theirs");
    }

    #[test]
    fn refuses_what_is_no_regular_file_or_too_large() {
        let (dir, root) = root();
        rustix::fs::mkfifoat(CWD, dir.path().join("pipe"), Mode::from_raw_mode(0o600)).unwrap();
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        std::fs::write(dir.path().join("large"), [0; 11]).unwrap();
        assert_eq!(root.read("/pipe", 10).unwrap_err().reason, Reason::NotRegularFile);
        assert_eq!(root.read("/folder", 10).unwrap_err().reason, Reason::NotRegularFile);
        assert_eq!(root.write_own("/folder", b"", 0o600).unwrap_err().reason, Reason::NotRegularFile);
        assert_eq!(root.read("/large", 10).unwrap_err().reason, Reason::FileTooLarge);
        assert!(root.read("/none", 10).unwrap().is_none());
        assert!(root.read("/none/none", 10).unwrap().is_none());
    }

    #[test]
    fn removes_a_tree_without_following_links_out_of_it() {
        let (dir, root) = root();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("kept"), "").unwrap();
        std::fs::create_dir_all(dir.path().join("logs/deep")).unwrap();
        std::fs::write(dir.path().join("logs/deep/a"), "").unwrap();
        symlink(outside.path(), dir.path().join("logs/deep/link")).unwrap();
        root.directory("/", Missing::Accept).unwrap().unwrap().remove_tree("logs").unwrap();
        assert!(!dir.path().join("logs").exists());
        assert!(outside.path().join("kept").exists());
    }

    #[test]
    fn names_the_directories_that_are_missing() {
        let (dir, root) = root();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        assert_eq!(root.missing_parents("/etc/a/b/file").unwrap(), ["/etc/a", "/etc/a/b"]);
        assert!(root.missing_parents("/file").unwrap().is_empty());
    }
}
