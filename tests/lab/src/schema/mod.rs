//! What a parameter may be: Proxmox's JSON schema dialect as plain tables, one constructor call per parameter.

pub(crate) mod check;
pub(crate) mod formats;
pub(crate) mod guests;
pub(crate) mod lxc;
pub(crate) mod properties;
pub(crate) mod qemu;
pub(crate) mod tables;

/// Checks a value that has a named format; the error is Proxmox's text without its trailing newline.
pub(crate) type Format = fn(&str) -> Result<(), String>;

/// JSON type of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Text,
    Flag,
    Whole,
    Number,
    /// An array of strings.
    List,
}

/// One parameter, or one key of a property string.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Param {
    pub(crate) name: &'static str,
    pub(crate) kind: Type,
    /// How many numbered ones there are (`net0`, `net1`, ...); `None` when the name stands for itself.
    pub(crate) count: Option<u32>,
    pub(crate) required: bool,
    pub(crate) format: Option<Format>,
    /// The format is checked for each member of a list separated by commas, semicolons or spaces.
    pub(crate) listed: bool,
    pub(crate) pattern: Option<fn(&str) -> bool>,
    pub(crate) minimum: Option<i64>,
    pub(crate) maximum: Option<i64>,
    pub(crate) max_len: Option<usize>,
    pub(crate) min_len: Option<usize>,
    pub(crate) values: &'static [&'static str],
    pub(crate) needs: Option<&'static str>,
    pub(crate) properties: Option<&'static [Param]>,
    /// A bare value of a property string belongs to this key.
    pub(crate) default_key: bool,
    /// In a property string, `KEY=V` stands for `alias=V` plus, if there is one, `key_alias=KEY`.
    pub(crate) alias: Option<&'static str>,
    pub(crate) key_alias: Option<&'static str>,
    /// Major release that alone knows it.
    pub(crate) only_on: Option<u8>,
}

const fn param(name: &'static str, kind: Type) -> Param {
    Param {
        name,
        kind,
        count: None,
        required: false,
        format: None,
        listed: false,
        pattern: None,
        minimum: None,
        maximum: None,
        max_len: None,
        min_len: None,
        values: &[],
        needs: None,
        properties: None,
        default_key: false,
        alias: None,
        key_alias: None,
        only_on: None,
    }
}

pub(crate) const fn text(name: &'static str) -> Param {
    param(name, Type::Text)
}
pub(crate) const fn flag(name: &'static str) -> Param {
    param(name, Type::Flag)
}
pub(crate) const fn whole(name: &'static str) -> Param {
    param(name, Type::Whole)
}
pub(crate) const fn number(name: &'static str) -> Param {
    param(name, Type::Number)
}
pub(crate) const fn list(name: &'static str) -> Param {
    param(name, Type::List)
}

impl Param {
    pub(crate) const fn required(mut self) -> Self {
        self.required = true;
        self
    }
    pub(crate) const fn indexed(mut self, count: u32) -> Self {
        self.count = Some(count);
        self
    }
    pub(crate) const fn format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }
    pub(crate) const fn list_of(mut self, format: Format) -> Self {
        self.format = Some(format);
        self.listed = true;
        self
    }
    pub(crate) const fn pattern(mut self, pattern: fn(&str) -> bool) -> Self {
        self.pattern = Some(pattern);
        self
    }
    pub(crate) const fn between(mut self, minimum: i64, maximum: i64) -> Self {
        self.minimum = Some(minimum);
        self.maximum = Some(maximum);
        self
    }
    pub(crate) const fn at_least(mut self, minimum: i64) -> Self {
        self.minimum = Some(minimum);
        self
    }
    pub(crate) const fn max_len(mut self, length: usize) -> Self {
        self.max_len = Some(length);
        self
    }
    pub(crate) const fn min_len(mut self, length: usize) -> Self {
        self.min_len = Some(length);
        self
    }
    pub(crate) const fn one_of(mut self, values: &'static [&'static str]) -> Self {
        self.values = values;
        self
    }
    pub(crate) const fn needs(mut self, other: &'static str) -> Self {
        self.needs = Some(other);
        self
    }
    pub(crate) const fn properties(mut self, properties: &'static [Param]) -> Self {
        self.properties = Some(properties);
        self
    }
    pub(crate) const fn default_key(mut self) -> Self {
        self.default_key = true;
        self
    }
    pub(crate) const fn alias(mut self, alias: &'static str) -> Self {
        self.alias = Some(alias);
        self
    }
    pub(crate) const fn key_alias(mut self, alias: &'static str) -> Self {
        self.key_alias = Some(alias);
        self
    }
    pub(crate) const fn only_on(mut self, major: u8) -> Self {
        self.only_on = Some(major);
        self
    }

    /// Whether this entry describes the parameter `name`.
    pub(crate) fn describes(&self, name: &str) -> bool {
        match self.count {
            None => self.name == name,
            Some(count) => name
                .strip_prefix(self.name)
                .filter(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
                .filter(|digits| digits.len() == 1 || !digits.starts_with('0'))
                .and_then(|digits| digits.parse::<u32>().ok())
                .is_some_and(|index| index < count),
        }
    }
}

/// Finds what describes `name`, on the given major release.
pub(crate) fn find(tables: &[&'static [Param]], name: &str, major: u8) -> Option<&'static Param> {
    tables
        .iter()
        .flat_map(|table| table.iter())
        .find(|param| param.describes(name) && param.only_on.is_none_or(|only| only == major))
}
