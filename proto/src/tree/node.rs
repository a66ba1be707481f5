//! One node of a tree (RFC 9420 sections 7.1, 7.2 and 12.4.3.3), read completely.

use super::{LEAF, PARENT};
use crate::{
    hpke::{self, KeyFault},
    leaf::LeafNode,
    mutants::{self, Mutant},
    suite::Suite,
    wire::{Malformed, Read, Reader, exact},
};

/// A node that is not blank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// At an even index.
    Leaf(Box<LeafNode>),
    /// At an odd index.
    Parent(ParentNode),
}

/// A parent node (RFC 9420 section 7.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentNode {
    /// HPKE key of the subtree.
    pub encryption_key: Vec<u8>,
    /// Hash that binds the node to the one above it; empty at the root.
    pub parent_hash: Vec<u8>,
    /// Leaves below it that do not know its private key: sorted, each once.
    pub unmerged_leaves: Vec<u32>,
}

impl Node {
    /// Reads a `Node` with its type.
    pub(super) fn read(reader: &mut Reader<'_>) -> Read<Self> {
        match reader.u8()? {
            LEAF => LeafNode::read(reader).map(|leaf| Self::Leaf(Box::new(leaf))),
            PARENT => ParentNode::read(reader).map(Self::Parent),
            _ => Err(Malformed("node type")),
        }
    }

    /// The node's HPKE public key.
    pub fn encryption_key(&self) -> &[u8] {
        match self {
            Self::Leaf(leaf) => &leaf.encryption_key,
            Self::Parent(parent) => &parent.encryption_key,
        }
    }

    /// Checks that a path can be encrypted to this node in a group of this suite.
    ///
    /// # Errors
    /// What is wrong with its `encryption_key`.
    pub fn check_key(&self, suite: Suite) -> Result<(), KeyFault> {
        hpke::check_public_key(suite, self.encryption_key())
    }
}

impl ParentNode {
    fn read(reader: &mut Reader<'_>) -> Read<Self> {
        let parent = Self {
            encryption_key: reader.vector()?.to_vec(),
            parent_hash: reader.vector()?.to_vec(),
            unmerged_leaves: reader.list(Reader::u32)?,
        };
        if !parent.unmerged_leaves.is_sorted_by(|a, b| a < b) {
            return Err(Malformed("unmerged_leaves are not sorted, or not unique"));
        }
        Ok(parent)
    }
}

/// Reads the `optional<Node>` that stands at an index of a tree (RFC 9420 appendix C).
///
/// # Errors
/// A blank one, trailing bytes, a node of the kind that does not belong there, one that does not parse, or unmerged
/// leaves that are not below it.
pub fn parse_node(index: u32, bytes: &[u8]) -> Read<Node> {
    let node = exact(bytes, bytes.len(), |r| r.optional(Node::read))?;
    match node.ok_or(Malformed("a blank node"))? {
        Node::Leaf(leaf) if index.is_multiple_of(2) => Ok(Node::Leaf(leaf)),
        Node::Parent(parent) if !index.is_multiple_of(2) => {
            let below = leaves_below(index);
            if parent
                .unmerged_leaves
                .iter()
                .all(|leaf| below.contains(leaf))
            {
                Ok(Node::Parent(parent))
            } else {
                Err(Malformed("an unmerged leaf that is not below its node"))
            }
        }
        _ => Err(Malformed("not a node of the kind that belongs there")),
    }
}

/// The leaves below a parent node, by leaf index.
fn leaves_below(index: u32) -> std::ops::RangeInclusive<u32> {
    // A node of level n has n ones at the end of its index and 2^n leaves below it.
    let half = (1u32 << index.trailing_ones().min(31)) - 1;
    let first = index.saturating_sub(half) / 2;
    let last = index.saturating_add(half) / 2;
    first..=last
}

/// Checks the bytes that are to stand at an index; `None` is a blank node.
pub(super) fn check(index: u32, node: Option<&[u8]>) -> Read<()> {
    match node {
        None => Ok(()),
        Some(node) if mutants::is_on(Mutant::TreeNodeUnparsed) => check_kind(index, node),
        Some(node) => parse_node(index, node).map(|_| ()),
    }
}

/// The first two octets alone: presence and kind.
pub(super) fn check_kind(index: u32, node: &[u8]) -> Read<()> {
    let expected = if index.is_multiple_of(2) {
        LEAF
    } else {
        PARENT
    };
    match node {
        [1, kind, ..] if *kind == expected => Ok(()),
        _ => Err(Malformed("not a node of the kind that belongs there")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::wire::Write as _;

    /// A node that parses, of the kind that belongs at an index; `salt` makes it another one.
    pub(in crate::tree) fn sample(index: u32, salt: u8) -> Vec<u8> {
        let mut node = vec![1];
        if index.is_multiple_of(2) {
            node.push(LEAF);
            node.put_vector(&[salt; 32]);
            node.put_vector(&[1; 32]);
            node.put(&[0, 1]);
            node.put_vector(b"a basic credential");
            for _ in 0..5 {
                node.put_vector(&[]);
            }
            node.push(2);
            node.put_vector(&[]);
            node.put_vector(&[7; 64]);
        } else {
            node.push(PARENT);
            node.put_vector(&[salt; 32]);
            node.put_vector(&[]);
            node.put_vector(&[]);
        }
        node
    }

    fn parent(unmerged: &[u32]) -> Vec<u8> {
        let mut node = vec![1, PARENT];
        node.put_vector(&[9; 32]);
        node.put_vector(&[8; 32]);
        let unmerged: Vec<u8> = unmerged
            .iter()
            .flat_map(|leaf| leaf.to_be_bytes())
            .collect();
        node.put_vector(&unmerged);
        node
    }

    #[test]
    fn a_node_is_read_to_its_end() {
        for index in 0..4 {
            let node = sample(index, 9);
            assert!(parse_node(index, &node).is_ok());
            for end in 0..node.len() {
                assert!(parse_node(index, &node[..end]).is_err(), "cut at {end}");
            }
            let longer = [node.as_slice(), &[0]].concat();
            assert!(parse_node(index, &longer).is_err(), "trailing bytes");
            assert!(parse_node(index + 1, &node).is_err(), "another kind");
        }
        assert!(parse_node(0, &[0]).is_err(), "blank");
        assert!(parse_node(0, &[1, 3, 0, 0]).is_err(), "an unknown kind");
    }

    #[test]
    fn unmerged_leaves_are_sorted_unique_and_below_their_node() {
        for (index, good) in [(1, &[0, 1][..]), (3, &[0, 3]), (5, &[2]), (7, &[1, 4, 7])] {
            assert!(parse_node(index, &parent(good)).is_ok(), "{index} {good:?}");
        }
        let bad = [
            (3, &[1, 0][..]),
            (3, &[1, 1]),
            (1, &[2]),
            (5, &[1]),
            (5, &[4]),
            (7, &[8]),
            (9, &[3]),
        ];
        for (index, bad) in bad {
            assert!(parse_node(index, &parent(bad)).is_err(), "{index} {bad:?}");
        }
    }

    #[test]
    fn the_key_of_leaves_and_parents_is_checked_by_suite() {
        for index in [0, 1] {
            let good = parse_node(index, &sample(index, 9)).unwrap();
            assert_eq!(good.check_key(Suite::X25519Aes128), Ok(()));
            assert!(good.check_key(Suite::P256Aes128).is_err());
            let low = parse_node(index, &sample(index, 0)).unwrap();
            assert_eq!(low.check_key(Suite::X25519ChaCha), Err(KeyFault::LowOrder));
        }
    }
}
