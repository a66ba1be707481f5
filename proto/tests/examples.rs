//! The worked examples of `docs/examples.md`: computed here, compared with the page. `UPDATE_EXAMPLES=1` writes it anew.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{fmt::Write as _, path::Path};

use chancery_proto::{
    chain::{self, ChainInput},
    commit_info::{CommitInfo, Member, MessageData},
    content_hash::ContentHasher,
    policy::Policy,
    signed,
    token::thumbprint,
    tree::Tree,
    welcome,
    wire::Write as _,
};
use ring::signature::{Ed25519KeyPair, KeyPair as _};

const HEAD: &str = "# Worked examples

Bytes that a client on the wire contract makes or checks, in hex. A test (`proto/tests/examples.rs`) computes this page and fails when it differs.
Everybody is of `interior.example`; user ids are sixteen times `11`, device ids sixteen times `22` and `33`, the group id is sixteen times `44`, message ids are sixteen times `55`.
The device key is the Ed25519 key of RFC 8032 section 7.1, test 1.
";

const DOMAIN: &str = "interior.example";
const GROUP: [u8; 16] = [0x44; 16];
const MESSAGE: [u8; 16] = [0x55; 16];

struct Page(String);

impl Page {
    fn part(&mut self, title: &str, what: &str, lines: &[(&str, &[u8])]) {
        write!(self.0, "\n## {title}\n\n{what}\n\n```text\n").unwrap();
        for (name, bytes) in lines {
            writeln!(self.0, "{name} {}", hex::encode(bytes)).unwrap();
        }
        self.0.push_str("```\n");
    }
}

fn member(device: u8) -> Member {
    Member {
        domain: DOMAIN.into(),
        user: [0x11; 16],
        device: [device; 16],
    }
}

fn page() -> String {
    let mut page = Page(HEAD.into());
    let message = MessageData {
        message_id: Some(MESSAGE),
        commit_info: None,
    };
    page.part(
        "A message's authenticated data",
        "One item: component `8c02`, 16 bytes of message id.",
        &[("authenticated_data", &message.encode())],
    );
    let commit = MessageData {
        message_id: Some(MESSAGE),
        commit_info: Some(CommitInfo {
            added: vec![member(0x22)],
            removed: vec![member(0x33)],
            proposals: vec![7],
            seen_seq: 9,
            seen_chain: [0x66; 32],
            ..CommitInfo::default()
        }),
    };
    page.part(
        "A Commit's authenticated data",
        "Two items, sorted: `8c01` (adds one device, removes another, takes in the proposal at seq 7, saw the log up to seq 9) and `8c02`.",
        &[("authenticated_data", &commit.encode())],
    );
    page.part(
        "The policy",
        "Data of GroupContext extension `f1c0`: version 1, home domain, one past epoch, external join by resync, no items.",
        &[("extension_data", &Policy::for_domain(DOMAIN).encode())],
    );
    let input = ChainInput {
        group: &GROUP,
        seq: 1,
        epoch_seq: 0,
        kind: 1,
        message_id: &MESSAGE,
        accepted_at_micros: 1_795_625_319_256_612,
        payload_sha256: &[0x77; 32],
    };
    let first = chain::next(&chain::start(), &input);
    let second = chain::next(
        &first,
        &ChainInput {
            seq: 2,
            epoch_seq: 1,
            kind: 4,
            ..input
        },
    );
    page.part(
        "The chain",
        "Before the first entry, after a Commit at seq 1 of epoch 0, and after an application message at seq 2 of the epoch that it began; both accepted at 1795625319256612, the SHA-256 of both payloads thirty-two times `77`.",
        &[("chain(0)", &chain::start()), ("chain(1)", &first), ("chain(2)", &second)],
    );
    let hash = ContentHasher::new("Example")
        .field(1, &GROUP)
        .number(2, 3)
        .finish();
    page.part(
        "What \"the same request\" is",
        "The content hash of a request `Example` with the group id in field 1 and the number 3 in field 2.",
        &[("content_hash", &hash)],
    );
    page.part(
        "A Welcome, cut",
        "MLSMessage(Welcome) of suite 1 put together for one joiner from its own `EncryptedGroupSecrets` (here the bytes `0102`) and the shared `encrypted_group_info` (here `030405`).",
        &[("welcome", &welcome::assemble(1, &[1, 2], &[3, 4, 5]))],
    );
    let mut tree = Tree::blank(2).unwrap();
    let leaf = example_leaf();
    tree.set(2, Some(&leaf)).unwrap();
    page.part(
        "A tree as nodes",
        "`tree_width` 2, only node 2 present with the bytes below (presence octet, node type, then the leaf; here one of an Update with a basic credential and made-up keys), and the same as a `ratchet_tree` of RFC 9420.",
        &[("node 2", &leaf), ("ratchet_tree", &tree.to_ratchet_tree())],
    );
    signatures(&mut page);
    page.0
}

/// `optional<Node>` of a leaf with keys and a signature that belong to nobody.
fn example_leaf() -> Vec<u8> {
    let mut leaf = vec![1, 1];
    leaf.put_vector(&[0xaa; 32]);
    leaf.put_vector(&[0xbb; 32]);
    leaf.put(&1u16.to_be_bytes());
    leaf.put_vector(b"example");
    let (version, suite, policy, credential) = (1u16, 1u16, 0xf1c0_u16, 1u16);
    leaf.put_vector(&version.to_be_bytes());
    leaf.put_vector(&suite.to_be_bytes());
    leaf.put_vector(&policy.to_be_bytes());
    leaf.put_vector(&[]);
    leaf.put_vector(&credential.to_be_bytes());
    leaf.put(&[2]);
    leaf.put_vector(&[]);
    leaf.put_vector(&[0xcc; 64]);
    leaf
}

fn signatures(page: &mut Page) {
    let seed =
        hex::decode("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
    let key = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
    let sign = |label: &str, content: &[u8]| {
        let bytes = signed::to_be_signed(label, content);
        (bytes.clone(), key.sign(&bytes).as_ref().to_vec())
    };
    let (bytes, signature) = sign(
        signed::ENROLL,
        &signed::enroll(DOMAIN, "0123456789abcdef", b"csr", 1_795_625_319),
    );
    page.part(
        "The proof of an enrolment",
        "Domain, SHA-256 of the invitation `0123456789abcdef`, SHA-256 of the CSR (here the bytes `csr`), Unix time 1795625319; under label `chancery enroll 1`.",
        &[("signed", &bytes), ("signature", &signature)],
    );
    let (bytes, signature) = sign(
        signed::LEAVE,
        &signed::leave((DOMAIN, &GROUP), (DOMAIN, &[0x22; 16]), 1, 1_795_625_319),
    );
    page.part(
        "A leave request",
        "Group, device, the seq that it joined at, the end of the request; under label `chancery leave 1`.",
        &[("signed", &bytes), ("signature", &signature)],
    );
    let print = thumbprint(key.public_key().as_ref());
    write!(
        page.0,
        "\n## The key in a token\n\n`cnf.jkt` of an access token for this device key (RFC 7638):\n\n```text\njkt {print}\n```\n"
    )
    .unwrap();
}

#[test]
fn the_page_says_what_the_code_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples.md");
    let page = page();
    if std::env::var_os("UPDATE_EXAMPLES").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    for (line, (computed, written)) in page.lines().zip(written.lines()).enumerate() {
        assert_eq!(computed, written, "line {} of docs/examples.md", line + 1);
    }
    assert_eq!(page.lines().count(), written.lines().count());
}
