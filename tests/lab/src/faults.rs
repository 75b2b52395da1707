//! Faults on request: rules that match calls and what they do to them.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// What a rule does. Named after what the client sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Action {
    /// Answer this instead of doing anything.
    Error { status: u16, message: String },
    /// Wait first.
    Delay { ms: u64 },
    /// Do it, then answer 596 with an empty body, as a relay that lost patience does.
    #[serde(rename = "after_success_596")]
    AfterSuccess596,
    /// Close the connection without doing anything.
    Drop,
    /// Do it, then close the connection without an answer.
    DropAfter,
    /// The task of this call fails.
    TaskError { text: String },
    /// The task ends with this many warnings more.
    TaskWarnings { count: u32 },
    /// The task takes longer.
    TaskDelay { ms: u64 },
    /// The guest of the path has this lock from now on, and no call can remove it.
    StaleLock { lock: String },
    /// The storage has no room left for this call.
    StorageFull,
    /// user.cfg stays locked by somebody else.
    CfsLockTimeout,
    /// Do it, then answer 500.
    #[serde(rename = "saved_but_500")]
    SavedBut500 {
        #[serde(default)]
        message: Option<String>,
    },
    /// Never answer.
    Hang,
}

fn once() -> Option<u32> {
    Some(1)
}

/// Which calls, and what happens to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// `*` matches any method.
    pub(crate) method: String,
    /// Path below `/api2/json`; `*` matches within a segment, `**` anything.
    pub(crate) path: String,
    /// How many calls it strikes; `null` means all.
    #[serde(default = "once")]
    pub(crate) times: Option<u32>,
    /// How many matching calls it lets pass first.
    #[serde(default)]
    pub(crate) after: u32,
    pub(crate) action: Action,
}

/// What a struck call hands to its task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    pub(crate) delay_ms: Option<u64>,
    pub(crate) error: Option<String>,
    pub(crate) warnings: Option<u32>,
    pub(crate) storage_full: bool,
    pub(crate) cfs_lock_timeout: bool,
}

/// All rules in force.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Vec<Rule>>);

impl Faults {
    pub(crate) fn new(rules: Vec<Rule>) -> Self {
        Self(Mutex::new(rules))
    }
    fn rules(&self) -> std::sync::MutexGuard<'_, Vec<Rule>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn add(&self, rule: Rule) {
        self.rules().push(rule);
    }
    pub(crate) fn clear(&self) {
        self.rules().clear();
    }
    pub(crate) fn list(&self) -> Vec<Rule> {
        self.rules().clone()
    }

    /// The actions for a call; their rules count it.
    pub(crate) fn strike(&self, method: &str, path: &str) -> Vec<Action> {
        let mut struck = Vec::new();
        let mut rules = self.rules();
        for rule in rules.iter_mut() {
            let matches = (rule.method == "*" || rule.method.eq_ignore_ascii_case(method)) && glob(&rule.path, path);
            if !matches {
                continue;
            }
            if rule.after > 0 {
                rule.after -= 1;
                continue;
            }
            if let Some(times) = &mut rule.times {
                *times = times.saturating_sub(1);
            }
            struck.push(rule.action.clone());
        }
        rules.retain(|rule| rule.times != Some(0));
        struck
    }
}

/// What the task of a call inherits from the actions.
pub(crate) fn effects(actions: &[Action]) -> Effects {
    let mut effects = Effects::default();
    for action in actions {
        match action {
            Action::TaskDelay { ms } => effects.delay_ms = Some(*ms),
            Action::TaskError { text } => effects.error = Some(text.clone()),
            Action::TaskWarnings { count } => effects.warnings = Some(*count),
            Action::StorageFull => effects.storage_full = true,
            Action::CfsLockTimeout => effects.cfs_lock_timeout = true,
            _ => {}
        }
    }
    effects
}

/// The text of a user.cfg that stays locked.
pub(crate) const CFS_LOCK: &str = "cfs-lock 'file-user_cfg' error: got lock request timeout";

fn glob(pattern: &str, path: &str) -> bool {
    match pattern.find('*') {
        None => pattern == path,
        Some(at) => {
            let Some(rest) = path.strip_prefix(&pattern[..at]) else {
                return false;
            };
            let (tail, crosses) = match pattern[at..].strip_prefix("**") {
                Some(tail) => (tail, true),
                None => (&pattern[at + 1..], false),
            };
            let reach = if crosses { rest.len() } else { rest.find('/').unwrap_or(rest.len()) };
            (0..=reach).filter(|end| rest.is_char_boundary(*end)).any(|end| glob(tail, &rest[end..]))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_star_stays_in_its_segment_and_two_do_not() {
        assert!(glob("/nodes/*/lxc/*/clone", "/nodes/pve1/lxc/100/clone"));
        assert!(!glob("/nodes/*/clone", "/nodes/pve1/lxc/100/clone"));
        assert!(glob("/nodes/**/clone", "/nodes/pve1/lxc/100/clone"));
        assert!(glob("**", "/version"));
    }

    #[test]
    fn a_rule_lets_pass_then_strikes_then_is_spent() {
        let rule = Rule {
            method: "GET".to_owned(),
            path: "/version".to_owned(),
            times: Some(2),
            after: 1,
            action: Action::Hang,
        };
        let faults = Faults::new(vec![rule]);
        let hits: Vec<usize> = (0..4).map(|_| faults.strike("GET", "/version").len()).collect();
        assert_eq!(hits, [0, 1, 1, 0]);
        assert!(faults.list().is_empty());
    }

    #[test]
    fn rules_read_as_documented() {
        let text = r#"{"method":"PUT","path":"**","times":null,"action":{"kind":"saved_but_500"}}"#;
        let rule: Rule = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(rule.times, None);
        assert_eq!(rule.action, Action::SavedBut500 { message: None });
        assert!(serde_json::from_str::<Rule>(r#"{"method":"PUT","path":"**","action":{"kind":"nope"}}"#).is_err());
    }
}
