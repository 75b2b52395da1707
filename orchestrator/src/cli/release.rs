//! `ctrlable release …`: results on stdout, as text or as one JSON object; failures as text on stderr or as one JSON
//! object on stdout. Exit codes: 0 fine, 1 refused or failed, 2 not understood.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{Format, hq};
use clap::{Args, Subcommand};
use contract::ids::ReleaseId;
use contract::secret::Secret;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::release::{
    ChannelChange, KeyChange, KeyProtection, Origin, ReleaseError, SigningKey, Strictness, keygen, lint, scaffold,
    sign, signable, verify,
};
use crate::trust::{KeyId, KeySet, SignedComment, Subject, VerifyingKey};

/// Make keys, and make, check, sign and verify releases.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make HQ's key pair: hq.key and hq.pub.
    ///
    /// Example: ctrlable release keygen --out ~/hq
    Keygen {
        /// Directory for hq.key and hq.pub; made if it is missing.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Leave the key in the clear. Only where the place protects it.
        #[arg(long)]
        no_password: bool,
        /// Take the password from the first line of a file instead of asking for it.
        #[arg(long, value_name = "FILE", conflicts_with = "no_password")]
        password_file: Option<PathBuf>,
    },
    /// Write a new manifest, ready to be changed.
    ///
    /// Example: ctrlable release new 2026.07 --from releases/2026.06.yaml --dir releases
    New {
        /// The new release, such as 2026.07.
        id: ReleaseId,
        /// Start from this release.
        #[arg(long, value_name = "FILE", required_unless_present = "scripts_ref")]
        from: Option<PathBuf>,
        /// Start from an example whose builder scripts are pinned to this tag or commit.
        #[arg(long, value_name = "REF", conflicts_with = "from")]
        scripts_ref: Option<String>,
        /// Where to write it.
        #[arg(long, value_name = "DIR", default_value = ".")]
        dir: PathBuf,
    },
    /// Check manifests.
    ///
    /// Example: ctrlable release lint releases/*.yaml
    Lint {
        /// Manifests, each called <release id>.yaml.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Write the next list of HQ's keys, to be signed by the list before and by its own keys.
    ///
    /// Example: ctrlable release keys --dir . --add ben.pub --threshold 2
    Keys {
        /// The checkout of the fleet repository.
        #[arg(long, value_name = "DIR", default_value = ".")]
        dir: PathBuf,
        /// Keys of the first list, the orchestrators' configuration, as long as there is no other.
        #[arg(long, num_args = 1.., value_name = "FILE|KEY")]
        pubkey: Vec<String>,
        /// Keys that come: files, or keys themselves (RW…).
        #[arg(long, num_args = 1.., value_name = "FILE|KEY")]
        add: Vec<String>,
        /// Keys that go, by their ids.
        #[arg(long, num_args = 1.., value_name = "ID")]
        remove: Vec<KeyId>,
        /// How many different keys must have signed what HQ publishes. Default: as before.
        #[arg(long, value_name = "N")]
        threshold: Option<u32>,
    },
    /// Write the next channels.yaml, in which a channel gives another release, or which only lasts longer.
    ///
    /// Example: ctrlable release channel stable 2026.06 --expires 90d
    Channel {
        /// The channel.
        #[arg(requires = "release")]
        name: Option<String>,
        /// The release that it gives.
        release: Option<ReleaseId>,
        /// How long sites follow it.
        #[arg(long, value_name = "TIME", default_value = "90d", value_parser = hq::duration)]
        expires: SignedDuration,
        /// The checkout of the fleet repository.
        #[arg(long, value_name = "DIR", default_value = ".")]
        dir: PathBuf,
    },
    /// Write the next channels.yaml, in which a release is revoked.
    ///
    /// Example: ctrlable release revoke 2026.05 --why "broker does not start"
    Revoke {
        /// The release.
        release: ReleaseId,
        /// Why, for the dealers.
        #[arg(long)]
        why: String,
        /// How long sites follow it.
        #[arg(long, value_name = "TIME", default_value = "90d", value_parser = hq::duration)]
        expires: SignedDuration,
        /// The checkout of the fleet repository.
        #[arg(long, value_name = "DIR", default_value = ".")]
        dir: PathBuf,
    },
    /// Show who has signed a document of a checkout and who has not; exit 1 if it does not suffice.
    ///
    /// Example: ctrlable release inspect channels.yaml --pubkey hq.pub
    Inspect {
        /// releases/<id>.yaml, keys/<n>.yaml or channels.yaml.
        file: PathBuf,
        /// Keys of the first list, the orchestrators' configuration: files, or keys themselves (RW…).
        #[arg(long, required = true, num_args = 1.., value_name = "FILE|KEY")]
        pubkey: Vec<String>,
        /// How many of them must have signed, as in the orchestrators' configuration.
        #[arg(long, value_name = "N", default_value_t = 1)]
        threshold: u32,
    },
    /// Check a document of HQ and sign it. Several people sign one after the other, on any machines.
    ///
    /// Example: ctrlable release sign releases/2026.06.yaml --key ~/hq/hq.key
    Sign {
        /// <release id>.yaml, keys/<n>.yaml or channels.yaml.
        file: PathBuf,
        /// HQ's secret key, or one that minisign made.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Where the signature goes. Default: beside the file, with .minisig behind its name, or .<key id>.minisig if
        /// somebody else has signed already.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Take the password from the first line of a file instead of asking for it.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Verify the signature of a release, or of any file that minisign signed.
    ///
    /// Example: ctrlable release verify releases/2026.06.yaml --pubkey ~/hq/hq.pub
    Verify {
        /// The file.
        file: PathBuf,
        /// Public keys that may have signed: files, or keys themselves (RW…).
        #[arg(long, required = true, num_args = 1.., value_name = "FILE|KEY")]
        pubkey: Vec<String>,
        /// Where the signature is. Default: beside the file, with .minisig behind its name.
        #[arg(long, value_name = "FILE")]
        signature: Option<PathBuf>,
        /// Refuse what is not signed as a release, as every site does.
        #[arg(long)]
        strict: bool,
    },
}

/// A result in both formats.
pub(super) struct Done {
    pub(super) text: String,
    pub(super) json: Value,
    /// Whether what was asked about is so.
    pub(super) met: bool,
}

/// Runs one command and prints what came of it.
pub fn run(args: ReleaseArgs, format: Format) -> ExitCode {
    let result = match args.command {
        // Every file is checked, whatever the others are.
        Command::Lint { files } => return lint_all(&files, format),
        Command::Keygen { out, no_password, password_file } => make_keys(&out, no_password, password_file.as_deref()),
        Command::New { id, from, scripts_ref, dir } => make_manifest(&id, from, scripts_ref, &dir),
        Command::Sign { file, key, out, password_file } => {
            sign_file(&file, &key, out.as_deref(), password_file.as_deref())
        }
        Command::Keys { dir, pubkey, add, remove, threshold } => each_key(&pubkey)
            .and_then(|first| hq::keys(&dir, &KeyChange { first, add: each_key(&add)?, remove, threshold })),
        Command::Channel { name, release, expires, dir } => {
            let change = match name.zip(release) {
                Some((name, release)) => ChannelChange::Give(name, release),
                None => ChannelChange::Renew,
            };
            hq::channels(&dir, change, expires)
        }
        Command::Revoke { release, why, expires, dir } => {
            hq::channels(&dir, ChannelChange::Revoke(release, why), expires)
        }
        Command::Inspect { file, pubkey, threshold } => public_keys(&pubkey)
            .and_then(|keys| {
                keys.with_threshold(threshold)
                    .map_err(|cause| ReleaseError::PublicKey { given: format!("--threshold {threshold}"), cause })
            })
            .and_then(|keys| hq::look(&file, &keys)),
        Command::Verify { file, pubkey, signature, strict } => {
            let strictness = if strict { Strictness::ReleaseOnly } else { Strictness::AnySignature };
            verify_file(&file, &pubkey, signature.as_deref(), strictness)
        }
    };
    match (result, format) {
        (Ok(done), format) => {
            match format {
                Format::Text => anstream::println!("{}", done.text),
                Format::Json => anstream::println!("{}", with_ok(done.json)),
            }
            if done.met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        (Err(error), format) => {
            match format {
                Format::Text => anstream::eprintln!("{}", failure_text(&error)),
                Format::Json => anstream::println!("{}", failure_json(&error)),
            }
            ExitCode::FAILURE
        }
    }
}

fn make_keys(out: &Path, no_password: bool, password_file: Option<&Path>) -> Result<Done, ReleaseError> {
    let protection = match (no_password, password_file) {
        (true, _) => KeyProtection::Unprotected,
        (false, Some(file)) => KeyProtection::password(password_from(file)?)?,
        (false, None) => {
            let first = ask("New password for hq.key: ")?;
            if first != ask("Once more: ")? {
                return Err(ReleaseError::PasswordMismatch);
            }
            KeyProtection::password(first)?
        }
    };
    let made = keygen(out, &protection)?;
    let text = format!(
        "made key {}\n  {}   secret: keep it offline, with a copy\n  {}   public: every orchestrator lists it\n{}",
        made.id,
        made.secret.display(),
        made.public.display(),
        made.encoded
    );
    let json = json!({
        "key": made.id.to_string(), "secret_file": made.secret, "public_file": made.public, "public_key": made.encoded,
    });
    Ok(Done { text, json, met: true })
}

fn make_manifest(
    id: &ReleaseId,
    from: Option<PathBuf>,
    scripts_ref: Option<String>,
    dir: &Path,
) -> Result<Done, ReleaseError> {
    let origin = match from {
        Some(older) => Origin::Release(older),
        None => Origin::Example { scripts_ref: scripts_ref.unwrap_or_default() },
    };
    let file = scaffold(id, &origin, dir)?;
    let text = format!("wrote {}\nnext: change it, then ctrlable release lint {}", file.display(), file.display());
    Ok(Done { text, json: json!({ "file": file, "release": id }), met: true })
}

fn lint_all(files: &[PathBuf], format: Format) -> ExitCode {
    let mut reports = Vec::new();
    let mut failed = false;
    for file in files {
        match (lint(file), format) {
            (Ok(linted), Format::Text) => {
                let manifest = &linted.document.value;
                let count = manifest.templates.len();
                let noun = if count == 1 { "template" } else { "templates" };
                anstream::println!("{}: release {}, {count} {noun}, fine", file.display(), manifest.release);
            }
            (Ok(linted), Format::Json) => {
                let release = &linted.document.value.release;
                reports.push(json!({ "file": file, "ok": true, "release": release, "refusals": [] }));
            }
            (Err(error), format) => {
                failed = true;
                match format {
                    Format::Text => anstream::eprintln!("{}", failure_text(&error)),
                    Format::Json => {
                        let mut report = failure_json(&error);
                        report["file"] = json!(file);
                        reports.push(report);
                    }
                }
            }
        }
    }
    if format == Format::Json {
        anstream::println!("{}", json!({ "ok": !failed, "files": reports }));
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn sign_file(file: &Path, key: &Path, out: Option<&Path>, password_file: Option<&Path>) -> Result<Done, ReleaseError> {
    // What cannot be signed is said before anybody types a password.
    signable(file)?;
    let key = SigningKey::read(key, || match password_file {
        Some(file) => password_from(file),
        None => ask(&format!("Password for {}: ", key.display())),
    })?;
    let signed = sign(file, out, &key, Timestamp::now())?;
    let text = format!(
        "signed {} with key {}\n  {}   {}",
        signed.comment.subject,
        signed.key,
        signed.signature.display(),
        signed.comment
    );
    let json = json!({
        "release": release_in(&signed.comment), "subject": signed.comment.subject.to_string(), "key": signed.key.to_string(), "signature": signed.signature,
        "trusted_comment": signed.comment.to_string(), "signed_at": signed.comment.signed_at.to_string(),
    });
    Ok(Done { text, json, met: true })
}

fn verify_file(
    file: &Path,
    pubkeys: &[String],
    signature: Option<&Path>,
    strictness: Strictness,
) -> Result<Done, ReleaseError> {
    let verified = verify(file, signature, &public_keys(pubkeys)?, strictness)?;
    let name = file.display();
    let text = match &verified.comment {
        Some(comment) => {
            format!("{name}: {}, signed {} with key {}", comment.subject, comment.signed_at, verified.key)
        }
        None => format!(
            "{name}: the signature of key {} holds\nbut its trusted comment `{}` is none of HQ's, so no site \
             would take it: what HQ publishes is signed with ctrlable release sign",
            verified.key, verified.trusted_comment
        ),
    };
    let json = json!({
        "file": file, "key": verified.key.to_string(), "trusted_comment": verified.trusted_comment,
        "release": verified.comment.as_ref().and_then(release_in),
        "subject": verified.comment.as_ref().map(|comment| comment.subject.to_string()),
        "signed_at": verified.comment.as_ref().map(|comment| comment.signed_at.to_string()),
        "sha256": verified.digest,
    });
    Ok(Done { text, json, met: true })
}

/// The release that was signed, if it is one.
fn release_in(comment: &SignedComment) -> Option<String> {
    match &comment.subject {
        Subject::Release(id) => Some(id.to_string()),
        Subject::Numbered(..) => None,
    }
}

/// Public keys, each a file or the key itself.
fn public_keys(given: &[String]) -> Result<KeySet, ReleaseError> {
    KeySet::parse(&each_key(given)?).map_err(|cause| ReleaseError::PublicKey { given: given.join(", "), cause })
}

/// As [`public_keys`], each in base64.
fn each_key(given: &[String]) -> Result<Vec<String>, ReleaseError> {
    let mut keys = Vec::new();
    for entry in given {
        let text = match std::fs::read_to_string(entry) {
            Ok(text) => text,
            Err(_) if entry.parse::<VerifyingKey>().is_ok() => entry.clone(),
            Err(cause) => return Err(ReleaseError::Read { path: entry.into(), cause: cause.to_string() }),
        };
        // One by one, so that the bad one is named.
        KeySet::parse(std::slice::from_ref(&text))
            .map_err(|cause| ReleaseError::PublicKey { given: entry.clone(), cause })?;
        let lines = text.lines().map(str::trim).filter(|line| line.parse::<VerifyingKey>().is_ok());
        keys.extend(lines.map(str::to_owned));
    }
    Ok(keys)
}

fn password_from(file: &Path) -> Result<Secret, ReleaseError> {
    let content = Zeroizing::new(
        std::fs::read_to_string(file)
            .map_err(|cause| ReleaseError::Read { path: file.to_owned(), cause: cause.to_string() })?,
    );
    Ok(Secret::new(content.lines().next().unwrap_or_default()))
}

/// Asks on the terminal, without echo; never on stdin or stdout, which may be pipes.
fn ask(prompt: &str) -> Result<Secret, ReleaseError> {
    let no_terminal = |cause: io::Error| ReleaseError::NoTerminal { cause: cause.to_string() };
    rpassword::prompt_password(prompt).map(Secret::new).map_err(no_terminal)
}

fn with_ok(mut result: Value) -> Value {
    result["ok"] = Value::Bool(true);
    result
}

fn failure_text(error: &ReleaseError) -> String {
    if error.refusals().is_empty() {
        format!("error: {error} [{}]\n  {}", error.reason(), error.remedy())
    } else {
        // Each refusal says its own label and remedy.
        format!("error: {error}")
    }
}

fn failure_json(error: &ReleaseError) -> Value {
    json!({
        "ok": false, "reason": error.reason(), "message": error.to_string(), "remedy": error.remedy(),
        "refusals": error.refusals(),
    })
}
