//! Warming: a group that was made by adding thousands has a tree of blank nodes, and every Commit is encrypted to thousands of leaves one by one. Members that
//! renew their leaf fill the nodes above it, and after some hundred of them Commits are small. So a few that are online are asked to, one after the other,
//! each where most of the tree is still blank: from the top down, and in every level far from the last one (leaves in bit-reversed order). It stops by
//! itself where nothing is left that would help, and begins again where removals have blanked nodes.
//!
//! A Commit carries a ciphertext for each node that its path meets (RFC 9420 section 7.6): one for each filled node, one for each leaf below a blank one. Once
//! all nodes above subtrees of n leaves are filled, that is less than n ciphertexts besides those of the path itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use chancery_proto::delivery::v1::{RequestedItem, requested::What};
use service_kit::{
    db::{DbError, Object},
    items::Items,
};

use crate::{
    node::Node,
    ordering::group::DeviceKey,
    store::{self, groups::Pulse},
    upkeep::requests,
};

/// How long a device has before another one is asked.
const TURN: Duration = Duration::from_secs(10);
/// A large group with nothing to do, or nobody to do it, is looked at again after this.
const REST: Duration = Duration::from_secs(30);
/// A small group is looked at again after this, and sooner when it had a Commit: it may have grown.
const SMALL_REST: Duration = Duration::from_secs(300);
const SMALL_REST_AFTER_COMMIT: Duration = Duration::from_secs(3);
/// Bytes of a path's ciphertext: an HPKE encapsulation and a sealed path secret of 32 bytes each, a tag, lengths.
const CIPHERTEXT_BYTES: u32 = 84;
/// Bytes that a level of the tree adds to every Commit: a public key and a ciphertext.
const LEVEL_BYTES: u32 = 34 + CIPHERTEXT_BYTES;
/// Bytes of a Commit besides its path: the framing, the CommitInfo, a leaf with its certificate.
const REST_BYTES: u32 = 1_200;

/// The lowest level whose nodes are filled, so that no Commit is larger than so many bytes; absent where it is small enough as it is. The level of leaves is 0.
fn lowest_level(width: u32, commit_bytes: u32) -> Option<u32> {
    let height = width.ilog2();
    let path = REST_BYTES + height * LEVEL_BYTES;
    let more = commit_bytes.saturating_sub(path) / CIPHERTEXT_BYTES;
    // Below a filled node over 2^n leaves a Commit meets all the others one by one, in place of a node on each of n levels.
    let too_high = (1..=height).find(|level| (1 << level) - 1 - level > more)?;
    Some((too_high - 1).max(1))
}

/// The nodes of a level, from left to right (RFC 9420 appendix C).
fn level_nodes(width: u32, level: u32) -> impl Iterator<Item = u32> {
    let (first, step) = ((1 << level) - 1, 2 << level);
    (0..width >> level).map(move |n| first + n * step)
}

/// Nodes that are to be filled, the most helpful first.
fn wanted(width: u32, lowest: u32) -> Vec<u32> {
    let levels = (lowest..=width.ilog2()).rev();
    let spread = |level: u32| {
        let nodes: Vec<u32> = level_nodes(width, level).collect();
        let bits = nodes.len().ilog2();
        (0..nodes.len()).map(move |n| nodes[reversed(n, bits)])
    };
    levels.flat_map(spread).collect()
}

/// The last bits of a number in the other direction.
fn reversed(n: usize, bits: u32) -> usize {
    n.reverse_bits()
        .checked_shr(usize::BITS - bits)
        .unwrap_or(0)
}

/// The leaves on the two sides below a node.
fn below(node: u32) -> [Range<u32>; 2] {
    let level = node.trailing_ones();
    let half = 1 << (level - 1);
    let middle = node.div_ceil(2);
    [middle - half..middle, middle..middle + half]
}

/// The leaf that helps most, of those that could be asked; absent where no node is left that one of them could fill.
fn next(
    wanted: &[u32],
    filled: &BTreeSet<u32>,
    members: &BTreeSet<u32>,
    willing: &BTreeMap<u32, DeviceKey>,
) -> Option<DeviceKey> {
    let blank: BTreeSet<u32> = wanted
        .iter()
        .copied()
        .filter(|n| !filled.contains(n))
        .collect();
    let somebody = |leaves: Range<u32>| willing.range(leaves).next().map(|(_, device)| *device);
    // A node with nobody on one side is on nobody's filtered direct path (section 4.1.2).
    let useful = |node: &u32| {
        let inhabited = |leaves: Range<u32>| members.range(leaves).next().is_some();
        below(*node).into_iter().all(inhabited)
    };
    let mut useful = wanted
        .iter()
        .filter(|node| blank.contains(node) && useful(node));
    useful.find_map(|node| {
        let mut leaves = below(*node)
            .into_iter()
            .find(|side| somebody(side.clone()).is_some())?;
        // Where more is blank further down, the same Commit fills that too.
        let mut at = *node;
        while let Some(child) = children(at).into_iter().find(|child| {
            blank.contains(child)
                && below(*child)
                    .into_iter()
                    .any(|side| somebody(side).is_some())
        }) {
            at = child;
            let mut sides = below(child).into_iter();
            leaves = sides.find(|side| somebody(side.clone()).is_some())?;
        }
        somebody(leaves)
    })
}

