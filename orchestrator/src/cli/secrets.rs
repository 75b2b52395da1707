//! `secrets`: a site's encrypted secrets in a checkout, offline; and the site's public key.
//!
//! What needs no key needs none: `set` and `rotate` write one file per secret, for everybody on the list. `edit` and a
//! new list of recipients need a key that reads what is there. A value never stands in the arguments, where every
//! process could see it, nor in a file outside memory.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use contract::ids::{SecretName, SiteName};
use contract::secret::Secret;
use rand::Rng;
use serde_json::json;
use zeroize::Zeroizing;

use super::{ConfigArg, Format, editor};
use crate::secrets::{self, Identities, Recipients, Sealed, Secrets, SecretsError};
use crate::source::Checkout;

/// Longest value, in bytes: a private key in PEM has three thousand.
const VALUE_LIMIT: u64 = 32 << 10;
/// Length of a fresh value when nobody says otherwise: 190 bits as letters and digits.
const FRESH: usize = 32;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Edit all secrets of a site with $EDITOR, in memory.
    ///
    /// Example: ctrlable secrets edit --site acme-hq --identity hq-recovery.key
    Edit {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        keys: Keys,
    },
    /// Give one secret a value, from a prompt or from standard input. Needs no key.
    ///
    /// Example: ctrlable secrets set mqtt --site acme-hq
    /// Example: pass show acme/mqtt | ctrlable secrets set mqtt --site acme-hq
    #[command(verbatim_doc_comment)]
    Set {
        /// The secret's name.
        name: SecretName,
        #[command(flatten)]
        place: Place,
    },
    /// Give one secret a new random value that nobody sees. Needs no key, unless kind and length are to be as before.
    ///
    /// Example: ctrlable secrets rotate mqtt --site acme-hq
    /// Example: ctrlable secrets rotate pin --site acme-hq --kind digits --length 6
    #[command(verbatim_doc_comment)]
    Rotate {
        /// The secret's name.
        name: SecretName,
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        keys: Keys,
        /// What it is made of; absent: as before with --identity, else letters.
        #[arg(long, value_enum)]
        kind: Option<Kind>,
        /// Its length; absent: as before with --identity, else 32.
        #[arg(long, value_parser = clap::value_parser!(u16).range(4..=1024))]
        length: Option<u16>,
    },
    /// Print the site's public key; or, in a checkout, show and change for whom a site's secrets are encrypted.
    ///
    /// Example: ctrlable secrets recipients                (on a site: the public key to put on the list)
    /// Example: ctrlable secrets recipients --site acme-hq
    /// Example: ctrlable secrets recipients --site acme-hq --add age1… --comment "the site"
    /// Example: ctrlable secrets recipients --site acme-hq --remove age1… --identity hq-recovery.key
    #[command(verbatim_doc_comment)]
    Recipients {
        #[command(flatten)]
        config: ConfigArg,
        /// The checkout of the fleet repository.
        #[arg(long, value_name = "DIR")]
        fleet: Option<PathBuf>,
        /// Which site of the checkout.
        #[arg(long)]
        site: Option<SiteName>,
        #[command(flatten)]
        keys: Keys,
        /// Put a public key on the list, and encrypt everything for it, too.
        #[arg(long, value_name = "KEY")]
        add: Option<String>,
        /// Whose it is: the comment above it.
        #[arg(long, requires = "add", default_value = "added by ctrlable")]
        comment: String,
        /// Take a public key off the list, and encrypt everything without it.
        #[arg(long, value_name = "KEY")]
        remove: Option<String>,
        /// Encrypt everything anew for the list as it is.
        #[arg(long)]
        seal: bool,
    },
}

/// Which site of which checkout.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// The checkout of the fleet repository.
    #[arg(long, value_name = "DIR", default_value = ".")]
    fleet: PathBuf,
    /// Which site.
    #[arg(long)]
    site: SiteName,
}

/// A key that reads what is there.
#[derive(Debug, clap::Args)]
pub(crate) struct Keys {
    /// A private key that reads the secrets: a file of `age-keygen`, such as HQ's recovery key.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
}

/// What a value is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Letters and digits.
    Letters,
    /// Hexadecimal digits.
    Hex,
    /// Decimal digits.
    Digits,
}

impl Kind {
    fn alphabet(self) -> &'static [u8] {
        match self {
            Self::Letters => b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
            Self::Hex => b"0123456789abcdef",
            Self::Digits => b"0123456789",
        }
    }

    /// The narrowest kind that a value is of.
    fn of(value: &str) -> Self {
        let only = |kind: Self| !value.is_empty() && value.bytes().all(|byte| kind.alphabet().contains(&byte));
        [Self::Digits, Self::Hex].into_iter().find(|kind| only(*kind)).unwrap_or(Self::Letters)
    }

    fn fresh(self, length: usize) -> Secret {
        let mut rng = rand::rng();
        let mut value = String::with_capacity(length);
        value.extend((0..length).map(|_| char::from(self.alphabet()[rng.random_range(0..self.alphabet().len())])));
        Secret::new(value)
    }
}

