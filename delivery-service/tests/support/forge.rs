//! Hand-made MLS bytes and a certificate authority of its own: every rule is tested without an MLS library.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use chancery_proto::{
    certificate::{DEVICE_EKU, STATUS_EKU, device_uri, user_uri},
    commit_info::{CommitInfo, Member, MessageData},
    key_package::LAST_RESORT,
    leaf::LeafNode,
    policy::{POLICY_EXTENSION, Policy},
    suite::Suite,
    token::{ACCESS_TOKEN_TYPE, AccessClaims, Confirmation, sign},
    tree::Tree,
    wire::Write as _,
};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType,
};
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use uuid::Uuid;

pub const DOMAIN: &str = "interior.example";

/// One Authentication Service's keys.
pub struct Authority {
    pub root_der: Vec<u8>,
    pub intermediate_der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
    pub token_pkcs8: Vec<u8>,
    pub token_key: Vec<u8>,
}

fn ca(path_length: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, format!("level {path_length}"));
    params
}

fn eku() -> Vec<ExtendedKeyUsagePurpose> {
    vec![ExtendedKeyUsagePurpose::Other(DEVICE_EKU.to_vec())]
}

impl Authority {
    pub fn new() -> Self {
        let root_key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let root = ca(1);
        let root_der = root.self_signed(&root_key).unwrap().der().to_vec();
        let root = Issuer::new(root, root_key);
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = ca(0);
        params.extended_key_usages = [DEVICE_EKU, STATUS_EKU]
            .map(|usage| ExtendedKeyUsagePurpose::Other(usage.to_vec()))
            .to_vec();
        let intermediate_der = params.signed_by(&key, &root).unwrap().der().to_vec();
        let token_pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(token_pkcs8.as_ref()).unwrap();
        Self {
            root_der,
            intermediate_der,
            issuer: Issuer::new(params, key),
            token_key: pair.public_key().as_ref().to_vec(),
            token_pkcs8: token_pkcs8.as_ref().to_vec(),
        }
    }

    /// A device with a certificate of `days`.
    pub fn device(&self, user: Uuid, days: i64) -> Device {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let device = Uuid::new_v4();
        let mut params = CertificateParams::default();
        let uri = |text: String| SanType::URI(text.try_into().unwrap());
        params.subject_alt_names =
            vec![uri(user_uri(DOMAIN, user)), uri(device_uri(DOMAIN, device))];
        params.extended_key_usages = eku();
        params.not_before = time::OffsetDateTime::now_utc() - time::Duration::days(1);
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(days);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&key.serialize_der()).unwrap();
        let pair = Arc::new(pair);
        let mut signers = SIGNERS.lock().unwrap();
        signers.insert(pair.public_key().as_ref().to_vec(), pair.clone());
        Device {
            user,
            device,
            certificate: certificate.der().to_vec(),
            pair,
            published: Mutex::default(),
        }
    }

    /// A key that signs the status feed, and its chain up to, not including, the root.
    pub fn status_signer(&self) -> (Ed25519KeyPair, Vec<Vec<u8>>) {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(STATUS_EKU.to_vec())];
        params.not_before = time::OffsetDateTime::now_utc() - time::Duration::days(1);
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&key.serialize_der()).unwrap();
        let chain = vec![certificate.der().to_vec(), self.intermediate_der.clone()];
        (pair, chain)
    }

    /// An access token that ends in `seconds`.
    pub fn token(&self, device: &Device, audience: &str, seconds: i64) -> String {
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let claims = AccessClaims {
            iss: DOMAIN.into(),
            sub: device.user.to_string(),
            device: device.device.to_string(),
            aud: audience.into(),
            iat: now.min(now + seconds) - 1,
            exp: now + seconds,
            jti: Uuid::new_v4().to_string(),
            cnf: Confirmation { jkt: "t".into() },
        };
        sign(ACCESS_TOKEN_TYPE, Some("k1"), &claims, &self.token_pkcs8).unwrap()
    }
}

