//! Which commits on a site are believed where dealers must sign them. Each history is drawn and made with git; each attack
//! is one test, and what it does just before or after is the same without the flaw, and is accepted.
//!
//! In the drawings, capitals changed the site, and `'` marks what is signed by acme, the site's dealer. A is accepted.
#![allow(clippy::unwrap_used, clippy::panic)]

mod dealing;
mod signed_commit;
mod source_remote;
mod trust_fleet;

use std::fs;

use dealing::Dealing;
use orchestrator::source::Checkout;
use orchestrator::trust::{CommitRule, KeySet, check};
use signed_commit::{apart, with_header};
use trust_fleet::{SITE, SITE_FILE, make_key, site};

/// ```text
///   A'──B'──C'──…    each signed with another kind of key
/// ```
#[test]
fn every_kind_of_key_that_ssh_keygen_makes() {
    let mut dealing = Dealing::accepted();
    let kinds: [(&str, &[&str]); 5] = [
        ("p256", &["-t", "ecdsa", "-b", "256"]),
        ("p384", &["-t", "ecdsa", "-b", "384"]),
        ("p521", &["-t", "ecdsa", "-b", "521"]),
        ("rsa2048", &["-t", "rsa", "-b", "2048"]),
        ("rsa4096", &["-t", "rsa", "-b", "4096"]),
    ];
    for (name, kind) in kinds {
        dealing.make_key(name, kind);
    }
    dealing.publish_dealers(2, &["acme", "p256", "p384", "p521", "rsa2048", "rsa4096"], "");
    dealing.commit(None);
    for (vlan, (name, _)) in (20..).zip(kinds) {
        dealing.wish(vlan).commit(Some(name));
        dealing.held();
    }
}

/// ```text
///   A'──B            B is not signed
///    ╲──B'
/// ```
#[test]
fn unsigned_commit() {
    let mut dealing = Dealing::accepted();
    let a = dealing.head();
    let b = dealing.wish(20).commit(None);
    let said = dealing.refused("commit-unsigned");
    assert!(said.contains(&b) && said.contains("sites/acme-hq") && said.contains("git commit -S"), "{said}");
    dealing.back_to(&a);
    dealing.wish(20).commit(Some("acme"));
    dealing.held();
}

/// ```text
///   A'──B──C'        C covers B up
/// ```
#[test]
fn unsigned_commit_below_a_signed_one() {
    let mut dealing = Dealing::accepted();
    let b = dealing.wish(20).commit(None);
    dealing.wish(30).commit(Some("acme"));
    assert!(dealing.refused("commit-unsigned").contains(&b));
    // Where only the tip counts, it is enough.
    dealing.fleet.commits = CommitRule::Tip;
    dealing.held();
    // And where nothing counts, a commit needs no signature.
    dealing.wish(40).commit(None);
    dealing.refused("commit-unsigned");
    dealing.fleet.commits = CommitRule::Off;
    dealing.held();
}

/// ```text
///   A'──B──B⁻¹──c    B is taken back again, and c is a note
/// ```
#[test]
fn unsigned_commit_that_was_taken_back() {
    let mut dealing = Dealing::accepted();
    dealing.wish(20).commit(None);
    dealing.git(&["revert", "--no-edit", "HEAD"]);
    dealing.note("c").commit(None);
    dealing.refused("commit-unsigned");
}

/// ```text
///   A'──b──c         files of HQ and of another site
/// ```
#[test]
fn commits_that_do_not_touch_the_site_need_no_signature() {
    let mut dealing = Dealing::accepted();
    dealing.note("README.md").commit(None);
    dealing.note("sites/beta-hq/site.yaml").commit(None);
    dealing.note("sites/acme-hq-2/site.yaml").commit(None);
    dealing.held();
    dealing.note("sites/acme-hq/secrets.age").commit(None);
    dealing.refused("commit-unsigned");
}

