//! Hashes over an entry, a request and a group's state.

use chancery_proto::{
    chain::{self, ChainInput},
    content_hash::ContentHasher,
    group_info::group_state_hash,
};
use sha2::{Digest as _, Sha256};

use crate::{
    model::{Chapter, Fields, Vector},
    people::{GROUP, MESSAGE, TIME_MICROS},
};

/// A field with its length before it, as a 32-bit number.
fn prefixed(fields: Fields, name: &str, kind: &str, value: &str, bytes: &[u8]) -> Fields {
    let length = u32::try_from(bytes.len()).unwrap();
    fields
        .uint32(&format!("{name}: length"), length)
        .fixed(name, kind, value, bytes)
}

fn chain_vector(
    name: &str,
    about: &str,
    before: &[u8; 32],
    input: &ChainInput<'_>,
) -> (Vector, [u8; 32]) {
    let after = chain::next(before, input);
    let fields = prefixed(
        Fields::new(),
        "label",
        "opaque",
        "\"chancery log\"",
        b"chancery log",
    );
    let fields = prefixed(
        fields,
        "value before",
        "opaque",
        "the chain value before",
        before,
    );
    let fields = prefixed(
        fields,
        "group id",
        "opaque",
        "the group's id, without its domain",
        input.group,
    );
    let number = |fields, name, value: u64| {
        prefixed(
            fields,
            name,
            "uint64",
            &value.to_string(),
            &value.to_be_bytes(),
        )
    };
    let fields = number(fields, "seq", input.seq);
    let fields = number(fields, "epoch_seq", input.epoch_seq);
    let fields = number(fields, "kind", input.kind.into());
    let fields = prefixed(
        fields,
        "message id",
        "opaque",
        "the message id",
        input.message_id,
    );
    let micros = input.accepted_at_micros;
    let fields = prefixed(
        fields,
        "accepted_at_micros",
        "int64",
        &micros.to_string(),
        &micros.to_be_bytes(),
    );
    let fields = prefixed(
        fields,
        "payload hash",
        "opaque",
        "SHA-256 of the payload",
        input.payload_sha256,
    );
    assert_eq!(
        after,
        <[u8; 32]>::from(Sha256::digest(fields.bytes())),
        "{name}"
    );
    let bytes = fields.bytes().to_vec();
    let vector = fields
        .checked(name, about, &bytes)
        .derived("chain", "SHA-256 of `bytes`", &after);
    (vector, after)
}

pub(crate) fn chain() -> Chapter {
    let input = ChainInput {
        group: &GROUP,
        seq: 1,
        epoch_seq: 0,
        kind: 1,
        message_id: &MESSAGE,
        accepted_at_micros: TIME_MICROS,
        payload_sha256: &[0x77; 32],
    };
    let (first, after) = chain_vector(
        "After a Commit at seq 1",
        "Framed in epoch 0; before the first entry the value is 32 zero bytes.",
        &chain::start(),
        &input,
    );
    let second = ChainInput {
        seq: 2,
        epoch_seq: 1,
        kind: 4,
        ..input
    };
    let (second, _) = chain_vector(
        "After an application message at seq 2",
        "Framed in the epoch that the Commit at seq 1 began.",
        &after,
        &second,
    );
    Chapter {
        file: "chain.json",
        title: "The chain".into(),
        about: "The hash chain of a group's log; `kind` is the number of `EntryKind`".into(),
        vectors: vec![first, second],
    }
}

pub(crate) fn content_hash() -> Chapter {
    let tagged = |fields: Fields, tag: u32, name: &str, value: &str, bytes: &[u8]| {
        prefixed(
            fields.uint32(&format!("{name}: tag"), tag),
            name,
            "opaque",
            value,
            bytes,
        )
    };
    let fields = tagged(
        Fields::new(),
        0,
        "request",
        "\"SendMessage\"",
        b"SendMessage",
    );
    let fields = tagged(
        fields,
        1,
        "group id",
        "the group's id, without its domain",
        &GROUP,
    );
    let fields = tagged(fields, 2, "message_id", "the message id", &MESSAGE);
    let fields = tagged(
        fields,
        3,
        "message",
        "the MLSMessage (here the bytes `message`)",
        b"message",
    );
    let fields = tagged(fields, 4, "epoch_seq", "3", &3u64.to_be_bytes());
    let hash = ContentHasher::new("SendMessage")
        .field(1, &GROUP)
        .field(2, &MESSAGE)
        .field(3, b"message")
        .number(4, 3)
        .finish();
    assert_eq!(hash, <[u8; 32]>::from(Sha256::digest(fields.bytes())));
    let bytes = fields.bytes().to_vec();
    let vector = fields
        .checked(
            "SendMessage",
            "A message to an epoch that seq 3 began.",
            &bytes,
        )
        .derived("content_hash", "SHA-256 of `bytes`", &hash);
    Chapter {
        file: "content_hash.json",
        title: "What \"the same request\" is".into(),
        about: "A server compares this hash when an id comes again; clients need not make it"
            .into(),
        vectors: vec![vector],
    }
}

pub(crate) fn group_state() -> Chapter {
    let vector = |name: &str, about: &str, key: Option<&[u8]>| {
        let fields = Fields::new()
            .fixed(
                "GroupContext",
                "GroupContext",
                "its bytes (here `context`)",
                b"context",
            )
            .vector("confirmation_tag", "the GroupInfo's (here `tag`)", b"tag")
            .vector(
                "external_pub",
                "the key of that extension (here `key`)",
                key.unwrap_or_default(),
            );
        let hash = group_state_hash(b"context", b"tag", key);
        assert_eq!(hash, <[u8; 32]>::from(Sha256::digest(fields.bytes())));
        let bytes = fields.bytes().to_vec();
        fields
            .checked(name, about, &bytes)
            .derived("group_state_hash", "SHA-256 of `bytes`", &hash)
    };
    Chapter {
        file: "group_state.json",
        title: "The hash of a group's state".into(),
        about: "What a member compares with the hash that came with a Commit".into(),
        vectors: vec![
            vector(
                "With external_pub",
                "The policy allows external joins.",
                Some(b"key"),
            ),
            vector(
                "Without external_pub",
                "The vector is empty, its length stays.",
                None,
            ),
        ],
    }
}
