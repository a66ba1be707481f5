//! Tokens that were verified before: an access token comes with every call, and its signature needs to be checked once.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

use lru::LruCache;
use sha2::{Digest as _, Sha256};

use crate::access::{caller::Caller, issuers::Issuers};

#[derive(Debug)]
struct Verified {
    caller: Caller,
    key_id: String,
}

/// Verified tokens by their SHA-256, the ones used last; cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokens(Arc<Mutex<LruCache<[u8; 32], Verified>>>);

impl Tokens {
    /// Room for so many.
    pub fn new(items: NonZeroUsize) -> Self {
        Self(Arc::new(Mutex::new(LruCache::new(items))))
    }

    /// Who calls with this token, if it was verified before by a key that still counts. Whether it ended is for the caller to say.
    pub fn get(&self, token: &str, issuers: &Issuers) -> Option<Caller> {
        let mut verified = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = verified.get(&digest(token))?;
        let issuer = issuers.get(&known.caller.domain)?;
        issuer
            .token_keys
            .contains_key(&known.key_id)
            .then(|| known.caller.clone())
    }

    /// Remembers a token that this key has verified.
    pub fn put(&self, token: &str, key_id: String, caller: Caller) {
        let mut verified = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        verified.put(digest(token), Verified { caller, key_id });
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}