/// ```text
///   A'──B            B is signed by beta, or by somebody
/// ```
#[test]
fn commit_signed_with_the_key_of_another_dealer_or_of_nobody() {
    let mut dealing = Dealing::accepted();
    let a = dealing.head();
    dealing.wish(20).commit(Some("beta"));
    let said = dealing.refused("dealer-not-allowed");
    assert!(said.contains("signed by `beta`, but the site's dealer is `acme`"), "{said}");
    dealing.back_to(&a);
    dealing.make_key("stranger", &["-t", "ed25519"]);
    dealing.wish(20).commit(Some("stranger"));
    let said = dealing.refused("commit-key-unknown");
    assert!(said.contains("SHA256:"), "{said}");
    // The site that says it is beta's is not beta's.
    dealing.back_to(&a);
    dealing.fleet.change(SITE_FILE, "dealer: acme", "dealer: beta");
    dealing.commit(Some("beta"));
    let said = dealing.refused("dealer-not-allowed");
    assert!(said.contains(&format!("{SITE_FILE}:2")), "{said}");
    dealing.back_to(&a);
    dealing.wish(20).commit(Some("acme"));
    dealing.held();
}

/// ```text
///   A'──B──C'        B removes the site or moves it away; C brings it back
/// ```
#[test]
fn removed_or_renamed_and_brought_back() {
    for away in [&["rm", "--quiet", SITE_FILE][..], &["mv", "sites/acme-hq", "sites/acme-old"]] {
        let mut dealing = Dealing::accepted();
        let a = dealing.head();
        dealing.git(away);
        let b = dealing.commit(None);
        dealing.refused("site-missing");
        dealing.wish(20).commit(Some("acme"));
        assert!(dealing.refused("commit-unsigned").contains(&b));
        dealing.back_to(&a);
        dealing.git(away);
        dealing.commit(Some("acme"));
        dealing.wish(20).commit(Some("acme"));
        dealing.held();
    }
}

/// ```text
///   A'──b──────m     m by the forge, without a signature
///    ╲──C'────╱
/// ```
#[test]
fn merge_that_adds_nothing() {
    let mut dealing = Dealing::accepted();
    dealing.git(&["switch", "--quiet", "--create", "change"]);
    dealing.wish(20).commit(Some("acme"));
    dealing.git(&["switch", "--quiet", "main"]);
    dealing.note("b").commit(None);
    dealing.merge(None, &["change"]);
    dealing.held();
    // Nothing is in the way of the tip alone either, nor of the first contact.
    dealing.fleet.commits = CommitRule::Tip;
    dealing.fleet.memory = Default::default();
    dealing.held();
}

/// ```text
///   A'──B'──────M    git puts the lines of B and C together
///    ╲──C'─────╱
/// ```
#[test]
fn merge_of_two_signed_changes() {
    let mut dealing = Dealing::accepted();
    let a = dealing.head();
    dealing.git(&["switch", "--quiet", "--create", "change"]);
    dealing.storage("local-zfs").commit(Some("acme"));
    dealing.git(&["switch", "--quiet", "main"]);
    dealing.wish(20).commit(Some("acme"));
    dealing.merge(None, &["change"]);
    let text = fs::read_to_string(dealing.fleet.file(SITE_FILE)).unwrap();
    assert!(text.contains("local-zfs") && text.contains("vlan: 20"), "{text}");
    dealing.held();
    // At the first contact, both made it what it is, and both must be signed.
    dealing.fleet.memory = Default::default();
    dealing.held();
    dealing.fleet.memory = Default::default();
    for (own, others) in [(None, Some("acme")), (Some("acme"), None)] {
        dealing.back_to(&a);
        dealing.git(&["branch", "--force", "change"]);
        let b = dealing.wish(20).commit(own);
        dealing.git(&["switch", "--quiet", "change"]);
        let c = dealing.storage("local-zfs").commit(others);
        dealing.git(&["switch", "--quiet", "main"]);
        dealing.merge(None, &["change"]);
        assert!(dealing.refused("commit-unsigned").contains(if own.is_none() { &b } else { &c }));
    }
}