pub(crate) fn run(command: &Command, format: Format) -> anyhow::Result<ExitCode> {
    match command {
        Command::Edit { place, keys } => edit(&Site::of(place), keys)?,
        Command::Set { name, place } => set(&Site::of(place), name)?,
        Command::Rotate { name, place, keys, kind, length } => {
            rotate(&Site::of(place), name, keys, *kind, *length)?;
        }
        Command::Recipients { config, fleet: None, site: None, add: None, remove: None, seal: false, .. } => {
            let keys = Identities::of_site(&config.load()?.state).map_err(told)?;
            for key in keys.public() {
                if format == Format::Json { println!("{}", json!({ "recipient": key })) } else { println!("{key}") }
            }
        }
        Command::Recipients { fleet, site, keys, add, comment, remove, seal, .. } => {
            let Some(name) = site.clone() else { anyhow::bail!("which site of the checkout? give --site") };
            let site = Site::of(&Place { fleet: fleet.clone().unwrap_or_else(|| ".".into()), site: name });
            let mut list = secrets::recipients_of(&site.tree, &site.name).map_err(told)?.unwrap_or_default();
            if add.is_none() && remove.is_none() && !*seal {
                show(&list, format);
            } else {
                change(&mut list, add.as_deref().map(|key| (key, comment.as_str())), remove.as_deref())?;
                reseal(&site, &list, keys)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A site of a checkout.
struct Site {
    tree: Checkout,
    name: SiteName,
}

impl Site {
    fn of(place: &Place) -> Self {
        Self { tree: Checkout::new(&place.fleet), name: place.site.clone() }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.tree.root().join(file)
    }

    fn sealed(&self) -> Sealed {
        Sealed::read(&self.tree, &self.name)
    }

    fn recipients(&self) -> anyhow::Result<Recipients> {
        let list = secrets::recipients_of(&self.tree, &self.name).map_err(told)?;
        let what = "is missing, so nobody can tell whom to encrypt for".to_owned();
        list.ok_or_else(|| told(SecretsError::Recipients { file: secrets::recipients_file(&self.name), what }))
    }

    /// Writes a file of the checkout; what it says is encrypted or public.
    fn write(&self, file: &str, content: &[u8]) -> anyhow::Result<()> {
        let path = self.path(file);
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).with_context(|| format!("{} cannot be made", directory.display()))?;
        }
        std::fs::write(&path, content).with_context(|| format!("{} cannot be written", path.display()))
    }

    fn seal(&self, file: &str, secrets: &BTreeMap<SecretName, Secret>, list: &Recipients) -> anyhow::Result<()> {
        self.write(file, &secrets::seal(file, secrets, list).map_err(told)?)
    }

    /// Everything that is there in plain text.
    fn open(&self, keys: &Keys) -> anyhow::Result<BTreeMap<SecretName, Secret>> {
        let sealed = self.sealed();
        if sealed.is_empty() {
            return Ok(BTreeMap::new());
        }
        let identity = keys.identity.as_ref().context(
            "this needs a key that reads what is there: give --identity FILE. Without one, `ctrlable secrets set` and \
             `rotate` replace one secret at a time",
        )?;
        Secrets::gather(&sealed, &Identities::load(identity).map_err(told)?, None).all().map_err(told)
    }

    /// Puts everything into `secrets.age`, in place of whatever there was.
    fn replace(&self, secrets: &BTreeMap<SecretName, Secret>, list: &Recipients) -> anyhow::Result<()> {
        let old = self.sealed();
        self.seal(&secrets::all_file(&self.name), secrets, list)?;
        for name in old.names() {
            let path = self.path(&secrets::one_file(&self.name, name));
            std::fs::remove_file(&path).with_context(|| format!("{} cannot be removed", path.display()))?;
        }
        Ok(())
    }
}

/// An error with what to do and its label.
fn told(error: SecretsError) -> anyhow::Error {
    anyhow::anyhow!("{error}. To do: {} [{}]", error.remedy(), error.reason())
}

fn set(site: &Site, name: &SecretName) -> anyhow::Result<()> {
    let list = site.recipients()?;
    let value = ask(name)?;
    anyhow::ensure!(!value.expose().is_empty(), "nothing was given, so nothing is set");
    site.seal(&secrets::one_file(&site.name, name), &BTreeMap::from([(name.clone(), value)]), &list)?;
    anstream::println!("{} is written; commit it", secrets::one_file(&site.name, name));
    Ok(())
}

/// A value: typed twice without echo, or all of standard input without its last line end.
fn ask(name: &SecretName) -> anyhow::Result<Secret> {
    if std::io::stdin().is_terminal() {
        let first = Secret::new(rpassword::prompt_password(format!("{name}: "))?);
        let again = Secret::new(rpassword::prompt_password(format!("{name} again: "))?);
        anyhow::ensure!(first == again, "the two differ, so nothing is set");
        return Ok(first);
    }
    let mut text = Zeroizing::new(String::with_capacity(VALUE_LIMIT as usize + 1));
    std::io::stdin().take(VALUE_LIMIT + 1).read_to_string(&mut text).context("standard input is not text")?;
    anyhow::ensure!(text.len() as u64 <= VALUE_LIMIT, "the value is longer than {} KiB", VALUE_LIMIT >> 10);
    let line = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    Ok(Secret::new(line))
}

fn rotate(site: &Site, name: &SecretName, keys: &Keys, kind: Option<Kind>, length: Option<u16>) -> anyhow::Result<()> {
    let list = site.recipients()?;
    let (sealed, unknown) = (site.sealed(), format!("site {} has no secret `{name}`; `set` makes one", site.name));
    let (was, long) = if keys.identity.is_some() {
        let old = site.open(keys)?.remove(name).context(unknown)?;
        (Kind::of(old.expose()), old.expose().chars().count())
    } else {
        anyhow::ensure!(sealed.has_all() || sealed.names().any(|known| known == name), unknown);
        (Kind::Letters, FRESH)
    };
    let (kind, length) = (kind.unwrap_or(was), length.map_or(long, usize::from));
    let file = secrets::one_file(&site.name, name);
    site.seal(&file, &BTreeMap::from([(name.clone(), kind.fresh(length))]), &list)?;
    anstream::println!("{file} holds a new value of {length} characters; commit it");
    Ok(())
}

fn edit(site: &Site, keys: &Keys) -> anyhow::Result<()> {
    let list = site.recipients()?;
    let before = site.open(keys)?;
    let head = format!(
        "# The secrets of site {}: one `name: \"value\"` per line. This file is in memory and goes away.\n",
        site.name
    );
    let text = Zeroizing::new([head.as_str(), &secrets::to_yaml(&before)].concat());
    let after = editor::edit(&text, |text| secrets::parse("what you wrote", text).map_err(told))?;
    if before == after {
        anstream::println!("nothing changed");
        return Ok(());
    }
    site.replace(&after, &list)?;
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        anstream::println!("{name} is gone");
    }
    for (name, _) in after.iter().filter(|(name, value)| before.get(*name) != Some(value)) {
        anstream::println!("{name} {}", if before.contains_key(name) { "changed" } else { "is new" });
    }
    anstream::println!("{} is written; commit it", secrets::all_file(&site.name));
    Ok(())
}

fn show(list: &Recipients, format: Format) {
    for (key, comment) in list.described() {
        match (format, comment) {
            (Format::Json, comment) => println!("{}", json!({ "recipient": key, "comment": comment })),
            (Format::Text, Some(comment)) => anstream::println!("{key}  {comment}"),
            (Format::Text, None) => anstream::println!("{key}"),
        }
    }
}

fn change(list: &mut Recipients, add: Option<(&str, &str)>, remove: Option<&str>) -> anyhow::Result<()> {
    let key = |text: &str| {
        text.parse().map_err(|_| anyhow::anyhow!("`{text}` is not a public key of age, which begins with age1"))
    };
    if let Some((text, comment)) = add {
        // A private key in the wrong place is not repeated.
        anyhow::ensure!(!text.starts_with("AGE-SECRET"), "that is a private key; the list takes public ones, age1…");
        anyhow::ensure!(list.add(key(text)?, comment), "{text} is on the list already");
    }
    if let Some(text) = remove {
        anyhow::ensure!(list.remove(&key(text)?), "{text} is not on the list");
        anyhow::ensure!(!list.keys().is_empty(), "{text} is the last one on the list");
    }
    Ok(())
}

/// Encrypts everything for the list, and then writes the list.
fn reseal(site: &Site, list: &Recipients, keys: &Keys) -> anyhow::Result<()> {
    anyhow::ensure!(!list.keys().is_empty(), "the list is empty: --add somebody first");
    let known = site.open(keys)?;
    if !site.sealed().is_empty() {
        site.replace(&known, list)?;
    }
    site.write(&secrets::recipients_file(&site.name), list.to_string().as_bytes())?;
    anstream::println!("{} secrets are encrypted for {} recipients; commit it", known.len(), list.keys().len());
    anstream::eprintln!("whoever was taken off the list can still read what is in git's history: rotate what he knew");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_value_is_of_the_kind_of_the_old_one() {
        for (old, kind) in
            [("0042", Kind::Digits), ("00ff", Kind::Hex), ("Rain-41", Kind::Letters), ("", Kind::Letters)]
        {
            assert_eq!(Kind::of(old), kind, "{old}");
            let fresh = kind.fresh(64);
            assert_eq!(fresh.expose().len(), 64);
            assert!(fresh.expose().bytes().all(|byte| kind.alphabet().contains(&byte)));
            assert_ne!(fresh, kind.fresh(64));
        }
    }
}
