//! A Commit's bundle, read without the store: framing, CommitInfo, GroupInfo, Welcomes, first message.

use std::collections::BTreeMap;

use chancery_proto::{
    commit_info::{CommitInfo, Member},
    common::v1::Reason,
    content_hash::ContentHasher,
    delivery::v1::{CommitBundle, EntryKind, SubmitCommitRequest},
    framing::{self, ContentType, ExternalCommit, Message},
    group_info::GroupInfo,
    hpke::check_public_key,
    leaf::{LeafFault, LeafNode, Source, SourceKind, check_leaf},
    suite::Suite,
    welcome::Welcome,
};
use uuid::Uuid;

use crate::{
    error::Error,
    log::message::PreparedSend,
    ordering::{
        content::{CommitContent, ExternalContent},
        facts::CommitRequest,
        group::{DeviceKey, ExternalJoin, Rejection},
    },
    request::{
        Rules, check_names, commit_info_invalid, group_info, hash_tree, id16, join_of,
        leaf::{Place, leaf_places},
        malformed, member_message,
        tree::TreeAfter,
        unsupported,
    },
};

/// A Commit ready to be decided on.
#[derive(Debug, Clone)]
pub struct PreparedCommit {
    /// What it is decided on, together with what is read under the lock.
    pub request: CommitRequest,
    /// The group.
    pub group: Vec<u8>,
    /// Made by the client.
    pub message_id: Uuid,
    /// MLSMessage bytes.
    pub commit: Vec<u8>,
    /// MLSMessage(GroupInfo).
    pub group_info: Vec<u8>,
    /// Its state's hash.
    pub group_state_hash: [u8; 32],
    /// KeyPackageRef and EncryptedGroupSecrets of each joiner.
    pub secrets: Vec<(Vec<u8>, Vec<u8>)>,
    /// Shared by all joiners.
    pub encrypted_group_info: Option<Vec<u8>>,
    /// Where the leaves that it writes are, by the device that they name.
    pub leaves: BTreeMap<DeviceKey, Place>,
    /// The new tree.
    pub tree: TreeAfter,
    /// Accepted in the same transaction.
    pub first_message: Option<PreparedSend>,
}

impl PreparedCommit {
    /// Its kind in the log.
    pub fn entry_kind(&self) -> EntryKind {
        if self.request.external {
            EntryKind::ExternalCommit
        } else {
            EntryKind::Commit
        }
    }
}

/// What reading alone cannot tell of a Commit.
#[derive(Debug)]
pub struct Prepared {
    /// A device whose introduction verifies.
    pub introducer: Option<DeviceKey>,
    /// See [`CommitRequest::fault`].
    pub fault: Option<Rejection>,
    /// The tree after it.
    pub tree: TreeAfter,
}

/// What a request says of a Commit.
#[derive(Debug)]
pub struct Bundle {
    /// The group.
    pub group: Vec<u8>,
    /// The GroupInfo of the epoch that it begins.
    pub info: GroupInfo,
    /// The Commit, where it comes from outside.
    pub external: Option<Box<ExternalCommit>>,
    message_id: Uuid,
    content_hash: [u8; 32],
    epoch: u64,
    epoch_seq: u64,
    commit: Vec<u8>,
    group_info: Vec<u8>,
    commit_info: CommitInfo,
    added: Vec<(DeviceKey, Uuid)>,
    removed: Vec<(DeviceKey, Uuid)>,
    proposals: Vec<u64>,
    welcomed: Welcomed,
    first_message: Option<PreparedSend>,
}

impl Bundle {
    /// Reads a SubmitCommit request.
    ///
    /// # Errors
    /// Malformed, too large, or what cannot be a Commit of this group.
    pub fn read(rules: &Rules<'_>, request: &SubmitCommitRequest) -> Result<Self, Error> {
        let group = rules.group_id(request.group.as_ref())?;
        let [bundle] = request.bundles.as_slice() else {
            return Err(Error::malformed("bundles", "exactly one"));
        };
        let message_id = id16("message_id", &bundle.message_id)?;
        let limits = rules.limits;
        limits.within("message_bytes", limits.message_bytes, bundle.commit.len())?;
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
        let commit_info = data
            .commit_info
            .ok_or_else(|| commit_info_invalid("a Commit without CommitInfo"))?;
        let info = group_info(limits, &bundle.group_info)?;
        if let (Message::ExternalCommit(commit), Some(suite)) =
            (&parsed, Suite::from_code(info.suite))
        {
            check_leaf(&commit.leaf, suite, SourceKind::Commit)?;
            for key in &commit.path_keys {
                check_public_key(suite, key).map_err(LeafFault::EncryptionKey)?;
            }
        }
        Ok(Self {
            content_hash: commit_hash(request, bundle),
            epoch_seq: request.epoch_seq,
            commit: bundle.commit.to_vec(),
            group_info: bundle.group_info.to_vec(),
            added: members(rules, &commit_info.added)?,
            removed: members(rules, &commit_info.removed)?,
            proposals: unique(&commit_info)?,
            welcomed: welcomes(rules, bundle, info.suite)?,
            first_message: first_message(rules, bundle, &group, epoch.checked_add(1))?,
            external: match parsed {
                Message::ExternalCommit(commit) => Some(commit),
                Message::Private(_) => None,
            },
            epoch,
            commit_info,
            info,
            message_id,
            group,
        })
    }

