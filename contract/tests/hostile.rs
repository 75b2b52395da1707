//! Documents that nobody means well with, and documents that nobody has thought of.
#![cfg(feature = "documents")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::fmt::Write;
use std::fs;
use std::path::Path;

use contract::document;
use contract::refusal::{Reason, Refusal};
use contract::site::{Address, InputValue, Onboot, Protection};
use proptest::prelude::*;

const SITE: &str = "sites/acme-hq/site.yaml";
const RELEASE: &str = "releases/2026.06.yaml";

fn fixture(path: &str) -> String {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/documents/good");
    fs::read_to_string(data.join(path)).unwrap()
}

/// Both parsers of dealers' and releases' files, and beside them that of `dealers.yaml`; a refusal must always say
/// something.
fn both(bytes: &[u8]) -> [Vec<Refusal>; 2] {
    assert!(document::dealers("dealers.yaml", bytes).map(drop).map_err(|refusals| refusals.len()) != Err(0));
    let [site, release] =
        [document::site(SITE, bytes).map(drop), document::manifest(RELEASE, bytes).map(drop)].map(|read| match read {
            Ok(()) => Vec::new(),
            Err(refusals) => {
                assert!(!refusals.is_empty(), "refused without a reason");
                refusals
            }
        });
    [site, release]
}

fn reasons(bytes: &[u8]) -> [Vec<Reason>; 2] {
    both(bytes).map(|refusals| refusals.iter().map(|refusal| refusal.reason).collect())
}

#[test]
fn a_file_that_is_too_large_is_not_even_read() {
    let [site, release] = reasons(&vec![b'#'; (256 << 10) + 1]);
    assert_eq!((site, release), (vec![Reason::TooLarge], vec![Reason::YamlDocuments]));
    let [_, release] = reasons(&vec![b'#'; (1 << 20) + 1]);
    assert_eq!(release, [Reason::TooLarge]);
}

#[test]
fn nesting_without_end_is_refused_where_it_gets_too_deep() {
    for text in ["[".repeat(100_000), "{a: ".repeat(50_000), "- ".repeat(100_000), "? ".repeat(100_000)] {
        for refusals in both(text.as_bytes()) {
            assert_eq!(refusals.len(), 1);
            assert!(
                matches!(refusals[0].reason, Reason::TooDeep | Reason::YamlSyntax | Reason::WrongType),
                "{refusals:?}"
            );
        }
    }
    let mut blocks = String::new();
    for level in 0..100 {
        writeln!(blocks, "{}a:", " ".repeat(level)).unwrap();
    }
    let [site, _] = both(blocks.as_bytes());
    assert_eq!((site[0].reason, site[0].place.line), (Reason::TooDeep, 17));
}

#[test]
fn a_billion_laughs_are_refused_without_laughing() {
    let mut text = String::from("a0: &a0 [x, x]\n");
    for level in 1..30 {
        writeln!(text, "a{level}: &a{level} [*a{0}, *a{0}]", level - 1).unwrap();
    }
    for refusals in both(text.as_bytes()) {
        assert!(refusals.iter().any(|refusal| refusal.reason == Reason::YamlAlias));
    }
}

/// Each of these once took minutes: what is looked up per mistake or per reference must not grow with the file.
#[test]
fn mistakes_without_end_are_cut_off() {
    let unknown: String = (0..50_000).map(|number| format!("x{number}: 1\n")).collect();
    let anchors: String = (0..50_000).map(|number| format!("x{number}: &a !b 1\n")).collect();
    let templates: String = (0..40_000).map(|number| format!("  t{number}: {{ a: 1 }}\n")).collect();
    let long = format!("{}: 1\n", "k".repeat(200)).repeat(1000);
    for text in [unknown, anchors, format!("templates:\n{templates}"), long] {
        let refusals = document::manifest(RELEASE, text.as_bytes()).map(drop).unwrap_err();
        assert!(refusals.len() <= 100, "{}", refusals.len());
    }
    let inputs: String = (0..15_000).map(|number| format!("        i{number}: {{ type: string }}\n")).collect();
    let merge = "${i1}".repeat(80_000);
    let text = format!(
        "templates:\n  x:\n    wiring:\n      inputs:\n{inputs}      files:\n        - merge: {{ a: \"{merge}\" }}\n"
    );
    assert!(!document::manifest(RELEASE, text.as_bytes()).map(drop).unwrap_err().is_empty());
}

/// Pieces that YAML gives a meaning to.
fn yamlish() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("\n"),
        Just("  "),
        Just(": "),
        Just("- "),
        Just("? "),
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just(", "),
        Just("&a "),
        Just("*a"),
        Just("!t "),
        Just("|\n"),
        Just(">-\n"),
        Just("'"),
        Just("\""),
        Just("\\x"),
        Just("#"),
        Just("---\n"),
        Just("...\n"),
        Just("%YAML 1.2\n"),
        Just("%TAG ! x\n"),
        Just("\t"),
        Just("\r"),
        Just("\u{feff}"),
        Just("<<"),
        Just("@"),
        Just("`"),
        Just("site"),
        Just("instances:\n"),
        Just("templates:\n"),
        Just("1"),
        Just("0600"),
        Just("~"),
        Just("a"),
        Just("é"),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

