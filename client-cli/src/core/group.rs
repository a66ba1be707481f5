//! A group's configuration, its creation, its roster, and its tree as nodes.

use chancery_proto::{
    delivery::v1::{CreateGroupRequest, Replaces, TreeNode},
    group_info::GroupInfo,
    mutants::{self, Mutant},
    policy::{ExternalJoin, POLICY_EXTENSION, Policy},
    tree::Tree,
};
use openmls::prelude::{
    tls_codec::{Deserialize as _, Serialize as _},
    *,
};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::{
    Context, CoreError, guarded,
    identity::person_of,
    mls,
    records::{self, GroupName, GroupRecord, GroupState, Intent, Operation, Pending, Person},
};
use crate::store::Step;

/// The suites that this device can use: X25519 and Ed25519, with AES-GCM or ChaCha20-Poly1305, and P-256 with AES-GCM. The first is the default.
pub const SUITES: [Ciphersuite; 3] = [
    Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
    Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256,
    Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519,
];

/// Messages are padded to a multiple of this, so that their length says less.
const PADDING: usize = 64;
/// Largest objects that are parsed.
pub const MAX_BYTES: usize = 64 << 20;

/// What every leaf of this device advertises: the policy, and the mark of a last-resort KeyPackage, without which openmls adds nobody by one.
pub fn capabilities() -> Capabilities {
    Capabilities::new(
        None,
        Some(&SUITES),
        Some(&[
            ExtensionType::Unknown(POLICY_EXTENSION),
            ExtensionType::LastResort,
        ]),
        None,
        Some(&[CredentialType::X509]),
    )
}

/// How this device keeps a group: only as many past epochs as the policy's window.
pub fn join_config(past_epochs: u8) -> MlsGroupJoinConfig {
    MlsGroupJoinConfig::builder()
        .wire_format_policy(PURE_CIPHERTEXT_WIRE_FORMAT_POLICY)
        .use_ratchet_tree_extension(false)
        .max_past_epochs(past_epochs.into())
        .padding_size(PADDING)
        .sender_ratchet_configuration(SenderRatchetConfiguration::new(64, 10_000))
        .build()
}

/// The policy in a GroupContext.
///
/// # Errors
/// None, or one that cannot be read.
pub fn policy_of(context: &Extensions<GroupContext>) -> Result<Policy, CoreError> {
    let extension = context
        .unknown(POLICY_EXTENSION)
        .ok_or_else(|| CoreError::Malformed("the group has no policy".into()))?;
    let policy = Policy::decode(&extension.0)?;
    policy.authorities()?;
    Ok(policy)
}

/// SHA-256 of all extensions of a GroupContext.
///
/// # Errors
/// They cannot be written.
fn extensions_sha256(context: &Extensions<GroupContext>) -> Result<[u8; 32], CoreError> {
    let bytes = context.tls_serialize_detached().map_err(mls)?;
    Ok(Sha256::digest(bytes).into())
}

/// Notes the group's extensions, which stay as they are for its whole life.
///
/// # Errors
/// There is no policy among them.
pub fn remember_extensions(record: &mut GroupRecord, group: &MlsGroup) -> Result<(), CoreError> {
    record.policy = policy_of(group.extensions())?.encode();
    record.extensions_sha256 = Some(extensions_sha256(group.extensions())?);
    Ok(())
}

