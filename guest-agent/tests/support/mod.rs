//! What the agent meets in the world, played for its tests: an orchestrator over TLS and a system bus.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic, missing_docs)]

pub mod bus;
pub mod guest;
pub mod orchestrator;

use std::time::Duration;

/// Longest wait for anything in these tests; reached only when something is wrong.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Looks again and again until `look` finds something.
pub async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let search = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, search).await {
        Ok(found) => found,
        Err(_) => panic!("this did not happen: {what}"),
    }
}