/// What a leaf or a KeyPackage is made of: good, until a test spoils it.
#[derive(Clone)]
pub struct Parts {
    pub init_key: Vec<u8>,
    pub encryption_key: Vec<u8>,
    pub versions: Vec<u16>,
    pub suites: Vec<u16>,
    pub listed_extensions: Vec<u16>,
    pub listed_proposals: Vec<u16>,
    pub credentials: Vec<u16>,
    pub leaf_extensions: Vec<(u16, Vec<u8>)>,
    /// Of the KeyPackage itself.
    pub extensions: Vec<(u16, Vec<u8>)>,
    /// leaf_node_source with what follows, in place of a lifetime.
    pub source: Option<Vec<u8>>,
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            init_key: [Uuid::new_v4().into_bytes(), Uuid::new_v4().into_bytes()].concat(),
            encryption_key: vec![9; 32],
            versions: vec![1],
            suites: vec![1],
            listed_extensions: vec![POLICY_EXTENSION, LAST_RESORT],
            listed_proposals: vec![],
            credentials: vec![2],
            leaf_extensions: vec![],
            extensions: vec![],
            source: None,
        }
    }
}

fn extensions(list: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, data) in list {
        bytes.put(&kind.to_be_bytes());
        bytes.put_vector(data);
    }
    bytes
}

/// One device's identity.
pub struct Device {
    pub user: Uuid,
    pub device: Uuid,
    pub certificate: Vec<u8>,
    pair: Arc<Ed25519KeyPair>,
    /// The leaf of the KeyPackage that it published last: what an Add puts into a tree.
    pub published: Mutex<Option<Vec<u8>>>,
}

/// Every device of this process by its public key, so that a GroupInfo can be signed by whoever has the first leaf.
static SIGNERS: Mutex<BTreeMap<Vec<u8>, Arc<Ed25519KeyPair>>> = Mutex::new(BTreeMap::new());

fn sign_with_label(pair: &Ed25519KeyPair, label: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_vector(format!("MLS 1.0 {label}").as_bytes());
    bytes.put_vector(content);
    pair.sign(&bytes).as_ref().to_vec()
}

impl Device {
    pub fn member(&self) -> Member {
        Member {
            domain: DOMAIN.into(),
            user: *self.user.as_bytes(),
            device: *self.device.as_bytes(),
        }
    }

    pub fn device_ref(&self) -> chancery_proto::common::v1::DeviceRef {
        chancery_proto::common::v1::DeviceRef {
            domain: DOMAIN.into(),
            id: self.device.as_bytes().to_vec().into(),
        }
    }

