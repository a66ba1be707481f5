//! Leaves: whose they are, and what is signed with their keys.

use std::collections::BTreeMap;

use chancery_proto::{
    certificate::{Anchors, DeviceCertificate},
    common::v1::Reason,
    delivery::v1::SubmitCommitRequest,
    leaf::{LeafFault, LeafNode, check_grease},
    mutants::{self, Mutant},
    policy::POLICY_EXTENSION,
    signed,
    tree::Tree,
};
use service_kit::db::{DbError, GenericClient};
use uuid::Uuid;

use crate::{
    access::caller::Caller,
    error::Error,
    node::Node,
    ordering::{content::NewLeaves, group::DeviceKey},
    store,
};

/// An external joiner's leaf is the caller's: certificate, identity and key; and it can read the group's policy.
pub(super) async fn check_external_leaf(
    node: &Node,
    caller: &Caller,
    leaf: &LeafNode,
) -> Result<(), Error> {
    if !leaf.capabilities.extensions.contains(&POLICY_EXTENSION) {
        return Err(LeafFault::PolicyNotListed.into());
    }
    if node.config.refuse_grease_extensions {
        check_grease(leaf)?;
    }
    let client = node.db.client().await?;
    let now = store::groups::now(&client).await.map_err(DbError::from)? / 1_000_000;
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
) -> Result<DeviceCertificate, Error> {
    let issuer = node.issuers.get(&caller.domain).ok_or_else(|| {
        Error::refused(
            Reason::CredentialInvalid,
            "the Authentication Service was not heard yet",
        )
    })?;
    let device = (caller.domain.as_str(), caller.key.device, caller.user);
    leaf_is_of(&issuer.anchors, device, leaf, now)
}

/// The certificate of a leaf is of this domain, device, and user, verifies at `now` (Unix seconds), and is for the leaf's key.
///
/// # Errors
/// `CREDENTIAL_INVALID`.
pub fn leaf_is_of(
    anchors: &Anchors,
    (domain, device, user): (&str, Uuid, Uuid),
    leaf: &LeafNode,
    now: i64,
) -> Result<DeviceCertificate, Error> {
    let invalid = |why: String| Error::refused(Reason::CredentialInvalid, why);
    let der = leaf.certificate().map_err(|e| invalid(e.to_string()))?;
    let certificate = anchors
        .verify_device(der, now)
        .map_err(|e| invalid(e.to_string()))?;
    let same =
        certificate.domain == domain && certificate.device == device && certificate.user == user;
    if !same {
        return Err(invalid("the certificate is another device's".into()));
    }
    if certificate.public_key != leaf.signature_key {
        return Err(invalid("the leaf's key is not the certificate's".into()));
    }
    Ok(certificate)
}

