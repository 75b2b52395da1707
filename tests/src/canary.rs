//! Canary secrets: values that cannot be mistaken for anything else, and a search for them in directories, git
//! repositories, processes and texts. Whatever is found outside the places that should hold it is a leak.

use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::run::{command, run_expecting};

/// Bytes that are read at a time: guests' disks are larger than memory.
const CHUNK: usize = 1 << 20;

/// Secrets to look for.
#[derive(Debug)]
pub struct Canaries {
    canaries: Vec<Canary>,
}

#[derive(Debug)]
struct Canary {
    name: String,
    value: String,
    /// The value as it is, and as it looks in the encodings that are nearest at hand.
    forms: Vec<Vec<u8>>,
}

/// A place where a canary was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// File, process or text.
    pub place: String,
    /// Name of the canary.
    pub canary: String,
}

/// A file that may hold a canary: nobody but its owner may read it.
pub fn is_private(_: &Path, metadata: &Metadata) -> bool {
    metadata.permissions().mode() & 0o077 == 0
}

impl Canaries {
    /// Fresh values under these names. They are made at run time, so that no program of the build holds them.
    pub fn fresh(names: &[&str]) -> Result<Self> {
        let mut random = File::open("/dev/urandom")?;
        let canaries = names.iter().map(|name| {
            let mut bytes = [0; 8];
            random.read_exact(&mut bytes)?;
            Ok(Canary::new(name, &format!("canary-{:016x}", u64::from_le_bytes(bytes))))
        });
        Ok(Self { canaries: canaries.collect::<Result<_>>()? })
    }

    /// Values that are there already, by name.
    pub fn of(known: &[(&str, &str)]) -> Self {
        Self { canaries: known.iter().map(|(name, value)| Canary::new(name, value)).collect() }
    }

    /// One value.
    pub fn value(&self, name: &str) -> &str {
        self.canaries.iter().find(|canary| canary.name == name).map_or("", |canary| &canary.value)
    }

    /// Looks into a text, such as what a command printed.
    pub fn in_text(&self, place: &str, text: &[u8]) -> Vec<Found> {
        let found = self.canaries.iter().filter(|canary| canary.is_in(text));
        found.map(|canary| Found { place: place.to_owned(), canary: canary.name.clone() }).collect()
    }

    /// Looks into every file below a directory and at every name; links are not followed. `may_hold` says which files
    /// are right to hold one. The content of git's objects is looked into as well, although git compresses it.
    pub fn in_directory(&self, dir: &Path, may_hold: &dyn Fn(&Path, &Metadata) -> bool) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        let mut open = vec![dir.to_owned()];
        while let Some(next) = open.pop() {
            if next.join("objects").is_dir() && next.join("HEAD").is_file() {
                found.extend(self.in_git(&next)?);
            }
            // What vanishes while it is looked at is no place to keep a secret.
            let Ok(entries) = fs::read_dir(&next) else { continue };
            for entry in entries {
                let path = entry?.path();
                let Ok(metadata) = path.symlink_metadata() else { continue };
                found.extend(
                    self.in_text(&format!("the name of {}", path.display()), path.as_os_str().as_encoded_bytes()),
                );
                if metadata.is_dir() {
                    open.push(path);
                } else if metadata.is_symlink() {
                    let target = fs::read_link(&path).unwrap_or_default();
                    let place = format!("the target of {}", path.display());
                    found.extend(self.in_text(&place, target.as_os_str().as_encoded_bytes()));
                } else if metadata.is_file() && !may_hold(&path, &metadata) {
                    found.extend(self.in_file(&path));
                }
            }
        }
        Ok(found)
    }

    /// Looks into all objects of a git repository.
    fn in_git(&self, directory: &Path) -> Result<Vec<Found>> {
        let mut cat = command("git", ["cat-file", "--batch-all-objects", "--batch"]);
        let output = run_expecting(cat.env("GIT_DIR", directory), &[0])?;
        Ok(self.in_text(&format!("the objects of {}", directory.display()), &output.stdout))
    }

    /// Looks into one file, piece by piece; pieces overlap, so that nothing hides on a border.
    fn in_file(&self, path: &Path) -> Vec<Found> {
        let overlap = self.canaries.iter().flat_map(|canary| &canary.forms).map(Vec::len).max().unwrap_or(0);
        let (Ok(mut file), mut piece) = (File::open(path), Vec::new()) else { return Vec::new() };
        let mut found: Vec<Found> = Vec::new();
        loop {
            let kept = piece.len().min(overlap);
            piece.drain(..piece.len() - kept);
            let read = file.by_ref().take(CHUNK as u64).read_to_end(&mut piece).unwrap_or(0);
            if read == 0 {
                return found;
            }
            for one in self.in_text(&path.display().to_string(), &piece) {
                if !found.contains(&one) {
                    found.push(one);
                }
            }
        }
    }

    /// Looks at the arguments and the environment of processes and of everything that they started.
    pub fn in_processes(&self, pids: &[u32]) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for pid in with_children(pids)? {
            for part in ["cmdline", "environ"] {
                let place = format!("/proc/{pid}/{part}");
                // A process that has ended since has nothing left.
                found.extend(self.in_text(&place, &fs::read(&place).unwrap_or_default()));
            }
        }
        Ok(found)
    }
}

