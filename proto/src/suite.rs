//! What a cipher suite (RFC 9420 section 17.1) means to somebody without keys: its hash and its signature scheme.

use ring::{digest, signature};

use crate::wire::Write;

/// A suite whose hash and signatures can be computed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// 0x0001: X25519, AES-128-GCM, SHA-256, Ed25519.
    X25519Aes128,
    /// 0x0002: P-256, AES-128-GCM, SHA-256, ECDSA.
    P256Aes128,
    /// 0x0003: X25519, ChaCha20-Poly1305, SHA-256, Ed25519.
    X25519ChaCha,
}

impl Suite {
    /// The suite with this code, if it is known here.
    pub fn from_code(code: u16) -> Option<Self> {
        match code {
            1 => Some(Self::X25519Aes128),
            2 => Some(Self::P256Aes128),
            3 => Some(Self::X25519ChaCha),
            _ => None,
        }
    }

    /// The suite's code (RFC 9420 section 17.1).
    pub fn code(self) -> u16 {
        match self {
            Self::X25519Aes128 => 1,
            Self::P256Aes128 => 2,
            Self::X25519ChaCha => 3,
        }
    }

    /// Its registered name.
    pub fn name(self) -> &'static str {
        match self {
            Self::X25519Aes128 => "MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519",
            Self::P256Aes128 => "MLS_128_DHKEMP256_AES128GCM_SHA256_P256",
            Self::X25519ChaCha => "MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519",
        }
    }

    /// Its hash function.
    pub fn hash(self, bytes: &[u8]) -> Vec<u8> {
        digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
    }

    /// `RefHash` of RFC 9420 section 5.2.
    pub fn ref_hash(self, label: &str, value: &[u8]) -> Vec<u8> {
        let mut input = Vec::with_capacity(value.len() + 64);
        input.put_vector(label.as_bytes());
        input.put_vector(value);
        self.hash(&input)
    }

    /// `VerifyWithLabel` of RFC 9420 section 5.1.2.
    pub fn verify_with_label(
        self,
        key: &[u8],
        label: &str,
        content: &[u8],
        signature: &[u8],
    ) -> bool {
        let mut signed = Vec::with_capacity(content.len() + 64);
        signed.put_vector(format!("MLS 1.0 {label}").as_bytes());
        signed.put_vector(content);
        self.verify(key, &signed, signature)
    }

    /// A bare signature of the suite's scheme.
    pub fn verify(self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn signature::VerificationAlgorithm = match self {
            Self::X25519Aes128 | Self::X25519ChaCha => &signature::ED25519,
            Self::P256Aes128 => &signature::ECDSA_P256_SHA256_ASN1,
        };
        signature::UnparsedPublicKey::new(algorithm, key)
            .verify(message, signature)
            .is_ok()
    }
}
