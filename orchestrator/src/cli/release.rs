//! `ctrlable release …`: results on stdout, as text or as one JSON object; failures as text on stderr or as one JSON
//! object on stdout. Exit codes: 0 fine, 1 refused or failed, 2 not understood.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::Format;
use clap::{Args, Subcommand};
use contract::ids::ReleaseId;
use contract::secret::Secret;
use jiff::Timestamp;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::release::{
    KeyProtection, Origin, ReleaseError, SigningKey, Strictness, keygen, lint, scaffold, sign, signable, verify,
};
use crate::trust::{KeySet, SignedComment, Subject, VerifyingKey};

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
    /// Check a manifest and sign it.
    ///
    /// Example: ctrlable release sign releases/2026.06.yaml --key ~/hq/hq.key
    Sign {
        /// The manifest, called <release id>.yaml.
        file: PathBuf,
        /// HQ's secret key, or one that minisign made.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Where the signature goes. Default: beside the manifest, with .minisig behind its name.
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
struct Done {
    text: String,
    json: Value,
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
        Command::Verify { file, pubkey, signature, strict } => {
            let strictness = if strict { Strictness::ReleaseOnly } else { Strictness::AnySignature };
            verify_file(&file, &pubkey, signature.as_deref(), strictness)
        }
    };
    match (result, format) {
        (Ok(done), Format::Text) => anstream::println!("{}", done.text),
        (Ok(done), Format::Json) => anstream::println!("{}", with_ok(done.json)),
        (Err(error), format) => {
            match format {
                Format::Text => anstream::eprintln!("{}", failure_text(&error)),
                Format::Json => anstream::println!("{}", failure_json(&error)),
            }
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
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
    Ok(Done { text, json })
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
    Ok(Done { text, json: json!({ "file": file, "release": id }) })
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
    Ok(Done { text, json })
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
    Ok(Done { text, json })
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
        keys.push(text);
    }
    KeySet::parse(&keys).map_err(|cause| ReleaseError::PublicKey { given: given.join(", "), cause })
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
