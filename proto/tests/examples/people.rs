//! Who and what the examples are about.

use ring::signature::{Ed25519KeyPair, KeyPair as _};

pub(crate) const DOMAIN: &str = "interior.example";
pub(crate) const GROUP: [u8; 16] = [0x44; 16];
pub(crate) const USER: [u8; 16] = [0x11; 16];
pub(crate) const DEVICE: [u8; 16] = [0x22; 16];
pub(crate) const OTHER_DEVICE: [u8; 16] = [0x33; 16];
pub(crate) const MESSAGE: [u8; 16] = [0x55; 16];
pub(crate) const HISTORY: [u8; 16] = [0x88; 16];
/// Unix seconds.
pub(crate) const TIME: i64 = 1_795_625_319;
/// Unix microseconds.
pub(crate) const TIME_MICROS: i64 = 1_795_625_319_256_612;

/// The seed of the device key: RFC 8032 section 7.1, test 1.
pub(crate) const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";

pub(crate) fn seed() -> Vec<u8> {
    hex::decode(SEED).unwrap()
}

pub(crate) fn device_key() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&seed()).unwrap()
}

pub(crate) fn public_key() -> Vec<u8> {
    device_key().public_key().as_ref().to_vec()
}

/// PKCS#8, version 1, of an Ed25519 seed (RFC 8410 section 7).
pub(crate) fn pkcs8(seed: &[u8]) -> Vec<u8> {
    let mut bytes = hex::decode("302e020100300506032b657004220420").unwrap();
    bytes.extend(seed);
    bytes
}
