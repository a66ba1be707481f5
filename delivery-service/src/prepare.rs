//! Requests to values: everything about a message that can be checked without the group's lock. From here only valid values exist.

use std::collections::BTreeMap;

use chancery_proto::{
    commit_info::{CommitInfo, Member, MessageData},
    common::v1::Reason,
    content_hash::ContentHasher,
    delivery::v1::{
        CommitBundle, CreateGroupRequest, EntryKind, SendMessageRequest, SubmitCommitRequest,
        TreeUpdate,
    },
    framing::{self, ContentType, Message},
    group_info::GroupInfo,
    leaf::LeafNode,
    policy::{self, POLICY_EXTENSION},
    signed,
    suite::Suite,
    tree::Tree,
    welcome::Welcome,
    wire::Malformed,
};
use service_kit::db::DbError;
use uuid::Uuid;

use crate::{
    caller::Caller,
    error::Error,
    group::{DeviceKey, ExternalJoin},
    node::Node,
    read, store,
};

/// A message ready to be decided on.
#[derive(Debug, Clone)]
pub struct PreparedSend {
    /// The group.
    pub group: Vec<u8>,
    /// Made by the client.
    pub message_id: Uuid,
    /// SHA-256 over the request.
    pub content_hash: [u8; 32],
    /// A proposal, or an application message.
    pub proposal: bool,
    /// From the framing.
    pub epoch: u64,
    /// From the request.
    pub epoch_seq: u64,
    /// MLSMessage bytes.
    pub message: Vec<u8>,
}

/// What is wrong with an external Commit, found before the lock and said only if nothing else is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExternalFault {
    /// Its signature does not verify.
    Signature,
}

impl ExternalFault {
    /// As a refusal.
    pub fn error(self) -> Error {
        match self {
            Self::Signature => Error::refused(
                Reason::CredentialInvalid,
                "the external Commit's signature does not verify",
            ),
        }
    }
}

/// A Commit ready to be decided on.
#[derive(Debug, Clone)]
pub struct PreparedCommit {
    /// The group.
    pub group: Vec<u8>,
    /// Made by the client.
    pub message_id: Uuid,
    /// SHA-256 over the request.
    pub content_hash: [u8; 32],
    external: bool,
    /// A device whose introduction holds up.
    pub introducer: Option<DeviceKey>,
    /// See [`ExternalFault`].
    pub external_fault: Option<ExternalFault>,
    /// From the framing.
    pub epoch: u64,
    /// From the request.
    pub epoch_seq: u64,
    /// MLSMessage bytes.
    pub commit: Vec<u8>,
    /// CommitInfo's adds.
    pub added: Vec<(DeviceKey, Uuid)>,
    /// CommitInfo's removes.
    pub removed: Vec<(DeviceKey, Uuid)>,
    /// Seqs of proposals committed by reference.
    pub proposals: Vec<u64>,
    /// The log that the committer saw.
    pub seen_seq: u64,
    /// Its chain value there.
    pub seen_chain: [u8; 32],
    /// MLSMessage(GroupInfo).
    pub group_info: Vec<u8>,
    /// It names group, suite and next epoch, and carries a policy.
    pub group_info_fits: bool,
    /// Its state's hash.
    pub group_state_hash: [u8; 32],
    /// From its policy.
    pub past_epochs: u64,
    /// From its policy.
    pub external_join: ExternalJoin,
    /// KeyPackageRef and EncryptedGroupSecrets of each joiner.
    pub secrets: Vec<(Vec<u8>, Vec<u8>)>,
    /// Shared by all joiners.
    pub encrypted_group_info: Option<Vec<u8>>,
    /// Leaves of the new tree.
    pub tree_width: u32,
    /// Nodes that differ from the epoch before.
    pub tree_changes: Vec<store::tree::Node>,
    /// The new tree hashes to the GroupInfo's tree hash.
    pub tree_fits: bool,
    /// Accepted in the same transaction.
    pub first_message: Option<PreparedSend>,
}

