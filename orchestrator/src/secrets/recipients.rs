//! `sites/<site>/recipients.txt`: for whom a site's secrets are encrypted. The format is that of `age -R`: one public
//! key per line, comments begin with `#`. It holds no secret, so a laptop that has it can encrypt.

use std::collections::BTreeSet;

use age::x25519::Recipient;

use super::SecretsError;

/// Largest list, in bytes. A key with its comment has some 100; a site has two or three.
pub(super) const LIMIT: usize = 16 << 10;

/// The list as it stands, comments included.
#[derive(Debug, Clone, Default)]
pub struct Recipients {
    lines: Vec<String>,
    keys: Vec<Recipient>,
}

impl Recipients {
    /// Reads a list; `file` is what errors call it.
    pub fn parse(file: &str, content: &[u8]) -> Result<Self, SecretsError> {
        let wrong = |what: String| SecretsError::Recipients { file: file.to_owned(), what };
        let text = std::str::from_utf8(content).map_err(|_| wrong("is not text".to_owned()))?;
        let mut list = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let entry = line.trim();
            if !entry.is_empty() && !entry.starts_with('#') {
                // A private key that stands here by mistake must not come into a log.
                let key = entry.parse().map_err(|_| wrong(format!("line {number} is not an age1… public key")))?;
                list.keys.push(key);
            }
            list.lines.push(line.to_owned());
        }
        if list.keys.is_empty() { Err(wrong("names nobody".to_owned())) } else { Ok(list) }
    }

    /// The public keys.
    pub fn keys(&self) -> &[Recipient] {
        &self.keys
    }

    /// The public keys as text, sorted.
    pub fn names(&self) -> BTreeSet<String> {
        self.keys.iter().map(ToString::to_string).collect()
    }

    /// The public keys, each with the comment that stands right above it.
    pub fn described(&self) -> Vec<(String, Option<&str>)> {
        let mut above = None;
        let mut found = Vec::new();
        for line in self.lines.iter().map(|line| line.trim()) {
            match line.strip_prefix('#') {
                Some(comment) => above = Some(comment.trim()),
                None if line.is_empty() => above = None,
                None => found.push((line.to_owned(), above.take())),
            }
        }
        found
    }

    /// Adds a key under a comment; `false`: it is there already.
    pub fn add(&mut self, key: Recipient, comment: &str) -> bool {
        if self.names().contains(&key.to_string()) {
            return false;
        }
        // A comment of several lines would be a way to add further keys.
        let comment: String = comment.split_whitespace().collect::<Vec<_>>().join(" ");
        self.lines.push(format!("# {comment}"));
        self.lines.push(key.to_string());
        self.keys.push(key);
        true
    }

    /// Removes a key with the comment right above it; `false`: it is not there.
    pub fn remove(&mut self, key: &Recipient) -> bool {
        let name = key.to_string();
        let Some(at) = self.lines.iter().position(|line| line.trim() == name) else { return false };
        let first = if at > 0 && self.lines[at - 1].trim_start().starts_with('#') { at - 1 } else { at };
        self.lines.drain(first..=at);
        self.keys.retain(|known| known.to_string() != name);
        true
    }
}

impl std::fmt::Display for Recipients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const A: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
    const B: &str = "age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg";

    #[test]
    fn keys_come_and_go_with_their_comments_and_the_rest_stays() {
        let text = format!("# for the site acme-hq\n\n# the site\n{A}\n");
        let mut list = Recipients::parse("r", text.as_bytes()).unwrap();
        assert!(list.add(B.parse().unwrap(), "HQ's\nrecovery key"));
        assert!(!list.add(B.parse().unwrap(), "again"));
        assert_eq!(list.to_string(), format!("{text}# HQ's recovery key\n{B}\n"));
        assert_eq!(list.described(), [(A.to_owned(), Some("the site")), (B.to_owned(), Some("HQ's recovery key"))]);
        assert!(list.remove(&B.parse().unwrap()));
        assert!(!list.remove(&B.parse().unwrap()));
        assert_eq!(list.to_string(), text);
    }

    #[test]
    fn what_is_no_list_is_refused_by_line_and_not_quoted() {
        for (bad, said) in [
            ("", "names nobody"),
            ("# nobody yet\n", "names nobody"),
            ("# a\nssh-ed25519 AAAA\n", "line 2"),
            ("AGE-SECRET-KEY-1QQQQ\n", "line 1"),
        ] {
            let error = Recipients::parse("r", bad.as_bytes()).unwrap_err();
            assert_eq!(error.reason(), "secrets-recipients-bad");
            assert!(error.to_string().contains(said) && !error.to_string().contains("QQQQ"), "{error}");
        }
    }
}
