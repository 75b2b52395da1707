//! Probes: what must hold for the guest to be healthy, besides its units.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use contract::assignment::{HttpProbe, Probe, TcpProbe};
use contract::health::ProbeHealth;
use contract::ids::UnitName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::dbus::SystemBus;

/// Longest wait for one probe: the service is on the same machine.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes of an HTTP answer that are read: the status line is all that counts.
const ANSWER_LIMIT: usize = 64;

/// Tries every probe once, in order.
pub(crate) async fn run<B: SystemBus>(bus: &B, probes: &[Probe]) -> Vec<ProbeHealth> {
    let mut results = Vec::new();
    for probe in probes {
        let outcome = match probe {
            Probe::Unit(unit) => unit_active(bus, unit).await,
            Probe::Tcp(TcpProbe { port }) => connect(IpAddr::V4(Ipv4Addr::LOCALHOST), *port).await.map(drop),
            Probe::Http(HttpProbe { url }) => {
                timeout(PROBE_TIMEOUT, get(url)).await.unwrap_or_else(|_| Err("does not answer in time".to_owned()))
            }
        };
        results.push(ProbeHealth { probe: probe.to_string(), failure: outcome.err() });
    }
    results
}

async fn unit_active<B: SystemBus>(bus: &B, unit: &UnitName) -> Result<(), String> {
    let states = bus.unit_states(std::slice::from_ref(unit)).await.map_err(|error| error.to_string())?;
    match states.first() {
        Some(state) if state.active == "active" => Ok(()),
        Some(state) => Err(format!("is {} ({})", state.active, state.sub)),
        None => Err("is unknown".to_owned()),
    }
}

async fn connect(address: IpAddr, port: u16) -> Result<TcpStream, String> {
    match timeout(PROBE_TIMEOUT, TcpStream::connect((address, port))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(cause)) => Err(cause.to_string()),
        Err(_) => Err("is not accepted in time".to_owned()),
    }
}

/// A GET by hand: one request, the status line of its answer, to this machine only.
async fn get(url: &str) -> Result<(), String> {
    let url = reqwest::Url::parse(url).map_err(|cause| format!("is not a URL: {cause}"))?;
    let address = match url.host_str() {
        Some("127.0.0.1" | "localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
        _ => return Err("does not name this machine".to_owned()),
    };
    if url.scheme() != "http" {
        return Err("is not http".to_owned());
    }
    let port = url.port_or_known_default().unwrap_or(80);
    let mut stream = connect(address, port).await?;
    let target = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    let request = format!(
        "GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: ctrlable-agent\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(|cause| cause.to_string())?;
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') && answer.len() < ANSWER_LIMIT {
        let mut buffer = [0; ANSWER_LIMIT];
        match stream.read(&mut buffer).await.map_err(|cause| cause.to_string())? {
            0 => break,
            length => answer.extend_from_slice(&buffer[..length]),
        }
    }
    let line = String::from_utf8_lossy(&answer);
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split_ascii_whitespace().nth(1));
    match status.and_then(|status| status.parse::<u16>().ok()) {
        Some(200..=399) => Ok(()),
        Some(status) => Err(format!("answers {status}")),
        None => Err("does not answer in HTTP".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::net::TcpListener;

    use super::*;
    use crate::dbus::fake::FakeBus;

    async fn serve(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let length = stream.read(&mut request).await.unwrap();
                assert!(request[..length].starts_with(b"GET /health?deep=1 HTTP/1.1\r\n") || length == 0);
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        port
    }

    async fn probe(probe: Probe) -> Option<String> {
        run(&FakeBus::new(|_| "active"), &[probe]).await.remove(0).failure
    }

    fn http(url: String) -> Probe {
        Probe::Http(HttpProbe { url })
    }

    #[tokio::test]
    async fn http_goes_by_the_status_line() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\n", None),
            ("HTTP/1.0 302 Found\r\n\r\n", None),
            ("HTTP/1.1 503 Busy\r\n\r\n", Some("answers 503")),
            ("SSH-2.0-OpenSSH\r\n", Some("does not answer in HTTP")),
            ("", Some("does not answer in HTTP")),
        ] {
            let port = serve(answer).await;
            assert_eq!(probe(http(format!("http://127.0.0.1:{port}/health?deep=1"))).await.as_deref(), expected);
        }
    }

    #[tokio::test]
    async fn http_stays_on_this_machine() {
        for url in ["http://192.0.2.1/", "https://127.0.0.1/", "file:///etc/passwd", "nonsense"] {
            assert!(probe(http(url.to_owned())).await.is_some(), "{url}");
        }
    }

    #[tokio::test]
    async fn tcp_tells_open_from_closed() {
        let port = serve("").await;
        assert_eq!(probe(Probe::Tcp(TcpProbe { port })).await, None);
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        assert!(probe(Probe::Tcp(TcpProbe { port: closed })).await.unwrap().contains("refused"));
    }

    #[tokio::test]
    async fn a_unit_must_be_active() {
        let bus = FakeBus::new(|_| "active");
        bus.units.borrow_mut().insert("up.service".to_owned(), "active".to_owned());
        let probes = ["up.service", "down.service"].map(|unit| Probe::Unit(unit.parse().unwrap()));
        let failures: Vec<bool> = run(&bus, &probes).await.iter().map(|probe| probe.failure.is_some()).collect();
        assert_eq!(failures, [false, true]);
    }
}