/// The nodes on the two sides of a node; none of leaves.
fn children(node: u32) -> Vec<u32> {
    match node.trailing_ones() {
        0 | 1 => Vec::new(),
        level => vec![node - (1 << (level - 1)), node + (1 << (level - 1))],
    }
}

/// Asks one device of each group that a poll has seen, where it is time to.
///
/// # Errors
/// The database.
pub async fn look(node: &Node, pulses: &[(Vec<u8>, Pulse)]) -> Result<(), DbError> {
    let commit_bytes = node.config.warm_commit_bytes;
    if commit_bytes == 0 {
        return Ok(());
    }
    // Who is revoked goes first: every Commit has to remove them.
    let due = |(group, pulse): &&(Vec<u8>, Pulse)| {
        !pulse.removals_wait && node.hub.warming_is_due(group, pulse.epoch_seq)
    };
    let due: Vec<(&[u8], u64)> = pulses
        .iter()
        .filter(due)
        .map(|(group, pulse)| (group.as_slice(), pulse.epoch_seq))
        .collect();
    if due.is_empty() {
        return Ok(());
    }
    let client: Object = node.db.client().await?;
    let mut items = Items::of("warming");
    for (place, width) in store::epochs::tree_widths(&client, &due).await? {
        let Some((group, epoch_seq)) = due.get(place).copied() else {
            continue;
        };
        let asked = items.one(hex::encode(group), async {
            let Some(lowest) = lowest_level(width, commit_bytes) else {
                return Ok((SMALL_REST_AFTER_COMMIT, SMALL_REST));
            };
            let blank = Blank { width, lowest };
            match ask(node, &client, (group, epoch_seq), blank).await? {
                true => Ok((Duration::ZERO, TURN)),
                false => Ok::<_, DbError>((REST, REST)),
            }
        });
        // A group that failed is looked at again soon.
        let soon = (SMALL_REST_AFTER_COMMIT, SMALL_REST_AFTER_COMMIT);
        let (after_commit, pause) = asked.await?.unwrap_or(soon);
        node.hub.warming(group, epoch_seq, after_commit, pause);
    }
    Ok(())
}

/// Where a tree may have blank nodes that matter.
#[derive(Debug, Clone, Copy)]
struct Blank {
    width: u32,
    lowest: u32,
}

