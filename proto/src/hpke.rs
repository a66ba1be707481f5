//! The form of HPKE public keys (RFC 9180 section 7.1), by cipher suite: whether anybody could encrypt to one.

use p256::PublicKey;

use crate::{
    mutants::{self, Mutant},
    suite::Suite,
};

/// Why nobody can encrypt to a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// Another length than that of the suite's KEM.
    #[error("has {got} bytes, not {expected}")]
    Length {
        /// Bytes that a key of this suite has.
        expected: usize,
        /// Bytes that this one has.
        got: usize,
    },
    /// An X25519 point of small order: every shared secret with it is zero (RFC 7748 section 6.1).
    #[error("is a point of low order")]
    LowOrder,
    /// P-256 keys are uncompressed points of the curve (RFC 9180 section 7.1.1).
    #[error("is no uncompressed point on P-256")]
    NotOnCurve,
}

/// Length of an X25519 public key.
const X25519_BYTES: usize = 32;
/// Length of an uncompressed P-256 point.
const P256_BYTES: usize = 65;
/// First octet of an uncompressed point (SEC 1 section 2.3.3).
const UNCOMPRESSED: u8 = 4;

/// The u-coordinates of X25519 whose order divides 8, on the curve and on its twist, little-endian, with the ignored
/// top bit clear: 0, 1, two of order 8, p-1, and the two that are not reduced, p and p+1.
const LOW_ORDER: [[u8; X25519_BYTES]; 7] = [
    [0; X25519_BYTES],
    with_first(0, 1, 0),
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4,
        0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49,
        0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef,
        0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f,
        0x11, 0x57,
    ],
    with_first(0xff, 0xec, 0x7f),
    with_first(0xff, 0xed, 0x7f),
    with_first(0xff, 0xee, 0x7f),
];

/// 32 octets of one value with another first and last one.
const fn with_first(fill: u8, first: u8, last: u8) -> [u8; X25519_BYTES] {
    let mut bytes = [fill; X25519_BYTES];
    bytes[0] = first;
    bytes[X25519_BYTES - 1] = last;
    bytes
}

/// Checks that a suite's KEM can encrypt to this public key: `init_key` and `encryption_key` of every leaf and parent
/// node. It looks at the form only and needs no randomness.
///
/// # Errors
/// What is wrong with the key.
pub fn check_public_key(suite: Suite, key: &[u8]) -> Result<(), KeyFault> {
    if mutants::is_on(Mutant::HpkeKeyFormUnchecked) {
        return Ok(());
    }
    match suite {
        Suite::X25519Aes128 | Suite::X25519ChaCha => check_x25519(key),
        Suite::P256Aes128 => check_p256(key),
    }
}

fn check_length(expected: usize, key: &[u8]) -> Result<(), KeyFault> {
    let got = key.len();
    if got == expected {
        Ok(())
    } else {
        Err(KeyFault::Length { expected, got })
    }
}

fn check_x25519(key: &[u8]) -> Result<(), KeyFault> {
    check_length(X25519_BYTES, key)?;
    let is_low = |point: &[u8; X25519_BYTES]| {
        let (last, rest) = (X25519_BYTES - 1, &key[..X25519_BYTES - 1]);
        point[..last] == *rest && point[last] == key[last] & 0x7f
    };
    if LOW_ORDER.iter().any(is_low) {
        return Err(KeyFault::LowOrder);
    }
    Ok(())
}

fn check_p256(key: &[u8]) -> Result<(), KeyFault> {
    check_length(P256_BYTES, key)?;
    if key[0] != UNCOMPRESSED || PublicKey::from_sec1_bytes(key).is_err() {
        return Err(KeyFault::NotOnCurve);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ring::{
        agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral},
        rand::{SecureRandom as _, SystemRandom},
    };

    use super::*;

    /// Whether another implementation agrees on a secret with this key: ring refuses a secret of zeros and points that
    /// are not on the curve.
    fn ring_agrees(suite: Suite, key: &[u8]) -> bool {
        let algorithm = match suite {
            Suite::P256Aes128 => &ECDH_P256,
            _ => &X25519,
        };
        let own = EphemeralPrivateKey::generate(algorithm, &SystemRandom::new()).unwrap();
        agree_ephemeral(own, &UnparsedPublicKey::new(algorithm, key), |_| ()).is_ok()
    }

    fn agree_on(suite: Suite, key: &[u8], good: bool) {
        assert_eq!(check_public_key(suite, key).is_ok(), good, "{key:02x?}");
        assert_eq!(ring_agrees(suite, key), good, "ring: {key:02x?}");
    }

    #[test]
    fn every_low_order_point_is_refused_whatever_its_top_bit() {
        for point in LOW_ORDER {
            for top in [0, 0x80] {
                let mut key = point;
                key[31] |= top;
                agree_on(Suite::X25519Aes128, &key, false);
                agree_on(Suite::X25519ChaCha, &key, false);
            }
        }
    }

    #[test]
    fn neighbours_of_low_order_points_and_random_keys_are_taken() {
        for point in LOW_ORDER {
            for bit in [9, 77, 200] {
                let mut key = point;
                key[bit / 8] ^= 1 << (bit % 8);
                agree_on(Suite::X25519Aes128, &key, true);
            }
        }
        for _ in 0..20 {
            let mut key = [0; 32];
            SystemRandom::new().fill(&mut key).unwrap();
            agree_on(Suite::X25519ChaCha, &key, true);
        }
    }

    #[test]
    fn a_p256_key_is_an_uncompressed_point_of_the_curve() {
        let own = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new()).unwrap();
        let good = own.compute_public_key().unwrap().as_ref().to_vec();
        agree_on(Suite::P256Aes128, &good, true);
        let mut off = good.clone();
        off[40] ^= 1;
        let mut compressed = good.clone();
        compressed[0] = 2;
        let mut hybrid = good.clone();
        hybrid[0] = 6;
        let compressed_short = [&[2 + (good[64] & 1)], &good[1..33]].concat();
        for bad in [
            off,
            compressed,
            hybrid,
            compressed_short,
            vec![0],
            vec![4; 65],
        ] {
            agree_on(Suite::P256Aes128, &bad, false);
        }
    }

    #[test]
    fn keys_of_another_length_are_refused_in_every_suite() {
        for suite in [Suite::X25519Aes128, Suite::P256Aes128, Suite::X25519ChaCha] {
            for length in [0, 1, 5, 31, 33, 64, 66] {
                let fault = check_public_key(suite, &vec![9; length]);
                assert!(matches!(fault, Err(KeyFault::Length { .. })), "{length}");
            }
        }
    }
}
