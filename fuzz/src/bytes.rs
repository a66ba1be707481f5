//! Readers of foreign bytes. Each target also holds the reader to what it promises about what it accepts.

use auth_service::credentials::{Scheme, SigningRequest};
use chancery_proto::{
    certificate::{self, Anchors},
    commit_info::{CommitInfo, MessageData},
    delivery::v1::TreeUpdate,
    framing::{self, Message},
    group_info::GroupInfo,
    key_package::KeyPackage,
    policy::Policy,
    suite::Suite,
    token,
    tree::{Patch, Tree},
    welcome::Welcome,
};

use crate::MAX_INPUT;

/// A time at which certificates are looked at, Unix seconds.
const AT: i64 = 1_790_000_000;

fn suites() -> impl Iterator<Item = Suite> {
    (0..8).filter_map(Suite::from_code)
}

/// Handshake and application messages (RFC 9420 section 6), and what they hold in clear.
pub fn framing(data: &[u8]) {
    match framing::parse(data, MAX_INPUT) {
        Ok(Message::Private(header)) => {
            let _items = MessageData::decode(&header.authenticated_data);
        }
        Ok(Message::ExternalCommit(commit)) => {
            for suite in suites() {
                commit.verify(suite, b"context");
                commit.leaf.verify(suite, Some((&commit.group_id, 0)));
            }
            let _certificate = commit.leaf.certificate();
            let _items = MessageData::decode(&commit.authenticated_data);
        }
        Err(_) => {}
    }
}

/// Welcomes: each joiner's part is a Welcome again, with that joiner in it and nobody else.
pub fn welcome(data: &[u8]) {
    let Ok(welcome) = Welcome::parse(data, MAX_INPUT) else {
        return;
    };
    // Each cut repeats the GroupInfo; a few say as much as all.
    for secrets in welcome.secrets.iter().take(4) {
        let part = welcome.cut(&secrets.0).expect("it names this joiner");
        let part = Welcome::parse(&part, part.len()).expect("a part is a Welcome");
        assert_eq!(part.secrets.as_slice(), std::slice::from_ref(secrets));
        assert_eq!(part.encrypted_group_info, welcome.encrypted_group_info);
    }
    assert_eq!(
        welcome.cut(b"nobody's").is_some(),
        welcome.secrets.iter().any(|s| s.0 == b"nobody's")
    );
}

/// KeyPackages.
pub fn key_package(data: &[u8]) {
    if let Ok(package) = KeyPackage::parse(data, MAX_INPUT) {
        let _lifetime = package.lifetime();
        let _reference = package.reference();
        package.verify();
        if let Ok(der) = package.leaf.certificate() {
            certificate(der);
        }
    }
}

/// GroupInfos.
pub fn group_info(data: &[u8]) {
    if let Ok(info) = GroupInfo::parse(data, MAX_INPUT) {
        info.verify(&[7; 32]);
        info.group_state_hash();
        let _policy = info.policy();
    }
}

/// Whole trees: what is written comes back, and hashes alike.
pub fn ratchet_tree(data: &[u8]) {
    let Ok(tree) = Tree::from_ratchet_tree(data) else {
        return;
    };
    let again = Tree::from_ratchet_tree(&tree.to_ratchet_tree()).expect("a tree that was written");
    assert_eq!(again, tree);
    for suite in suites() {
        assert_eq!(tree.hash(suite), again.hash(suite));
    }
}

/// What is hashed from hashes is what the whole tree hashes to.
fn patched_hash(before: &Tree, after: &Tree, update: &TreeUpdate) {
    let suite = Suite::X25519Aes128;
    let patch = Patch::read(update, before.width()).expect("an update that was written");
    let Some(patch) = patch else { return };
    let nodes = before.nodes().map(|(i, node)| (i, node.to_vec())).collect();
    let hashes = patch
        .hashes(suite, &nodes, &before.hashes(suite))
        .expect("all hashes are there");
    assert_eq!(hashes.get(&patch.root()), Some(&after.hash(suite)));
}

/// Changes of a tree, each as an octet of what to do, an octet of an index and the octets of a node with their length before them.
pub fn tree_patch(data: &[u8]) {
    let mut tree = Tree::blank(1).expect("1 is a power of two");
    let mut rest = data;
    while let [what, index, length, tail @ ..] = rest {
        let (node, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        rest = tail;
        // Sizes that the services let through; a larger one is refused before a tree is made (`--group-max-members`).
        let before = tree.clone();
        let done = match what % 3 {
            0 => tree.resize(u32::from(*index)),
            1 => tree.set(u32::from(*index), None),
            _ => tree.set(u32::from(*index), Some(node)),
        };
        if done.is_err() {
            assert_eq!(tree, before, "a refused change changes nothing");
            continue;
        }
        let update = tree.update_since(&before);
        patched_hash(&before, &tree, &update);
        let mut patched = before;
        patched
            .resize(update.tree_width)
            .expect("a width that a tree has");
        for change in &update.nodes {
            let set = patched.set(change.index, change.node.as_deref());
            set.expect("a node of a tree");
        }
        assert_eq!(patched, tree, "the changes make the one from the other");
    }
    for suite in suites() {
        tree.hash(suite);
    }
    assert!(tree.nodes().count() < tree.width() as usize * 2);
}

/// CommitInfo and authenticated data: one encoding for each value.
pub fn commit_info(data: &[u8]) {
    if let Ok(info) = CommitInfo::decode(data) {
        assert_eq!(info.encode(), data, "another encoding of the same");
    }
    if let Ok(items) = MessageData::decode(data) {
        let known = items.encode();
        assert_eq!(MessageData::decode(&known), Ok(items));
    }
}

/// The policy in a group's context: one encoding for each value.
pub fn policy(data: &[u8]) {
    if let Ok(policy) = Policy::decode(data) {
        assert_eq!(policy.encode(), data, "another encoding of the same");
    }
}

/// Certificates of devices and of those who sign them.
pub fn certificate(data: &[u8]) {
    let _device = certificate::read_device(data);
    let _validity = certificate::validity(data);
    if let Ok(anchors) = Anchors::pinned(data, &[data.to_vec()], AT) {
        let _verified = anchors.verify_device(data, AT);
        let _status = anchors.verify_status(&[data, data], AT);
    }
}

/// Tokens: nothing that a stranger makes is accepted.
pub fn token(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _key = token::key_id(&text);
    // A key that nobody signs with.
    assert!(token::verify_access(&text, &[7; 32], "ds:interior.example", AT, 60).is_err());
}

/// Signing requests (RFC 2986).
pub fn csr(data: &[u8]) {
    for scheme in Scheme::ALL {
        if let Ok(request) = SigningRequest::parse(data, scheme) {
            assert!(matches!(request.public_key().len(), 32 | 65));
        }
    }
}
