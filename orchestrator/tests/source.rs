//! Fetching from real remotes, and reading files at a revision.
#![allow(clippy::unwrap_used, clippy::panic)]

mod source_remote;

use std::fs;
use std::path::Path;
use std::time::Duration;

use contract::ids::Revision;
use orchestrator::source::{Checkout, Limits, Repository, Settings, SourceError, Tree};
use source_remote::Remote;

fn reason<T>(result: Result<T, SourceError>) -> &'static str {
    let Err(error) = result else { panic!("accepted") };
    assert!(!error.to_string().is_empty() && !error.remedy().is_empty());
    error.reason()
}

#[test]
fn fetches_the_branch_and_reads_files_at_each_revision() {
    let remote = Remote::new();
    //  a ── b   main
    let a = remote.write("sites/acme/site.yaml", "one").publish("a");
    let mut repository = remote.open();
    assert_eq!(repository.head().unwrap(), None);
    let first = repository.fetch().unwrap();
    assert_eq!((&first.head, &first.previous), (&a, &None));
    assert!(first.bytes_received > 0);

    let b = remote.write("sites/acme/site.yaml", "two").write("releases/2026.06.yaml", "r").publish("b");
    let second = repository.fetch().unwrap();
    assert_eq!((&second.head, &second.previous), (&b, &Some(a.clone())));
    assert_eq!(repository.fetch().unwrap().previous, Some(b.clone()));

    let read = |revision: &Revision, path: &str| repository.at(revision).unwrap().read(path, 100).unwrap();
    assert_eq!(read(&a, "sites/acme/site.yaml").unwrap(), b"one");
    assert_eq!(read(&b, "sites/acme/site.yaml").unwrap(), b"two");
    assert_eq!(read(&a, "releases/2026.06.yaml"), None);
    assert_eq!(repository.at(&b).unwrap().list("releases").unwrap(), ["2026.06.yaml"]);
    assert_eq!(repository.at(&b).unwrap().list("nothing/here").unwrap(), Vec::<String>::new());

    // What was fetched is there after a restart, and there is no work tree.
    drop(repository);
    assert_eq!(remote.open().head().unwrap(), Some(b));
    assert!(!remote.state().join("sites").exists());
}

#[test]
fn a_plain_path_is_a_remote_too() {
    let remote = Remote::new();
    let a = remote.write("f", "x").publish("a");
    let settings = Settings { url: remote.bare().display().to_string(), ..remote.settings() };
    assert_eq!(Repository::open(&remote.state(), settings).unwrap().fetch().unwrap().head, a);
}

#[test]
fn descent_is_told_from_a_rewrite() {
    let remote = Remote::new();
    //  a ── b ── c   main, fetched first
    //   └── d        main after a force push
    let a = remote.write("f", "a").commit("a");
    let b = remote.write("f", "b").commit("b");
    let c = remote.write("f", "c").publish("c");
    let mut repository = remote.open();
    repository.fetch().unwrap();
    remote.git(&["reset", "--quiet", "--hard", a.as_str()]);
    let d = remote.write("f", "d").publish("d");
    assert_eq!(repository.fetch().unwrap().head, d);

    let descends = |of, candidate| repository.is_descendant(of, candidate).unwrap();
    assert!(descends(&a, &c) && descends(&b, &c) && descends(&c, &c) && descends(&a, &d));
    assert!(!descends(&c, &d) && !descends(&b, &d) && !descends(&c, &a));
    // A revision that the repository never had is nobody's ancestor, and no candidate.
    let nobody: Revision = "1".repeat(40).parse().unwrap();
    assert!(!descends(&nobody, &d));
    assert_eq!(reason(repository.is_descendant(&d, &nobody)), "source-revision-unknown");
    assert_eq!(reason(repository.at(&nobody)), "source-revision-unknown");
    assert_eq!(reason(repository.at(&"1".repeat(64).parse().unwrap())), "source-revision-unknown");
}

#[test]
fn only_commits_are_revisions() {
    let remote = Remote::new();
    remote.write("f", "x").publish("a");
    let mut repository = remote.open();
    repository.fetch().unwrap();
    let tree: Revision = remote.git(&["rev-parse", "HEAD^{tree}"]).parse().unwrap();
    assert_eq!(reason(repository.at(&tree)), "source-revision-unknown");
}

#[test]
fn missing_branch() {
    let remote = Remote::new();
    let mut repository = remote.open();
    let error = repository.fetch().unwrap_err();
    assert_eq!(error.reason(), "source-branch-missing");
    assert!(error.to_string().contains("no branch at all"), "{error}");

    remote.write("f", "x").publish("a");
    repository.fetch().unwrap();
    // A deleted branch is an error, not the last head once more.
    remote.git(&["checkout", "--quiet", "-b", "trunk"]);
    remote.push();
    remote.delete_branch("main");
    let error = repository.fetch().unwrap_err();
    assert_eq!(error.reason(), "source-branch-missing");
    assert!(error.to_string().ends_with("it has trunk"), "{error}");
}