impl PreparedCommit {
    /// From outside?
    pub fn is_external(&self) -> bool {
        self.external
    }

    /// Its kind in the log.
    pub fn entry_kind(&self) -> EntryKind {
        if self.external {
            EntryKind::ExternalCommit
        } else {
            EntryKind::Commit
        }
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
    node: &Node,
    field: &'static str,
    message: &[u8],
    group: &[u8],
    message_id: Uuid,
) -> Result<(framing::PrivateHeader, MessageData), Error> {
    node.within(
        "message_bytes",
        node.config.limits.message_bytes,
        message.len(),
    )?;
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
    let group = read::group_id(node, request.group.as_ref())?;
    if request.durability > 1 || request.notify > 2 {
        return Err(Error::refused(Reason::UnknownValue, "durability or notify"));
    }
    let message_id = id16("message_id", &request.message_id)?;
    let (header, _) = member_message(node, "message", &request.message, &group, message_id)?;
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
        message: request.message.to_vec(),
    })
}

/// Reads one Commit with all that belongs to it; checks its tree and, from outside, its leaf and signature.
///
/// # Errors
/// Malformed, too large, or what cannot be a Commit of this group.
pub async fn commit(
    node: &Node,
    caller: &Caller,
    request: &SubmitCommitRequest,
) -> Result<PreparedCommit, Error> {
    let group = read::group_id(node, request.group.as_ref())?;
    let [bundle] = request.bundles.as_slice() else {
        return Err(Error::malformed("bundles", "exactly one"));
    };
    let message_id = id16("message_id", &bundle.message_id)?;
    node.within(
        "message_bytes",
        node.config.limits.message_bytes,
        bundle.commit.len(),
    )?;
    let parsed =
        framing::parse(&bundle.commit, bundle.commit.len()).map_err(malformed("commit"))?;
    let (framed_group, epoch, authenticated_data) = match &parsed {
        Message::Private(header) if header.content_type != ContentType::Commit => {
            return Err(unsupported("this is no Commit"));
        }
        Message::Private(h) => (&h.group_id, h.epoch, &h.authenticated_data),
        Message::ExternalCommit(c) => (&c.group_id, c.epoch, &c.authenticated_data),
    };
    let data = check_names(&group, message_id, framed_group, authenticated_data)?;
    let info = data
        .commit_info
        .ok_or_else(|| commit_info_invalid("a Commit without CommitInfo"))?;
    let before = Before::load(node, &group, request.epoch_seq).await?;
    let next_epoch = epoch.checked_add(1);
    let group_info = group_info(node, &bundle.group_info)?;
    let policy = group_info.policy().ok();
    let group_info_fits = group_info.group_id == group
        && Some(group_info.epoch) == next_epoch
        && policy
            .as_ref()
            .is_some_and(|p| p.home_domain == node.config.domain)
        && before.suite.is_none_or(|suite| suite == group_info.suite);
    let tree = new_tree(node, before.tree.as_ref(), bundle.tree.as_ref())?;
    let tree_fits = tree_fits(&tree, &group_info);
    let welcome = welcomes(node, bundle)?;
    let first_message = first_message(node, bundle, &group, next_epoch)?;
    let mut prepared = PreparedCommit {
        content_hash: commit_hash(request, bundle),
        external: matches!(parsed, Message::ExternalCommit(_)),
        introducer: None,
        external_fault: None,
        epoch,
        epoch_seq: request.epoch_seq,
        commit: bundle.commit.to_vec(),
        added: members(node, &info.added)?,
        removed: members(node, &info.removed)?,
        seen_seq: info.seen_seq,
        seen_chain: info.seen_chain,
        proposals: unique(&info)?,
        group_info: bundle.group_info.to_vec(),
        group_info_fits,
        group_state_hash: group_info.group_state_hash(),
        past_epochs: policy.as_ref().map_or(0, |p| p.past_epochs.into()),
        external_join: policy
            .as_ref()
            .map_or(ExternalJoin::None, |p| join_of(p.external_join)),
        secrets: welcome.secrets,
        encrypted_group_info: welcome.shared,
        tree_width: tree.width(),
        tree_changes: tree.changes_since(&before.tree.unwrap_or_default()),
        tree_fits,
        first_message,
        message_id,
        group,
    };
    if let Message::ExternalCommit(commit) = &parsed {
        check_external_leaf(node, caller, &commit.leaf).await?;
        prepared.introducer = introducer(node, caller, bundle, &prepared.group).await?;
        let suite = before.suite.and_then(Suite::from_code);
        if let (Some(suite), Some(context)) = (suite, &before.group_context)
            && before.epoch == Some(epoch)
            && !commit.verify(suite, context)
        {
            prepared.external_fault = Some(ExternalFault::Signature);
        }
    }
    Ok(prepared)
}

