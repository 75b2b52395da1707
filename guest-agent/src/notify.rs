//! What systemd is told: readiness, a sentence for `systemctl status`, and signs of life (sd_notify(3)).

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The socket to the service manager; does nothing where there is none.
pub(crate) struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// From `NOTIFY_SOCKET` and `WATCHDOG_USEC`, as systemd sets them.
    pub(crate) fn from_environment() -> Self {
        let micros = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse::<u64>().ok());
        Self::new(std::env::var_os("NOTIFY_SOCKET"), micros)
    }

    fn new(address: Option<OsString>, watchdog_micros: Option<u64>) -> Self {
        let socket = address.and_then(|address| {
            let target = match address.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok()?,
                _ => SocketAddr::from_pathname(&address).ok()?,
            };
            Some((UnixDatagram::unbound().ok()?, target))
        });
        // Half of what systemd allows, as sd_watchdog_enabled(3) advises.
        let watchdog = watchdog_micros.filter(|micros| *micros > 0).map(|micros| Duration::from_micros(micros / 2));
        Self { socket, watchdog }
    }

    /// How often [`Self::alive`] is due.
    pub(crate) fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The identity is reset: what is ordered behind the agent, sshd above all, may start.
    pub(crate) fn ready(&self) {
        self.send("READY=1");
        // This message had to arrive. No other is worth holding the loop for while systemd is busy.
        if let Some((socket, _)) = &self.socket {
            let _ = socket.set_nonblocking(true);
        }
    }

    /// The loop still turns.
    pub(crate) fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// A sentence for `systemctl status`.
    pub(crate) fn status(&self, sentence: &str) {
        self.send(&format!("STATUS={}", sentence.replace('\n', " ")));
    }

    /// The agent is about to end.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// A lost message costs a status line at most; a missed watchdog is systemd's to judge.
    fn send(&self, message: &str) {
        if let Some((socket, target)) = &self.socket {
            let _ = socket.send_to_addr(message.as_bytes(), target);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn speaks_the_protocol_over_a_socket_with_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let server = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(Some(path.into_os_string()), Some(30_000_000));
        assert_eq!(notifier.watchdog_interval(), Some(Duration::from_secs(15)));
        notifier.ready();
        notifier.status("two\nlines");
        notifier.alive();
        notifier.stopping();
        let mut got = Vec::new();
        for _ in 0..4 {
            let mut buffer = [0; 64];
            let length = server.recv(&mut buffer).unwrap();
            got.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        assert_eq!(got, ["READY=1", "STATUS=two lines", "WATCHDOG=1", "STOPPING=1"]);
    }

    #[test]
    fn a_service_manager_that_does_not_listen_holds_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _server = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(Some(path.into_os_string()), None);
        notifier.ready();
        (0..10_000).for_each(|_| notifier.alive());
    }

    #[test]
    fn is_silent_without_a_service_manager() {
        let notifier = Notifier::new(None, None);
        notifier.ready();
        assert_eq!(notifier.watchdog_interval(), None);
    }
}
