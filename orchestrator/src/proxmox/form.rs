//! Query strings and form bodies as Proxmox decodes them (pve-api 2.1).
//!
//! Its decoder splits on `&` **and** `;`, and cuts a value at a raw `=`; so everything but the characters that are never
//! special is percent-encoded.

/// Parameters of a call, in order.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Form(Vec<(String, String)>);

/// Values are left out: some are secrets.
impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(key, _)| key)).finish()
    }
}

impl Form {
    /// No parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a value.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.0.push((key.to_owned(), value.to_string()));
        self
    }

    /// With a value, if there is one.
    #[must_use]
    pub fn set_some(self, key: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.set(key, value),
            None => self,
        }
    }

    /// With a boolean; Proxmox takes only `0` and `1`.
    #[must_use]
    pub fn flag(self, key: &str, value: bool) -> Self {
        self.set(key, u8::from(value))
    }

    /// Whether there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `key=value&…`, encoded; the same in a query and in a body.
    pub fn encode(&self) -> String {
        let pairs: Vec<String> =
            self.0.iter().map(|(key, value)| format!("{}={}", percent(key, ""), percent(value, ""))).collect();
        pairs.join("&")
    }
}

/// Percent-encodes all but RFC 3986's unreserved characters and those in `keep`.
pub fn percent(text: &str, keep: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.as_bytes().contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    /// What the server does: split on `&` and `;`, then on `=` and keep the second field, `+` is a blank.
    fn decode_as_proxmox(body: &str) -> Vec<(String, String)> {
        let plain = |text: &str| {
            let mut bytes = Vec::new();
            let mut rest = text.as_bytes().iter();
            while let Some(&byte) = rest.next() {
                match byte {
                    b'+' => bytes.push(b' '),
                    b'%' => {
                        let digits = [*rest.next().unwrap(), *rest.next().unwrap()];
                        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
                    }
                    other => bytes.push(other),
                }
            }
            String::from_utf8(bytes).unwrap()
        };
        body.split(['&', ';'])
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let mut fields = pair.split('=');
                (plain(fields.next().unwrap()), plain(fields.next().unwrap_or_default()))
            })
            .collect()
    }

    #[test]
    fn a_property_string_is_not_cut() {
        let body = Form::new().set("net0", "name=eth0,bridge=vmbr0;x&y+z%").flag("full", true).encode();
        assert_eq!(body, "net0=name%3Deth0%2Cbridge%3Dvmbr0%3Bx%26y%2Bz%25&full=1");
    }

    #[test]
    fn debug_shows_no_value() {
        assert_eq!(format!("{:?}", Form::new().set("cipassword", "hunter2")), r#"["cipassword"]"#);
    }

    proptest! {
        #[test]
        fn every_value_survives_the_server(pairs in proptest::collection::vec(("[a-z0-9-]{1,8}", ".{0,30}"), 0..6)) {
            let form = pairs.iter().fold(Form::new(), |form, (key, value)| form.set(key, value));
            prop_assert_eq!(decode_as_proxmox(&form.encode()), pairs);
        }
    }
}
