//! Leaves: whose they are, and what is signed with their keys.

use std::collections::BTreeMap;

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::CommitBundle,
    leaf::{LeafFault, LeafNode, check_grease},
    policy::POLICY_EXTENSION,
    signed,
};
use service_kit::db::{DbError, GenericClient};

use crate::{caller::Caller, error::Error, group::DeviceKey, node::Node, store};

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

/// The introducing device, where its signature holds up and is for the key that the joiner's leaf really has. Its own key is that of its own leaf in the stored tree, so that no directory is asked.
pub(super) async fn introducer(
    node: &Node,
    caller: &Caller,
    bundle: &CommitBundle,
    group: &[u8],
    leaf: &LeafNode,
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

/// The signature key of a device's leaf in the tree of the epoch named `seq`: no directory is asked.
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

/// Where the leaves of devices are among nodes that change.
pub(super) fn leaf_indices(
    domain_of: impl Fn(&str) -> Option<i16>,
    changes: &[store::tree::Node],
) -> BTreeMap<DeviceKey, u32> {
    let leaves = changes.iter().filter(|(index, _)| index.is_multiple_of(2));
    let device = |node: &[u8]| {
        let leaf = leaf_of(node)?;
        let named = chancery_proto::certificate::read_device(leaf.certificate().ok()?).ok()?;
        Some(DeviceKey {
            domain: domain_of(&named.domain)?,
            device: named.device,
        })
    };
    leaves
        .filter_map(|(index, node)| Some((device(node.as_deref()?)?, index / 2)))
        .collect()
}

/// The signature key of a device's leaf among nodes of a tree.
pub fn leaf_key_of(nodes: &[(u32, Vec<u8>)], domain: &str, device: uuid::Uuid) -> Option<Vec<u8>> {
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
pub(super) fn leaf_of(node: &[u8]) -> Option<LeafNode> {
    let [1, 1, body @ ..] = node else {
        return None;
    };
    chancery_proto::wire::exact(body, body.len(), LeafNode::read).ok()
}
