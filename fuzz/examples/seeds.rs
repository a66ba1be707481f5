//! Writes the first inputs of the corpus: real objects of a real MLS implementation, and values of our own encodings.
#![expect(
    clippy::unwrap_used,
    reason = "a tool of the developer's, whose failure is its message"
)]

use std::{fs, path::Path};

use chancery_proto::{
    certificate::{DEVICE_EKU, device_uri, user_uri},
    commit_info::{CommitInfo, Member, MessageData},
    policy::Policy,
};
use openmls::prelude::{tls_codec::Serialize as _, *};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519,
    SanType,
};

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

fn save(target: &str, name: &str, bytes: &[u8]) {
    // openmls reads the same.
    match target {
        "framing" | "welcome" | "key_package" | "group_info" => {
            write("openmls_message", &format!("{target}-{name}"), bytes);
        }
        "ratchet_tree" => write("openmls_tree", name, bytes),
        _ => {}
    }
    write(target, name, bytes);
}

fn write(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(format!("seed-{name}")), bytes).unwrap();
}

struct Party {
    provider: OpenMlsRustCrypto,
    keys: SignatureKeyPair,
    credential: CredentialWithKey,
}

impl Party {
    fn new(certificate: &[u8]) -> Self {
        let provider = OpenMlsRustCrypto::default();
        let keys = SignatureKeyPair::new(SUITE.signature_algorithm()).unwrap();
        keys.store(provider.storage()).unwrap();
        let chain = vec![VLBytes::new(certificate.to_vec())]
            .tls_serialize_detached()
            .unwrap();
        let credential = CredentialWithKey {
            credential: Credential::new(CredentialType::X509, chain),
            signature_key: keys.public().into(),
        };
        Self {
            provider,
            keys,
            credential,
        }
    }

    fn key_package(&self) -> openmls::prelude::KeyPackage {
        let capabilities = Capabilities::builder()
            .credentials(vec![CredentialType::X509])
            .build();
        let bundle = openmls::prelude::KeyPackage::builder()
            .leaf_node_capabilities(capabilities)
            .build(SUITE, &self.provider, &self.keys, self.credential.clone())
            .unwrap();
        bundle.key_package().clone()
    }

    fn group(&self) -> MlsGroup {
        let capabilities = Capabilities::builder()
            .credentials(vec![CredentialType::X509])
            .build();
        let config = MlsGroupCreateConfig::builder()
            .ciphersuite(SUITE)
            .capabilities(capabilities)
            .wire_format_policy(PURE_CIPHERTEXT_WIRE_FORMAT_POLICY)
            .use_ratchet_tree_extension(false)
            .build();
        MlsGroup::new(&self.provider, &self.keys, &config, self.credential.clone()).unwrap()
    }

    fn group_info(&self, group: &MlsGroup) -> Vec<u8> {
        group
            .export_group_info(self.provider.crypto(), &self.keys, false)
            .unwrap()
            .to_bytes()
            .unwrap()
    }
}

fn device_certificate() -> Vec<u8> {
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let uri = |text: String| SanType::URI(text.try_into().unwrap());
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![
        uri(user_uri("interior.example", uuid::Uuid::from_u128(1))),
        uri(device_uri("interior.example", uuid::Uuid::from_u128(2))),
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(DEVICE_EKU.to_vec())];
    params.self_signed(&key).unwrap().der().to_vec()
}