    pub fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        self.pair.sign(bytes).as_ref().to_vec()
    }

    pub fn sign_with_label(&self, label: &str, content: &[u8]) -> Vec<u8> {
        sign_with_label(&self.pair, label, content)
    }

    /// A leaf; `source` is its leaf_node_source with what follows, `place` the group and index that a Commit's leaf is bound to.
    fn leaf(&self, source: &[u8], place: Option<(&[u8], u32)>) -> Vec<u8> {
        self.leaf_of(&Parts::default(), source, place)
    }

    fn leaf_of(&self, parts: &Parts, source: &[u8], place: Option<(&[u8], u32)>) -> Vec<u8> {
        let mut leaf = Vec::new();
        leaf.put_vector(&parts.encryption_key);
        leaf.put_vector(self.pair.public_key().as_ref());
        leaf.put(&2u16.to_be_bytes());
        let mut chain = Vec::new();
        chain.put_vector(&self.certificate);
        leaf.put_vector(&chain);
        for list in [
            &parts.versions,
            &parts.suites,
            &parts.listed_extensions,
            &parts.listed_proposals,
            &parts.credentials,
        ] {
            let list: Vec<u8> = list.iter().flat_map(|value| value.to_be_bytes()).collect();
            leaf.put_vector(&list);
        }
        leaf.put(source);
        leaf.put_vector(&extensions(&parts.leaf_extensions));
        let mut signed = leaf.clone();
        if let Some((group, index)) = place {
            signed.put_vector(group);
            signed.put(&index.to_be_bytes());
        }
        leaf.put_vector(&self.sign_with_label("LeafNodeTBS", &signed));
        leaf
    }

    /// MLSMessage(KeyPackage) that lives from `from` to `until` seconds from now.
    pub fn key_package(&self, suite: u16, from: i64, until: i64, last_resort: bool) -> Vec<u8> {
        let mut parts = Parts::default();
        if last_resort {
            parts.extensions.push((LAST_RESORT, vec![]));
        }
        self.key_package_of(&parts, suite, from, until)
    }

    /// The same, made of these parts and well signed.
    pub fn key_package_of(&self, parts: &Parts, suite: u16, from: i64, until: i64) -> Vec<u8> {
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let source = parts.source.clone().unwrap_or_else(|| {
            let mut source = vec![1];
            source.put(&(now + from).to_be_bytes());
            source.put(&(now + until).to_be_bytes());
            source
        });
        let mut body = Vec::new();
        body.put(&1u16.to_be_bytes());
        body.put(&suite.to_be_bytes());
        body.put_vector(&parts.init_key);
        body.put(&self.leaf_of(parts, &source, None));
        body.put_vector(&extensions(&parts.extensions));
        let signature = self.sign_with_label("KeyPackageTBS", &body);
        body.put_vector(&signature);
        [&[0, 1, 0, 5], body.as_slice()].concat()
    }

    /// `optional<Node>` of this device's leaf: that of its KeyPackage, if it was let in with one.
    pub fn leaf_node(&self, salt: u8) -> Vec<u8> {
        if let Some(leaf) = self.published.lock().unwrap().as_ref() {
            return [&[1, 1], leaf.as_slice()].concat();
        }
        self.own_leaf_node(salt)
    }

    /// `optional<Node>` of a leaf that this device wrote itself.
    pub fn own_leaf_node(&self, salt: u8) -> Vec<u8> {
        let mut source = vec![3];
        source.put_vector(&[salt]);
        [&[1, 1], self.leaf(&source, None).as_slice()].concat()
    }

    /// A leaf of a KeyPackage.
    pub fn package_leaf(&self) -> Vec<u8> {
        let package = self.key_package(1, -60, 3_600, false);
        let package = chancery_proto::key_package::KeyPackage::parse(&package, package.len());
        package.unwrap().leaf.encoded()
    }

    /// The leaf of an external Commit at a place.
    pub fn external_leaf(&self, group: &[u8], place: u32) -> Vec<u8> {
        self.salted_external_leaf(group, place, 0)
    }

    /// Another one for each salt: who comes back again brings another leaf.
    pub fn salted_external_leaf(&self, group: &[u8], place: u32, salt: u64) -> Vec<u8> {
        let mut source = vec![3];
        source.put_vector(&salt.to_be_bytes());
        self.leaf(&source, Some((group, place)))
    }

    /// PublicMessage(external Commit) signed over `context`.
    pub fn external_commit(
        &self,
        (group, epoch): (&[u8], u64),
        data: &MessageData,
        context: &[u8],
        external: &External,
    ) -> Vec<u8> {
        let mut content = Vec::new();
        content.put_vector(group);
        content.put(&epoch.to_be_bytes());
        content.put(&[4]);
        content.put_vector(&data.encode());
        content.put(&[3]);
        let mut proposals = vec![1, 0, 6];
        proposals.put_vector(b"kem");
        for leaf in &external.removes {
            proposals.put(&[1, 0, 3]);
            proposals.put(&leaf.to_be_bytes());
        }
        proposals.put(&external.more_proposals);
        content.put_vector(&proposals);
        content.put(&[1]);
        content.put(&external.leaf);
        content.put_vector(&[]);
        let signed = [&[0, 1, 0, 1], content.as_slice(), context].concat();
        let mut message = [&[0, 1, 0, 1], content.as_slice()].concat();
        message.put_vector(&self.sign_with_label("FramedContentTBS", &signed));
        message.put_vector(&[7; 32]);
        message
    }
}

/// What an external Commit holds besides its frame.
#[derive(Clone, Default)]
pub struct External {
    /// Leaf indices of its Remove proposals.
    pub removes: Vec<u32>,
    /// The joiner's new leaf.
    pub leaf: Vec<u8>,
    /// Encoded `ProposalOrRef`s.
    pub more_proposals: Vec<u8>,
}