/// ```text
///   A'──b──────M     M has a change that neither b nor C has
///    ╲──C'────╱
/// ```
#[test]
fn merge_that_hides_a_change() {
    let mut dealing = Dealing::accepted();
    dealing.git(&["switch", "--quiet", "--create", "change"]);
    dealing.wish(20).commit(Some("acme"));
    dealing.git(&["switch", "--quiet", "main"]);
    let b = dealing.note("b").commit(None);
    for (key, held) in [(None, false), (Some("acme"), true)] {
        dealing.back_to(&b);
        dealing.git(&["merge", "--quiet", "--no-ff", "--no-commit", "change"]);
        let m = dealing.storage("evil").commit(key);
        if held {
            dealing.held();
        } else {
            assert!(dealing.refused("commit-unsigned").contains(&m));
            dealing.fleet.commits = CommitRule::Tip;
            assert!(dealing.refused("commit-unsigned").contains(&m));
            dealing.fleet.commits = CommitRule::Every;
        }
    }
}

/// ```text
///   A'──B'─────M     M puts the lines of B and C together and has one more, or decides where they contradict each other
///    ╲──C'────╱
/// ```
#[test]
fn merge_of_lines_that_neither_side_has() {
    let mut dealing = Dealing::accepted();
    dealing.git(&["switch", "--quiet", "--create", "change"]);
    dealing.storage("local-zfs").commit(Some("acme"));
    dealing.git(&["switch", "--quiet", "main"]);
    let b = dealing.wish(20).commit(Some("acme"));
    dealing.git(&["merge", "--quiet", "--no-ff", "--no-commit", "change"]);
    dealing.fleet.change(SITE_FILE, "vlan: 20", "vlan: 66");
    let m = dealing.commit(None);
    assert!(dealing.refused("commit-unsigned").contains(&m));
    // The same line on both sides is a person's decision.
    dealing.back_to(&b);
    dealing.git(&["branch", "--force", "change", "HEAD~1"]);
    dealing.git(&["switch", "--quiet", "change"]);
    dealing.wish(30).commit(Some("acme"));
    dealing.git(&["switch", "--quiet", "main"]);
    for (key, held) in [(None, false), (Some("acme"), true)] {
        dealing.back_to(&b);
        let m = dealing.merge(key, &["--strategy-option=theirs", "change"]);
        if held {
            dealing.held();
        } else {
            assert!(dealing.refused("commit-unsigned").contains(&m));
        }
    }
}

/// ```text
///   A'──B'──C'────M  M takes the site of x, which has it from A: B and C are gone
///    ╲──x────────╱
/// ```
#[test]
fn merge_that_takes_an_old_state() {
    for rule in [CommitRule::Every, CommitRule::Tip] {
        let mut dealing = Dealing::accepted();
        dealing.fleet.commits = rule;
        dealing.git(&["switch", "--quiet", "--create", "old"]);
        dealing.note("x").commit(None);
        dealing.git(&["switch", "--quiet", "main"]);
        dealing.wish(20).commit(Some("acme"));
        let c = dealing.wish(30).commit(Some("acme"));
        dealing.held();
        for (key, held) in [(None, false), (Some("acme"), true)] {
            dealing.back_to(&c);
            dealing.git(&["merge", "--quiet", "--no-ff", "--no-commit", "old"]);
            dealing.fleet.remote.write(SITE_FILE, SITE);
            let m = dealing.commit(key);
            if held {
                dealing.held();
            } else {
                assert!(dealing.refused("commit-unsigned").contains(&m));
            }
        }
    }
}

/// ```text
///   A'──B'────────M  R has no past, and the site as it was in A
///       R────────╱
/// ```
#[test]
fn old_state_in_a_history_of_its_own() {
    let mut dealing = Dealing::accepted();
    dealing.wish(20).commit(Some("acme"));
    let b = dealing.held().to_string();
    let tree = dealing.git(&["rev-parse", "HEAD~1^{tree}"]);
    let r = dealing.git(&["commit-tree", "-m", "R", &tree]);
    let m = dealing.git(&["commit-tree", "-m", "M", "-p", &b, "-p", &r, &tree]);
    dealing.back_to(&m);
    assert!(dealing.refused("commit-unsigned").contains(&r));
}

