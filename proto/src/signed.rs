//! What is signed outside MLS with a device key: `label<V> || content<V>`, raw. No label begins with `MLS 1.0 `, so no such signature is one of MLS.

use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use sha2::{Digest as _, Sha256};

use crate::wire::Write;

/// The exact bytes to sign.
pub fn to_be_signed(label: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(content.len() + label.len() + 8);
    bytes.put_vector(label.as_bytes());
    bytes.put_vector(content);
    bytes
}

/// Verifies a signature over label and content: Ed25519 where the key has 32 bytes, otherwise ECDSA on P-256 with SHA-256, in DER.
pub fn verify(key: &[u8], label: &str, content: &[u8], signature: &[u8]) -> bool {
    let algorithm: &dyn VerificationAlgorithm = match key.len() {
        32 => &ED25519,
        _ => &ECDSA_P256_SHA256_ASN1,
    };
    UnparsedPublicKey::new(algorithm, key)
        .verify(&to_be_signed(label, content), signature)
        .is_ok()
}

/// Content of `chancery enroll 1`: `domain<V>`, SHA-256 of the invitation or ID token, SHA-256 of the CSR, time in Unix seconds (64 bits).
pub fn enroll(domain: &str, invitation: &str, csr: &[u8], time: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_vector(domain.as_bytes());
    bytes.put(&Sha256::digest(invitation.as_bytes()));
    bytes.put(&Sha256::digest(csr));
    bytes.put(&time.to_be_bytes());
    bytes
}

/// Label for [`enroll`].
pub const ENROLL: &str = "chancery enroll 1";

/// Content of `chancery introduction 1`: the introduced device as `domain<V> id[16]`, its key `<V>`, the group as `domain<V> id<V>`, expiry in Unix seconds.
pub fn introduction(
    device: (&str, &[u8; 16]),
    key: &[u8],
    group: (&str, &[u8]),
    expires_at: i64,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_vector(device.0.as_bytes());
    bytes.put(device.1);
    bytes.put_vector(key);
    bytes.put_vector(group.0.as_bytes());
    bytes.put_vector(group.1);
    bytes.put(&expires_at.to_be_bytes());
    bytes
}

/// Label for [`introduction`].
pub const INTRODUCTION: &str = "chancery introduction 1";

/// Content of `chancery replace 1`: the DS domain `<V>`, the suites (16 bits each, `<V>`), SHA-256 of each KeyPackage in order `<V>`, expiry in Unix seconds.
pub fn replace(
    domain: &str,
    suites: &[u16],
    key_packages: &[impl AsRef<[u8]>],
    expires_at: i64,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_vector(domain.as_bytes());
    let suites: Vec<u8> = suites.iter().flat_map(|s| s.to_be_bytes()).collect();
    bytes.put_vector(&suites);
    let hashes: Vec<u8> = key_packages
        .iter()
        .flat_map(|k| Sha256::digest(k.as_ref()))
        .collect();
    bytes.put_vector(&hashes);
    bytes.put(&expires_at.to_be_bytes());
    bytes
}

/// Label for [`replace`].
pub const REPLACE: &str = "chancery replace 1";

/// Content of `chancery revoke 1`: the revoked device as `domain<V> id[16]`, expiry in Unix seconds.
pub fn revoke(device: (&str, &[u8; 16]), expires_at: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_vector(device.0.as_bytes());
    bytes.put(device.1);
    bytes.put(&expires_at.to_be_bytes());
    bytes
}

/// Label for [`revoke`].
pub const REVOKE: &str = "chancery revoke 1";

/// Label for an encoded `auth.v1.DeviceStatus`.
pub const STATUS: &str = "chancery status 1";

/// SHA-256 of an item of the status feed, by which the next item, heartbeats and cursors name it: of the encoded `auth.v1.DeviceStatus`.
pub fn status_sha256(status: &[u8]) -> [u8; 32] {
    Sha256::digest(status).into()
}

/// Label for an encoded `auth.v1.StatusHeartbeat`.
pub const HEARTBEAT: &str = "chancery heartbeat 1";

/// Label of a leave request.
pub const LEAVE: &str = "chancery leave 1";

/// What a leave request says: the device asks to be removed from this membership of this group.
pub fn leave(
    group: (&str, &[u8]),
    device: (&str, &[u8; 16]),
    joined_seq: u64,
    expires_at: i64,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_vector(group.0.as_bytes());
    bytes.put_vector(group.1);
    bytes.put_vector(device.0.as_bytes());
    bytes.put(device.1);
    bytes.put(&joined_seq.to_be_bytes());
    bytes.put(&expires_at.to_be_bytes());
    bytes
}

/// Label of a failure report.
pub const FAILURE: &str = "chancery failure 1";

/// What a failure report says: this device cannot merge the Commit at this seq of this group's log, whose payload has this SHA-256.
pub fn failure(
    group: (&str, &[u8]),
    reporter: (&str, &[u8; 16]),
    commit_seq: u64,
    commit_sha256: &[u8; 32],
    reason: u32,
    expires_at: i64,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_vector(group.0.as_bytes());
    bytes.put_vector(group.1);
    bytes.put_vector(reporter.0.as_bytes());
    bytes.put(reporter.1);
    bytes.put(&commit_seq.to_be_bytes());
    bytes.put(commit_sha256);
    bytes.put(&reason.to_be_bytes());
    bytes.put(&expires_at.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_both_schemes_sign() {
        for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P256_SHA256] {
            let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let sign = |content: &[u8]| {
                rcgen::SigningKey::sign(&pair, &to_be_signed(LEAVE, content)).unwrap()
            };
            let (key, signature) = (pair.public_key_raw(), sign(b"this"));
            assert!(verify(key, LEAVE, b"this", &signature));
            assert!(!verify(key, LEAVE, b"that", &signature));
            assert!(!verify(key, REVOKE, b"this", &signature));
            assert!(!verify(&key[1..], LEAVE, b"this", &signature));
            assert!(!verify(&[], LEAVE, b"this", &signature));
        }
    }

    #[test]
    fn label_and_content_cannot_run_into_each_other() {
        assert_eq!(to_be_signed("ab", b"c"), [2, b'a', b'b', 1, b'c']);
        assert_ne!(to_be_signed("a", b"bc"), to_be_signed("ab", b"c"));
    }
}
