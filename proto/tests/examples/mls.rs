//! MLS objects in the form that they travel in here.

use chancery_proto::{
    suite::Suite,
    tree::Tree,
    welcome::{self, Welcome},
    wire::Write as _,
};

use crate::model::{Chapter, Fields};

fn secrets(reference: &[u8]) -> Fields {
    Fields::new()
        .vector(
            "KeyPackageRef",
            "of the joiner's KeyPackage (here made up)",
            reference,
        )
        .vector("kem_output", "made up", b"kem")
        .vector("ciphertext", "made up", b"ciphertext")
}

fn welcome_of(secrets: Fields) -> Fields {
    Fields::new()
        .uint16("MLS version", 1)
        .uint16("wire format", 3)
        .uint16("cipher suite", 1)
        .vector_of("secrets", secrets)
        .vector("encrypted_group_info", "shared by all joiners", b"shared")
}

pub(crate) fn welcome() -> Chapter {
    let both = welcome_of(secrets(b"one").append(secrets(b"two")));
    let cut = Welcome::parse(both.bytes(), 1_000)
        .unwrap()
        .cut(b"two")
        .unwrap();
    let whole = both.bytes().to_vec();
    Chapter {
        file: "welcome.json",
        title: "A Welcome, cut".into(),
        about: "The server gives each joiner its own EncryptedGroupSecrets and the shared part, nothing else".into(),
        vectors: vec![
            both.checked("As the committer made it", "MLSMessage(Welcome) of suite 1 for two joiners.", &whole),
            welcome_of(secrets(b"two")).checked(
                "As the second joiner gets it",
                "The same with its own secrets alone.",
                &cut,
            ),
        ],
    }
}

pub(crate) fn tree() -> Chapter {
    let suite = Suite::X25519Aes128;
    let mut tree = Tree::blank(2).unwrap();
    let node = example_leaf();
    let leaf_node = &node[2..];
    tree.set(2, Some(&node)).unwrap();
    let node_fields = Fields::new()
        .uint8("present", 1)
        .uint8("node type", 1)
        .fixed(
            "LeafNode",
            "LeafNode",
            "of an Update, with a basic credential and made-up keys",
            leaf_node,
        );
    let on_wire = node_fields.clone().checked(
        "A node on the wire",
        "`TreeNode.node` of node 2 (leaf 1) of a tree of `tree_width` 2.",
        &node,
    );
    let ratchet = Fields::new()
        .vector_of(
            "nodes",
            Fields::new()
                .uint8("node 0: present", 0)
                .uint8("node 1: present", 0)
                .append(node_fields),
        )
        .checked(
            "The same tree as ratchet_tree",
            "RFC 9420 section 12.4.3.3: blank nodes at the end are left out.",
            &tree.to_ratchet_tree(),
        );
    let blank = Fields::new()
        .uint8("node type", 1)
        .uint32("leaf index", 0)
        .uint8("present", 0);
    let leaf = Fields::new()
        .uint8("node type", 1)
        .uint32("leaf index", 1)
        .uint8("present", 1)
        .fixed(
            "LeafNode",
            "LeafNode",
            "without presence and node type of its own",
            leaf_node,
        );
    let hashes = [suite.hash(blank.bytes()), suite.hash(leaf.bytes())];
    let root = Fields::new()
        .uint8("node type", 2)
        .uint8("present", 0)
        .vector("left hash", "tree hash of node 0", &hashes[0])
        .vector("right hash", "tree hash of node 2", &hashes[1]);
    assert_eq!(suite.hash(root.bytes()), tree.hash(suite));
    let input = |name: &str, about: &str, fields: Fields| {
        let (bytes, hash) = (fields.bytes().to_vec(), suite.hash(fields.bytes()));
        fields
            .checked(name, about, &bytes)
            .derived("tree hash", "SHA-256 of `bytes`", &hash)
    };
    Chapter {
        file: "tree.json",
        title: "A tree as nodes, and its hash".into(),
        about: "Nodes travel one by one at their index (RFC 9420 appendix C); the hash of section 7.8 is made from them".into(),
        vectors: vec![
            on_wire,
            ratchet,
            input("The hash of a blank leaf", "TreeHashInput of node 0.", blank),
            input("The hash of a leaf", "TreeHashInput of node 2.", leaf),
            input("The hash of the root", "TreeHashInput of node 1, a blank parent: the tree's hash.", root),
        ],
    }
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

/// One Welcome made by hand is what the product assembles.
#[test]
fn assembling_is_the_same_as_cutting() {
    assert_eq!(
        welcome::assemble(1, secrets(b"two").bytes(), b"shared"),
        welcome_of(secrets(b"two")).bytes()
    );
}