fn mls(certificate: &[u8]) {
    let (creator, others) = (
        Party::new(certificate),
        [Party::new(b"b"), Party::new(b"c"), Party::new(b"d")],
    );
    let packages: Vec<_> = others.iter().map(Party::key_package).collect();
    save(
        "key_package",
        "openmls",
        &MlsMessageOut::from(creator.key_package())
            .to_bytes()
            .unwrap(),
    );
    let mut group = creator.group();
    let message_id = MessageData {
        message_id: Some([7; 16]),
        commit_info: None,
    };
    group.set_aad(message_id.encode());
    let (commit, welcome, _) = group
        .add_members(&creator.provider, &creator.keys, &packages)
        .unwrap();
    group.merge_pending_commit(&creator.provider).unwrap();
    save("framing", "commit", &commit.to_bytes().unwrap());
    save("welcome", "openmls", &welcome.to_bytes().unwrap());
    save("group_info", "openmls", &creator.group_info(&group));
    let tree = group.export_ratchet_tree();
    save(
        "ratchet_tree",
        "openmls",
        &tree.tls_serialize_detached().unwrap(),
    );
    let message = group
        .create_message(&creator.provider, &creator.keys, b"bonjour")
        .unwrap();
    save("framing", "message", &message.to_bytes().unwrap());
    // Somebody comes from outside.
    let stranger = Party::new(certificate);
    let message = MlsMessageIn::tls_deserialize_exact_bytes(&creator.group_info(&group)).unwrap();
    let MlsMessageBodyIn::GroupInfo(info) = message.extract() else {
        unreachable!("it was exported as one")
    };
    let capabilities = Capabilities::builder()
        .credentials(vec![CredentialType::X509])
        .build();
    let parameters = LeafNodeParameters::builder()
        .with_capabilities(capabilities)
        .build();
    let (_, bundle) = MlsGroup::external_commit_builder()
        .with_ratchet_tree(tree.into())
        .build_group(&stranger.provider, info, stranger.credential.clone())
        .unwrap()
        .leaf_node_parameters(parameters)
        .load_psks(stranger.provider.storage())
        .unwrap()
        .build(
            stranger.provider.rand(),
            stranger.provider.crypto(),
            &stranger.keys,
            |_| true,
        )
        .unwrap()
        .finalize(&stranger.provider)
        .unwrap();
    save(
        "framing",
        "external",
        &bundle.into_commit().to_bytes().unwrap(),
    );
}

fn main() {
    let certificate = device_certificate();
    save("certificate", "device", &certificate);
    for (name, algorithm) in [
        ("ed25519", &PKCS_ED25519),
        ("p256", &PKCS_ECDSA_P256_SHA256),
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let request = CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        save("csr", name, request.der());
    }
    mls(&certificate);
    let member = |n: u8| Member {
        domain: "interior.example".into(),
        user: [n; 16],
        device: [n + 1; 16],
    };
    let info = CommitInfo {
        added: vec![member(1), member(3)],
        removed: vec![member(5)],
        left_out: vec![member(7)],
        proposals: vec![4, 9],
        seen_seq: 11,
        extensions: vec![(99, vec![1, 2])],
        ..CommitInfo::default()
    };
    save("commit_info", "full", &info.encode());
    let items = MessageData {
        message_id: Some([7; 16]),
        commit_info: Some(info),
    };
    save("commit_info", "items", &items.encode());
    let policy = Policy {
        items: vec![(99, vec![1, 2])],
        ..Policy::for_domain("interior.example")
    };
    save("policy", "full", &policy.encode());
    save(
        "tree_patch",
        "grow",
        &[
            0, 4, 0, 2, 0, 15, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 2, 1, 6, 1, 2, 1, 9, 0,
            0, 2, 6, 15, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 1, 0, 0, 0, 2, 0,
        ],
    );
    let token = "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFZERTQSIsImtpZCI6ImsxIn0.eyJhdWQiOiJkczppbnRlcmlvci5leGFtcGxlIiwiZXhwIjoxNzkwMDAwMTAwLCJpYXQiOjE3OTAwMDAwMDB9.AAAA";
    save("token", "access", token.as_bytes());
    save(
        "decide",
        "commits",
        &[
            0, 0, 1, 1, 1, 1, 1, 4, 0, 0, 0, 2, 1, 2, 3, 0, 4, 4, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0,
            1, 1, 70,
        ],
    );
    save("decide", "messages", &[0; 48]);
}