    /// What of it is held against the epoch before.
    pub fn content<'c>(
        &'c self,
        home_domain: &'c str,
        before: Option<&'c GroupInfo>,
        tree_fits: bool,
        signer: Option<&'c LeafNode>,
        external: Option<ExternalContent<'c>>,
    ) -> CommitContent<'c> {
        CommitContent {
            home_domain,
            group: &self.group,
            epoch: self.epoch,
            info: &self.info,
            before: before.filter(|before| before.epoch == self.epoch),
            tree_fits,
            signer,
            external,
        }
    }

    /// Together with what reading alone cannot tell.
    pub fn prepared(
        self,
        rules: &Rules<'_>,
        (device, user): (DeviceKey, Uuid),
        prepared: Prepared,
    ) -> PreparedCommit {
        let policy = self.info.policy().ok();
        let new_leaves = prepared.tree.leaves.values().flatten();
        let from_package = |leaf: &&LeafNode| matches!(leaf.source, Source::KeyPackage { .. });
        let request = CommitRequest {
            device,
            user,
            content_hash: self.content_hash,
            external: self.external.is_some(),
            introducer: prepared.introducer,
            epoch: self.epoch,
            epoch_seq: self.epoch_seq,
            added: self.added,
            removed: self.removed,
            proposals: self.proposals,
            seen_seq: self.commit_info.seen_seq,
            seen_chain: self.commit_info.seen_chain,
            welcomed: self
                .welcomed
                .secrets
                .iter()
                .map(|(r, _)| r.clone())
                .collect(),
            new_leaves: new_leaves
                .filter(from_package)
                .map(LeafNode::encoded)
                .collect(),
            past_epochs: policy.as_ref().map_or(0, |p| p.past_epochs.into()),
            external_join: policy
                .as_ref()
                .map_or(ExternalJoin::None, |p| join_of(p.external_join)),
            fault: prepared.fault,
        };
        PreparedCommit {
            request,
            leaves: leaf_places(rules.domain_id, &prepared.tree.leaves),
            group_state_hash: self.info.group_state_hash(),
            group: self.group,
            message_id: self.message_id,
            commit: self.commit,
            group_info: self.group_info,
            secrets: self.welcomed.secrets,
            encrypted_group_info: self.welcomed.shared,
            tree: prepared.tree,
            first_message: self.first_message,
        }
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

fn members(rules: &Rules<'_>, members: &[Member]) -> Result<Vec<(DeviceKey, Uuid)>, Error> {
    members
        .iter()
        .map(|member| {
            let domain = (rules.domain_id)(&member.domain)
                .ok_or_else(|| commit_info_invalid("names a domain that is unknown here"))?;
            let key = DeviceKey {
                domain,
                device: Uuid::from_bytes(member.device),
            };
            Ok((key, Uuid::from_bytes(member.user)))
        })
        .collect()
}

#[derive(Debug)]
struct Welcomed {
    secrets: Vec<(Vec<u8>, Vec<u8>)>,
    shared: Option<Vec<u8>>,
}

fn welcomes(rules: &Rules<'_>, bundle: &CommitBundle, suite: u16) -> Result<Welcomed, Error> {
    let mismatch = |why: &str| Error::refused(Reason::WelcomeMismatch, why);
    let limits = rules.limits;
    let mut by_ref = BTreeMap::new();
    let mut shared = None;
    for bytes in &bundle.welcomes {
        limits.within("welcome_bytes", limits.welcome_bytes, bytes.len())?;
        let welcome = Welcome::parse(bytes, bytes.len()).map_err(malformed("welcomes"))?;
        welcome
            .check_suite(suite)
            .map_err(|error| mismatch(&error.to_string()))?;
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
    rules: &Rules<'_>,
    bundle: &CommitBundle,
    group: &[u8],
    next_epoch: Option<u64>,
) -> Result<Option<PreparedSend>, Error> {
    let Some(first) = &bundle.first_message else {
        return Ok(None);
    };
    let message_id = id16("first_message.message_id", &first.message_id)?;
    let (header, _) = member_message(
        rules.limits,
        "first_message",
        &first.message,
        group,
        message_id,
    )?;
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
