//! A Commit with all that belongs to it.

use std::collections::BTreeMap;

use chancery_proto::{
    commit_info::{CommitInfo, Member},
    common::v1::Reason,
    content_hash::ContentHasher,
    delivery::v1::{CommitBundle, EntryKind, SubmitCommitRequest},
    framing::{self, ContentType, Message},
    group_info::GroupInfo,
    suite::Suite,
    welcome::Welcome,
};
use service_kit::db::DbError;
use uuid::Uuid;

use super::{
    PreparedSend, check_names, commit_info_invalid, group_info, hash_tree, id16, join_of,
    leaf::{ExternalFault, check_external_leaf, introducer, leaf_indices},
    malformed, member_message,
    tree::{TreeAfter, TreeBefore, tree_after},
    unsupported,
};
use crate::{
    caller::Caller,
    error::Error,
    group::{DeviceKey, ExternalJoin},
    node::Node,
    read, store,
};

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
    /// Where the leaves of the added are.
    pub leaves: BTreeMap<DeviceKey, u32>,
    /// The new tree.
    pub tree: TreeAfter,
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
    let update = bundle.tree.as_ref();
    let tree = tree_after(node, &group, before.tree.as_ref(), update, &group_info).await?;
    let leaves = if info.added.is_empty() {
        BTreeMap::new()
    } else {
        leaf_indices(|domain| node.domains.id(domain), &tree.changes)
    };
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
        leaves,
        tree,
        first_message,
        message_id,
        group,
    };
    if let Message::ExternalCommit(commit) = &parsed {
        check_external_leaf(node, caller, &commit.leaf).await?;
        prepared.introducer =
            introducer(node, caller, bundle, &prepared.group, &commit.leaf).await?;
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
    tree: Option<TreeBefore>,
}

impl Before {
    async fn load(node: &Node, group: &[u8], epoch_seq: u64) -> Result<Self, Error> {
        let client = node.db.client().await?;
        let stored = store::epochs::find(&client, group, epoch_seq)
            .await
            .map_err(DbError::from)?;
        let Some(stored) = stored else {
            return Ok(Self::default());
        };
        let info = GroupInfo::parse(&stored.group_info, stored.group_info.len())
            .map_err(|_| Error::Corrupt("a stored GroupInfo"))?;
        if !stored.tree_width.is_power_of_two() {
            return Err(Error::Corrupt("a stored tree"));
        }
        Ok(Self {
            epoch: Some(stored.epoch),
            suite: Some(info.suite),
            group_context: Some(info.group_context),
            tree: Some(TreeBefore {
                epoch_seq,
                width: stored.tree_width,
                hash: info.tree_hash,
            }),
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
        message: first.message.clone(),
    }))
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