/// MLSMessage(PrivateMessage): 1 application, 2 proposal, 3 Commit.
pub fn private(group: &[u8], epoch: u64, content_type: u8, data: &MessageData) -> Vec<u8> {
    let mut message = vec![0, 1, 0, 2];
    message.put_vector(group);
    message.put(&epoch.to_be_bytes());
    message.put(&[content_type]);
    message.put_vector(&data.encode());
    message.put_vector(&[1; 28]);
    message.put_vector(&[2; 100]);
    message
}

pub fn data(message_id: Uuid, commit_info: Option<CommitInfo>) -> MessageData {
    MessageData {
        message_id: Some(*message_id.as_bytes()),
        commit_info,
    }
}

/// MLSMessage(Welcome) for these refs.
pub fn welcome(refs: &[Vec<u8>]) -> Vec<u8> {
    let mut secrets = Vec::new();
    for reference in refs {
        secrets.put_vector(reference);
        secrets.put_vector(b"kem");
        secrets.put_vector(reference);
    }
    chancery_proto::welcome::assemble(1, &secrets, b"encrypted group info")
}

/// The group's tree: these leaves in this order, no parents. Whoever published a KeyPackage is let in with its leaf.
pub fn tree(devices: &[&Device], salt: u8) -> Tree {
    let nodes: Vec<Vec<u8>> = devices
        .iter()
        .map(|device| device.leaf_node(salt))
        .collect();
    tree_of(&nodes)
}

/// A tree of these leaves in this order, no parents.
pub fn tree_of(leaves: &[Vec<u8>]) -> Tree {
    let width = u32::try_from(leaves.len()).unwrap().next_power_of_two();
    let mut tree = Tree::blank(width).unwrap();
    for (place, leaf) in leaves.iter().enumerate() {
        let index = u32::try_from(place * 2).unwrap();
        tree.set(index, Some(leaf)).unwrap();
    }
    tree
}

/// GroupContext of an epoch.
pub fn group_context(group: &[u8], epoch: u64, tree: &Tree, policy: &Policy) -> Vec<u8> {
    let mut context = vec![0, 1, 0, 1];
    context.put_vector(group);
    context.put(&epoch.to_be_bytes());
    context.put_vector(&tree.hash(Suite::X25519Aes128));
    context.put_vector(&[5; 32]);
    let mut extensions = POLICY_EXTENSION.to_be_bytes().to_vec();
    extensions.put_vector(&policy.encode());
    context.put_vector(&extensions);
    context
}

/// MLSMessage(GroupInfo) of an epoch, signed by the device whose leaf is at this place.
pub fn signed_group_info(context: &[u8], signer: &Device, place: u32) -> Vec<u8> {
    info_by(&signer.pair, context, place)
}

/// MLSMessage(GroupInfo) of an epoch, signed by whoever has the first leaf of its tree; by nobody where there is none.
pub fn group_info(context: &[u8], tree: &Tree) -> Vec<u8> {
    let Some((index, node)) = tree.nodes().find(|(index, _)| index % 2 == 0) else {
        let nobody = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        return info_by(
            &Ed25519KeyPair::from_pkcs8(nobody.as_ref()).unwrap(),
            context,
            0,
        );
    };
    let leaf = chancery_proto::wire::exact(&node[2..], node.len(), LeafNode::read).unwrap();
    let pair = SIGNERS.lock().unwrap()[&leaf.signature_key].clone();
    info_by(&pair, context, index / 2)
}

fn info_by(pair: &Ed25519KeyPair, context: &[u8], place: u32) -> Vec<u8> {
    let mut external_pub = 4u16.to_be_bytes().to_vec();
    let mut key = Vec::new();
    key.put_vector(&[6; 32]);
    external_pub.put_vector(&key);
    let mut signed = context.to_vec();
    signed.put_vector(&external_pub);
    signed.put_vector(&[7; 32]);
    signed.put(&place.to_be_bytes());
    let signature = sign_with_label(pair, "GroupInfoTBS", &signed);
    let mut message = vec![0, 1, 0, 4];
    message.put(&signed);
    message.put_vector(&signature);
    message
}
