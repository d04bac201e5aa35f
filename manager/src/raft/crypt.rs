//! Encryption at rest: seals every value that the log and the snapshots keep.
//!
//! **Nonce rule.** AES-256-GCM breaks when a key sees a nonce twice, and a log index does come twice (a follower
//! overwrites an uncommitted tail; a lost cluster is re-created), so indexes are no nonces. Instead each [`Cipher`] draws
//! a random 128-bit salt when it is made, derives a key of its own from the data-encryption key and that salt
//! (HKDF-SHA256), and counts nonces up from zero under that derived key. A counter never repeats within a salt because
//! it lives as long as the cipher and is never stored; salts of different lives do not meet. After 2^32 seals a new salt
//! is drawn. Salt and counter travel with each value, so that any life can open what another sealed.
//!
//! A sealed value is bound to its place (log index, meta name, snapshot and chunk number) as associated data: a value
//! moved elsewhere does not open. Bytes: version 1, salt 16, counter 8, ciphertext, tag 16.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom, SystemRandom};

const VERSION: u8 = 1;
const SALT: usize = 16;
const HEADER: usize = 1 + SALT + 8;
const TAG: usize = 16;
const SEALS_PER_SALT: u64 = 1 << 32;
/// Derived keys that are kept; deriving one costs a few microseconds.
const KEYS: usize = 64;
const INFO: &[u8] = b"skep manager data at rest, 1";

/// Bytes that sealing adds to a value.
pub(crate) const OVERHEAD: usize = HEADER + TAG;

/// Why a value could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CryptError {
    #[error("{what} is damaged: {len} bytes are too few for a sealed value")]
    Short { what: String, len: usize },
    #[error("{what} was sealed by format {version}, which this version does not know; run the version that wrote it")]
    Version { what: String, version: u8 },
    #[error("{what} does not open: the data-encryption key is not the one that sealed it, or the bytes are damaged")]
    Refused { what: String },
    #[error("the system gave no random bytes to make a key with")]
    Random,
}

type KeySalt = [u8; SALT];

struct Current {
    salt: KeySalt,
    key: Arc<LessSafeKey>,
    counter: u64,
}

/// Seals and opens with one data-encryption key.
pub(crate) struct Cipher {
    root: [u8; 32],
    current: Mutex<Current>,
    derived: Mutex<HashMap<KeySalt, Arc<LessSafeKey>>>,
}

impl Cipher {
    pub(crate) fn new(root: [u8; 32]) -> Result<Self, CryptError> {
        let current = fresh(&root)?;
        Ok(Self { root, current: Mutex::new(current), derived: Mutex::new(HashMap::new()) })
    }

    /// Encrypts `plain`, bound to `place`.
    pub(crate) fn seal(&self, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, CryptError> {
        let (salt, key, counter) = self.next()?;
        let mut out = Vec::with_capacity(plain.len() + OVERHEAD);
        out.push(VERSION);
        out.extend_from_slice(&salt);
        out.extend_from_slice(&counter.to_be_bytes());
        out.extend_from_slice(plain);
        let tag = key
            .seal_in_place_separate_tag(nonce(counter), Aad::from(place), &mut out[HEADER..])
            .map_err(|_| CryptError::Refused { what: "a value to seal".into() })?;
        out.extend_from_slice(tag.as_ref());
        Ok(out)
    }

    /// Decrypts what [`Cipher::seal`] made for the same place; `what` names the value in an error.
    pub(crate) fn open(&self, place: &[u8], sealed: &[u8], what: impl Fn() -> String) -> Result<Vec<u8>, CryptError> {
        if sealed.len() < OVERHEAD {
            return Err(CryptError::Short { what: what(), len: sealed.len() });
        }
        if sealed[0] != VERSION {
            return Err(CryptError::Version { what: what(), version: sealed[0] });
        }
        let mut salt = [0; SALT];
        salt.copy_from_slice(&sealed[1..1 + SALT]);
        let mut counter = [0; 8];
        counter.copy_from_slice(&sealed[1 + SALT..HEADER]);
        let key = self.key_of(salt)?;
        let mut plain = sealed[HEADER..].to_vec();
        let len = key
            .open_in_place(nonce(u64::from_be_bytes(counter)), Aad::from(place), &mut plain)
            .map_err(|_| CryptError::Refused { what: what() })?
            .len();
        plain.truncate(len);
        Ok(plain)
    }

    fn next(&self) -> Result<(KeySalt, Arc<LessSafeKey>, u64), CryptError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.counter >= SEALS_PER_SALT {
            *current = fresh(&self.root)?;
        }
        let counter = current.counter;
        current.counter += 1;
        Ok((current.salt, Arc::clone(&current.key), counter))
    }

    fn key_of(&self, salt: KeySalt) -> Result<Arc<LessSafeKey>, CryptError> {
        {
            let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            if current.salt == salt {
                return Ok(Arc::clone(&current.key));
            }
        }
        let mut derived = self.derived.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = derived.get(&salt) {
            return Ok(Arc::clone(key));
        }
        let key = Arc::new(derive(&self.root, &salt)?);
        if derived.len() >= KEYS {
            derived.clear();
        }
        derived.insert(salt, Arc::clone(&key));
        Ok(key)
    }
}

/// Random bytes for salts and file ids.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], CryptError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| CryptError::Random)?;
    Ok(bytes)
}

fn fresh(root: &[u8; 32]) -> Result<Current, CryptError> {
    let salt = random::<SALT>()?;
    Ok(Current { salt, key: Arc::new(derive(root, &salt)?), counter: 0 })
}

fn derive(root: &[u8; 32], salt: &KeySalt) -> Result<LessSafeKey, CryptError> {
    let prk = Salt::new(HKDF_SHA256, salt).extract(root);
    // Fails only for lengths beyond what HKDF can give; a key of this algorithm is far below.
    let okm = prk.expand(&[INFO], &AES_256_GCM).map_err(|_| CryptError::Random)?;
    Ok(LessSafeKey::new(UnboundKey::from(okm)))
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn opens_what_another_life_sealed_and_nothing_else() {
        let first = Cipher::new([7; 32]).unwrap();
        let second = Cipher::new([7; 32]).unwrap();
        let sealed = first.seal(b"log/1", b"secret").unwrap();
        assert_eq!(second.open(b"log/1", &sealed, String::new).unwrap(), b"secret");
        assert!(matches!(second.open(b"log/2", &sealed, String::new), Err(CryptError::Refused { .. })));
        let other = Cipher::new([8; 32]).unwrap();
        assert!(matches!(other.open(b"log/1", &sealed, String::new), Err(CryptError::Refused { .. })));
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert!(second.open(b"log/1", &bad, String::new).is_err(), "byte {at} may be changed unnoticed");
        }
        assert!(matches!(second.open(b"", &sealed[..10], String::new), Err(CryptError::Short { .. })));
    }

    #[test]
    fn a_salt_and_a_counter_never_come_twice() {
        let cipher = Cipher::new([1; 32]).unwrap();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            assert!(seen.insert(cipher.seal(b"", b"same").unwrap()[1..HEADER].to_vec()));
        }
        cipher.current.lock().unwrap().counter = SEALS_PER_SALT;
        let before = cipher.current.lock().unwrap().salt;
        let sealed = cipher.seal(b"", b"x").unwrap();
        assert_ne!(sealed[1..1 + SALT], before);
        assert_eq!(cipher.open(b"", &sealed, String::new).unwrap(), b"x");
    }
}