async fn ask(
    node: &Node,
    client: &Object,
    (group, epoch_seq): (&[u8], u64),
    blank: Blank,
) -> Result<bool, DbError> {
    let followers: BTreeSet<DeviceKey> = node.hub.followers(group).into_iter().collect();
    if followers.is_empty() {
        return Ok(false);
    }
    let wanted = wanted(blank.width, blank.lowest);
    let filled = store::tree::filled(client, group, &wanted).await?;
    if filled.len() == wanted.len() {
        return Ok(false);
    }
    let leaves = store::roster::leaves(client, group).await?;
    let members = leaves.iter().map(|(leaf, ..)| *leaf).collect();
    let willing = leaves
        .iter()
        .filter(|(_, device, good)| *good && followers.contains(device))
        .map(|(leaf, device, _)| (*leaf, *device))
        .collect();
    let Some(device) = next(&wanted, &filled, &members, &willing) else {
        return Ok(false);
    };
    let now = store::groups::now(client).await?;
    let item = RequestedItem {
        devices: Vec::new(),
        epoch_seq,
    };
    let until = requests::end_of_turn(now, TURN);
    requests::ask(node, group, device, until, What::Update(item));
    Ok(true)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const BYTES: u32 = 4_096;

    fn device(leaf: u32) -> DeviceKey {
        DeviceKey {
            domain: 1,
            device: Uuid::from_u128(leaf.into()),
        }
    }

    /// The largest number of ciphertexts of a Commit by any member.
    fn most_ciphertexts(width: u32, filled: &BTreeSet<u32>, members: &BTreeSet<u32>) -> usize {
        fn resolution(node: u32, filled: &BTreeSet<u32>, members: &BTreeSet<u32>) -> usize {
            match node.trailing_ones() {
                0 => usize::from(members.contains(&(node / 2))),
                _ if filled.contains(&node) => 1,
                level => {
                    let side = 1 << (level - 1);
                    resolution(node - side, filled, members)
                        + resolution(node + side, filled, members)
                }
            }
        }
        let of = |leaf: &u32| {
            let copath = (1..=width.ilog2()).map(|level| {
                let parent = node_over(*leaf, level);
                let side = 1 << (level - 1);
                if leaf * 2 > parent {
                    parent - side
                } else {
                    parent + side
                }
            });
            copath.map(|node| resolution(node, filled, members)).sum()
        };
        members.iter().map(of).max().unwrap_or(0)
    }

    fn node_over(leaf: u32, level: u32) -> u32 {
        (leaf >> level << (level + 1)) + (1 << level) - 1
    }

    /// Asks until nobody is left to ask; how many were asked.
    fn warm(
        width: u32,
        members: &BTreeSet<u32>,
        online: &BTreeSet<u32>,
        filled: &mut BTreeSet<u32>,
    ) -> u32 {
        let Some(lowest) = lowest_level(width, BYTES) else {
            return 0;
        };
        let wanted = wanted(width, lowest);
        let willing: BTreeMap<u32, DeviceKey> =
            online.iter().map(|leaf| (*leaf, device(*leaf))).collect();
        for asked in 0.. {
            let Some(next) = next(&wanted, filled, members, &willing) else {
                return asked;
            };
            assert!(asked < 2 * width, "it does not end");
            let leaf = u32::try_from(next.device.as_u128()).unwrap();
            let inhabited =
                |side: &std::ops::Range<u32>| members.range(side.clone()).next().is_some();
            let path = (1..=width.ilog2()).map(|level| node_over(leaf, level));
            filled.extend(path.filter(|node| below(*node).iter().all(inhabited)));
        }
        unreachable!("it ends above")
    }

    #[test]
    fn a_large_group_is_warm_after_a_part_of_it_and_stays_so() {
        let (width, members) = (2_048, (0..1_250).collect());
        let mut filled = BTreeSet::new();
        let asked = warm(width, &members, &members, &mut filled);
        let most = most_ciphertexts(width, &filled, &members);
        let keys = 11 * (LEVEL_BYTES - CIPHERTEXT_BYTES);
        let bytes = REST_BYTES + keys + u32::try_from(most).unwrap() * CIPHERTEXT_BYTES;
        assert!((50..200).contains(&asked), "{asked}");
        assert!(bytes <= BYTES, "{most} ciphertexts, {bytes} bytes");
        assert_eq!(warm(width, &members, &members, &mut filled), 0);
        // A removal blanks a path, except what the remover's own path fills again.
        for level in 1..11 {
            filled.remove(&node_over(700, level));
        }
        let asked = warm(width, &members, &members, &mut filled);
        assert!((1..=2).contains(&asked), "{asked}");
    }

    #[test]
    fn small_groups_have_nothing_to_do() {
        for width in [1, 2, 4, 8] {
            let members = (0..width).collect();
            assert_eq!(warm(width, &members, &members, &mut BTreeSet::new()), 0);
        }
    }

    #[test]
    fn it_ends_with_holes_and_with_few_online() {
        let width = 1_024;
        let members: BTreeSet<u32> = (0..700).filter(|leaf| !(100..400).contains(leaf)).collect();
        let few: BTreeSet<u32> = members
            .iter()
            .copied()
            .filter(|leaf| leaf % 37 == 0)
            .collect();
        let mut filled = BTreeSet::new();
        let before = most_ciphertexts(width, &filled, &members);
        let asked = warm(width, &members, &few, &mut filled);
        assert!(asked as usize <= few.len(), "{asked} of {}", few.len());
        assert!(most_ciphertexts(width, &filled, &members) * 4 < before);
        assert_eq!(
            warm(width, &members, &BTreeSet::new(), &mut BTreeSet::new()),
            0
        );
    }

    #[test]
    fn the_first_to_be_asked_are_far_apart() {
        let members: BTreeSet<u32> = (0..4_096).collect();
        let willing: BTreeMap<u32, DeviceKey> =
            members.iter().map(|leaf| (*leaf, device(*leaf))).collect();
        let nodes = wanted(4_096, 4);
        let mut filled = BTreeSet::new();
        let mut asked = Vec::new();
        for _ in 0..4 {
            let next = next(&nodes, &filled, &members, &willing).unwrap();
            let leaf = u32::try_from(next.device.as_u128()).unwrap();
            filled.extend((1..=12).map(|level| node_over(leaf, level)));
            asked.push(leaf / 1_024);
        }
        asked.sort_unstable();
        assert_eq!(asked, [0, 1, 2, 3]);
    }
}