#[test]
fn unreachable_remote() {
    let remote = Remote::new();
    let gone = Settings { url: format!("file://{}/gone.git", remote.path().display()), ..remote.settings() };
    assert_eq!(reason(Repository::open(&remote.state(), gone).unwrap().fetch()), "source-unreachable");

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let closed = Settings { url: format!("https://127.0.0.1:{port}/fleet.git"), ..remote.settings() };
    assert_eq!(reason(Repository::open(&remote.state(), closed).unwrap().fetch()), "source-unreachable");
}

#[test]
fn insecure_transports_and_credentials_in_the_address() {
    let remote = Remote::new();
    let open = |url: &str| Repository::open(&remote.state(), Settings { url: url.to_owned(), ..remote.settings() });
    assert_eq!(reason(open("http://127.0.0.1/fleet.git")), "insecure-transport");
    assert_eq!(reason(open("git://127.0.0.1/fleet.git")), "insecure-transport");
    assert_eq!(reason(open("https://token@127.0.0.1/fleet.git")), "source-url-credentials");
    assert_eq!(reason(open("ssh://git@127.0.0.1/fleet.git")), "source-ssh-not-configured");
    assert!(!remote.state().exists());
}

#[test]
fn branch_name_that_is_none() {
    let remote = Remote::new();
    let settings = Settings { branch: "main:refs/heads/other".to_owned(), ..remote.settings() };
    assert_eq!(reason(Repository::open(&remote.state(), settings)), "source-branch-name");
}

fn noise(bytes: usize) -> Vec<u8> {
    // A linear congruential generator: content that does not compress.
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(&mut next).take(bytes).collect()
}

#[test]
fn fetch_larger_than_the_limit() {
    let remote = Remote::new();
    remote.write("f", noise(300_000)).publish("a");
    let fetch = |limits| Repository::open(&remote.state(), Settings { limits, ..remote.settings() }).unwrap().fetch();
    assert_eq!(reason(fetch(Limits { fetched_bytes: 200_000, ..Limits::default() })), "source-too-large");
    assert_eq!(reason(fetch(Limits { objects: 2, ..Limits::default() })), "source-too-large");
    assert_eq!(reason(fetch(Limits { time: Duration::ZERO, ..Limits::default() })), "source-timeout");
    // What was refused left nothing behind, and stands in nobody's way.
    assert_eq!(remote.open().head().unwrap(), None);
    fetch(Limits { fetched_bytes: 400_000, objects: 3, ..Limits::default() }).unwrap();
}

#[test]
fn file_larger_than_the_limit_is_not_inflated() {
    let remote = Remote::new();
    // 64 MiB of zeroes travel as some kilobytes.
    remote.write("bomb", vec![0; 64 << 20]).write("small", "1234").publish("a");
    let mut repository = remote.open();
    let fetched = repository.fetch().unwrap();
    assert!(fetched.bytes_received < 1 << 20);
    let snapshot = repository.at(&fetched.head).unwrap();
    assert_eq!(reason(snapshot.read("bomb", usize::MAX)), "source-too-large");
    assert_eq!(reason(snapshot.read("small", 3)), "source-too-large");
    assert_eq!(snapshot.read("small", 4).unwrap().unwrap(), b"1234");
}

#[test]
fn links_submodules_and_directories_are_no_files() {
    let remote = Remote::new();
    remote.write("real/site.yaml", "fine").git(&["add", "--all"]);
    remote.stage("120000", "/etc/passwd", "link.yaml");
    remote.stage("120000", "real", "linked");
    remote.stage("160000", "", "module");
    remote.commit_index("a");
    remote.push();
    let mut repository = remote.open();
    let head = repository.fetch().unwrap().head;
    let snapshot = repository.at(&head).unwrap();
    for (path, words) in [
        ("link.yaml", "link.yaml is a symbolic link, where a file must be"),
        ("linked/site.yaml", "linked is a symbolic link, where a directory must be"),
        ("module", "module is a submodule, where a file must be"),
        ("module/site.yaml", "module is a submodule, where a directory must be"),
        ("real", "real is a directory, where a file must be"),
        ("real/site.yaml/more", "real/site.yaml is a file, where a directory must be"),
    ] {
        let error = snapshot.read(path, 100).unwrap_err();
        assert_eq!((error.reason(), error.to_string().as_str()), ("source-wrong-entry", words));
    }
    assert_eq!(reason(snapshot.list("linked")), "source-wrong-entry");
    assert_eq!(snapshot.read("real/site.yaml", 100).unwrap().unwrap(), b"fine");
}