/// ```text
///   A'──B'──m────o   m and n merge B and C into each other, one keeping the site of B and one that of C;
///    ╲──C'─╳     │   for o there are two bases, and git's answer depends on how it merges those
///          n─────╯
/// ```
#[test]
fn crossed_merges_that_disagree() {
    let mut dealing = Dealing::accepted();
    dealing.git(&["switch", "--quiet", "--create", "other"]);
    let c = dealing.wish(30).commit(Some("acme"));
    dealing.git(&["switch", "--quiet", "main"]);
    let b = dealing.wish(20).commit(Some("acme"));
    let merged = |key, tree: &str, parents: [&str; 2]| {
        let tree = format!("{tree}^{{tree}}");
        let sign = if key { ["-S", "-m"] } else { ["--no-gpg-sign", "-m"] };
        dealing.git_as(
            Some("acme"),
            &[&["commit-tree"], &sign[..], &["m", "-p", parents[0], "-p", parents[1], &tree]].concat(),
        )
    };
    // Signed as they are, m and n hold.
    let (m, n) = (merged(true, &b, [&b, &c]), merged(true, &c, [&c, &b]));
    let (unsigned, signed) = (merged(false, &b, [&m, &n]), merged(true, &b, [&m, &n]));
    let agreeing = merged(false, &m, [&m, &merged(true, &b, [&c, &b])]);
    dealing.back_to(&unsigned);
    assert!(dealing.refused("commit-unsigned").contains(&unsigned));
    // Where both have the same, there is nothing to merge.
    dealing.back_to(&agreeing);
    let memory = dealing.fleet.memory.clone();
    dealing.held();
    dealing.fleet.memory = memory;
    dealing.back_to(&signed);
    dealing.held();
}

/// ```text
///   A'──b───────────m     m has three parents
///    ╲──c──────────╱│
///     ╲──d or D'────╯
/// ```
#[test]
fn octopus() {
    for (touches, key, held) in [(false, None, true), (true, None, false), (true, Some("acme"), true)] {
        let mut dealing = Dealing::accepted();
        for branch in ["c", "d"] {
            dealing.git(&["switch", "--quiet", "--create", branch, "main"]);
            if touches && branch == "d" {
                dealing.wish(20);
            }
            dealing.note(branch).commit(Some("acme"));
        }
        dealing.git(&["switch", "--quiet", "main"]);
        dealing.note("b").commit(None);
        let m = dealing.merge(key, &["c", "d"]);
        assert_eq!(dealing.git(&["rev-list", "--parents", "-1", "HEAD"]).split(' ').count(), 4);
        if held {
            dealing.held();
        } else {
            assert!(dealing.refused("commit-unsigned").contains(&m));
        }
    }
}

/// ```text
///   A'──B'──C        C has the header of B, or its own with another message
/// ```
#[test]
fn signature_of_another_commit() {
    let mut dealing = Dealing::accepted();
    dealing.wish(20).commit(Some("acme"));
    let b = dealing.held().to_string();
    let (_, pasted) = apart(&dealing.git(&["cat-file", "commit", "HEAD"]));
    dealing.wish(30).commit(None);
    dealing.forge(|object| with_header(&object, &pasted));
    dealing.refused("commit-signature-wrong");
    dealing.back_to(&b);
    dealing.wish(30).commit(Some("acme"));
    let honest = dealing.head();
    dealing.forge(|object| object.replace("\n\nchange", "\n\nanother change"));
    dealing.refused("commit-signature-wrong");
    dealing.back_to(&honest);
    dealing.held();
}

/// A tag is signed for git as well, but it is not a commit.
#[test]
fn signature_of_a_tag() {
    let mut dealing = Dealing::accepted();
    dealing.wish(20).commit(None);
    dealing.git_as(Some("acme"), &["tag", "--sign", "--message", "good", "v1"]);
    // A signed tag on it signs no commit.
    dealing.git(&["push", "--quiet", "origin", "v1"]);
    dealing.refused("commit-unsigned");
    let tag = dealing.git(&["cat-file", "tag", "v1"]);
    let signature = &tag[tag.find("-----BEGIN").unwrap()..];
    let header = format!("gpgsig {}\n", signature.trim_end().replace('\n', "\n "));
    dealing.forge(|object| with_header(&object, &header));
    dealing.refused("commit-signature-wrong");
}

