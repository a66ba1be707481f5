//! What leaves, parent nodes and KeyPackages must be, decided by the rules that the Delivery Service applies too
//! ([`chancery_proto::leaf`], [`chancery_proto::key_package`]): from bytes alone, so that all members decide alike.

use chancery_proto::{
    certificate,
    hpke::{self, KeyFault},
    key_package,
    leaf::{self, SourceKind},
    mutants::{self, Mutant},
    suite::Suite,
    wire::exact,
};
use openmls::prelude::{tls_codec::Serialize as _, *};

use super::{CoreError, mls, records::Person};

/// Unusable parent nodes of a tree, by their place: what was there before a Commit is nothing that the Commit did.
pub type UnusableParents = Vec<(ParentNodeIndex, Vec<u8>)>;

/// The suite as the contract's readers know it.
///
/// # Errors
/// None of theirs.
pub fn suite_of(suite: Ciphersuite) -> Result<Suite, CoreError> {
    Suite::from_code(suite.into())
        .ok_or_else(|| CoreError::Malformed("a suite that this device has not".into()))
}

/// The KeyPackage of a device, if it keeps the rules; signatures and trust are not looked at.
///
/// # Errors
/// Why it cannot be used.
pub fn check_key_package(bytes: &[u8]) -> Result<key_package::KeyPackage, String> {
    let package = key_package::KeyPackage::parse(bytes, bytes.len()).map_err(|e| e.to_string())?;
    package.check().map_err(|fault| fault.to_string())?;
    // Whoever adds such a leaf locks every member out whose openmls does not read it.
    package.check_grease().map_err(|fault| fault.to_string())?;
    Ok(package)
}

/// Who a leaf says it is, whether that is true or not.
pub fn claims_to_be(leaf: &leaf::LeafNode) -> Option<Person> {
    let device = certificate::read_device(leaf.certificate().ok()?).ok()?;
    Some(Person {
        domain: device.domain,
        user: *device.user.as_bytes(),
        device: *device.device.as_bytes(),
    })
}

/// Checks every leaf that a Commit brings: those of its Adds and Updates, and that of its path.
///
/// # Errors
/// The rule that one of them breaks.
pub fn check_brought(group: &MlsGroup, staged: &StagedCommit) -> Result<(), CoreError> {
    if mutants::is_on(Mutant::CommitLeavesUnchecked) {
        return Ok(());
    }
    let suite = suite_of(group.ciphersuite())?;
    for queued in staged.queued_proposals() {
        check_proposal(queued.proposal(), suite)?;
    }
    match staged.update_path_leaf_node() {
        Some(leaf) => check_leaf(leaf, suite, SourceKind::Commit),
        None => Ok(()),
    }
}

/// Checks the leaf that a proposal brings to a group of this suite, if it brings one.
///
/// # Errors
/// The rule that it breaks.
pub fn check_proposal(proposal: &Proposal, suite: Suite) -> Result<(), CoreError> {
    match proposal {
        Proposal::Add(add) => {
            check_leaf(add.key_package().leaf_node(), suite, SourceKind::KeyPackage)
        }
        Proposal::Update(update) => check_leaf(update.leaf_node(), suite, SourceKind::Update),
        _ => Ok(()),
    }
}

fn check_leaf(leaf: &LeafNode, suite: Suite, source: SourceKind) -> Result<(), CoreError> {
    let bytes = leaf.tls_serialize_detached().map_err(mls)?;
    let leaf = exact(&bytes, bytes.len(), leaf::LeafNode::read)?;
    leaf::check_leaf(&leaf, suite, source).map_err(|fault| CoreError::Malformed(fault.to_string()))
}

/// The parent nodes that nobody can encrypt a path to.
///
/// # Errors
/// openmls cannot write a node.
pub fn unusable_parents(group: &MlsGroup) -> Result<UnusableParents, CoreError> {
    let suite = suite_of(group.ciphersuite())?;
    let mut unusable = UnusableParents::new();
    for (index, parent) in group.treesync().full_parents() {
        let bytes = parent.tls_serialize_detached().map_err(mls)?;
        let key = chancery_proto::wire::Reader::new(&bytes).vector()?;
        if hpke::check_public_key(suite, key).is_err() {
            unusable.push((index, key.to_vec()));
        }
    }
    Ok(unusable)
}

/// Checks, after a Commit was merged, that it put no parent node into the tree that nobody can encrypt to. openmls
/// shows the nodes of a path only then; whoever refuses undoes the merge.
///
/// # Errors
/// It did.
pub fn check_parents(group: &MlsGroup, before: &UnusableParents) -> Result<(), CoreError> {
    if mutants::is_on(Mutant::CommitParentsUnchecked) {
        return Ok(());
    }
    let unusable = unusable_parents(group)?;
    if unusable.iter().all(|parent| before.contains(parent)) {
        return Ok(());
    }
    Err(CoreError::Malformed(
        "a parent node of the path has an encryption_key of no valid form".into(),
    ))
}

/// The other members' leaves that nobody can encrypt to, and why. Whoever commits removes them, since no path could be
/// made otherwise.
///
/// # Errors
/// The group is of a suite that this device has not.
pub fn unreachable(group: &MlsGroup) -> Result<Vec<(LeafNodeIndex, KeyFault)>, CoreError> {
    if mutants::is_on(Mutant::UnreachableLeavesStay) {
        return Ok(Vec::new());
    }
    let suite = suite_of(group.ciphersuite())?;
    let own = group.own_leaf_index();
    let others = group.members().filter(|member| member.index != own);
    Ok(others
        .filter_map(|member| {
            let fault = hpke::check_public_key(suite, &member.encryption_key).err()?;
            Some((member.index, fault))
        })
        .collect())
}
