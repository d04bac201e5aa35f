//! Join tokens: `SWMTKN-1-<digest of the root certificate>-<secret>`, both in base 36 (50 and 25 digits). Pure.
//!
//! The digest lets a joining node recognise the cluster before it shows the secret. The secret is 8 random bytes and
//! their 8-byte code under a key that only managers have (derived from the root's private key), so it can't be guessed
//! at better than one in 2^128, and a manager can tell a token that was valid once from one that never was. A token is
//! valid only while it is the cluster's current one for its role.

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use skep_proto::v1::{JoinTokens, Role};

use super::base36;
use super::root::{self, RootCa};

const PREFIX: &str = "SWMTKN-1-";
const DIGEST_DIGITS: usize = 50;
const SECRET_DIGITS: usize = 25;
const NONCE: usize = 8;

/// Why a text is no join token, or none could be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The text does not have the form.
    #[error(
        "this is not a join token: {why}; a token looks like SWMTKN-1-<50 characters>-<25 characters>, \
         and `skep swarm join-token worker` (or manager) on a manager shows it"
    )]
    Malformed {
        /// Which part is wrong. Never quotes the token.
        why: &'static str,
    },
    /// The root CA that the token is for can't be used.
    #[error("no join token can be made: {0}")]
    Root(#[from] root::Error),
    /// The system gave no random numbers.
    #[error("no join token can be made: the system gives no random numbers")]
    Random,
}

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    digest: [u8; 32],
    secret: [u8; 16],
}

impl std::fmt::Debug for JoinToken {
    /// Without the secret: tokens must not get into logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken").field("digest", &self.digest_text()).finish_non_exhaustive()
    }
}

/// What a manager thinks of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It lets a node join with this role.
    Valid(Role),
    /// It did once, and was replaced since.
    Rotated(Role),
    /// It is for a cluster with another root CA.
    OtherCluster,
    /// Its secret was never valid here.
    Wrong,
}

impl JoinToken {
    /// A new random token.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn generate(root: &RootCa, role: Role) -> Result<Self, Error> {
        let mut secret = [0; 16];
        SystemRandom::new().fill(&mut secret[..NONCE]).map_err(|_| Error::Random)?;
        let code = code(root, role, &secret[..NONCE]);
        secret[NONCE..].copy_from_slice(&code);
        Ok(Self { digest: root.digest(), secret })
    }

    /// Reads a token as a user gives it; space around it is forgiven.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        let malformed = |why| Error::Malformed { why };
        let rest = text.trim().strip_prefix(PREFIX).ok_or_else(|| malformed("it does not begin with SWMTKN-1-"))?;
        let (digest, secret) = rest.split_once('-').ok_or_else(|| malformed("the part after the digest is missing"))?;
        if digest.len() != DIGEST_DIGITS {
            return Err(malformed("its digest does not have 50 characters"));
        }
        if secret.len() != SECRET_DIGITS {
            return Err(malformed("its secret does not have 25 characters"));
        }
        Ok(Self {
            digest: base36::decode(digest).ok_or_else(|| malformed("its digest is no number in base 36"))?,
            secret: base36::decode(secret).ok_or_else(|| malformed("its secret is no number in base 36"))?,
        })
    }

    /// SHA-256 of the root certificate (DER) that the token is for.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The digest as it stands in the token.
    pub fn digest_text(&self) -> String {
        base36::encode(&self.digest, DIGEST_DIGITS)
    }

    /// Judges the token. Comparisons take the same time whatever the secret is.
    pub fn judge(&self, root: &RootCa, current: &JoinTokens) -> Verdict {
        if self.digest != root.digest() {
            return Verdict::OtherCluster;
        }
        let mut verdict = Verdict::Wrong;
        // The current ones last: a valid token also carries the code of its role.
        for role in [Role::Worker, Role::Manager] {
            if same(&self.secret[NONCE..], &code(root, role, &self.secret[..NONCE])) {
                verdict = Verdict::Rotated(role);
            }
        }
        for (text, role) in [(&current.worker, Role::Worker), (&current.manager, Role::Manager)] {
            if Self::parse(text).is_ok_and(|token| same(&self.secret, &token.secret)) {
                verdict = Verdict::Valid(role);
            }
        }
        verdict
    }
}

