//! How bytes are kept: XChaCha20-Poly1305 bound to their place. A copy of the database without the key file says nothing.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use ring::hmac;
use zeroize::Zeroizing;

use super::{StoreError, encoding};

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;

/// Bytes of a [`Name`].
pub const NAME_BYTES: usize = 16;
/// What a piece of a value is called.
pub type Name = [u8; NAME_BYTES];

/// Seals and opens values with the profile's key.
#[derive(Clone)]
pub struct Sealer {
    cipher: XChaCha20Poly1305,
    naming: hmac::Key,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

impl Sealer {
    /// Reads the key file, or makes it, readable by its owner only.
    ///
    /// # Errors
    /// The file system, or a file that is no key.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let io = |error: std::io::Error| StoreError::Io(format!("{}: {error}", path.display()));
        if !path.exists() {
            make_key(path).map_err(io)?;
        }
        let mut key = Zeroizing::new(Vec::with_capacity(KEY_BYTES));
        File::open(path)
            .and_then(|mut file| file.read_to_end(&mut key))
            .map_err(io)?;
        let key = key.as_slice().try_into().map_err(|_| {
            StoreError::Io(format!(
                "{}: not a key of {KEY_BYTES} bytes",
                path.display()
            ))
        })?;
        Ok(Self::with_key(key))
    }

    /// With a key that is kept nowhere.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn random() -> Result<Self, StoreError> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(key.as_mut_slice()).map_err(encoding)?;
        Ok(Self::with_key(&key))
    }

    /// Names are made with a key of their own, so that none of them says anything about the one that seals.
    fn with_key(key: &[u8; KEY_BYTES]) -> Self {
        let naming = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, key),
            b"chancery store names 1",
        );
        Self {
            cipher: XChaCha20Poly1305::new(key.into()),
            naming: hmac::Key::new(hmac::HMAC_SHA256, naming.as_ref()),
        }
    }

    /// Seals bytes for their place.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn seal(&self, space: &str, key: &[u8], bytes: &[u8]) -> Result<Vec<u8>, StoreError> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(encoding)?;
        let payload = Payload {
            msg: bytes,
            aad: &place(space, key),
        };
        let sealed = self
            .cipher
            .encrypt(XNonce::from_slice(&nonce), payload)
            .map_err(|_| StoreError::Sealed)?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Opens bytes of this place.
    ///
    /// # Errors
    /// [`StoreError::Sealed`].
    pub fn open_sealed(
        &self,
        space: &str,
        key: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let (nonce, sealed) = sealed
            .split_at_checked(NONCE_BYTES)
            .ok_or(StoreError::Sealed)?;
        let payload = Payload {
            msg: sealed,
            aad: &place(space, key),
        };
        self.cipher
            .decrypt(XNonce::from_slice(nonce), payload)
            .map(Zeroizing::new)
            .map_err(|_| StoreError::Sealed)
    }

    /// What is called the same only if it is the same, and says nothing to somebody without the key.
    pub fn name(&self, parts: &[&[u8]]) -> Name {
        let mut context = hmac::Context::with_key(&self.naming);
        for part in parts {
            context.update(part);
        }
        let mut name = [0; NAME_BYTES];
        name.copy_from_slice(&context.sign().as_ref()[..NAME_BYTES]);
        name
    }
}

fn place(space: &str, key: &[u8]) -> Vec<u8> {
    [space.as_bytes(), b"\0", key].concat()
}

/// Written whole before it has its name: of two processes that make it at once, both use the first one's.
fn make_key(path: &Path) -> std::io::Result<()> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    getrandom::fill(&mut *key).map_err(std::io::Error::other)?;
    let unfinished = path.with_extension(format!("new.{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(&*key)?;
    file.sync_all()?;
    let linked = match std::fs::hard_link(&unfinished, path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    };
    std::fs::remove_file(&unfinished)?;
    linked
}
