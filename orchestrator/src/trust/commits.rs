//! Commits that change a site must be signed by its dealer, where the operator demands it.
//!
//! The format is git's with `gpg.format = ssh`: the commit object has a header `gpgsig` with an OpenSSH signature
//! (PROTOCOL.sshsig) over the object without that header, made for the namespace `git`.

use contract::dealers::Dealers;
use contract::ids::{DealerName, Revision, SiteName};
use ssh_key::{HashAlg, PublicKey, SshSig};

use super::TrustError;
use super::signature::Malformed;
use crate::source::{Change, Repository, Which};

/// What git signs for. A signature that the same key made for a file or for a login has another one.
const NAMESPACE: &str = "git";

/// Which commits must be signed, of those that change the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CommitRule {
    /// None.
    #[default]
    Off,
    /// The newest.
    Tip,
    /// Every one since the revision that was accepted last. At the first contact: the newest.
    Every,
}

/// A commit with a signature that nobody has looked at yet.
#[derive(Debug)]
pub struct SignedCommit {
    /// The object without its signature: what is signed.
    content: Vec<u8>,
    signature: SshSig,
}

impl SignedCommit {
    /// Takes a commit object apart; none if it carries no signature.
    ///
    /// libgit2 would look for the header in the message too, and leaves bytes out of what it calls the signed content.
    /// Here nothing but the one header is left out, and it stands where git writes it: behind the committer, so that it
    /// cannot hide parents or tree.
    pub fn parse(object: &[u8]) -> Result<Option<Self>, Malformed> {
        const TWICE: Malformed = Malformed("it carries more than one signature");
        if object.contains(&0) {
            return Err(Malformed("it has a zero byte in it"));
        }
        let end = object.windows(2).position(|pair| pair == b"\n\n").map_or(object.len(), |end| end + 1);
        let (mut content, mut signature) = (Vec::new(), Vec::new());
        let (mut committed, mut inside) = (false, false);
        for line in object[..end].split_inclusive(|byte| *byte == b'\n') {
            if let (true, Some(more)) = (inside, line.strip_prefix(b" ")) {
                signature.extend_from_slice(more);
                continue;
            }
            inside = false;
            match line.strip_prefix(b"gpgsig ") {
                Some(_) if !signature.is_empty() => return Err(TWICE),
                Some(_) if !committed => return Err(Malformed("its signature stands before its committer")),
                Some(first) => {
                    signature.extend_from_slice(first);
                    inside = true;
                    continue;
                }
                None if line.starts_with(b"gpgsig") => return Err(TWICE),
                None => committed |= line.starts_with(b"committer "),
            }
            content.extend_from_slice(line);
        }
        content.extend_from_slice(&object[end..]);
        if signature.is_empty() {
            return Ok(None);
        }
        if !signature.starts_with(b"-----BEGIN SSH SIGNATURE-----") {
            return Err(Malformed("it is signed, but not with an SSH key"));
        }
        match SshSig::from_pem(&signature) {
            Ok(signature) => Ok(Some(Self { content, signature })),
            Err(_) => Err(Malformed("its signature is not one of OpenSSH's")),
        }
    }

    /// What is signed.
    pub fn content(&self) -> &[u8] {
        &self.content
    }

    /// What the signature was made for.
    pub fn namespace(&self) -> &str {
        self.signature.namespace()
    }

    /// Whether this key made the signature, over this commit.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        key.verify(NAMESPACE, &self.content, &self.signature).is_ok()
    }
}

/// What is looked at.
pub(super) struct Candidate<'a> {
    pub(super) repository: &'a Repository,
    pub(super) revision: &'a Revision,
    /// What was accepted before it; none at the first contact.
    pub(super) after: Option<&'a Revision>,
    pub(super) site: &'a SiteName,
    /// The dealer that the site names, of whom HQ has said that it looks after the site.
    pub(super) dealer: &'a DealerName,
}

/// Demands signatures of the dealer's people on the commits that changed the site.
pub(super) fn verify(rule: CommitRule, candidate: &Candidate<'_>, dealers: &Dealers) -> Result<(), TrustError> {
    let which = match (rule, candidate.after) {
        (CommitRule::Off, _) => return Ok(()),
        (CommitRule::Tip, _) | (CommitRule::Every, None) => Which::Newest,
        (CommitRule::Every, Some(_)) => Which::All,
    };
    let directory = format!("sites/{}", candidate.site);
    let changes = candidate.repository.changes(&directory, candidate.after, candidate.revision, which)?;
    changes.iter().try_for_each(|change| judge(change, candidate, dealers))
}