#[test]
fn signature_for_something_else() {
    let mut dealing = Dealing::accepted();
    dealing.wish(20).commit(None);
    let content = dealing.git(&["cat-file", "commit", "HEAD"]) + "\n";
    let forged = dealing.write_commit(&with_header(&content, &dealing.signature("acme", "file", &content)));
    let said = dealing.refused("commit-namespace-wrong");
    assert!(said.contains("made for `file`") && said.contains(&forged), "{said}");
    dealing.write_commit(&with_header(&content, &dealing.signature("acme", "git", &content)));
    dealing.held();
}

/// Whatever a reader of signatures could be talked into.
#[test]
fn signatures_in_the_wrong_place() {
    let mut dealing = Dealing::accepted();
    dealing.wish(20).commit(Some("acme"));
    let honest = dealing.git(&["cat-file", "commit", "HEAD"]) + "\n";
    let (content, header) = apart(&honest);
    let pgp = "gpgsig -----BEGIN PGP SIGNATURE-----\n \n AAAA\n -----END PGP SIGNATURE-----\n";
    for (object, reason) in [
        // In the message, which is the author's own text.
        (content.clone() + &header, "commit-unsigned"),
        // Twice, of which a reader might take either.
        (with_header(&content, &format!("{header}{header}")), "commit-signature-wrong"),
        (with_header(&content, &format!("{header}gpgsig-sha256 x\n")), "commit-signature-wrong"),
        (with_header(&content, pgp), "commit-signature-wrong"),
        (with_header(&content, "gpgsig nonsense\n"), "commit-signature-wrong"),
        (with_header(&content, &header.replace("U1NIU0lH", "U1NIU0lI")), "commit-signature-wrong"),
        // One header more, which the signature does not cover.
        (with_header(&content, &format!("{header}encoding x\n")), "commit-signature-wrong"),
        (honest.clone() + "more\n", "commit-signature-wrong"),
    ] {
        dealing.write_commit(&object);
        dealing.refused(reason);
    }
    dealing.write_commit(&honest);
    dealing.held();
}

/// ```text
///   A'──B'──d2──C'   with d2 HQ takes the key out
/// ```
#[test]
fn key_that_was_taken_out() {
    for rule in [CommitRule::Every, CommitRule::Tip] {
        let mut dealing = Dealing::accepted();
        dealing.fleet.commits = rule;
        dealing.make_key("acme2", &["-t", "ed25519"]);
        dealing.wish(20).commit(Some("acme"));
        dealing.held();
        dealing.publish_dealers(2, &["acme2"], "");
        dealing.commit(None);
        // What was accepted with the key stays in force, and is verified anew after a restart.
        let d2 = dealing.held().to_string();
        dealing.held();
        dealing.wish(30).commit(Some("acme"));
        dealing.refused("commit-key-unknown");
        dealing.back_to(&d2);
        dealing.wish(30).commit(Some("acme2"));
        dealing.held();
    }
}

/// ```text
///   A'──b──C──d      nothing is accepted yet
/// ```
#[test]
fn first_contact() {
    for rule in [CommitRule::Every, CommitRule::Tip] {
        let mut dealing = Dealing::new();
        dealing.fleet.commits = rule;
        dealing.note("b").commit(None);
        dealing.held();
        dealing.fleet.memory = Default::default();
        let c = dealing.wish(20).commit(None);
        dealing.note("d").commit(None);
        assert!(dealing.refused("commit-unsigned").contains(&c));
        // What lies further back is as it is.
        dealing.wish(30).commit(Some("acme"));
        dealing.held();
    }
}

/// ```text
///   A'──B'           accepted, then main is rewritten
///    ╲──C──D'        an operator names D
/// ```
#[test]
fn rewrite_that_an_operator_accepted() {
    let mut dealing = Dealing::accepted();
    let a = dealing.head();
    dealing.wish(20).commit(Some("acme"));
    dealing.held();
    dealing.back_to(&a);
    let c = dealing.wish(30).commit(None).parse().unwrap();
    dealing.refused("history-rewritten");
    assert_eq!(dealing.fleet.judge(Some(&c)).unwrap_err().reason(), "commit-unsigned");
    // His word stands for the past, and not for the tip.
    let d = dealing.wish(40).commit(Some("acme")).parse().unwrap();
    dealing.fleet.remote.push();
    dealing.fleet.judge(Some(&d)).unwrap();
}

