use std::fmt;

use url::Url;

use super::SourceError;

/// Port of ssh where the URL names none (RFC 4253, section 4.1).
const SSH_PORT: u16 = 22;
/// User of ssh where the URL names none: what every forge uses.
const SSH_USER: &str = "git";

/// Where to fetch from, over a transport that proves who answers. Printing it never shows a secret, because a URL with
/// credentials is not accepted in the first place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    url: String,
    transport: Transport,
}

/// How it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Transport {
    /// A directory of this machine.
    Local,
    /// TLS.
    Https,
    /// ssh.
    Ssh {
        /// Without brackets.
        host: String,
        /// Default 22.
        port: u16,
        /// Default `git`.
        user: String,
    },
}

impl Remote {
    /// Checks an address: `https://`, `ssh://`, `file://` or an absolute path.
    pub fn parse(address: &str) -> Result<Self, SourceError> {
        if address.starts_with('/') {
            return Ok(Self { url: address.to_owned(), transport: Transport::Local });
        }
        let url = Url::parse(address).map_err(|cause| SourceError::Url { why: explain(address, cause) })?;
        let host = || match url.host_str() {
            Some(host) if !host.is_empty() && !host.starts_with('-') => Ok(host.to_owned()),
            _ => Err(SourceError::Url { why: "it names no host".to_owned() }),
        };
        let transport = match url.scheme() {
            "file" if url.host_str().is_some_and(|host| !host.is_empty()) => {
                return Err(SourceError::Url { why: "a file:// address has three slashes and no host".to_owned() });
            }
            "file" => Transport::Local,
            // The user name in an https address is often a token, so it is treated like a password.
            "https" if !url.username().is_empty() || url.password().is_some() => {
                return Err(SourceError::UrlCredentials { host: host()? });
            }
            "https" => {
                host()?;
                Transport::Https
            }
            "ssh" if url.password().is_some() => return Err(SourceError::UrlCredentials { host: host()? }),
            "ssh" => Transport::Ssh {
                host: host()?.trim_start_matches('[').trim_end_matches(']').to_owned(),
                port: url.port().unwrap_or(SSH_PORT),
                user: if url.username().is_empty() { SSH_USER } else { url.username() }.to_owned(),
            },
            "http" | "git" | "ftp" | "ftps" => {
                return Err(SourceError::InsecureTransport { scheme: url.scheme().to_owned() });
            }
            scheme => {
                return Err(SourceError::Url { why: format!("`{scheme}:` is not a transport for git here") });
            }
        };
        if url.query().is_some() || url.fragment().is_some() {
            return Err(SourceError::Url { why: "it has a `?` or `#` in it".to_owned() });
        }
        Ok(Self { url: address.to_owned(), transport })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn transport(&self) -> &Transport {
        &self.transport
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// Says what is wrong without repeating the address: it may hold a password.
fn explain(address: &str, cause: url::ParseError) -> String {
    let scp_like = address.split_once(':').is_some_and(|(left, right)| left.contains('@') && !right.starts_with("//"));
    if scp_like {
        "user@host:path is not an address; write ssh://user@host/path".to_owned()
    } else if cause == url::ParseError::RelativeUrlWithoutBase {
        "it is neither a URL nor an absolute path".to_owned()
    } else {
        cause.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn reason(address: &str) -> &'static str {
        Remote::parse(address).unwrap_err().reason()
    }

    #[test]
    fn transports_that_prove_who_answers() {
        for address in ["/srv/fleet.git", "file:///srv/fleet.git", "https://git.example/fleet.git"] {
            assert_eq!(Remote::parse(address).unwrap().to_string(), address);
        }
        let ssh = |host: &str, port, user: &str| Transport::Ssh { host: host.to_owned(), port, user: user.to_owned() };
        let transport = |address| Remote::parse(address).unwrap().transport;
        assert_eq!(transport("ssh://git.example/fleet"), ssh("git.example", 22, "git"));
        assert_eq!(transport("ssh://hq@git.example:2222/fleet"), ssh("git.example", 2222, "hq"));
        assert_eq!(transport("ssh://git@[::1]:2222/fleet"), ssh("::1", 2222, "git"));
    }

    #[test]
    fn transports_that_do_not() {
        assert_eq!(reason("http://git.example/fleet.git"), "insecure-transport");
        assert_eq!(reason("git://git.example/fleet.git"), "insecure-transport");
        assert_eq!(reason("ext::sh -c date"), "source-url");
        assert_eq!(reason("ext+ssh://git.example/fleet"), "source-url");
        assert_eq!(reason("fleet.git"), "source-url");
        assert_eq!(reason("file://elsewhere/srv/fleet.git"), "source-url");
        assert_eq!(reason("https://git.example/fleet.git?ref=x"), "source-url");
        assert_eq!(reason("ssh://-oProxyCommand=date/fleet"), "source-url");
    }

    #[test]
    fn credentials_are_refused_and_never_printed() {
        for address in [
            "https://token-4711@git.example/fleet.git",
            "https://me:token-4711@git.example/fleet.git",
            "ssh://git:token-4711@git.example/fleet.git",
            "http://me:token-4711@git.example/fleet.git",
            "git:token-4711@git.example:fleet.git",
            "nonsense://me:token-4711@git.example:port/",
        ] {
            let error = Remote::parse(address).unwrap_err();
            assert!(!format!("{error} {error:?} {}", error.remedy()).contains("4711"), "{error:?}");
        }
        assert_eq!(reason("https://me:token-4711@git.example/fleet.git"), "source-url-credentials");
        assert_eq!(reason("ssh://git:token-4711@git.example/fleet.git"), "source-url-credentials");
    }

    #[test]
    fn scp_syntax_says_what_to_write() {
        let error = Remote::parse("git@git.example:fleet.git").unwrap_err();
        assert!(error.to_string().contains("ssh://user@host/path"), "{error}");
    }
}
