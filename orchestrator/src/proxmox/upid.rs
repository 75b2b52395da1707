//! Task ids: `UPID:NODE:PID:PSTART:STARTTIME:TYPE:ID:USER:` (pve-api 12.1).

use std::fmt;
use std::str::FromStr;

use contract::ids::NodeName;
use serde::{Deserialize, Serialize};

/// A text that is not a task id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{got}` is not a Proxmox task id: {why}")]
pub struct InvalidUpid {
    /// What was given, shortened to 120 characters.
    pub got: String,
    /// Which part is wrong.
    pub why: &'static str,
}

/// The id of a Proxmox task. Storing its text is enough to find the task again after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Upid {
    text: String,
    node: NodeName,
    start: u32,
}

impl Upid {
    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The node that runs the task; only it can be asked.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// A part between colons; all are there since the text was checked.
    fn part(&self, index: usize) -> &str {
        self.text.split(':').nth(index).unwrap_or_default()
    }

    /// When the task began, in seconds since 1970.
    pub fn started(&self) -> u32 {
        self.start
    }

    /// Its type, such as `vzclone`.
    pub fn kind(&self) -> &str {
        self.part(5)
    }

    /// What it works on; of a clone the **source**. May be empty.
    pub fn id(&self) -> &str {
        self.part(6)
    }

    /// Who asked for it: `user@realm`, or `user@realm!token`.
    pub fn user(&self) -> &str {
        self.part(7)
    }
}

impl FromStr for Upid {
    type Err = InvalidUpid;

    fn from_str(text: &str) -> Result<Self, InvalidUpid> {
        let wrong = |why| InvalidUpid { got: text.chars().take(120).collect(), why };
        let hex = |part: &str, lengths: &[usize]| {
            lengths.contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let parts: Vec<&str> = text.split(':').collect();
        let [prefix, node, pid, pstart, start, kind, id, user, end] = parts[..] else {
            return Err(wrong("it has eight parts, each with a colon behind"));
        };
        if prefix != "UPID" || !end.is_empty() {
            return Err(wrong("it begins with `UPID:` and ends with a colon"));
        }
        if !hex(pid, &[8]) || !hex(pstart, &[8, 9]) || !hex(start, &[8]) {
            return Err(wrong(
                "process id, process start and start time are hex numbers of 8 (the second also 9) digits",
            ));
        }
        let has_blank_or_slash = |part: &str| part.contains(|c: char| c.is_whitespace() || c == '/');
        if kind.is_empty() || user.is_empty() || [kind, id, user].into_iter().any(has_blank_or_slash) {
            return Err(wrong("type and user are not empty, and neither they nor the id hold a blank or a slash"));
        }
        Ok(Self {
            node: node.parse().map_err(|_| wrong("the second part is a node name"))?,
            start: u32::from_str_radix(start, 16).map_err(|_| wrong("the start time is a hex number"))?,
            text: text.to_owned(),
        })
    }
}

impl TryFrom<String> for Upid {
    type Error = InvalidUpid;

    fn try_from(text: String) -> Result<Self, InvalidUpid> {
        text.parse()
    }
}

impl From<Upid> for String {
    fn from(upid: Upid) -> Self {
        upid.text
    }
}

impl fmt::Display for Upid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_recorded_id_gives_its_parts() {
        let upid: Upid = "UPID:pve1:000006A5:0006CE26:6B00437B:vzclone:100:chk@pve!tk:".parse().unwrap();
        assert_eq!(
            (upid.node().as_str(), upid.kind(), upid.id(), upid.user(), upid.started()),
            ("pve1", "vzclone", "100", "chk@pve!tk", 0x6B00_437B)
        );
        let moved: Upid =
            "UPID:pve8:000007DA:0009C2BF:6B004B0C:move_volume:900-mp0>901-mp0:chk@pve!tk:".parse().unwrap();
        assert_eq!(moved.id(), "900-mp0>901-mp0");
        let nameless: Upid = "UPID:pve1:000006A5:0006CE26F:6B00437B:vzdump::root@pam:".parse().unwrap();
        assert_eq!(nameless.id(), "");
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for text in [
            "",
            "UPID:foo",
            "OK",
            "UPID:pve1:000006A5:0006CE26:6B00437B:vzclone:100:chk@pve!tk",
            "upid:pve1:000006A5:0006CE26:6B00437B:vzclone:100:chk@pve!tk:",
            "UPID:pve1:6A5:0006CE26:6B00437B:vzclone:100:chk@pve!tk:",
            "UPID:pve1:000006A5:0006CE26:6B00437B::100:chk@pve!tk:",
            "UPID:pve1:000006A5:0006CE26:6B00437B:vzclone:100::",
            "UPID:-:000006A5:0006CE26:6B00437B:vzclone:100:chk@pve!tk:",
            "UPID:pve1:000006A5:0006CE26:6B00437B:vzclone:../x:chk@pve!tk:",
            "UPID:pve1:000006A5:0006CE26:6B00437B:vzclone:100:chk@pve!tk:\n",
        ] {
            assert!(text.parse::<Upid>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_printed_as_it_was(text in ".{0,90}") {
            if let Ok(upid) = text.parse::<Upid>() { prop_assert_eq!(upid.as_str(), text); }
        }

        #[test]
        fn parts_come_back(
            node in "[a-z][a-z0-9]{0,10}", pid: u32, pstart in 0u64..0xF_FFFF_FFFF, start: u32,
            kind in "[a-z_]{1,12}", id in "[a-z0-9>-]{0,10}", user in "[a-z]{1,8}@p(ve|am)(![a-z]{2,6})?",
        ) {
            let text = format!("UPID:{node}:{pid:08X}:{pstart:08X}:{start:08X}:{kind}:{id}:{user}:");
            let upid: Upid = text.parse().unwrap();
            prop_assert_eq!(upid.node().as_str(), node);
            prop_assert_eq!((upid.kind(), upid.id(), upid.user(), upid.started()), (&*kind, &*id, &*user, start));
            let json = serde_json::to_string(&upid).unwrap();
            prop_assert_eq!(serde_json::from_str::<Upid>(&json).unwrap(), upid);
        }
    }
}