/// Compares a group's extensions with those that were known, if any were.
///
/// # Errors
/// [`CoreError::OtherPolicy`], with what differs.
pub fn compare_extensions(record: &GroupRecord, group: &MlsGroup) -> Result<(), CoreError> {
    let Some(known) = record.extensions_sha256 else {
        return Ok(());
    };
    if mutants::is_on(Mutant::ReturnPolicyUnchecked)
        || known == extensions_sha256(group.extensions())?
    {
        return Ok(());
    }
    let (known, claimed) = (
        Policy::decode(&record.policy)?,
        policy_of(group.extensions())?,
    );
    let mut differs = Vec::new();
    if known.home_domain != claimed.home_domain {
        differs.push(format!("home_domain {}", claimed.home_domain));
    }
    if known.past_epochs != claimed.past_epochs {
        differs.push(format!("past_epochs {}", claimed.past_epochs));
    }
    if known.external_join != claimed.external_join {
        differs.push(format!("external_join {:?}", claimed.external_join));
    }
    if known.items != claimed.items {
        differs.push("items of the policy".into());
    }
    if differs.is_empty() {
        differs.push("extensions beside the policy".into());
    }
    Err(CoreError::OtherPolicy(differs.join(", ")))
}

/// What a group is made with, and what stays so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Founding {
    /// RFC 9420 section 17.1.
    pub suite: u16,
    /// How many past epochs messages may come from: each of them costs every member as much as the current one. 0 is for groups of thousands.
    pub past_epochs: u8,
    /// Who may come in by an external Commit. Where nobody may, a device that lost its state has to be removed and
    /// added again.
    pub external_join: ExternalJoin,
}

impl Default for Founding {
    fn default() -> Self {
        Self::of(SUITES[0])
    }
}

impl Founding {
    /// In a suite, with the usual window.
    pub fn of(suite: Ciphersuite) -> Self {
        Self {
            suite: suite.into(),
            past_epochs: Policy::for_domain("").past_epochs,
            external_join: ExternalJoin::default(),
        }
    }
}

/// Makes a group and its pending creation.
///
/// # Errors
/// openmls, or the store.
pub fn create(
    step: &Step<'_>,
    context: Context<'_>,
    name: &GroupName,
    founding: Founding,
    message_id: [u8; 16],
    replaces: Option<Replaces>,
) -> Result<GroupRecord, CoreError> {
    let suite = Ciphersuite::try_from(founding.suite).map_err(mls)?;
    // The policy lists the authorities of every pinned domain, for good.
    context.trust.is_whole()?;
    let policy = Policy {
        past_epochs: founding.past_epochs,
        external_join: founding.external_join,
        ..Policy::for_domain(&name.domain)
    }
    .with_authorities(&context.trust.authorities());
    let required = RequiredCapabilitiesExtension::new(
        &[ExtensionType::Unknown(POLICY_EXTENSION)],
        &[],
        &[CredentialType::X509],
    );
    let extensions = Extensions::from_vec(vec![
        Extension::RequiredCapabilities(required),
        Extension::Unknown(POLICY_EXTENSION, UnknownExtension(policy.encode())),
    ])
    .map_err(mls)?;
    let key = context.identity.leaf_key(suite)?;
    let group = MlsGroup::builder()
        .with_group_id(GroupId::from_slice(&name.id))
        .ciphersuite(suite)
        .with_wire_format_policy(PURE_CIPHERTEXT_WIRE_FORMAT_POLICY)
        .use_ratchet_tree_extension(false)
        .max_past_epochs(policy.past_epochs.into())
        .padding_size(PADDING)
        .sender_ratchet_configuration(SenderRatchetConfiguration::new(64, 10_000))
        .with_capabilities(capabilities())
        .with_group_context_extensions(extensions)
        .build(step.provider(), &key, key.credential())
        .map_err(mls)?;
    let request = CreateGroupRequest {
        group: Some(name.to_ref()),
        suite: u16::from(suite).into(),
        group_info: export_group_info(step, context, &group)?.into(),
        tree: Some(tree_of(&group.export_ratchet_tree())?.to_update()),
        replaces,
        ..CreateGroupRequest::default()
    };
    let mut record = GroupRecord {
        epoch: group.epoch().as_u64(),
        pending: Some(Pending {
            message_id,
            operation: Operation::Create,
            request: request.encode_to_vec(),
            intent: Intent::default(),
            added: vec![context.identity.person.clone()],
            removed: Vec::new(),
            proposals: Vec::new(),
            accepted: None,
        }),
        ..GroupRecord::new(
            name.clone(),
            GroupState::Creating,
            0,
            chancery_proto::chain::start(),
        )
    };
    remember_extensions(&mut record, &group)?;
    records::put_group(step, &record)?;
    Ok(record)
}

