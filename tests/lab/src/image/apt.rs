//! This machine's way to the Debian archive: its mirror and its apt settings, used for images too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian is when this machine does not know better.
const MIRROR: &str = "http://deb.debian.org/debian";
const SECURITY: &str = "http://deb.debian.org/debian-security";

/// Settings that decide how packages are fetched; the rest of a machine's configuration is its own affair.
const FETCHING: [&str; 7] = [
    "Acquire::http::",
    "Acquire::https::",
    "Acquire::Check-",
    "Acquire::Max-FutureTime",
    "Acquire::Retries",
    "Acquire::ForceIPv",
    "Acquire::Queue-Mode",
];

/// Environment that tools need behind a proxy.
pub(super) const PROXIES: [&str; 6] =
    ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];

/// One package source.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suite: String,
    signed_by: String,
}

/// The suite of this machine, if it is Debian.
pub(super) fn host_suite() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    let field = |name: &str| {
        release
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    };
    (field("ID")? == "debian").then(|| field("VERSION_CODENAME")).flatten()
}

/// Lines for sources.list that fetch `suite` from where this machine fetches its own.
pub(super) fn sources(suite: &str) -> Vec<String> {
    source_lines(suite, host_suite().as_deref(), &host_sources())
}

/// This machine's settings about fetching, one `key "value"` each.
pub(super) fn settings() -> Vec<String> {
    let dump = Command::new("apt-config").arg("dump").output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&dump)
        .lines()
        .filter(|line| FETCHING.iter().any(|key| line.starts_with(key)))
        .map(|line| line.trim_end_matches(';').to_owned())
        .filter(|line| !line.ends_with(" \"\""))
        .collect()
}

fn source_lines(suite: &str, host: Option<&str>, known: &[Source]) -> Vec<String> {
    let of_suite = |wanted: String| known.iter().filter(move |source| source.suite == wanted);
    let mirror = host.and_then(|host| {
        let updates = format!("{host}-updates");
        // Other people's archives may have a suite of the same name, but not its updates, and not Debian's key.
        let is_debian = |source: &&Source| {
            source.signed_by.contains("debian-archive")
                || source.uri.contains("debian.org/")
                || known.iter().any(|other| other.uri == source.uri && other.suite == updates)
        };
        of_suite(host.to_owned()).find(is_debian)
    });
    let security = host.and_then(|host| of_suite(format!("{host}-security")).next());
    let mirror = mirror.map_or(MIRROR, |source| &source.uri);
    let mut lines = vec![format!("deb {mirror} {suite} main")];
    if !matches!(suite, "sid" | "unstable") {
        lines.push(format!("deb {mirror} {suite}-updates main"));
        lines.push(format!("deb {} {suite}-security main", security.map_or(SECURITY, |source| &source.uri)));
    }
    lines
}

fn host_sources() -> Vec<Source> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    files.extend(parts.map(|entry| entry.path()));
    files.sort();
    files.iter().flat_map(|file| read_sources(file)).collect()
}

fn read_sources(file: &Path) -> Vec<Source> {
    let Ok(text) = fs::read_to_string(file) else {
        return Vec::new();
    };
    let mut sources = match file.extension().and_then(|extension| extension.to_str()) {
        Some("list") => one_line_style(&text),
        Some("sources") => deb822_style(&text),
        _ => Vec::new(),
    };
    for source in &mut sources {
        // Debian's cloud images name their mirror in a file, which an image does not have.
        if let Some(list) = source.uri.strip_prefix("mirror+file:") {
            let list = fs::read_to_string(list).unwrap_or_default();
            source.uri = list.split_whitespace().next().unwrap_or_default().to_owned();
        }
        source.uri.truncate(source.uri.trim_end_matches('/').len());
    }
    sources.retain(|source| source.uri.starts_with("http://") || source.uri.starts_with("https://"));
    sources
}

/// `deb [options] URI SUITE COMPONENT…`
fn one_line_style(text: &str) -> Vec<Source> {
    text.lines()
        .filter_map(|line| {
            let rest = line.split('#').next()?.trim().strip_prefix("deb ")?.trim_start();
            let (options, rest) = match rest.strip_prefix('[') {
                Some(rest) => rest.split_once(']')?,
                None => ("", rest),
            };
            let mut words = rest.split_whitespace();
            let (uri, suite) = (words.next()?.to_owned(), words.next()?.to_owned());
            words.any(|component| component == "main").then(|| Source { uri, suite, signed_by: options.to_owned() })
        })
        .collect()
}

/// Stanzas of `Types:`, `URIs:`, `Suites:`, `Components:`.
fn deb822_style(text: &str) -> Vec<Source> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let mut sources = Vec::new();
    for stanza in lines.split(|line| line.trim().is_empty()) {
        let field = |name: &str| {
            stanza
                .iter()
                .find_map(|line| line.split_once(':').filter(|(key, _)| key.eq_ignore_ascii_case(name)))
                .map_or("", |(_, value)| value.trim())
        };
        let has = |name: &str, word: &str| field(name).split_whitespace().any(|each| each == word);
        if field("Enabled") == "no" || !has("Types", "deb") || !has("Components", "main") {
            continue;
        }
        for uri in field("URIs").split_whitespace() {
            for suite in field("Suites").split_whitespace() {
                sources.push(Source { uri: uri.into(), suite: suite.into(), signed_by: field("Signed-By").into() });
            }
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb
URIs: https://tools.example.net/stable/debian
Suites: bookworm
Components: main

# a comment
Types: deb deb-src
URIs: http://mirror.example.net/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example.net/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example.net/debian-security
Suites: bookworm-security
Components: main
";

    #[test]
    fn another_suite_comes_from_the_same_mirror() {
        let known = deb822_style(DEB822);
        let expected = [
            "deb http://mirror.example.net/debian trixie main",
            "deb http://mirror.example.net/debian trixie-updates main",
            "deb http://mirror.example.net/debian-security trixie-security main",
        ];
        assert_eq!(source_lines("trixie", Some("bookworm"), &known), expected);
    }

    #[test]
    fn the_one_line_style_says_the_same() {
        let known = one_line_style(
            "# deb http://old.example.net/debian bookworm main\n\
             deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://m.example.net/d bookworm main contrib\n\
             deb-src http://src.example.net/debian bookworm main\n\
             deb http://other.example.net/debian bookworm stable\n",
        );
        assert_eq!(known.len(), 1);
        assert_eq!(source_lines("bookworm", Some("bookworm"), &known)[0], "deb http://m.example.net/d bookworm main");
    }

    #[test]
    fn without_a_debian_mirror_there_is_the_public_one() {
        let lines = source_lines("bookworm", None, &deb822_style(DEB822));
        assert_eq!(lines[0], format!("deb {MIRROR} bookworm main"));
        assert_eq!(lines[2], format!("deb {SECURITY} bookworm-security main"));
        assert_eq!(source_lines("sid", None, &[]), [format!("deb {MIRROR} sid main")]);
    }
}