/// A good document with a piece cut out and another put in.
fn mutated(good: String) -> impl Strategy<Value = Vec<u8>> {
    let length = good.len();
    (
        0..length,
        0..40_usize,
        prop_oneof![yamlish().prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 0..8)],
    )
        .prop_map(move |(start, cut, put)| {
            let mut bytes = good.clone().into_bytes();
            bytes.splice(start..(start + cut).min(length), put);
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(384))]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        both(&bytes);
    }

    #[test]
    fn any_text_is_read_or_refused(text in any::<String>()) {
        both(text.as_bytes());
    }

    #[test]
    fn anything_like_yaml_is_read_or_refused(text in yamlish()) {
        both(text.as_bytes());
    }

    #[test]
    fn a_damaged_site_is_read_or_refused(bytes in mutated(fixture("sites/acme-hq/site.yaml"))) {
        both(&bytes);
    }

    #[test]
    fn a_damaged_release_is_read_or_refused(bytes in mutated(fixture("releases/2026.06.yaml"))) {
        both(&bytes);
    }

    #[test]
    fn damaged_dealers_are_read_or_refused(bytes in mutated(fixture("../good-dealers/dealers.yaml"))) {
        both(&bytes);
    }

    #[test]
    fn refusals_come_in_order_and_within_the_file(bytes in mutated(fixture("sites/acme-hq/site.yaml"))) {
        let lines = 1 + bytes.iter().filter(|byte| **byte == b'\n').count();
        let [refusals, _] = both(&bytes);
        for pair in refusals.windows(2) {
            prop_assert!(pair[0].place <= pair[1].place);
        }
        for refusal in refusals {
            // A lone carriage return and some other characters end a line too.
            prop_assert!(refusal.place.line <= lines + bytes.len());
            prop_assert_eq!(refusal.place.file, SITE);
        }
    }
}

/// One instance as a test wants it.
#[derive(Debug, Clone)]
struct Wanted {
    name: String,
    vmid: u32,
    address: Option<u8>,
    ram: Option<u32>,
    text: String,
    start: bool,
    protect: bool,
}

fn wanted() -> impl Strategy<Value = Vec<Wanted>> {
    let one = (
        "[a-z]([a-z0-9-]{0,12}[a-z0-9])?",
        0..9_u8,
        prop::option::of(16..4096_u32),
        "[ -~äöü€]{0,20}",
        any::<(bool, bool, bool)>(),
    );
    prop::collection::vec(one, 0..12).prop_map(|parts| {
        let mut seen = std::collections::BTreeSet::new();
        let mut wanted = Vec::new();
        for (index, (name, _, ram, text, (fixed, start, protect))) in parts.into_iter().enumerate() {
            if seen.insert(name.clone()) {
                let (vmid, host) = (2000 + u32::try_from(index).unwrap(), 10 + u8::try_from(index).unwrap());
                wanted.push(Wanted { name, vmid, address: fixed.then_some(host), ram, text, start, protect });
            }
        }
        wanted
    })
}

/// Fields of an instance in one of two orders and two styles, and the line where each instance stands.
fn written(wanted: &[Wanted], other_way: bool) -> (String, Vec<(String, usize)>) {
    let mut text = String::from(
        "site: acme-hq\ndealer: acme\nchannel: stable\nproxmox: { storage: local-lvm, bridge: vmbr0, pool: p, vmids: 2000-2099 }\n",
    );
    text.push_str(if wanted.is_empty() { "instances: {}\n" } else { "instances:\n" });
    let mut lines = Vec::new();
    for one in wanted {
        lines.push((one.name.clone(), 1 + text.lines().count()));
        let quoted = serde_json::to_string(&one.text).unwrap();
        let mut fields = vec!["template: app".to_owned(), format!("vmid: {}", one.vmid)];
        fields
            .extend(one.address.map(|host| format!("network: {{ ip: 192.168.20.{host}/24, gateway: 192.168.20.1 }}")));
        fields.extend(one.ram.map(|ram| format!("resources: {{ ram: {ram} }}")));
        fields.push(format!("wiring: {{ \"label\": {quoted}, key: {{ secret: a.b }} }}"));
        fields.push(format!("onboot: {}", one.start));
        fields.push(format!("protect: {}", one.protect));
        if other_way {
            fields.reverse();
            writeln!(text, "  \"{}\": {{ {} }}", one.name, fields.join(", ")).unwrap();
        } else {
            writeln!(text, "  {}:\n    {}", one.name, fields.join("\n    ")).unwrap();
        }
    }
    (text, lines)
}

proptest! {
    #[test]
    fn a_site_says_what_was_written(mut wanted in wanted()) {
        let (text, lines) = written(&wanted, false);
        let site = document::site(SITE, text.as_bytes()).map_err(|refusals| TestCaseError::fail(format!("{refusals:?}\n{text}")))?;
        prop_assert_eq!(site.value.instances.len(), wanted.len());
        for one in &wanted {
            let instance = &site.value.instances[&one.name.parse().unwrap()];
            prop_assert_eq!(instance.vmid.map(|vmid| vmid.get()), Some(one.vmid));
            let host = match instance.network.address {
                Address::Dhcp => None,
                Address::Static { cidr, gateway } => {
                    prop_assert_eq!(gateway.unwrap().to_string(), "192.168.20.1");
                    Some(cidr.address().octets()[3])
                }
            };
            prop_assert_eq!(host, one.address);
            prop_assert_eq!(instance.resources.ram, one.ram);
            prop_assert_eq!(&instance.wiring["label"], &InputValue::Plain(one.text.clone().into()));
            prop_assert_eq!(instance.onboot == Onboot::Start, one.start);
            prop_assert_eq!(instance.protect == Protection::Protected, one.protect);
        }
        for (name, line) in lines {
            prop_assert_eq!(site.outline.line(&format!("instances.{name}")), line);
            prop_assert_eq!(site.outline.line(&format!("instances.{name}.vmid")), line + 2);
        }
        wanted.reverse();
        let (text, _) = written(&wanted, true);
        let again = document::site(SITE, text.as_bytes()).map_err(|refusals| TestCaseError::fail(format!("{refusals:?}\n{text}")))?;
        prop_assert_eq!(again.value, site.value);
    }
}