impl Canary {
    fn new(name: &str, value: &str) -> Self {
        let hex: String = value.bytes().map(|byte| format!("{byte:02x}")).collect();
        let url: String = value.bytes().map(|byte| format!("%{byte:02X}")).collect();
        // Base64 has three forms of a text inside another one, and the first and last sign of each depend on its
        // neighbours.
        let base64 = (0..3).map(|shift| {
            let text = base64(&[&vec![0; shift][..], value.as_bytes()].concat());
            text.into_bytes()[4..(shift + value.len()) / 3 * 4].to_vec()
        });
        let forms = [value.as_bytes().to_vec(), hex.into_bytes(), url.into_bytes()];
        Self { name: name.to_owned(), value: value.to_owned(), forms: forms.into_iter().chain(base64).collect() }
    }

    fn is_in(&self, text: &[u8]) -> bool {
        self.forms.iter().any(|form| text.windows(form.len()).any(|window| window == form.as_slice()))
    }
}

/// Base64 without padding: RFC 4648.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        let signs = (0..=three.len()).map(|at| char::from(ALPHABET[(bits >> (18 - 6 * at) & 63) as usize]));
        text.extend(signs);
    }
    text
}

/// Processes with everything that they started, and what that started.
fn with_children(pids: &[u32]) -> Result<Vec<u32>> {
    let mut all = pids.to_vec();
    let mut parents: Vec<(u32, u32)> = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = fs::read_to_string(PathBuf::from("/proc").join(&name).join("stat")).unwrap_or_default();
        // proc_pid_stat(5): the name stands in brackets and may hold anything; state and parent follow.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    let mut next = 0;
    while let Some(parent) = all.get(next).copied() {
        all.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    Ok(all)
}

/// Whether a process leaves no core dump, by its limits.
pub fn leaves_no_core(pid: u32) -> Result<bool> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).context("no limit of cores")?;
    Ok(core.split_whitespace().take(2).all(|limit| limit == "0"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;
    use crate::run::run;

    #[test]
    fn a_canary_is_found_wherever_it_is() -> Result<()> {
        let canaries = Canaries::fresh(&["one", "two"])?;
        let (one, dir) = (canaries.value("one"), tempfile::tempdir()?);
        let look = |dir: &Path| -> Result<Vec<String>> {
            let mut places: Vec<String> = canaries
                .in_directory(dir, &is_private)?
                .into_iter()
                .map(|found| format!("{} {}", found.canary, found.place.replace(&dir.display().to_string(), "")))
                .collect();
            places.sort();
            Ok(places)
        };
        fs::write(dir.path().join("clean"), "canary-0123456789abcdef")?;
        assert!(look(dir.path())?.is_empty());
        // On the border of two pieces, in a name, in a link, in a private file.
        let border = [&vec![b'x'; CHUNK - 5][..], one.as_bytes(), b"x"].concat();
        fs::write(dir.path().join("border"), border)?;
        fs::write(dir.path().join(format!("name-{one}")), "")?;
        std::os::unix::fs::symlink(one, dir.path().join("link"))?;
        fs::write(dir.path().join("private"), one)?;
        fs::set_permissions(dir.path().join("private"), fs::Permissions::from_mode(0o600))?;
        let expected =
            ["one /border".to_owned(), format!("one the name of /name-{one}"), "one the target of /link".to_owned()];
        assert_eq!(look(dir.path())?, expected);
        Ok(())
    }

    #[test]
    fn a_canary_is_found_in_git_and_in_encodings() -> Result<()> {
        let canaries = Canaries::fresh(&["one"])?;
        let (one, dir) = (canaries.value("one").to_owned(), tempfile::tempdir()?);
        run(command("git", ["init", "--quiet"]).arg(dir.path()))?;
        let file = dir.path().join("file");
        fs::write(&file, format!("x{one}"))?;
        let git = |arguments: &[&str]| run(command("git", arguments).current_dir(dir.path()));
        git(&["add", "file"])?;
        fs::remove_file(file)?;
        let found = canaries.in_directory(dir.path(), &is_private)?;
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].place.starts_with("the objects of "), "{found:?}");
        for before in ["", "a", "ab", "abc"] {
            let text = base64(format!("{before}{one}zz").as_bytes());
            assert_eq!(canaries.in_text("base64", text.as_bytes()).len(), 1, "{text}");
        }
        Ok(())
    }

    #[test]
    fn a_canary_is_found_in_a_childs_arguments_and_environment() -> Result<()> {
        let canaries = Canaries::fresh(&["one", "two"])?;
        let script = "sleep 60 & wait";
        let mut shell = command("sh", ["-c", script, canaries.value("one")]);
        let mut child = shell.env("X", canaries.value("two")).process_group(0).spawn()?;
        let found = crate::run::await_for("the child is there", std::time::Duration::from_secs(20), || {
            let found = canaries.in_processes(&[std::process::id()])?;
            Ok((found.len() >= 3).then_some(found))
        });
        run(&mut command("kill", ["--", &format!("-{}", child.id())]))?;
        child.wait()?;
        let mut names: Vec<String> = found?.into_iter().map(|found| found.canary).collect();
        names.sort();
        assert_eq!(names, ["one", "two", "two"], "arguments of the shell, environment of shell and sleep");
        Ok(())
    }
}
