//! How a value is kept: postcard, then lz4, then XChaCha20-Poly1305 bound to its place. A copy of the database without the key file says nothing.

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
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::StoreError;

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;

/// Seals and opens values with the profile's key.
#[derive(Clone)]
pub struct Sealer(XChaCha20Poly1305);

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
        let cipher = XChaCha20Poly1305::new_from_slice(&key).map_err(|_| {
            StoreError::Io(format!(
                "{}: not a key of {KEY_BYTES} bytes",
                path.display()
            ))
        })?;
        Ok(Self(cipher))
    }

    /// With a key that is kept nowhere.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn random() -> Result<Self, StoreError> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(key.as_mut_slice()).map_err(encoding)?;
        Ok(Self(XChaCha20Poly1305::new((&*key).into())))
    }

    /// Encodes and seals a value for its place.
    ///
    /// # Errors
    /// The value cannot be encoded, or there is no randomness.
    pub fn seal_value<T: Serialize>(
        &self,
        space: &str,
        key: &[u8],
        value: &T,
    ) -> Result<Vec<u8>, StoreError> {
        let encoded = Zeroizing::new(postcard::to_allocvec(value).map_err(encoding)?);
        let packed = Zeroizing::new(lz4_flex::compress_prepend_size(&encoded));
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(encoding)?;
        let payload = Payload {
            msg: &packed,
            aad: &place(space, key),
        };
        let sealed = self
            .0
            .encrypt(XNonce::from_slice(&nonce), payload)
            .map_err(|_| StoreError::Sealed)?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Opens and decodes a value of this place.
    ///
    /// # Errors
    /// [`StoreError::Sealed`], or what is inside cannot be decoded.
    pub fn open_value<T: DeserializeOwned>(
        &self,
        space: &str,
        key: &[u8],
        sealed: &[u8],
    ) -> Result<T, StoreError> {
        let (nonce, sealed) = sealed
            .split_at_checked(NONCE_BYTES)
            .ok_or(StoreError::Sealed)?;
        let payload = Payload {
            msg: sealed,
            aad: &place(space, key),
        };
        let packed = self
            .0
            .decrypt(XNonce::from_slice(nonce), payload)
            .map(Zeroizing::new)
            .map_err(|_| StoreError::Sealed)?;
        let encoded = lz4_flex::decompress_size_prepended(&packed).map_err(encoding)?;
        postcard::from_bytes(&Zeroizing::new(encoded)).map_err(encoding)
    }
}

fn place(space: &str, key: &[u8]) -> Vec<u8> {
    [space.as_bytes(), b"\0", key].concat()
}

fn encoding(error: impl std::fmt::Display) -> StoreError {
    StoreError::Encoding(error.to_string())
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