#[test]
fn paths_that_climb() {
    let remote = Remote::new();
    let head = remote.write("a/b", "x").publish("a");
    let mut repository = remote.open();
    repository.fetch().unwrap();
    let snapshot = repository.at(&head).unwrap();
    let checkout = Checkout::new(remote.path().join("work"));
    for path in ["", "/etc/passwd", "../tree/a/b", "a/../a/b", "a//b", "./a/b", "a/b/", "a\\b", "a\0b"] {
        assert_eq!(reason(snapshot.read(path, 100)), "source-path", "{path:?}");
        assert_eq!(reason(checkout.read(path, 100)), "source-path", "{path:?}");
    }
}

#[test]
fn a_checkout_reads_like_a_revision() {
    let remote = Remote::new();
    remote.write("sites/acme/site.yaml", "fine").write("sites/zeta/site.yaml", "too");
    let root = remote.path().join("work");
    std::os::unix::fs::symlink("/etc/passwd", root.join("link.yaml")).unwrap();
    std::os::unix::fs::symlink("sites", root.join("linked")).unwrap();
    let checkout = Checkout::new(&root);
    assert_eq!(checkout.revision(), None);
    assert_eq!(checkout.list("sites").unwrap(), ["acme", "zeta"]);
    assert_eq!(checkout.list("releases").unwrap(), Vec::<String>::new());
    assert_eq!(checkout.read("sites/acme/site.yaml", 4).unwrap().unwrap(), b"fine");
    assert_eq!(checkout.read("sites/nobody/site.yaml", 4).unwrap(), None);
    assert_eq!(reason(checkout.read("sites/acme/site.yaml", 3)), "source-too-large");
    assert_eq!(reason(checkout.read("sites", 3)), "source-wrong-entry");
    assert_eq!(reason(checkout.read("link.yaml", 3)), "source-wrong-entry");
    assert_eq!(reason(checkout.read("linked/acme/site.yaml", 3)), "source-wrong-entry");
    assert_eq!(reason(Checkout::new(root.join("gone")).read("f", 3)), "source-checkout");
}

#[test]
fn leftovers_of_a_killed_fetch_are_cleared() {
    let remote = Remote::new();
    let a = remote.write("f", "x").publish("a");
    let mut repository = remote.open();
    let leftovers = ["refs/ctrlable/fetched.lock", "config.lock", "objects/pack/pack_git2_4711"];
    for leftover in leftovers {
        let path = remote.state().join(leftover);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "half").unwrap();
    }
    assert_eq!(repository.fetch().unwrap().head, a);
    for leftover in leftovers {
        assert!(!remote.state().join(leftover).exists(), "{leftover}");
    }
}

#[test]
fn a_second_process_waits_its_turn() {
    let remote = Remote::new();
    remote.write("f", "x").publish("a");
    let mut repository = remote.open();
    let lock = fs::File::create(remote.state().join("ctrlable.lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(reason(repository.fetch()), "source-busy");
    drop(lock);
    repository.fetch().unwrap();
}

#[test]
fn a_damaged_copy_is_named_and_may_be_deleted() {
    let remote = Remote::new();
    let a = remote.write("f", "x").publish("a");
    let mut repository = remote.open();
    repository.fetch().unwrap();
    drop(repository);
    fs::write(remote.state().join("refs/ctrlable/fetched"), "nonsense").unwrap();
    let error = remote.open().fetch().unwrap_err();
    assert_eq!(error.reason(), "source-store");
    assert!(error.remedy().contains("may be deleted"));
    fs::remove_dir_all(remote.state()).unwrap();
    assert_eq!(remote.open().fetch().unwrap().head, a);
}

#[test]
fn a_copy_half_made_is_completed() {
    let remote = Remote::new();
    let a = remote.write("f", "x").publish("a");
    fs::create_dir_all(remote.state().join("objects")).unwrap();
    fs::write(remote.state().join("HEAD"), "ref: refs/heads/main\n").unwrap();
    assert_eq!(remote.open().fetch().unwrap().head, a);
}

#[test]
fn a_damaged_remote_is_not_taken() {
    let remote = Remote::new();
    remote.write("f", noise(10_000)).publish("a");
    let damaged = blob_file(&remote.bare().join("objects"));
    let mut content = fs::read(&damaged).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::set_permissions(&damaged, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    fs::write(&damaged, content).unwrap();
    let mut repository = remote.open();
    let error = repository.fetch().unwrap_err();
    assert_eq!(error.reason(), "source-protocol", "{error:?}");
    assert_eq!(repository.head().unwrap(), None);
}

/// The largest loose object.
fn blob_file(objects: &Path) -> std::path::PathBuf {
    let folders = fs::read_dir(objects).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let files = folders.flat_map(|folder| fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
    files.max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap()
}

/// Fetching blocks, so it is done on threads made for that, and what comes of it is handed around.
#[test]
fn what_crosses_threads() {
    fn send<T: Send + 'static>() {}
    fn share<T: Send + Sync + 'static>() {}
    send::<Repository>();
    share::<SourceError>();
    share::<orchestrator::trust::VerifiedSite>();
    share::<orchestrator::trust::TrustError>();
    share::<orchestrator::trust::KeySet>();
}
