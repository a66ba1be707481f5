//! The hash chain of a group's log.
//!
//! `chain(0)` is 32 zero bytes. `chain(seq)` is SHA-256 over these fields, each preceded by its length as a 32-bit big-endian number: the label
//! `chancery log`, the value before, the group id, seq, epoch_seq and kind (64-bit big-endian), the message id, the time of acceptance in Unix
//! microseconds (64-bit big-endian, two's complement), and the SHA-256 of the payload. The payload itself may be pruned; the chain stays.

use sha2::{Digest as _, Sha256};

/// What one entry adds to the chain.
#[derive(Debug, Clone, Copy)]
pub struct ChainInput<'a> {
    /// The group's id.
    pub group: &'a [u8],
    /// The entry's seq.
    pub seq: u64,
    /// The name of the epoch that it was framed in.
    pub epoch_seq: u64,
    /// `EntryKind`.
    pub kind: u32,
    /// Made by the client; 16 bytes.
    pub message_id: &'a [u8],
    /// Unix microseconds.
    pub accepted_at_micros: i64,
    /// SHA-256 of the payload.
    pub payload_sha256: &'a [u8; 32],
}

/// The value before the first entry.
pub fn start() -> [u8; 32] {
    [0; 32]
}

/// The value after an entry.
pub fn next(previous: &[u8; 32], input: &ChainInput<'_>) -> [u8; 32] {
    let fields: [&[u8]; 9] = [
        b"chancery log",
        previous,
        input.group,
        &input.seq.to_be_bytes(),
        &input.epoch_seq.to_be_bytes(),
        &u64::from(input.kind).to_be_bytes(),
        input.message_id,
        &input.accepted_at_micros.to_be_bytes(),
        input.payload_sha256,
    ];
    let mut hasher = Sha256::new();
    for field in fields {
        hasher.update(u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
        hasher.update(field);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input() -> ChainInput<'static> {
        ChainInput {
            group: &[0x11; 16],
            seq: 1,
            epoch_seq: 0,
            kind: 4,
            message_id: &[0x22; 16],
            accepted_at_micros: 1_700_000_000_000_000,
            payload_sha256: &[0x33; 32],
        }
    }

    #[test]
    fn it_is_sha_256_over_the_length_prefixed_fields() {
        let mut bytes = Vec::new();
        let mut put = |field: &[u8]| {
            bytes.extend(u32::try_from(field.len()).unwrap().to_be_bytes());
            bytes.extend(field);
        };
        put(b"chancery log");
        put(&[0; 32]);
        put(&[0x11; 16]);
        put(&[0, 0, 0, 0, 0, 0, 0, 1]);
        put(&[0; 8]);
        put(&[0, 0, 0, 0, 0, 0, 0, 4]);
        put(&[0x22; 16]);
        put(&1_700_000_000_000_000_i64.to_be_bytes());
        put(&[0x33; 32]);
        assert_eq!(
            next(&start(), &input()),
            <[u8; 32]>::from(Sha256::digest(bytes))
        );
    }

    #[test]
    fn every_field_counts() {
        let base = next(&start(), &input());
        let others = [
            ChainInput {
                group: &[0x12; 16],
                ..input()
            },
            ChainInput { seq: 2, ..input() },
            ChainInput {
                epoch_seq: 1,
                ..input()
            },
            ChainInput { kind: 3, ..input() },
            ChainInput {
                message_id: &[0x23; 16],
                ..input()
            },
            ChainInput {
                accepted_at_micros: 1,
                ..input()
            },
            ChainInput {
                payload_sha256: &[0x34; 32],
                ..input()
            },
        ];
        for other in others {
            assert_ne!(base, next(&start(), &other));
        }
        assert_ne!(base, next(&[1; 32], &input()));
    }
}