#[test]
fn list_of_dealers_that_is_not_hqs() {
    let mut dealing = Dealing::accepted();
    let good = fs::read(dealing.fleet.file("dealers.yaml.minisig")).unwrap();
    let mut step = |reason: Option<&str>, change: &dyn Fn(&Dealing)| {
        change(&dealing);
        dealing.commit(None);
        match reason {
            Some(reason) => drop(dealing.refused(reason)),
            None => drop(dealing.held()),
        }
    };
    let signature = "dealers.yaml.minisig";
    step(Some("document-unsigned"), &|dealing| {
        dealing.fleet.remote.remove(signature);
    });
    step(Some("document-signature-wrong"), &|dealing| {
        dealing.fleet.remote.write(signature, &good);
        dealing.fleet.change("dealers.yaml", "acme-hq", "\"*\"");
    });
    step(Some("document-comment-mismatch"), &|dealing| {
        dealing.publish_dealers(1, &["acme"], "");
        dealing.fleet.sign_file("dealers.yaml", "ctrlable dealers 2 signed 2026-11-20T12:00:00Z");
    });
    step(Some("document-comment-mismatch"), &|dealing| {
        dealing.fleet.sign_file("dealers.yaml", "ctrlable release 2026.06 signed 2026-11-20T12:00:00Z");
    });
    step(Some("document-comment-missing"), &|dealing| {
        dealing.fleet.sign_file("dealers.yaml", "ctrlable dealers 1 signed yesterday");
    });
    step(Some("bad-time"), &|dealing| {
        dealing.fleet.change("dealers.yaml", "2026-11-20T", "2026-13-20T");
        dealing.fleet.sign_file("dealers.yaml", "ctrlable dealers 1 signed 2026-11-20T12:00:00Z");
    });
    step(Some("dealers-missing"), &|dealing| {
        dealing.fleet.remote.remove(signature).remove("dealers.yaml");
    });
    step(None, &|dealing| dealing.publish_dealers(1, &["acme"], ""));
    // Another HQ's list is good for those who trust that HQ.
    let stranger = make_key(&dealing.fleet.remote, "stranger");
    let keys = std::mem::replace(&mut dealing.fleet.keys, KeySet::parse(&[stranger]).unwrap());
    dealing.note("b").commit(None);
    dealing.refused("document-key-unknown");
    dealing.fleet.keys = keys;
    dealing.held();
    // Without a demand for signatures it may be missing.
    dealing.fleet.remote.remove(signature).remove("dealers.yaml");
    dealing.commit(None);
    dealing.refused("dealers-missing");
    dealing.fleet.commits = CommitRule::Off;
    dealing.held();
    // What is in force stays in force over a restart, also when more is demanded from now on.
    dealing.fleet.commits = CommitRule::Every;
    dealing.held();
}

#[test]
fn limits_of_hq() {
    let mut dealing = Dealing::accepted();
    dealing.publish_dealers(2, &["acme"], "    limits: { templates: [frigate], per_site: { ram: 2047 } }\n");
    dealing.commit(None);
    let said = dealing.refused("limit-memory");
    assert!(said.contains("limit `per_site.ram`") && said.contains("limit `templates`"), "{said}");
    // A laptop says the same.
    let checkout = Checkout::new(dealing.fleet.file(""));
    assert_eq!(check(&checkout, &site("acme-hq")).unwrap_err().refusals().len(), 2);
    // They hold where no signature is demanded.
    dealing.fleet.commits = CommitRule::Off;
    dealing.refused("limit-memory");
    dealing.publish_dealers(3, &["acme"], "    limits: { templates: [zigbee2mqtt], per_site: { ram: 2048 } }\n");
    dealing.commit(None);
    dealing.held();
    check(&checkout, &site("acme-hq")).unwrap();
}