fn judge(change: &Change, candidate: &Candidate<'_>, dealers: &Dealers) -> Result<(), TrustError> {
    let (commit, site) = (change.revision.clone(), candidate.site.clone());
    let wrong = |cause: &str| TrustError::CommitSignatureWrong { commit: commit.clone(), cause: cause.to_owned() };
    let signed = match SignedCommit::parse(&change.object) {
        Ok(Some(signed)) => signed,
        Ok(None) => return Err(TrustError::CommitUnsigned { commit, site }),
        Err(Malformed(cause)) => return Err(wrong(cause)),
    };
    if signed.namespace() != NAMESPACE {
        return Err(TrustError::CommitNamespaceWrong {
            commit,
            namespace: signed.namespace().escape_debug().to_string(),
        });
    }
    let made_with = signed.signature.public_key();
    let is_the_key = |key: &&PublicKey| key.key_data() == made_with;
    let own = dealers.dealers.get(candidate.dealer).and_then(|dealer| dealer.keys.iter().find(is_the_key));
    let Some(key) = own else {
        let key = made_with.fingerprint(HashAlg::Sha256).to_string();
        let owner = dealers.dealers.iter().find(|(_, dealer)| dealer.keys.iter().any(|key| is_the_key(&key)));
        return Err(match owner {
            None => TrustError::CommitKeyUnknown { commit, key },
            Some((owner, _)) => TrustError::CommitOfAnotherDealer {
                commit,
                site,
                owner: owner.clone(),
                dealer: candidate.dealer.clone(),
            },
        });
    };
    if signed.is_signed_by(key) {
        Ok(())
    } else {
        Err(wrong("the commit was changed after signing, or the signature is another commit's"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ed25519_dalek::Signer;
    use sha2::{Digest, Sha256};
    use ssh_key::private::Ed25519Keypair;
    use ssh_key::public::{KeyData, SkEd25519};
    use ssh_key::{Algorithm, LineEnding, PrivateKey, Signature};

    use super::*;

    const COMMIT: &str = "tree 1\nparent 2\nauthor a\ncommitter c\n\nsubject\n";

    fn header(signature: &SshSig) -> String {
        let pem = signature.to_pem(LineEnding::LF).unwrap();
        format!("gpgsig {}\n", pem.trim_end().replace('\n', "\n "))
    }

    fn after(place: &str, header: &str) -> Vec<u8> {
        COMMIT.replacen(place, &format!("{place}{header}"), 1).into_bytes()
    }

    #[test]
    fn a_signature_stands_in_one_place_only() {
        let key = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
        let header = header(&key.sign(NAMESPACE, HashAlg::Sha512, COMMIT.as_bytes()).unwrap());
        let signed = SignedCommit::parse(&after("committer c\n", &header)).unwrap().unwrap();
        assert_eq!(signed.content, COMMIT.as_bytes());
        assert!(signed.is_signed_by(key.public_key()));
        for place in ["tree 1\n", "parent 2\n", "author a\n"] {
            assert!(SignedCommit::parse(&after(place, &header)).is_err(), "{place}");
        }
        assert!(SignedCommit::parse(&after("committer c\n", &(header.clone() + &header))).is_err());
        assert!(SignedCommit::parse(&[&after("committer c\n", &header)[..], &[0]].concat()).is_err());
        for unsigned in [COMMIT.as_bytes().to_vec(), after("subject\n", &header), Vec::new()] {
            assert!(SignedCommit::parse(&unsigned).unwrap().is_none());
        }
    }

    /// PROTOCOL.u2f: a token signs the hash of its application, its flags and counter, and the hash of the data.
    #[test]
    fn a_security_token_signs_too() {
        let pair = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
        let public = *pair.public_key().key_data().ed25519().unwrap();
        let key = KeyData::SkEd25519(SkEd25519::new(public, "ssh:"));
        let signed = SshSig::signed_data(NAMESPACE, HashAlg::Sha512, COMMIT.as_bytes()).unwrap();
        let touched_and_counted = [1, 0, 0, 0, 9];
        let data = [&Sha256::digest("ssh:")[..], &touched_and_counted[..], &Sha256::digest(&signed)[..]].concat();
        let signature = ed25519_dalek::SigningKey::from_bytes(&[7; 32]).sign(&data);
        let signature = [&signature.to_bytes()[..], &touched_and_counted].concat();
        let signature = Signature::new(Algorithm::SkEd25519, signature).unwrap();
        let header = header(&SshSig::new(key.clone(), NAMESPACE, HashAlg::Sha512, signature).unwrap());
        let token = PublicKey::from(key);
        let commit = SignedCommit::parse(&after("committer c\n", &header)).unwrap().unwrap();
        assert!(commit.is_signed_by(&token));
        let other = String::from_utf8(after("committer c\n", &header)).unwrap().replace("subject", "another");
        assert!(!SignedCommit::parse(other.as_bytes()).unwrap().unwrap().is_signed_by(&token));
    }

    proptest::proptest! {
        /// Whatever a repository holds, it is refused and not crashed on.
        #[test]
        fn nothing_that_is_read_panics(
            noise in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            inside in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
        ) {
            use base64::Engine;
            let _ = SignedCommit::parse(&noise);
            let body = base64::engine::general_purpose::STANDARD.encode([b"SSHSIG\0\0\0\x01".as_slice(), &inside].concat());
            let lines: Vec<&str> = body.as_bytes().chunks(70).map(|line| std::str::from_utf8(line).unwrap_or_default()).collect();
            let header = format!("gpgsig -----BEGIN SSH SIGNATURE-----\n {}\n -----END SSH SIGNATURE-----\n", lines.join("\n "));
            let _ = SignedCommit::parse(&after("committer c\n", &header));
        }
    }
}