/// What is stored of the epoch that a Commit was made in. An epoch never changes, so it is read without the lock.
#[derive(Default)]
struct Before {
    epoch: Option<u64>,
    suite: Option<u16>,
    group_context: Option<Vec<u8>>,
    tree: Option<Tree>,
}

impl Before {
    async fn load(node: &Node, group: &[u8], epoch_seq: u64) -> Result<Self, Error> {
        let client = node.db.client().await?;
        let stored = store::groups::epoch(&**client, group, epoch_seq)
            .await
            .map_err(DbError::from)?;
        let Some(stored) = stored else {
            return Ok(Self::default());
        };
        let info = GroupInfo::parse(&stored.group_info, stored.group_info.len())
            .map_err(|_| Error::Corrupt("a stored GroupInfo"))?;
        let nodes = store::tree::at(&**client, group, epoch_seq)
            .await
            .map_err(DbError::from)?;
        let mut tree =
            Tree::blank(stored.tree_width).map_err(|_| Error::Corrupt("a stored tree"))?;
        for (index, bytes) in nodes {
            // A tree that shrank keeps its older, wider nodes for the epochs that had them.
            if tree.width().saturating_mul(2) > index.saturating_add(1) {
                tree.set(index, Some(&bytes))
                    .map_err(|_| Error::Corrupt("a stored tree"))?;
            }
        }
        Ok(Self {
            epoch: Some(stored.epoch),
            suite: Some(info.suite),
            group_context: Some(info.group_context),
            tree: Some(tree),
        })
    }
}

fn unique(info: &CommitInfo) -> Result<Vec<u64>, Error> {
    let mut seqs = info.proposals.clone();
    seqs.sort_unstable();
    seqs.dedup();
    if seqs.len() == info.proposals.len() {
        Ok(seqs)
    } else {
        Err(commit_info_invalid("a proposal twice"))
    }
}

fn members(node: &Node, members: &[Member]) -> Result<Vec<(DeviceKey, Uuid)>, Error> {
    members
        .iter()
        .map(|member| {
            let domain = node
                .domains
                .id(&member.domain)
                .ok_or_else(|| commit_info_invalid("names a domain that is unknown here"))?;
            let key = DeviceKey {
                domain,
                device: Uuid::from_bytes(member.device),
            };
            Ok((key, Uuid::from_bytes(member.user)))
        })
        .collect()
}

fn join_of(policy: policy::ExternalJoin) -> ExternalJoin {
    match policy {
        policy::ExternalJoin::None => ExternalJoin::None,
        policy::ExternalJoin::Resync => ExternalJoin::Resync,
        policy::ExternalJoin::SameUser => ExternalJoin::SameUser,
    }
}

fn group_info(node: &Node, bytes: &[u8]) -> Result<GroupInfo, Error> {
    node.within(
        "group_info_bytes",
        node.config.limits.group_info_bytes,
        bytes.len(),
    )?;
    GroupInfo::parse(bytes, bytes.len()).map_err(malformed("group_info"))
}

