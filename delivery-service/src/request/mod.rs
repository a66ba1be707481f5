//! Requests to values: everything about a message that can be checked without the group's lock. From here only valid values exist.

mod bundle;
mod commit;
mod create_group;
mod group_info;
mod leaf;
mod tree;

pub use bundle::{Bundle, Prepared, PreparedCommit};
pub use commit::commit;
pub use create_group::{PreparedGroup, Replaces, group};
pub use group_info::{PreparedInfo, repair};
pub(crate) use leaf::leaf_is_callers;
pub use leaf::{Place, leaf_is_of, leaf_key, leaf_key_of, leaf_of, leaf_places, leaves_by_device};
pub use tree::{TreeAfter, new_leaves};

use chancery_proto::{
    commit_info::MessageData,
    common::v1::{GroupRef, Reason},
    content_hash::ContentHasher,
    delivery::v1::{SendMessageRequest, TreeUpdate},
    framing::{self, ContentType, Message},
    group_info::GroupInfo,
    policy,
    suite::Suite,
    tree::Tree,
    wire::Malformed,
};
use uuid::Uuid;

use crate::{
    config::Limits, error::Error, log::message::PreparedSend, node::Node,
    ordering::group::ExternalJoin, wire,
};

/// What reading a request needs to know of the service.
#[derive(Clone, Copy)]
pub struct Rules<'r> {
    /// The domain that it orders groups for.
    pub domain: &'r str,
    /// Largest sizes and counts.
    pub limits: &'r Limits,
    /// The number of a domain that it knows.
    pub domain_id: &'r dyn Fn(&str) -> Option<i16>,
}

impl std::fmt::Debug for Rules<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rules")
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

/// Runs a reader of requests with what it needs to know of this node.
///
/// # Errors
/// Those of the reader.
fn read_with<T>(
    node: &Node,
    read: impl FnOnce(&Rules<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    read(&Rules {
        domain: &node.config.domain,
        limits: &node.config.limits,
        domain_id: &|domain| node.domains.id(domain),
    })
}

impl Rules<'_> {
    fn group_id(&self, group: Option<&GroupRef>) -> Result<Vec<u8>, Error> {
        wire::group_of_domain(self.domain, group)
    }
}

fn malformed(field: &'static str) -> impl Fn(Malformed) -> Error {
    move |error| Error::malformed(field, error.0)
}

/// A client-made id: 16 bytes.
pub(crate) fn id16(field: &'static str, bytes: &[u8]) -> Result<Uuid, Error> {
    Uuid::from_slice(bytes).map_err(|_| Error::malformed(field, "16 bytes"))
}

fn commit_info_invalid(why: &'static str) -> Error {
    Error::refused(Reason::CommitInfoInvalid, why)
}

fn unsupported(why: &'static str) -> Error {
    Error::refused(Reason::UnsupportedWireFormat, why)
}

/// Reads a member's message and checks that what it says of itself is what the request says.
fn member_message(
    limits: &Limits,
    field: &'static str,
    message: &[u8],
    group: &[u8],
    message_id: Uuid,
) -> Result<(framing::PrivateHeader, MessageData), Error> {
    limits.within("message_bytes", limits.message_bytes, message.len())?;
    let parsed = framing::parse(message, message.len()).map_err(malformed(field))?;
    let Message::Private(header) = parsed else {
        return Err(unsupported("members send PrivateMessage only"));
    };
    let data = check_names(
        group,
        message_id,
        &header.group_id,
        &header.authenticated_data,
    )?;
    Ok((header, data))
}

fn check_names(
    group: &[u8],
    message_id: Uuid,
    framed_group: &[u8],
    authenticated_data: &[u8],
) -> Result<MessageData, Error> {
    if framed_group != group {
        return Err(Error::malformed("group", "the message is another group's"));
    }
    let data =
        MessageData::decode(authenticated_data).map_err(|error| commit_info_invalid(error.0))?;
    if data.message_id != Some(*message_id.as_bytes()) {
        return Err(commit_info_invalid(
            "the authenticated data does not carry this message_id",
        ));
    }
    Ok(data)
}

/// Reads one application message or proposal.
///
/// # Errors
/// Malformed, too large, a Commit, another group's, or another `message_id` inside.
pub fn send(node: &Node, request: &SendMessageRequest) -> Result<PreparedSend, Error> {
    let group = wire::group_id(node, request.group.as_ref())?;
    if request.durability > 1 || request.notify > 2 {
        return Err(Error::refused(Reason::UnknownValue, "durability or notify"));
    }
    let message_id = id16("message_id", &request.message_id)?;
    let (header, _) = member_message(
        &node.config.limits,
        "message",
        &request.message,
        &group,
        message_id,
    )?;
    let proposal = match header.content_type {
        ContentType::Application => false,
        ContentType::Proposal => true,
        ContentType::Commit => return Err(unsupported("a Commit goes through SubmitCommit")),
    };
    let content_hash = ContentHasher::new("SendMessage")
        .field(1, &group)
        .field(2, message_id.as_bytes())
        .field(3, &request.message)
        .number(4, request.epoch_seq)
        .finish();
    Ok(PreparedSend {
        group,
        message_id,
        content_hash,
        proposal,
        epoch: header.epoch,
        epoch_seq: request.epoch_seq,
        message: request.message.clone(),
    })
}

/// The policy's word for who may join from outside, as the head row keeps it.
pub fn join_of(policy: policy::ExternalJoin) -> ExternalJoin {
    match policy {
        policy::ExternalJoin::None => ExternalJoin::None,
        policy::ExternalJoin::Resync => ExternalJoin::Resync,
        policy::ExternalJoin::SameUser => ExternalJoin::SameUser,
    }
}

fn group_info(limits: &Limits, bytes: &[u8]) -> Result<GroupInfo, Error> {
    limits.within("group_info_bytes", limits.group_info_bytes, bytes.len())?;
    GroupInfo::parse(bytes, bytes.len()).map_err(malformed("group_info"))
}

/// An update of a tree that is not too wide.
fn tree_update<'u>(
    limits: &Limits,
    update: Option<&'u TreeUpdate>,
) -> Result<&'u TreeUpdate, Error> {
    let update = update.ok_or_else(|| Error::malformed("tree", "missing"))?;
    limits.within(
        "group_members_items",
        limits.group_members_items,
        update.tree_width as usize,
    )?;
    Ok(update)
}

/// The tree after an update, whole or of what changed.
fn new_tree(before: Option<&Tree>, update: &TreeUpdate) -> Result<Tree, Error> {
    let mut tree = match (update.full, before) {
        (false, Some(before)) => before.clone(),
        _ => Tree::default(),
    };
    tree.resize(update.tree_width).map_err(malformed("tree"))?;
    for change in &update.nodes {
        tree.set(change.index, change.node.as_deref())
            .map_err(malformed("tree"))?;
    }
    Ok(tree)
}

/// Where the suite's hash is not known here, the members are the only check.
fn tree_fits(tree: &Tree, info: &GroupInfo) -> bool {
    Suite::from_code(info.suite).is_none_or(|suite| tree.hash(suite) == info.tree_hash)
}

fn hash_tree(mut hasher: ContentHasher, tree: Option<&TreeUpdate>) -> ContentHasher {
    let Some(tree) = tree else {
        return hasher;
    };
    hasher = hasher
        .number(20, u64::from(tree.full))
        .number(21, u64::from(tree.tree_width));
    for change in &tree.nodes {
        hasher = hasher.number(22, u64::from(change.index));
        hasher = match &change.node {
            Some(node) => hasher.field(23, node),
            None => hasher.field(24, &[]),
        };
    }
    hasher
}
