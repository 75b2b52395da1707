//! Who calls, and what they may do.

pub(crate) mod privileges;

use std::time::Duration;

use crate::clock;
use crate::http::{Head, decode};
use crate::state::Cluster;

/// Proxmox's pause before it answers 401.
pub(crate) const DELAY: Duration = Duration::from_secs(3);

/// Whoever proved an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// `user@realm` or `user@realm!token`: owner of tasks, subject of ACLs.
    pub(crate) id: String,
    pub(crate) user: String,
    pub(crate) token: Option<String>,
    pub(crate) privsep: bool,
}

impl Caller {
    /// Nobody: for the calls that need no credentials.
    pub(crate) fn nobody() -> Self {
        Self { id: String::new(), user: String::new(), token: None, privsep: true }
    }
}

/// Checks the credentials of a request; the error is the reason of the 401.
pub(crate) fn authenticate(head: &Head, cluster: &Cluster, unified_text: bool) -> Result<Caller, String> {
    let detail = |text: String| {
        if unified_text { "Authentication failed!".to_owned() } else { text }
    };
    if cookie(head).is_some() {
        // Tickets are not part of this lab: a cookie wins over a token, and nobody holds a valid one.
        return Err(if head.method == "GET" {
            "permission denied - invalid PVE ticket".to_owned()
        } else {
            "Permission denied - invalid csrf token".to_owned()
        });
    }
    let Some(header) = head.header("authorization") else {
        return Err("No ticket".to_owned());
    };
    let Some(value) = header.strip_prefix("PVEAPIToken=").or_else(|| header.strip_prefix("PVEAPIToken ")) else {
        return Err(if header.starts_with("PVEAPIToken") {
            detail("invalid token".to_owned())
        } else {
            "No ticket".to_owned()
        });
    };
    let value = decode::unescape(value);
    let parsed =
        value.split_once('=').and_then(|(id, secret)| id.split_once('!').map(|(user, name)| (user, name, secret)));
    let Some((user, name, secret)) = parsed else {
        return Err(detail("no tokenid specified".to_owned()));
    };
    let Some(account) = cluster.users.get(user) else {
        return Err(detail(format!("no such user ('{user}')")));
    };
    let now = clock::epoch();
    if !account.enable || (account.expire != 0 && account.expire < now) {
        return Err(detail("user account disabled or expired".to_owned()));
    }
    let Some(token) = account.tokens.get(name) else {
        return Err(detail(format!("no such token '{name}' for user '{user}'")));
    };
    if token.expire != 0 && token.expire < now {
        return Err(detail("token expired".to_owned()));
    }
    if !same(token.secret.as_bytes(), secret.as_bytes()) {
        return Err(detail("invalid token value!".to_owned()));
    }
    Ok(Caller {
        id: format!("{user}!{name}"),
        user: user.to_owned(),
        token: Some(name.to_owned()),
        privsep: token.privsep,
    })
}

fn cookie(head: &Head) -> Option<&str> {
    head.header("cookie")?.split(';').find_map(|part| part.trim().strip_prefix("PVEAuthCookie="))
}

/// Compares without telling by its duration where two secrets differ.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}