/// The introducing device, where its signature holds up and is for the key that the joiner's leaf really has. Its own key is that of its own leaf in the stored tree, so that no directory is asked.
pub(super) async fn introducer(
    node: &Node,
    caller: &Caller,
    request: &SubmitCommitRequest,
    group: &[u8],
    leaf: &LeafNode,
) -> Result<Option<DeviceKey>, Error> {
    let introduction = request
        .bundles
        .first()
        .and_then(|b| b.introduction.as_ref());
    let Some(introduction) = introduction else {
        return Ok(None);
    };
    let device_ref = introduction
        .introducer
        .as_ref()
        .ok_or_else(|| Error::malformed("introduction.introducer", "missing"))?;
    let introducer = node.domains.device("introduction.introducer", device_ref)?;
    let client = node.db.client().await?;
    let now = store::groups::now(&client).await.map_err(DbError::from)? / 1_000_000;
    let content = signed::introduction(
        (&caller.domain, caller.key.device.as_bytes()),
        &introduction.key,
        (&node.config.domain, group),
        introduction.expires_at,
    );
    let Some(head) = store::groups::head(&client, group)
        .await
        .map_err(DbError::from)?
    else {
        return Err(Error::no_group());
    };
    let domain = &device_ref.domain;
    let key = leaf_key(&client, group, head.epoch_seq, domain, introducer).await?;
    let holds = introduction.expires_at >= now
        && introduction.key == leaf.signature_key
        && key.is_some_and(|key| {
            signed::verify(
                &key,
                signed::INTRODUCTION,
                &content,
                &introduction.signature,
            )
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

/// The signature key of a device's leaf in the epoch named `seq`: the one that it was let in with, which no member can replace by
/// another tree. Of a membership that is older than that record it is read from the stored tree. No directory is asked.
///
/// # Errors
/// The database.
pub async fn leaf_key<C: GenericClient>(
    client: &C,
    group: &[u8],
    seq: u64,
    domain: &str,
    device: DeviceKey,
) -> Result<Option<Vec<u8>>, DbError> {
    if !mutants::is_on(Mutant::ReportKeyFromTree)
        && let Some(key) = store::roster::signature_key(client, group, seq, device).await?
    {
        return Ok(Some(key));
    }
    // Where the leaf stands was told by whoever added it; what stands there says whether that is true.
    if let Some(leaf) = store::roster::leaf_index(client, group, device).await? {
        let node = store::tree::nodes_at(client, group, seq, &[leaf.saturating_mul(2)]).await?;
        let node: Vec<(u32, Vec<u8>)> = node.into_iter().collect();
        if let Some(key) = leaf_key_of(&node, domain, device.device) {
            return Ok(Some(key));
        }
    }
    let nodes = store::tree::at(client, group, seq).await?;
    Ok(leaf_key_of(&nodes, domain, device.device))
}

/// Where a leaf is, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Leaf index.
    pub index: u32,
    /// The leaf's signature key.
    pub signature_key: Vec<u8>,
}

fn device_of(domain_of: &dyn Fn(&str) -> Option<i16>, leaf: &LeafNode) -> Option<DeviceKey> {
    let named = chancery_proto::certificate::read_device(leaf.certificate().ok()?).ok()?;
    Some(DeviceKey {
        domain: domain_of(&named.domain)?,
        device: named.device,
    })
}

/// Whether a leaf's certificate names this device.
pub(super) fn names(leaf: &LeafNode, domain: &str, key: DeviceKey) -> bool {
    device_of(&|named| (named == domain).then_some(key.domain), leaf) == Some(key)
}

/// Where the leaves that a Commit writes are, by the device that their certificates name.
pub fn leaf_places(
    domain_of: &dyn Fn(&str) -> Option<i16>,
    leaves: &NewLeaves,
) -> BTreeMap<DeviceKey, Place> {
    let written = leaves.iter();
    let written = written.filter_map(|(index, leaf)| Some((*index, leaf.as_ref()?)));
    let places = written.filter_map(|(index, leaf)| {
        let place = Place {
            index,
            signature_key: leaf.signature_key.clone(),
        };
        Some((device_of(domain_of, leaf)?, place))
    });
    places.collect()
}

/// The leaves of a whole tree by the device that their certificates name; `None` if one names nobody, or two the same device.
pub fn leaves_by_device(
    domain_of: &dyn Fn(&str) -> Option<i16>,
    tree: &Tree,
) -> Option<BTreeMap<DeviceKey, LeafNode>> {
    let mut leaves = BTreeMap::new();
    for (index, node) in tree.nodes() {
        if index.is_multiple_of(2) {
            let leaf = leaf_of(node)?;
            if leaves.insert(device_of(domain_of, &leaf)?, leaf).is_some() {
                return None;
            }
        }
    }
    Some(leaves)
}

/// The signature key of a device's leaf among nodes of a tree.
pub fn leaf_key_of(nodes: &[(u32, Vec<u8>)], domain: &str, device: Uuid) -> Option<Vec<u8>> {
    nodes
        .iter()
        .filter(|(index, _)| index.is_multiple_of(2))
        .filter_map(|(_, bytes)| leaf_of(bytes))
        .find(|leaf| {
            leaf.certificate()
                .ok()
                .and_then(|der| chancery_proto::certificate::read_device(der).ok())
                .is_some_and(|c| c.device == device && c.domain == domain)
        })
        .map(|leaf| leaf.signature_key)
}

/// A leaf out of `optional<Node>`.
pub fn leaf_of(node: &[u8]) -> Option<LeafNode> {
    let [1, 1, body @ ..] = node else {
        return None;
    };
    chancery_proto::wire::exact(body, body.len(), LeafNode::read).ok()
}