struct Welcomed {
    secrets: Vec<(Vec<u8>, Vec<u8>)>,
    shared: Option<Vec<u8>>,
}

fn welcomes(node: &Node, bundle: &CommitBundle) -> Result<Welcomed, Error> {
    let mismatch = |why: &str| Error::refused(Reason::WelcomeMismatch, why);
    let mut by_ref = BTreeMap::new();
    let mut shared = None;
    for bytes in &bundle.welcomes {
        node.within(
            "welcome_bytes",
            node.config.limits.welcome_bytes,
            bytes.len(),
        )?;
        let welcome = Welcome::parse(bytes, bytes.len()).map_err(malformed("welcomes"))?;
        if *shared.get_or_insert_with(|| welcome.encrypted_group_info.clone())
            != welcome.encrypted_group_info
        {
            return Err(mismatch(
                "the Welcomes do not share one encrypted_group_info",
            ));
        }
        for (reference, secrets) in welcome.secrets {
            if by_ref.insert(reference, secrets).is_some() {
                return Err(mismatch("a KeyPackageRef in two Welcomes"));
            }
        }
    }
    Ok(Welcomed {
        secrets: by_ref.into_iter().collect(),
        shared,
    })
}

fn first_message(
    node: &Node,
    bundle: &CommitBundle,
    group: &[u8],
    next_epoch: Option<u64>,
) -> Result<Option<PreparedSend>, Error> {
    let Some(first) = &bundle.first_message else {
        return Ok(None);
    };
    let message_id = id16("first_message.message_id", &first.message_id)?;
    let (header, _) = member_message(node, "first_message", &first.message, group, message_id)?;
    if header.content_type != ContentType::Application || Some(header.epoch) != next_epoch {
        return Err(Error::malformed(
            "first_message",
            "an application message of the new epoch",
        ));
    }
    let content_hash = ContentHasher::new("SubmitCommit first_message")
        .field(1, group)
        .field(2, message_id.as_bytes())
        .field(3, &first.message)
        .finish();
    Ok(Some(PreparedSend {
        group: group.to_vec(),
        message_id,
        content_hash,
        proposal: false,
        epoch: header.epoch,
        epoch_seq: 0,
        message: first.message.to_vec(),
    }))
}

