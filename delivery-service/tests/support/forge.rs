//! Hand-made MLS bytes and a certificate authority of its own: every rule is tested without an MLS library.

use chancery_proto::{
    certificate::{DEVICE_EKU, STATUS_EKU, device_uri, user_uri},
    commit_info::{CommitInfo, Member, MessageData},
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
        Device {
            user,
            device,
            certificate: certificate.der().to_vec(),
            pair: Ed25519KeyPair::from_pkcs8_maybe_unchecked(&key.serialize_der()).unwrap(),
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

/// One device's identity.
pub struct Device {
    pub user: Uuid,
    pub device: Uuid,
    pub certificate: Vec<u8>,
    pair: Ed25519KeyPair,
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

    fn sign_with_label(&self, label: &str, content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.put_vector(format!("MLS 1.0 {label}").as_bytes());
        bytes.put_vector(content);
        self.sign(&bytes)
    }

    /// A leaf; `source` is its leaf_node_source with what follows, `place` the group and index that a Commit's leaf is bound to.
    fn leaf(&self, source: &[u8], place: Option<(&[u8], u32)>) -> Vec<u8> {
        let mut leaf = Vec::new();
        leaf.put_vector(&[9; 32]);
        leaf.put_vector(self.pair.public_key().as_ref());
        leaf.put(&2u16.to_be_bytes());
        let mut chain = Vec::new();
        chain.put_vector(&self.certificate);
        leaf.put_vector(&chain);
        leaf.put_vector(&1u16.to_be_bytes());
        leaf.put_vector(&1u16.to_be_bytes());
        leaf.put_vector(&POLICY_EXTENSION.to_be_bytes());
        leaf.put_vector(&[]);
        leaf.put_vector(&2u16.to_be_bytes());
        leaf.put(source);
        leaf.put_vector(&[]);
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
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let mut source = vec![1];
        source.put(&(now + from).to_be_bytes());
        source.put(&(now + until).to_be_bytes());
        let mut body = Vec::new();
        body.put(&1u16.to_be_bytes());
        body.put(&suite.to_be_bytes());
        body.put_vector(Uuid::new_v4().as_bytes());
        body.put(&self.leaf(&source, None));
        body.put_vector(if last_resort { &[0, 10, 0] } else { &[] });
        let signature = self.sign_with_label("KeyPackageTBS", &body);
        body.put_vector(&signature);
        [&[0, 1, 0, 5], body.as_slice()].concat()
    }

    /// `optional<Node>` of this device's leaf.
    pub fn leaf_node(&self, salt: u8) -> Vec<u8> {
        let mut source = vec![3];
        source.put_vector(&[salt]);
        [&[1, 1], self.leaf(&source, None).as_slice()].concat()
    }

    /// PublicMessage(external Commit) signed over `context`.
    pub fn external_commit(
        &self,
        group: &[u8],
        epoch: u64,
        data: &MessageData,
        context: &[u8],
    ) -> Vec<u8> {
        let mut content = Vec::new();
        content.put_vector(group);
        content.put(&epoch.to_be_bytes());
        content.put(&[4]);
        content.put_vector(&data.encode());
        content.put(&[3]);
        let mut proposals = vec![1, 0, 6];
        proposals.put_vector(b"kem");
        content.put_vector(&proposals);
        content.put(&[1]);
        let mut source = vec![3];
        source.put_vector(b"parent hash");
        content.put(&self.leaf(&source, Some((group, 0))));
        content.put_vector(&[]);
        let signed = [&[0, 1, 0, 1], content.as_slice(), context].concat();
        let mut message = [&[0, 1, 0, 1], content.as_slice()].concat();
        message.put_vector(&self.sign_with_label("FramedContentTBS", &signed));
        message.put_vector(&[7; 32]);
        message
    }
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

/// The group's tree: these leaves in this order, no parents.
pub fn tree(devices: &[&Device], salt: u8) -> Tree {
    let width = u32::try_from(devices.len()).unwrap().next_power_of_two();
    let mut tree = Tree::blank(width).unwrap();
    for (place, device) in devices.iter().enumerate() {
        let index = u32::try_from(place * 2).unwrap();
        tree.set(index, Some(&device.leaf_node(salt))).unwrap();
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
    let mut signed = context.to_vec();
    signed.put_vector(&[]);
    signed.put_vector(&[7; 32]);
    signed.put(&place.to_be_bytes());
    let signature = signer.sign_with_label("GroupInfoTBS", &signed);
    let mut message = vec![0, 1, 0, 4];
    message.put(&signed);
    message.put_vector(&signature);
    message
}

/// MLSMessage(GroupInfo) of an epoch.
pub fn group_info(context: &[u8]) -> Vec<u8> {
    let mut message = vec![0, 1, 0, 4];
    message.put(context);
    message.put_vector(&[]);
    message.put_vector(&[7; 32]);
    message.put(&0u32.to_be_bytes());
    message.put_vector(&[8; 64]);
    message
}