impl std::fmt::Display for JoinToken {
    /// The whole token, secret included: what is shown to the user who asks for it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PREFIX}{}-{}", self.digest_text(), base36::encode(&self.secret, SECRET_DIGITS))
    }
}

/// The digest of a root certificate as tokens carry it, for messages.
pub fn digest_text(digest: &[u8; 32]) -> String {
    base36::encode(digest, DIGEST_DIGITS)
}

fn code(root: &RootCa, role: Role, nonce: &[u8]) -> [u8; 16 - NONCE] {
    let mut context = hmac::Context::with_key(root.token_key());
    context.update(if role == Role::Manager { b"manager" } else { b"worker " });
    context.update(nonce);
    let mut code = [0; 16 - NONCE];
    code.copy_from_slice(&context.sign().as_ref()[..16 - NONCE]);
    code
}

/// Equality in constant time: the codes of both are compared, under a key that doesn't matter.
fn same(a: &[u8], b: &[u8]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"comparison");
    hmac::verify(&key, a, hmac::sign(&key, b).as_ref()).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::SystemTime;

    use super::*;

    fn tokens(root: &RootCa) -> JoinTokens {
        JoinTokens {
            worker: JoinToken::generate(root, Role::Worker).unwrap().to_string(),
            manager: JoinToken::generate(root, Role::Manager).unwrap().to_string(),
        }
    }

    #[test]
    fn a_token_has_the_known_form_and_is_read_back() {
        let root = RootCa::create(SystemTime::now()).unwrap();
        let token = JoinToken::generate(&root, Role::Worker).unwrap();
        let text = token.to_string();
        let parts: Vec<&str> = text.split('-').collect();
        assert_eq!((parts[0], parts[1], parts[2].len(), parts[3].len()), ("SWMTKN", "1", 50, 25));
        assert_eq!(JoinToken::parse(&format!(" {text}\n")).unwrap(), token);
        assert_ne!(JoinToken::generate(&root, Role::Worker).unwrap(), token);
        assert!(!format!("{token:?}").contains(parts[3]), "the secret must not be in debug output");
    }

    #[test]
    fn malformed_tokens_are_refused_and_say_why() {
        let (digest, secret) = ("1".repeat(50), "2".repeat(25));
        let table = [
            (String::new(), "begin with"),
            ("SWMTKN-2-x-y".into(), "begin with"),
            (format!("SWMTKN-1-{digest}"), "missing"),
            (format!("SWMTKN-1-{}-{secret}", "1".repeat(49)), "50 characters"),
            (format!("SWMTKN-1-{digest}-{}", "2".repeat(26)), "25 characters"),
            (format!("SWMTKN-1-{}-{secret}", "Z".repeat(50)), "digest is no number"),
            (format!("SWMTKN-1-{}-{secret}", "z".repeat(50)), "digest is no number"),
            (format!("SWMTKN-1-{digest}-{}", "_".repeat(25)), "secret is no number"),
        ];
        for (text, why) in table {
            let error = JoinToken::parse(&text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn verdicts() {
        let (root, other) = (RootCa::create(SystemTime::now()).unwrap(), RootCa::create(SystemTime::now()).unwrap());
        let (before, now) = (tokens(&root), tokens(&root));
        let guess = JoinToken { digest: root.digest(), secret: [7; 16] }.to_string();
        let table = [
            (now.worker.clone(), Verdict::Valid(Role::Worker)),
            (now.manager.clone(), Verdict::Valid(Role::Manager)),
            (before.worker, Verdict::Rotated(Role::Worker)),
            (before.manager, Verdict::Rotated(Role::Manager)),
            (guess, Verdict::Wrong),
            (tokens(&other).worker, Verdict::OtherCluster),
        ];
        for (text, verdict) in table {
            assert_eq!(JoinToken::parse(&text).unwrap().judge(&root, &now), verdict, "{text}");
        }
        // No token of any role is valid in a cluster that has none.
        let none = JoinTokens::default();
        assert_eq!(JoinToken::parse(&now.worker).unwrap().judge(&root, &none), Verdict::Rotated(Role::Worker));
    }
}