/// The tree after an update, whole or of what changed.
fn new_tree(
    node: &Node,
    before: Option<&Tree>,
    update: Option<&TreeUpdate>,
) -> Result<Tree, Error> {
    let update = update.ok_or_else(|| Error::malformed("tree", "missing"))?;
    node.within(
        "group_members_items",
        node.config.limits.group_members_items,
        update.tree_width as usize,
    )?;
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

fn commit_hash(request: &SubmitCommitRequest, bundle: &CommitBundle) -> [u8; 32] {
    let group = request
        .group
        .as_ref()
        .map(|g| g.id.to_vec())
        .unwrap_or_default();
    let mut hasher = ContentHasher::new("SubmitCommit")
        .field(1, &group)
        .number(3, request.epoch_seq)
        .field(11, &bundle.message_id)
        .field(12, &bundle.commit);
    for welcome in &bundle.welcomes {
        hasher = hasher.field(13, welcome);
    }
    hasher = hasher.field(14, &bundle.group_info);
    hasher = hash_tree(hasher, bundle.tree.as_ref());
    if let Some(first) = &bundle.first_message {
        hasher = hasher
            .field(16, &first.message_id)
            .field(17, &first.message);
    }
    if let Some(introduction) = &bundle.introduction {
        hasher = hasher.field(18, &introduction.signature);
    }
    hasher.finish()
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

/// An external joiner's leaf is the caller's: certificate, identity and key; and it can read the group's policy.
async fn check_external_leaf(node: &Node, caller: &Caller, leaf: &LeafNode) -> Result<(), Error> {
    if !leaf.capabilities.extensions.contains(&POLICY_EXTENSION) {
        return Err(Error::refused(
            Reason::CredentialInvalid,
            "the leaf does not advertise the policy extension 0xF1C0",
        ));
    }
    let client = node.db.client().await?;
    let now = store::groups::now(&**client).await.map_err(DbError::from)? / 1_000_000;
    leaf_is_callers(node, caller, leaf, now).map(|_| ())
}

/// Certificate chain, identity and key of a leaf.
///
/// # Errors
/// `CREDENTIAL_INVALID`.
pub(crate) fn leaf_is_callers(
    node: &Node,
    caller: &Caller,
    leaf: &LeafNode,
    now: i64,
) -> Result<chancery_proto::certificate::DeviceCertificate, Error> {
    let invalid = |why: String| Error::refused(Reason::CredentialInvalid, why);
    let der = leaf.certificate().map_err(|e| invalid(e.to_string()))?;
    let issuer = node
        .issuers
        .get(&caller.domain)
        .ok_or_else(|| invalid("the Authentication Service was not heard yet".into()))?;
    let certificate = issuer
        .anchors
        .verify_device(der, now)
        .map_err(|e| invalid(e.to_string()))?;
    let same = certificate.domain == caller.domain
        && certificate.device == caller.key.device
        && certificate.user == caller.user;
    if !same {
        return Err(invalid("the certificate is another device's".into()));
    }
    if certificate.public_key != leaf.signature_key {
        return Err(invalid("the leaf's key is not the certificate's".into()));
    }
    Ok(certificate)
}

/// The introducing device, where its signature holds up. Its key is that of its own leaf in the stored tree, so that no directory is asked.
async fn introducer(
    node: &Node,
    caller: &Caller,
    bundle: &CommitBundle,
    group: &[u8],
) -> Result<Option<DeviceKey>, Error> {
    let Some(introduction) = &bundle.introduction else {
        return Ok(None);
    };
    let device_ref = introduction
        .introducer
        .as_ref()
        .ok_or_else(|| Error::malformed("introduction.introducer", "missing"))?;
    let introducer = node.domains.device("introduction.introducer", device_ref)?;
    let client = node.db.client().await?;
    let now = store::groups::now(&**client).await.map_err(DbError::from)? / 1_000_000;
    let content = signed::introduction(
        (&caller.domain, caller.key.device.as_bytes()),
        &introduction.key,
        (&node.config.domain, group),
        introduction.expires_at,
    );
    let Some(head) = store::groups::head(&**client, group)
        .await
        .map_err(DbError::from)?
    else {
        return Err(Error::no_group());
    };
    let nodes = store::tree::at(&**client, group, head.epoch_seq)
        .await
        .map_err(DbError::from)?;
    let holds = introduction.expires_at >= now
        && nodes
            .iter()
            .filter(|(index, _)| index.is_multiple_of(2))
            .any(|(_, bytes)| {
                leaf_of(bytes).is_some_and(|leaf| {
                    let named = leaf
                        .certificate()
                        .ok()
                        .and_then(|der| chancery_proto::certificate::read_device(der).ok())
                        .is_some_and(|c| {
                            c.device == introducer.device && c.domain == device_ref.domain
                        });
                    named
                        && signed::verify(
                            &leaf.signature_key,
                            signed::INTRODUCTION,
                            &content,
                            &introduction.signature,
                        )
                })
            });
    if holds {
        Ok(Some(introducer))
    } else {
        Err(Error::refused(
            Reason::ProofInvalid,
            "the introduction does not hold up",
        ))
    }
}

/// A leaf out of `optional<Node>`.
fn leaf_of(node: &[u8]) -> Option<LeafNode> {
    let [1, 1, body @ ..] = node else {
        return None;
    };
    chancery_proto::wire::exact(body, body.len(), LeafNode::read).ok()
}

/// A group ready to be created.
#[derive(Debug, Clone)]
pub struct PreparedGroup {
    /// Its id.
    pub group: Vec<u8>,
    /// Its cipher suite.
    pub suite: u16,
    /// SHA-256 over the request.
    pub content_hash: [u8; 32],
    /// MLSMessage(GroupInfo).
    pub group_info: Vec<u8>,
    /// Its first epoch: need not be 0.
    pub epoch: u64,
    /// Its state's hash.
    pub group_state_hash: [u8; 32],
    /// From its policy.
    pub past_epochs: u64,
    /// From its policy.
    pub external_join: ExternalJoin,
    /// Leaves.
    pub tree_width: u32,
    /// Nodes that are not blank.
    pub tree: Vec<store::tree::Node>,
}

/// Reads a CreateGroup request: a group of exactly the caller.
///
/// # Errors
/// Malformed, `GROUP_INFO_MISMATCH`, `TREE_MISMATCH`, `CREDENTIAL_INVALID`, `UNKNOWN_VALUE` for a suite that is not allowed or a reserved field.
pub async fn group(
    node: &Node,
    caller: &Caller,
    request: &CreateGroupRequest,
) -> Result<PreparedGroup, Error> {
    let group = read::group_id(node, request.group.as_ref())?;
    if request.replaces.is_some() || request.parent.is_some() || request.paired_group.is_some() {
        return Err(Error::refused(
            Reason::UnknownValue,
            "replaces, parent and paired_group are reserved",
        ));
    }
    let suite = u16::try_from(request.suite)
        .ok()
        .filter(|suite| node.config.suites.contains(suite))
        .ok_or_else(|| Error::refused(Reason::UnknownValue, "suite"))?;
    let info = group_info(node, &request.group_info)?;
    let mismatch = |why: &str| Error::refused(Reason::GroupInfoMismatch, why);
    if info.group_id != group || info.suite != suite {
        return Err(mismatch("the GroupInfo is of another group or suite"));
    }
    let policy = info.policy().map_err(|e| mismatch(e.0))?;
    if policy.home_domain != node.config.domain {
        return Err(mismatch("the policy names another home domain"));
    }
    let tree = new_tree(node, None, request.tree.as_ref())?;
    if !tree_fits(&tree, &info) {
        return Err(Error::Rejected(crate::group::Rejection::TreeMismatch));
    }
    check_only_leaf(node, caller, &tree).await?;
    let hasher = ContentHasher::new("CreateGroup")
        .field(1, &group)
        .number(2, u64::from(request.suite))
        .field(3, &request.group_info);
    Ok(PreparedGroup {
        suite,
        content_hash: hash_tree(hasher, request.tree.as_ref()).finish(),
        group_info: request.group_info.to_vec(),
        epoch: info.epoch,
        group_state_hash: info.group_state_hash(),
        past_epochs: policy.past_epochs.into(),
        external_join: join_of(policy.external_join),
        tree_width: tree.width(),
        tree: tree.nodes().map(|(i, n)| (i, Some(n.to_vec()))).collect(),
        group,
    })
}

async fn check_only_leaf(node: &Node, caller: &Caller, tree: &Tree) -> Result<(), Error> {
    let leaves: Vec<&[u8]> = tree
        .nodes()
        .filter(|(index, _)| index.is_multiple_of(2))
        .map(|(_, node)| node)
        .collect();
    let [only] = leaves.as_slice() else {
        return Err(Error::malformed("tree", "a new group has exactly one leaf"));
    };
    let leaf = leaf_of(only).ok_or_else(|| Error::malformed("tree", "the leaf does not parse"))?;
    let client = node.db.client().await?;
    let now = store::groups::now(&**client).await.map_err(DbError::from)? / 1_000_000;
    drop(client);
    leaf_is_callers(node, caller, &leaf, now)?;
    Ok(())
}
