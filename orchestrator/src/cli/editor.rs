//! A person's editor on a file that is only in memory and that nobody else may read. Whatever the editor leaves beside
//! it (swap files, backups) is in the same private directory, and is overwritten and removed with it.

use std::io::{BufRead, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

/// A file system in memory, on every Linux.
const MEMORY: &str = "/dev/shm";
/// Largest text that comes back, in bytes.
const LIMIT: u64 = 1 << 20;

/// A directory in memory that is wiped when it is dropped.
struct Private(tempfile::TempDir);

impl Private {
    fn new() -> std::io::Result<Self> {
        // Made with mode 0700.
        tempfile::Builder::new().prefix("ctrlable-").tempdir_in(MEMORY).map(Self)
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("secrets.yaml")
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.0.path()).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_file())
                && let Err(error) = overwrite(&entry.path())
            {
                anstream::eprintln!("{} could not be wiped: {error}", entry.path().display());
            }
        }
    }
}

fn overwrite(path: &Path) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
    let length = file.metadata()?.len();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), length), &mut file)?;
    Ok(())
}

/// Lets a person edit `text` until `check` is content or the person gives up.
pub(super) fn edit<T>(text: &str, check: impl Fn(&str) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let private = Private::new().with_context(|| format!("no file can be made in {MEMORY}"))?;
    let file = private.file();
    let mut made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file)?;
    made.write_all(text.as_bytes())?;
    drop(made);
    loop {
        super::block_on(run(&file))??;
        let length = std::fs::metadata(&file).context("the editor removed the file")?.len();
        anyhow::ensure!(length <= LIMIT, "what you wrote is larger than {} KiB", LIMIT >> 10);
        match check(&Zeroizing::new(std::fs::read_to_string(&file)?)) {
            Ok(value) => return Ok(value),
            Err(error) if !again(&error) => return Err(error),
            Err(_) => {}
        }
    }
}

/// Whether the person wants to put it right.
fn again(error: &anyhow::Error) -> bool {
    anstream::eprint!("{error}\nEdit again? [Y/n] ");
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer).unwrap_or(0);
    read > 0 && !answer.trim().eq_ignore_ascii_case("n")
}

/// Runs the editor. While it runs, an interrupt from the keyboard is the editor's; an order to stop ends both, and the
/// file is wiped on the way out.
async fn run(file: &Path) -> anyhow::Result<()> {
    let editor = ["VISUAL", "EDITOR"].iter().find_map(|name| std::env::var(name).ok().filter(|set| !set.is_empty()));
    let editor = editor.unwrap_or_else(|| "vi".to_owned());
    let mut words = editor.split_whitespace();
    let program = words.next().context("$EDITOR is empty")?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (mut terminate, mut hangup) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    let mut child = tokio::process::Command::new(program)
        .args(words)
        .arg(file)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("the editor `{program}` cannot be started"))?;
    loop {
        tokio::select! {
            status = child.wait() => {
                let status = status?;
                anyhow::ensure!(status.success(), "the editor ended with {status}, so nothing is changed");
                return Ok(());
            }
            _ = interrupt.recv() => {}
            _ = terminate.recv() => break,
            _ = hangup.recv() => break,
        }
    }
    child.kill().await?;
    anyhow::bail!("told to stop while the editor was open, so nothing is changed")
}
