//! A bare remote and the clone of somebody who pushes to it, made with the git command in a temporary directory.
#![allow(clippy::unwrap_used, clippy::panic, dead_code, unreachable_pub)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use contract::ids::Revision;
use orchestrator::source::{Limits, Repository, Settings};
use tempfile::TempDir;

/// A remote, and the state directory of an orchestrator that fetches from it.
pub struct Remote {
    directory: TempDir,
}

impl Remote {
    /// An empty remote.
    pub fn new() -> Self {
        let remote = Self { directory: TempDir::new().unwrap() };
        remote.run(remote.path(), &["init", "--quiet", "--bare", "--initial-branch=main", "remote.git"]);
        remote.run(remote.path(), &["init", "--quiet", "--initial-branch=main", "work"]);
        remote.git(&["remote", "add", "origin", "../remote.git"]);
        remote
    }

    /// Everything is below this directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The bare repository.
    pub fn bare(&self) -> PathBuf {
        self.path().join("remote.git")
    }

    /// Writes a file into the clone.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        let file = self.path().join("work").join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
        self
    }

    /// Removes a file from the clone.
    pub fn remove(&self, path: &str) -> &Self {
        fs::remove_file(self.path().join("work").join(path)).unwrap();
        self
    }

    /// Commits everything.
    pub fn commit(&self, subject: &str) -> Revision {
        self.git(&["add", "--all"]);
        self.commit_index(subject)
    }

    /// Commits what the index holds.
    pub fn commit_index(&self, subject: &str) -> Revision {
        self.git(&["commit", "--quiet", "--allow-empty", "--message", subject]);
        self.git(&["rev-parse", "HEAD"]).parse().unwrap()
    }

    /// Pushes the current branch.
    pub fn push(&self) {
        self.git(&["push", "--quiet", "--force", "origin", "HEAD"]);
    }

    /// Commits everything and pushes it.
    pub fn publish(&self, subject: &str) -> Revision {
        let revision = self.commit(subject);
        self.push();
        revision
    }

    /// Removes a branch from the bare repository.
    pub fn delete_branch(&self, branch: &str) {
        self.run(&self.bare(), &["update-ref", "-d", &format!("refs/heads/{branch}")]);
    }

    /// Puts an entry of any kind into the index: `120000` is a symbolic link, `160000` a submodule.
    pub fn stage(&self, mode: &str, content: &str, path: &str) {
        let blob = self.path().join("blob");
        fs::write(&blob, content).unwrap();
        let object = match mode {
            "160000" => "1".repeat(40),
            _ => self.git(&["hash-object", "-w", "--no-filters", blob.to_str().unwrap()]),
        };
        self.git(&["update-index", "--add", "--cacheinfo", &format!("{mode},{object},{path}")]);
    }

    /// Runs git in the clone.
    pub fn git(&self, arguments: &[&str]) -> String {
        self.run(&self.path().join("work"), arguments)
    }

    fn run(&self, directory: &Path, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .current_dir(directory)
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap())
            .env("HOME", self.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .envs([("GIT_AUTHOR_NAME", "t"), ("GIT_AUTHOR_EMAIL", "t@t.invalid")])
            .envs([("GIT_COMMITTER_NAME", "t"), ("GIT_COMMITTER_EMAIL", "t@t.invalid")])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// How the remote is reached through the file system.
    pub fn settings(&self) -> Settings {
        Settings {
            url: format!("file://{}", self.bare().display()),
            branch: "main".to_owned(),
            ssh: None,
            ca_file: None,
            limits: Limits::default(),
        }
    }

    /// Where the orchestrator keeps its copy.
    pub fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    /// The orchestrator's copy.
    pub fn open(&self) -> Repository {
        Repository::open(&self.state(), self.settings()).unwrap()
    }
}
