//! The keyless readers against a real MLS implementation, in every suite whose hash and signatures they know.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use chancery_proto::{
    commit_info::{CommitInfo, MessageData},
    framing::{self, ContentType, Message},
    group_info::GroupInfo,
    key_package::KeyPackage,
    suite::Suite,
    tree::Tree,
    welcome::Welcome,
};
use openmls::prelude::{tls_codec::*, *};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;

const SUITES: [Ciphersuite; 3] = [
    Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
    Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256,
    Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519,
];

struct Party {
    provider: OpenMlsRustCrypto,
    keys: SignatureKeyPair,
    credential: CredentialWithKey,
    suite: Ciphersuite,
}

impl Party {
    fn new(name: &str, suite: Ciphersuite) -> Self {
        let provider = OpenMlsRustCrypto::default();
        let keys = SignatureKeyPair::new(suite.signature_algorithm()).unwrap();
        keys.store(provider.storage()).unwrap();
        let credential = CredentialWithKey {
            credential: BasicCredential::new(name.as_bytes().to_vec()).into(),
            signature_key: keys.public().into(),
        };
        Self {
            provider,
            keys,
            credential,
            suite,
        }
    }

    fn key_package(&self, last_resort: bool) -> KeyPackageBundle {
        let builder = openmls::prelude::KeyPackage::builder();
        let builder = if last_resort {
            builder.mark_as_last_resort()
        } else {
            builder
        };
        builder
            .build(
                self.suite,
                &self.provider,
                &self.keys,
                self.credential.clone(),
            )
            .unwrap()
    }

