//! What "the same request" means: SHA-256 over every field in tag order, each with its tag and length.
//!
//! Protobuf's own encoding is not canonical, so a hash over it would call a re-encoded repeat another request.

use sha2::{Digest as _, Sha256};

/// Hashes fields. A field is its tag and its length as 32-bit big-endian numbers, then its bytes.
#[derive(Clone)]
pub struct ContentHasher(Sha256);

impl ContentHasher {
    /// Starts with the name of the request, as field 0.
    pub fn new(label: &str) -> Self {
        Self(Sha256::new()).field(0, label.as_bytes())
    }

    /// Adds a field of at most 2^32 - 1 bytes. Repeated fields are added one by one, in order.
    #[must_use]
    pub fn field(mut self, tag: u32, bytes: &[u8]) -> Self {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.0.update(tag.to_be_bytes());
        self.0.update(length.to_be_bytes());
        self.0.update(bytes);
        self
    }

    /// Adds a number as eight big-endian bytes.
    #[must_use]
    pub fn number(self, tag: u32, value: u64) -> Self {
        self.field(tag, &value.to_be_bytes())
    }

    /// The hash.
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_sha_256_over_tag_length_bytes() {
        let bytes = [
            &[0u8, 0, 0, 0, 0, 0, 0, 1, b'x'][..],
            &[0, 0, 0, 2, 0, 0, 0, 2, 9, 8],
            &[0, 0, 0, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 1, 2],
        ]
        .concat();
        let hash = ContentHasher::new("x")
            .field(2, &[9, 8])
            .number(3, 258)
            .finish();
        assert_eq!(hash, <[u8; 32]>::from(Sha256::digest(bytes)));
    }

    #[test]
    fn moving_a_byte_between_fields_changes_it() {
        let one = ContentHasher::new("x")
            .field(1, b"ab")
            .field(2, b"c")
            .finish();
        let other = ContentHasher::new("x")
            .field(1, b"a")
            .field(2, b"bc")
            .finish();
        assert_ne!(one, other);
    }
}
