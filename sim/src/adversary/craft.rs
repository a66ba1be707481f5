//! Bytes that a member with its keys can sign: GroupInfos, KeyPackages, external Commits, with something in them changed.

use anyhow::{Context as _, anyhow};
use chancery_proto::{
    framing::{self, Message},
    group_info::GroupInfo,
    key_package::KeyPackage,
    tree::Tree,
    wire::Write as _,
};
use client_cli::core::{group::MAX_BYTES, identity::LeafKey};
use openmls_traits::signatures::Signer as _;

/// Signs a labelled content (RFC 9420 section 5.1.2).
fn sign(key: &LeafKey, label: &str, content: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.put_vector(format!("MLS 1.0 {label}").as_bytes());
    bytes.put_vector(content);
    key.sign(&bytes).map_err(|_| anyhow!("cannot sign"))
}

/// What of a GroupInfo is to be changed.
#[derive(Debug, Default)]
pub(super) struct InfoChange {
    /// Another cipher suite.
    pub suite: Option<u8>,
    /// These bytes of the GroupContext, wherever they are, become those of the same length.
    pub replace: Option<(Vec<u8>, Vec<u8>)>,
    /// Another key for external joins; `Some(None)` is none at all.
    pub external_pub: Option<Option<Vec<u8>>>,
    /// Another signer's place.
    pub signer: Option<u32>,
    /// The signature does not verify.
    pub spoilt: bool,
}

/// A GroupInfo with a change, signed by this key.
///
/// # Errors
/// It cannot be read.
pub(super) fn group_info(
    bytes: &[u8],
    change: &InfoChange,
    key: &LeafKey,
) -> anyhow::Result<Vec<u8>> {
    let info = GroupInfo::parse(bytes, MAX_BYTES)?;
    let mut context = info.group_context.clone();
    if let Some(suite) = change.suite {
        context[3] = suite;
    }
    if let Some((old, new)) = &change.replace {
        let mut places = context.windows(old.len());
        let place = places.position(|window| window == old.as_slice());
        let place = place.context("the GroupContext does not hold it")?;
        context.splice(place..place + old.len(), new.iter().copied());
    }
    let external_pub = match &change.external_pub {
        Some(other) => other.clone(),
        None => info.external_pub.clone(),
    };
    let mut extensions = Vec::new();
    if let Some(external_pub) = external_pub {
        let mut data = Vec::new();
        data.put_vector(&external_pub);
        extensions.put(&4u16.to_be_bytes());
        extensions.put_vector(&data);
    }
    let mut signed = context;
    signed.put_vector(&extensions);
    signed.put_vector(&info.confirmation_tag);
    signed.put(&change.signer.unwrap_or(info.signer).to_be_bytes());
    let mut signature = sign(key, "GroupInfoTBS", &signed)?;
    signature[0] ^= u8::from(change.spoilt);
    let mut message = vec![0, 1, 0, 4];
    message.put(&signed);
    message.put_vector(&signature);
    Ok(message)
}

