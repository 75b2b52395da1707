//! Documents from files: every fixture of `tests/data/documents` says by its name what is wrong with it.
#![cfg(feature = "documents")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use contract::dealers::Dealers;
use contract::document::{self, Document};
use contract::ids::ReleaseId;
use contract::manifest::Manifest;
use contract::refusal::{Reason, Refusal};
use contract::site::{ReleaseChoice, Site};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// What a whole fleet checkout is refused for.
fn refusals(fleet: &Path) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let mut manifests: BTreeMap<ReleaseId, Document<Manifest>> = BTreeMap::new();
    for file in files(&fleet.join("releases")).iter().filter(|file| file.extension().is_some_and(|end| end == "yaml")) {
        let name = format!("releases/{}", file.file_name().unwrap().to_str().unwrap());
        match document::manifest(&name, &fs::read(file).unwrap()) {
            Ok(manifest) => drop(manifests.insert(manifest.value.release.clone(), manifest)),
            Err(found) => refusals.extend(found),
        }
    }
    for file in files(&fleet.join("keys")) {
        let name = format!("keys/{}", file.file_name().unwrap().to_str().unwrap());
        refusals.extend(document::key_list(&name, &fs::read(file).unwrap()).err().unwrap_or_default());
    }
    if let Ok(content) = fs::read(fleet.join("channels.yaml")) {
        refusals.extend(document::channels("channels.yaml", &content).err().unwrap_or_default());
    }
    let dealers = fs::read(fleet.join("dealers.yaml")).ok().map(|bytes| document::dealers("dealers.yaml", &bytes));
    let dealers = dealers.transpose().unwrap_or_else(|found| {
        refusals.extend(found);
        None
    });
    let broken = !refusals.is_empty();
    for directory in files(&fleet.join("sites")) {
        let name = format!("sites/{}/site.yaml", directory.file_name().unwrap().to_str().unwrap());
        match document::site(&name, &fs::read(directory.join("site.yaml")).unwrap()) {
            Ok(site) if !broken => refusals.extend(against(&site, &manifests, dealers.as_ref())),
            Ok(_) => {}
            Err(found) => refusals.extend(found),
        }
    }
    refusals
}

fn against(
    site: &Document<Site>,
    manifests: &BTreeMap<ReleaseId, Document<Manifest>>,
    dealers: Option<&Document<Dealers>>,
) -> Vec<Refusal> {
    let known: BTreeSet<ReleaseId> = manifests.keys().cloned().collect();
    if let Err(refusal) = document::release_exists(site, &known) {
        return vec![*refusal];
    }
    match &site.value.release {
        ReleaseChoice::Exact(id) => {
            let mut refusals = document::against(site, &manifests[id].value);
            if let Some(dealers) = dealers {
                refusals.extend(document::dealer_of(site, &dealers.value).err().map(|refusal| *refusal));
                let limits = dealers.value.limits_of(&site.value.dealer);
                refusals.extend(document::within(site, &manifests[id].value, &limits));
            }
            refusals
        }
        ReleaseChoice::Channel(_) => Vec::new(),
    }
}

/// The entries of a directory, sorted; none when it is not there.
fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// `label file:line field` for each refusal, as the `expected` files have them.
fn lines(refusals: &[Refusal]) -> String {
    let line = |refusal: &Refusal| {
        let place = &refusal.place;
        format!("{} {}:{} {}", refusal.reason, place.file, place.line, place.field).trim_end().to_owned() + "\n"
    };
    refusals.iter().map(line).collect()
}

#[test]
fn bad_fleets_are_refused_for_what_they_are_named_after() {
    let mut cases = 0;
    let mut wrong = Vec::new();
    for fleet in files(&repository().join("tests/data/documents")) {
        let Ok(expected) = fs::read_to_string(fleet.join("expected")) else { continue };
        assert!(!expected.is_empty(), "{} expects nothing", fleet.display());
        let refusals = refusals(&fleet);
        if lines(&refusals) != expected {
            wrong.push(format!("{}\nexpected\n{expected}got{}", fleet.display(), report(&refusals)));
        }
        for refusal in &refusals {
            let told = refusal.to_string();
            assert!(!told.to_lowercase().contains("hunter"), "a secret is quoted: {told}");
            assert!(!refusal.message.is_empty() && !refusal.remedy.is_empty(), "{told}");
        }
        cases += 1;
    }
    println!("{cases} bad fleets");
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(cases > 100, "only {cases} fixtures were found");
}

/// Every label stands in some fixture, so none can go missing unnoticed.
#[test]
fn every_reason_has_a_fixture() {
    let expected: String = files(&repository().join("tests/data/documents"))
        .iter()
        .filter_map(|fleet| fs::read_to_string(fleet.join("expected")).ok())
        .collect();
    let shown: BTreeSet<&str> = expected.lines().filter_map(|line| line.split(' ').next()).collect();
    let missing: Vec<&str> =
        Reason::ALL.iter().map(|reason| reason.label()).filter(|label| !shown.contains(label)).collect();
    assert_eq!(missing, Vec::<&str>::new());
}

#[test]
fn good_fleets_load() {
    let data = repository().join("tests/data/documents");
    for fleet in [data.join("good"), data.join("good-dealers"), data.join("spec-sample"), repository()] {
        let refusals = refusals(&fleet);
        assert!(refusals.is_empty(), "{}: {}", fleet.display(), report(&refusals));
    }
}

fn report(refusals: &[Refusal]) -> String {
    refusals.iter().map(|refusal| format!("\n{refusal}")).collect()
}
