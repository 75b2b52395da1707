//! Making images: mmdebstrap for a fresh Debian, a copy and a chroot for everything else.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::apt;
use crate::runtime::Failure;
use crate::runtime::nspawn::tool::not_started;

/// Its comments say what it does.
const INSIDE: &str = include_str!("inside.sh");

/// Lines of a failed tool's output that are shown: an apt failure with its context.
const SHOWN_LINES: usize = 30;

/// In the image for good: it saves a third of the space, and packages installed later should do the same.
const DPKG_OPTIONS: [&str; 4] = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*/*",
];

/// An image in the making.
pub(super) struct Workshop {
    root: PathBuf,
    packages: PathBuf,
}

impl Workshop {
    /// A workshop for the root file system at `root`, with a package cache.
    pub(super) fn new(root: PathBuf, packages: PathBuf) -> Result<Self, Failure> {
        let workshop = Self { root, packages };
        fs::create_dir_all(&workshop.packages).map_err(|error| at(&workshop.packages, &error))?;
        // Package scripts are run as root anyway; the sandbox user has no right to the cache.
        let mut settings = apt::settings();
        settings.extend(
            ["APT::Sandbox::User \"root\"", "APT::Install-Recommends \"false\"", "Acquire::Languages \"none\""]
                .map(str::to_owned),
        );
        let text: String = settings.iter().map(|line| format!("{line};\n")).collect();
        let file = workshop.packages.join("settings");
        fs::write(&file, text).map_err(|error| at(&file, &error))?;
        Ok(workshop)
    }

    /// Makes a fresh Debian with systemd-networkd.
    pub(super) fn debootstrap(&self, suite: &str, packages: &[String]) -> Result<(), Failure> {
        eprintln!("image {suite}: mmdebstrap with {}", packages.join(" "));
        let mut command = contained(&["--mount-proc"]);
        command.args(["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"]);
        command.arg(format!("--include={}", packages.join(",")));
        command.args(apt::settings().iter().map(|setting| format!("--aptopt={setting}")));
        command.args(DPKG_OPTIONS.iter().map(|option| format!("--dpkgopt={option}")));
        command.arg(suite).arg(&self.root).args(apt::sources(suite));
        watch(command, Stdio::null(), "mmdebstrap")?;
        self.shell("systemctl enable systemd-networkd.service && rm -f /etc/apt/apt.conf.d/99mmdebstrap")?;
        // This machine's own, which mmdebstrap copies. A lab has no name server: an empty file makes look-ups fail at once.
        let resolver = self.root.join("etc/resolv.conf");
        fs::remove_file(&resolver).map_err(|error| at(&resolver, &error))?;
        self.write("etc/resolv.conf", "")?;
        self.write("etc/hostname", "localhost\n")?;
        self.write("etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")?;
        // Empty, not missing and not `uninitialized`: systemd takes those for a first boot and applies all presets.
        self.write("etc/machine-id", "")?;
        self.clean()
    }

    /// Starts from another root file system.
    pub(super) fn copy(&self, base: &Path) -> Result<(), Failure> {
        let mut command = Command::new("cp");
        command.args(["--archive", "--reflink=auto", "--no-target-directory", "--"]).args([base, &self.root]);
        watch(command, Stdio::null(), "cp")
    }

    /// Installs Debian packages, without starting what they bring.
    pub(super) fn install(&self, packages: &[String]) -> Result<(), Failure> {
        let list = packages.join(" ");
        self.shell(&format!("apt-get --quiet update && apt-get --quiet --yes install {list}"))
    }

    /// Copies a tree over the image. Directories that are there keep their mode, links to directories are followed;
    /// and since the image's own tar unpacks inside the image, no link leads out of it.
    pub(super) fn overlay(&self, tree: &Path) -> Result<(), Failure> {
        let mut pack = Command::new("tar");
        pack.args(["--create", "--file=-", "--owner=0", "--group=0", "--numeric-owner"])
            .arg("--directory")
            .arg(tree)
            .arg(".");
        let mut pack = pack.stdout(Stdio::piped()).spawn().map_err(|error| not_started("tar", &error))?;
        let archive = pack.stdout.take().map_or_else(Stdio::null, Stdio::from);
        let unpacked = self.inside(
            "tar --extract --file=- --preserve-permissions --no-overwrite-dir --keep-directory-symlink",
            archive,
        );
        let packed = pack.wait().map_err(|error| format!("tar: {error}"))?;
        unpacked?;
        if packed.success() { Ok(()) } else { Err(format!("tar could not read all of {} ({packed})", tree.display())) }
    }

    /// Runs a shell command in the image.
    pub(super) fn shell(&self, command: &str) -> Result<(), Failure> {
        self.inside(command, Stdio::null())
    }

    /// Removes what the build needed and a guest does not.
    pub(super) fn clean(&self) -> Result<(), Failure> {
        self.shell("rm -f /var/cache/apt/*.bin /var/log/apt/* /var/log/dpkg.log /var/log/alternatives.log /var/cache/ldconfig/aux-cache")
    }

    fn inside(&self, command: &str, input: Stdio) -> Result<(), Failure> {
        let mut inside = contained(&[]);
        inside.args(["sh", "-c", INSIDE, "inside.sh"]).args([&self.root, &self.packages]).arg(command);
        watch(inside, input, command)
    }

    fn write(&self, path: &str, text: &str) -> Result<(), Failure> {
        let file = self.root.join(path);
        // mmdebstrap copies some of these with whatever mode they have out here.
        fs::write(&file, text)
            .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(0o644)))
            .map_err(|error| at(&file, &error))
    }
}

/// The beginning of a command whose processes and mounts all go when it ends, and when we do.
fn contained(more: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig=KILL",
        "unshare",
        "--mount",
        "--propagation=slave",
        "--pid",
        "--fork",
        "--kill-child=KILL",
    ]);
    command
        .args(more)
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.envs(apt::PROXIES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command
}

/// Runs a command to its end; a failure shows the end of what it printed.
fn watch(mut command: Command, input: Stdio, name: &str) -> Result<(), Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let (reader, writer) = io::pipe().map_err(|error| format!("{name}: {error}"))?;
    let errors = writer.try_clone().map_err(|error| format!("{name}: {error}"))?;
    let mut child =
        command.stdin(input).stdout(writer).stderr(errors).spawn().map_err(|error| not_started(&program, &error))?;
    // It holds our ends of the pipe, without which there is no end of file.
    drop(command);
    let mut tail = VecDeque::new();
    for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
        if tail.len() == SHOWN_LINES {
            tail.pop_front();
        }
        tail.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
    }
    let status = child.wait().map_err(|error| format!("{name}: {error}"))?;
    if status.success() {
        return Ok(());
    }
    if tail.iter().any(|line| line.contains("failed to execute mmdebstrap")) {
        return Err(
            "cannot run mmdebstrap: it is not installed; install it with: apt-get install mmdebstrap".to_owned()
        );
    }
    Err(format!("`{name}` failed ({status}):\n{}", tail.make_contiguous().join("\n")))
}

fn at(path: &Path, error: &io::Error) -> Failure {
    format!("{}: {error}", path.display())
}