/// What of a KeyPackage is to be changed.
#[derive(Debug, Clone, Copy)]
pub(super) enum PackageChange {
    /// The init_key becomes these bytes.
    InitKey(&'static [u8]),
    /// The leaf's encryption_key becomes these bytes.
    EncryptionKey(&'static [u8]),
    /// The leaf's encryption_key becomes the init_key.
    SameKeys,
    /// Capabilities list extension type 1, which is a default one.
    DefaultTypes,
    /// The leaf has an empty extension of a GREASE type, which its capabilities list.
    Grease,
}

/// The first GREASE value (RFC 9420 section 13.5).
const GREASE: u16 = 0x0A0A;

/// A KeyPackage with a change, leaf and package signed by this key.
///
/// # Errors
/// It cannot be read.
pub(super) fn key_package(
    bytes: &[u8],
    change: PackageChange,
    key: &LeafKey,
) -> anyhow::Result<Vec<u8>> {
    let package = KeyPackage::parse(bytes, MAX_BYTES)?;
    let (init_key, encryption_key) = match change {
        PackageChange::InitKey(other) => (other.to_vec(), package.leaf.encryption_key.clone()),
        PackageChange::EncryptionKey(other) => (package.init_key.clone(), other.to_vec()),
        PackageChange::SameKeys => (package.init_key.clone(), package.init_key.clone()),
        PackageChange::DefaultTypes | PackageChange::Grease => (
            package.init_key.clone(),
            package.leaf.encryption_key.clone(),
        ),
    };
    let mut old_key = Vec::new();
    old_key.put_vector(&package.leaf.encryption_key);
    let mut leaf = Vec::new();
    leaf.put_vector(&encryption_key);
    leaf.put(&package.leaf.to_be_signed[old_key.len()..]);
    let listed = match change {
        PackageChange::DefaultTypes => Some(1),
        PackageChange::Grease => Some(GREASE),
        _ => None,
    };
    if let Some(listed) = listed {
        let list = |types: &[u16]| {
            let bytes: Vec<u8> = types.iter().flat_map(|kind| kind.to_be_bytes()).collect();
            let mut list = Vec::new();
            list.put_vector(&bytes);
            list
        };
        let old = list(&package.leaf.capabilities.extensions);
        let mut more = package.leaf.capabilities.extensions.clone();
        more.push(listed);
        let place = leaf.windows(old.len()).rposition(|window| window == old);
        let place = place.context("no capabilities")?;
        leaf.splice(place..place + old.len(), list(&more));
    }
    if matches!(change, PackageChange::Grease) {
        // A leaf of this client has no extensions: its last octet is the length of their list.
        anyhow::ensure!(leaf.pop() == Some(0), "the leaf has extensions");
        let mut extension = GREASE.to_be_bytes().to_vec();
        extension.put_vector(&[]);
        leaf.put_vector(&extension);
    }
    let signature = sign(key, "LeafNodeTBS", &leaf)?;
    leaf.put_vector(&signature);
    let mut body = 1u16.to_be_bytes().to_vec();
    body.put(&package.suite.to_be_bytes());
    body.put_vector(&init_key);
    body.put(&leaf);
    body.put_vector(&[]);
    let signature = sign(key, "KeyPackageTBS", &body)?;
    body.put_vector(&signature);
    Ok([&[0, 1, 0, 5], body.as_slice()].concat())
}

/// An external Commit with other Remove proposals, signed by its joiner over the GroupContext that it was made in. Its confirmation tag is
/// that of the original.
///
/// # Errors
/// It cannot be read.
pub(super) fn external_commit(
    bytes: &[u8],
    removes: &[u32],
    group_context: &[u8],
    key: &LeafKey,
    spoilt: bool,
) -> anyhow::Result<Vec<u8>> {
    let Message::ExternalCommit(commit) = framing::parse(bytes, MAX_BYTES)? else {
        anyhow::bail!("no external Commit");
    };
    let encode = |removes: &[u32]| {
        let mut encoded = Vec::new();
        for leaf in removes {
            encoded.put(&[1, 0, 3]);
            encoded.put(&leaf.to_be_bytes());
        }
        encoded
    };
    let mut content = commit.framed_content().to_vec();
    let old_list = proposals(&content).context("no proposals")?;
    let (old, mut list) = (encode(&commit.removes), content[old_list.clone()].to_vec());
    let place = list
        .windows(old.len().max(1))
        .position(|window| window == old);
    let place = place.context("no Remove of its old leaf")?;
    list.splice(place..place + old.len(), encode(removes));
    let vector = |bytes: &[u8]| {
        let mut vector = Vec::new();
        vector.put_vector(bytes);
        vector
    };
    let start = old_list.end - vector(&content[old_list.clone()]).len();
    content.splice(start..old_list.end, vector(&list));
    let header = &bytes[..4];
    let signature_at = header.len() + commit.framed_content().len();
    let tail = &bytes[signature_at + vector(commit.signature()).len()..];
    let signed = [&[0, 1, 0, 1], content.as_slice(), group_context].concat();
    let mut signature = sign(key, "FramedContentTBS", &signed)?;
    signature[0] ^= u8::from(spoilt);
    Ok([header, &content, &vector(&signature), tail].concat())
}

/// Where the content of the list of proposals is in a framed external Commit.
fn proposals(content: &[u8]) -> Option<std::ops::Range<usize>> {
    let mut reader = chancery_proto::wire::Reader::new(content);
    reader.vector().ok()?;
    reader.u64().ok()?;
    reader.u8().ok()?;
    reader.vector().ok()?;
    reader.u8().ok()?;
    let list = reader.vector().ok()?;
    let end = content.len() - reader.rest().len();
    Some(end - list.len()..end)
}

/// The tree after an update.
///
/// # Errors
/// It does not fit.
pub(super) fn updated(
    before: &Tree,
    update: &chancery_proto::delivery::v1::TreeUpdate,
) -> anyhow::Result<Tree> {
    let mut tree = if update.full {
        Tree::default()
    } else {
        before.clone()
    };
    tree.resize(update.tree_width)?;
    for node in &update.nodes {
        tree.set(node.index, node.node.as_deref())?;
    }
    Ok(tree)
}