/// openmls' state of a group, from the store, or as an earlier step gave it back with [`keep`].
///
/// # Errors
/// It is not there, or cannot be read.
pub fn load(step: &Step<'_>, name: &GroupName) -> Result<MlsGroup, CoreError> {
    if let Some(group) = step.take_loaded(&name.id) {
        return Ok(group);
    }
    MlsGroup::load(step.provider().storage(), &GroupId::from_slice(&name.id))?
        .ok_or(CoreError::Unknown)
}

/// Leaves a group that was not changed, or whose changes are in the store, to whoever needs it next.
pub fn keep(step: &Step<'_>, group: MlsGroup) {
    step.keep_loaded(group);
}

/// Looks at a group.
///
/// # Errors
/// See [`load`], and what `look` says.
pub fn look<T>(
    step: &Step<'_>,
    name: &GroupName,
    look: impl FnOnce(&MlsGroup) -> Result<T, CoreError>,
) -> Result<T, CoreError> {
    let group = load(step, name)?;
    let seen = look(&group)?;
    keep(step, group);
    Ok(seen)
}

/// Removes openmls' state of a group, if there is any.
///
/// # Errors
/// The store.
pub fn forget(step: &Step<'_>, name: &GroupName) -> Result<(), CoreError> {
    match load(step, name) {
        Ok(mut group) => Ok(group.delete(step.provider().storage())?),
        Err(CoreError::Unknown) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Every leaf and who it is.
///
/// # Errors
/// A leaf that does not say who it is.
pub fn roster(group: &MlsGroup) -> Result<Vec<(LeafNodeIndex, Person)>, CoreError> {
    group
        .members()
        .map(|m| Ok((m.index, person_of(&m.credential, &m.signature_key)?)))
        .collect()
}

/// A ratchet tree as nodes.
///
/// # Errors
/// It cannot be read.
pub fn tree_of(tree: &openmls::treesync::RatchetTree) -> Result<Tree, CoreError> {
    Ok(Tree::from_ratchet_tree(
        &tree.tls_serialize_detached().map_err(mls)?,
    )?)
}

/// Nodes as they were fetched, as openmls reads them.
///
/// # Errors
/// They are no tree.
pub fn ratchet_tree(width: u32, nodes: &[TreeNode]) -> Result<RatchetTreeIn, CoreError> {
    let mut tree = Tree::blank(width)?;
    for node in nodes {
        tree.set(node.index, node.node.as_deref())?;
    }
    let bytes = tree.to_ratchet_tree();
    guarded(|| RatchetTreeIn::tls_deserialize_exact(&bytes).map_err(mls))
}

/// MLSMessage(GroupInfo) of the current epoch, without the tree.
///
/// # Errors
/// openmls.
pub fn export_group_info(
    step: &Step<'_>,
    context: Context<'_>,
    group: &MlsGroup,
) -> Result<Vec<u8>, CoreError> {
    let key = context.identity.leaf_key(group.ciphersuite())?;
    group
        .export_group_info(step.provider().crypto(), &key, false)
        .map_err(mls)?
        .to_bytes()
        .map_err(mls)
}

/// What a true GroupInfo of this epoch hashes to.
///
/// # Errors
/// openmls.
pub fn state_hash(
    step: &Step<'_>,
    context: Context<'_>,
    group: &MlsGroup,
) -> Result<[u8; 32], CoreError> {
    let info = export_group_info(step, context, group)?;
    Ok(GroupInfo::parse(&info, MAX_BYTES)?.group_state_hash())
}