    fn group(&self) -> MlsGroup {
        let config = MlsGroupCreateConfig::builder()
            .ciphersuite(self.suite)
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

fn known(suite: Ciphersuite) -> Suite {
    Suite::from_code(u16::from(suite)).unwrap()
}

fn ratchet_tree(group: &MlsGroup) -> Vec<u8> {
    group
        .export_ratchet_tree()
        .tls_serialize_detached()
        .unwrap()
}

#[test]
fn key_packages_have_the_same_ref_and_their_signatures_verify() {
    for suite in SUITES {
        let party = Party::new("a", suite);
        for last_resort in [false, true] {
            let real = party.key_package(last_resort).key_package().clone();
            let bytes = MlsMessageOut::from(real.clone()).to_bytes().unwrap();
            let ours = KeyPackage::parse(&bytes, 100_000).unwrap();
            let reference = real.hash_ref(party.provider.crypto()).unwrap();
            assert_eq!(ours.reference().unwrap(), reference.as_slice());
            assert_eq!(ours.verify(), Some(true));
            assert_eq!(ours.last_resort, last_resort);
            assert_eq!(ours.leaf.signature_key, party.keys.public());
            for end in 0..bytes.len() {
                assert!(KeyPackage::parse(&bytes[..end], 100_000).is_err());
            }
            let mut tampered = bytes.clone();
            *tampered.last_mut().unwrap() ^= 1;
            let verified = KeyPackage::parse(&tampered, 100_000).map(|k| k.verify());
            assert_ne!(verified, Ok(Some(true)));
        }
    }
}

#[test]
fn a_tree_hashes_to_the_group_infos_tree_hash_and_comes_back_byte_for_byte() {
    for suite in SUITES {
        let creator = Party::new("a", suite);
        let mut group = creator.group();
        let mut older = Tree::from_ratchet_tree(&ratchet_tree(&group)).unwrap();
        for size in [1, 2, 4] {
            let joiners: Vec<Party> = (0..size).map(|_| Party::new("b", suite)).collect();
            let packages: Vec<_> = joiners
                .iter()
                .map(|j| j.key_package(false).key_package().clone())
                .collect();
            group
                .add_members(&creator.provider, &creator.keys, &packages)
                .unwrap();
            group.merge_pending_commit(&creator.provider).unwrap();
            let bytes = ratchet_tree(&group);
            let tree = Tree::from_ratchet_tree(&bytes).unwrap();
            let info = GroupInfo::parse(&creator.group_info(&group), 100_000).unwrap();
            assert_eq!(tree.hash(known(suite)), info.tree_hash);
            assert_eq!(tree.to_ratchet_tree(), bytes);
            assert_eq!(info.epoch, group.epoch().as_u64());
            assert_eq!(info.group_id, group.group_id().as_slice());
            assert!(info.external_pub.is_some());
            let mut patched = older.clone();
            patched.resize(tree.width()).unwrap();
            for (index, node) in tree.changes_since(&older) {
                patched.set(index, node.as_deref()).unwrap();
            }
            assert_eq!(patched, tree);
            older = tree;
        }
    }
}

#[test]
fn a_cut_welcome_joins_and_what_the_message_says_of_itself_is_readable() {
    for suite in SUITES {
        let creator = Party::new("a", suite);
        let joiners = [Party::new("b", suite), Party::new("c", suite)];
        let packages: Vec<_> = joiners
            .iter()
            .map(|j| j.key_package(false).key_package().clone())
            .collect();
        let mut group = creator.group();
        let data = MessageData {
            message_id: Some([7; 16]),
            commit_info: Some(CommitInfo {
                seen_seq: 3,
                ..CommitInfo::default()
            }),
        };
        group.set_aad(data.encode());
        let (commit, welcome, _) = group
            .add_members(&creator.provider, &creator.keys, &packages)
            .unwrap();
        let commit = commit.to_bytes().unwrap();
        let Message::Private(header) = framing::parse(&commit, 100_000).unwrap() else {
            panic!("not a PrivateMessage");
        };
        assert_eq!(header.content_type, ContentType::Commit);
        assert_eq!(header.epoch, 0);
        assert_eq!(MessageData::decode(&header.authenticated_data), Ok(data));
        group.merge_pending_commit(&creator.provider).unwrap();
        let welcome = Welcome::parse(&welcome.to_bytes().unwrap(), 100_000).unwrap();
        assert_eq!(welcome.secrets.len(), 2);
        for (joiner, package) in joiners.iter().zip(&packages) {
            let reference = package.hash_ref(joiner.provider.crypto()).unwrap();
            let cut = welcome.cut(reference.as_slice()).unwrap();
            let MlsMessageBodyIn::Welcome(cut) =
                MlsMessageIn::tls_deserialize_exact(cut).unwrap().extract()
            else {
                panic!("not a Welcome");
            };
            let joined = StagedWelcome::new_from_welcome(
                &joiner.provider,
                &MlsGroupJoinConfig::default(),
                cut,
                Some(group.export_ratchet_tree().into()),
            )
            .unwrap()
            .into_group(&joiner.provider)
            .unwrap();
            assert_eq!(
                joined.epoch_authenticator().as_slice(),
                group.epoch_authenticator().as_slice()
            );
        }
    }
}

#[test]
fn an_external_commit_shows_its_leaf_and_its_signature_verifies_in_its_context_only() {
    for suite in SUITES {
        let creator = Party::new("a", suite);
        let group = creator.group();
        let info_bytes = creator.group_info(&group);
        let info = GroupInfo::parse(&info_bytes, 100_000).unwrap();
        let joiner = Party::new("b", suite);
        let MlsMessageBodyIn::GroupInfo(verifiable) =
            MlsMessageIn::tls_deserialize_exact(&info_bytes)
                .unwrap()
                .extract()
        else {
            panic!("not a GroupInfo");
        };
        let (_, bundle) = MlsGroup::external_commit_builder()
            .with_ratchet_tree(group.export_ratchet_tree().into())
            .with_aad(b"aad".to_vec())
            .build_group(&joiner.provider, verifiable, joiner.credential.clone())
            .unwrap()
            .load_psks(joiner.provider.storage())
            .unwrap()
            .build(
                joiner.provider.rand(),
                joiner.provider.crypto(),
                &joiner.keys,
                |_| true,
            )
            .unwrap()
            .finalize(&joiner.provider)
            .unwrap();
        let bytes = bundle.into_commit().to_bytes().unwrap();
        let Message::ExternalCommit(commit) = framing::parse(&bytes, 100_000).unwrap() else {
            panic!("not an external Commit");
        };
        assert_eq!(commit.authenticated_data, b"aad");
        assert_eq!(commit.leaf.signature_key, joiner.keys.public());
        assert!(commit.verify(known(suite), &info.group_context));
        assert!(!commit.verify(known(suite), &info.group_context[1..]));
        for end in 0..bytes.len() {
            assert!(framing::parse(&bytes[..end], 100_000).is_err());
        }
    }
}
