//! Asks Proxmox for what [`super::examine`] judges. Every question only reads.

use std::collections::BTreeMap;

use contract::ids::NodeName;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;

use super::privileges::Needs;
use super::{Expectation, Fact, Facts, SiteFacts, Trouble};
use crate::proxmox::{Client, NodeState, Permissions, ProxmoxError, Templates};

/// Finds out all that can be found out; an answer that fails is a fact like any other.
pub async fn gather(client: &Client, expected: &Expectation) -> Facts {
    let before = Timestamp::now();
    let (version, date) = match client.version_and_clock().await {
        Ok(answer) => answer,
        Err(error) => return Facts::Unreached(Trouble::from(&error)),
    };
    let after = Timestamp::now();
    let nodes = fact(client.nodes().await);
    let mut facts = SiteFacts {
        version,
        skew: date.and_then(|date| skew(&date, before, after)),
        storages: BTreeMap::new(),
        bridges: BTreeMap::new(),
        pool: fact(client.pool(&expected.pool).await),
        granted: BTreeMap::new(),
        all: fact::<Permissions>(client.permissions().await),
        templates: fact::<Templates>(client.templates().await),
        nodes,
    };
    for node in online(expected, &facts) {
        facts.storages.insert(node.clone(), fact(client.storages(&node).await));
        facts.bridges.insert(node.clone(), fact(client.bridges(&node).await));
    }
    for path in Needs::of(expected, &facts).required.into_keys() {
        let held = fact(client.permissions_at(&path).await);
        facts.granted.insert(path, held);
    }
    Facts::Reached(Box::new(facts))
}

fn fact<T>(answer: Result<T, ProxmoxError>) -> Fact<T> {
    answer.map_err(|error| Trouble::from(&error))
}

/// Nodes that guests may be put on now.
fn online(expected: &Expectation, facts: &SiteFacts) -> Vec<NodeName> {
    let nodes = facts.nodes.as_deref().unwrap_or_default();
    nodes
        .iter()
        .filter(|row| row.state == NodeState::Online)
        .filter(|row| expected.node.as_ref().is_none_or(|wanted| *wanted == row.node))
        .map(|row| row.node.clone())
        .collect()
}

/// The server's clock minus ours, in whole seconds; zero when it lies between both ends of the call.
fn skew(date: &str, before: Timestamp, after: Timestamp) -> Option<i64> {
    let there = DateTimeParser::new().parse_timestamp(date).ok()?.as_second();
    // The header has whole seconds, so it may be up to one behind.
    let (earliest, latest) = (before.as_second() - 1, after.as_second() + 1);
    Some(if there < earliest {
        there - earliest
    } else if there > latest {
        there - latest
    } else {
        0
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_clock_is_read_from_the_recorded_header() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let date = "Fri, 20 Nov 2026 12:51:34 GMT";
        let there = 1_795_179_094;
        assert_eq!(skew(date, at(there), at(there)), Some(0));
        assert_eq!(skew(date, at(there - 61), at(there - 61)), Some(60));
        assert_eq!(skew(date, at(there + 61), at(there + 61)), Some(-60));
        assert_eq!(skew("yesterday", at(0), at(0)), None);
    }
}
