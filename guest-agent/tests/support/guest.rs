//! A guest in a directory: sealed by the real agent, then started.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use contract::bootstrap::Bootstrap;
use contract::secret::Secret;

/// Path of another build of the agent, such as the release for musl, to put under the same tests.
pub const OTHER_AGENT: &str = "CTRLABLE_AGENT_UNDER_TEST";
pub const CLAIM: &str = "claim-that-no-log-may-show";
pub const MACHINE_ID: &str = "0123456789abcdef0123456789abcdef";

pub struct Guest {
    pub dir: tempfile::TempDir,
    pub notify: UnixDatagram,
}

impl Guest {
    /// A template for this orchestrator, sealed.
    pub fn sealed(url: &str, ca: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let notify = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        notify.set_nonblocking(true).unwrap();
        let guest = Self { dir, notify };
        let bootstrap = Bootstrap {
            protocol: contract::PROTOCOL,
            site: "acme-hq".parse().unwrap(),
            release: "2026.06".parse().unwrap(),
            template: "mosquitto".parse().unwrap(),
            orchestrators: vec!["https://127.0.0.1:1".to_owned(), url.to_owned()],
            ca: ca.to_owned(),
            claim: Secret::new(CLAIM),
        };
        guest.file("etc/ctrlable/bootstrap.json", &serde_json::to_string(&bootstrap).unwrap(), 0o600);
        guest.file("usr/local/bin/ctrlable-agent", "", 0o755);
        guest.file("etc/systemd/system/ctrlable-agent.service", "", 0o644);
        std::fs::create_dir_all(guest.path("etc/systemd/system/multi-user.target.wants")).unwrap();
        let unit = "/etc/systemd/system/ctrlable-agent.service";
        symlink(unit, guest.path("etc/systemd/system/multi-user.target.wants/ctrlable-agent.service")).unwrap();
        guest.file("etc/machine-id", MACHINE_ID, 0o444);
        guest.file("etc/ssh/ssh_host_rsa_key", "the template's", 0o600);
        guest.file("etc/hostname", "ctrlable-acme-hq-mqtt\n", 0o644);
        for (file, text) in [("type", "1"), ("ifindex", "2"), ("address", "bc:24:11:00:00:01")] {
            guest.file(&format!("sys/class/net/eth0/{file}"), text, 0o644);
        }
        let sealed = guest.command("seal").output().unwrap();
        assert!(sealed.status.success(), "{}", String::from_utf8_lossy(&sealed.stderr));
        guest
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    pub fn file(&self, path: &str, text: &str, mode: u32) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // A file of mode 0444 is replaced, not written to.
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    pub fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.path(path)).ok()
    }

    pub fn state(&self) -> Option<serde_json::Value> {
        serde_json::from_str(&self.read("var/lib/ctrlable-agent/state.json")?).ok()
    }

    pub fn phase(&self) -> Option<String> {
        Some(self.state()?["phase"].as_str()?.to_owned())
    }

    pub fn problems(&self) -> String {
        self.read("run/ctrlable-agent/status.json").unwrap_or_default()
    }

    pub fn command(&self, verb: &str) -> Command {
        let other = std::env::var_os(OTHER_AGENT);
        let mut command = Command::new(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_ctrlable-agent").into()));
        command.arg(verb).arg("--root").arg(self.dir.path()).env_remove("NOTIFY_SOCKET");
        command
    }

    /// Starts the service; its log is appended to `agent.log`.
    pub fn start(&self, bus: &str) -> Running {
        // What an earlier run said would otherwise fill the socket.
        self.notifications();
        let log = std::fs::File::options().create(true).append(true).open(self.path("agent.log")).unwrap();
        let mut command = self.command("run");
        command.env("DBUS_SYSTEM_BUS_ADDRESS", bus).env("NOTIFY_SOCKET", self.path("notify"));
        command.env("WATCHDOG_USEC", "200000");
        // A proxy in the environment must not see anything of the guest's.
        command.env("https_proxy", "http://127.0.0.1:1").env("http_proxy", "http://127.0.0.1:1");
        Running(command.stderr(log).stdout(Stdio::null()).spawn().unwrap())
    }

    pub fn log(&self) -> String {
        self.read("agent.log").unwrap_or_default()
    }

    /// What systemd was told since the last call.
    pub fn notifications(&self) -> Vec<String> {
        let mut told = Vec::new();
        let mut buffer = [0; 1024];
        while let Ok(length) = self.notify.recv(&mut buffer) {
            told.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        told
    }

    /// Every file below the guest whose content holds `needle`.
    pub fn files_with(&self, needle: &str) -> Vec<PathBuf> {
        fn visit(dir: &Path, needle: &[u8], found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
                let path = entry.path();
                if entry.file_type().unwrap().is_dir() {
                    visit(&path, needle, found);
                } else if let Ok(bytes) = std::fs::read(&path)
                    && bytes.windows(needle.len()).any(|window| window == needle)
                {
                    found.push(path);
                }
            }
        }
        let mut found = Vec::new();
        visit(self.dir.path(), needle.as_bytes(), &mut found);
        found
    }
}

/// A running agent; killed when it is dropped.
pub struct Running(pub Child);

impl Running {
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Asks for the end, as systemd does, and returns the exit code.
    pub fn terminate(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.0.wait().unwrap().code()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // The log is worth reading when a test fails, and only then.
        if std::thread::panicking() {
            eprintln!("log of the agent:\n{}\nstatus: {}", self.log(), self.problems());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
