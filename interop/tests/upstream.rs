//! Faults of openmls 0.9.2 that this crate works around. When one of these fails, upstream has mended it, and the workaround goes.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use openmls::{
    prelude::{tls_codec::Deserialize as _, *},
    schedule::PreSharedKeyId,
};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

struct Person {
    provider: OpenMlsRustCrypto,
    signer: SignatureKeyPair,
    own: CredentialWithKey,
}

fn person(name: &str) -> Person {
    let signer = SignatureKeyPair::new(SUITE.signature_algorithm()).unwrap();
    Person {
        provider: OpenMlsRustCrypto::default(),
        own: CredentialWithKey {
            credential: BasicCredential::new(name.as_bytes().to_vec()).into(),
            signature_key: signer.public().into(),
        },
        signer,
    }
}

fn inward(message: &MlsMessageOut) -> MlsMessageIn {
    MlsMessageIn::tls_deserialize_exact(message.to_bytes().unwrap()).unwrap()
}

fn psk(person: &Person, id: &[u8]) -> PreSharedKeyId {
    let id = PreSharedKeyId::external(id.to_vec(), vec![7; 32]);
    id.store(&person.provider, b"secret of 32 bytes, or thereabouts")
        .unwrap();
    id
}

/// A Commit of PSKs by reference and by value, the latter given to the Commit's builder: its maker comes to an epoch that nobody else comes to.
#[test]
fn psks_by_reference_and_from_the_builder_are_still_mixed_in_another_order() {
    let (anna, ben) = (person("anna"), person("ben"));
    let mut group = MlsGroup::builder()
        .ciphersuite(SUITE)
        .use_ratchet_tree_extension(true)
        .build(&anna.provider, &anna.signer, anna.own.clone())
        .unwrap();
    let package = KeyPackage::builder()
        .build(SUITE, &ben.provider, &ben.signer, ben.own.clone())
        .unwrap();
    let (_, welcome, _) = group
        .add_members(
            &anna.provider,
            &anna.signer,
            &[package.key_package().clone()],
        )
        .unwrap();
    group.merge_pending_commit(&anna.provider).unwrap();
    let MlsMessageBodyIn::Welcome(welcome) = inward(&welcome).extract() else {
        panic!("no Welcome");
    };
    let config = MlsGroupJoinConfig::default();
    let mut other = StagedWelcome::new_from_welcome(&ben.provider, &config, welcome, None)
        .unwrap()
        .into_group(&ben.provider)
        .unwrap();
    for id in [b"one", b"two"] {
        psk(&ben, id);
    }
    let (proposal, _) = group
        .propose_pre_shared_key(&anna.provider, &anna.signer, psk(&anna, b"one"))
        .unwrap();
    let proposal = inward(&proposal).try_into_protocol_message().unwrap();
    let processed = other.process_message(&ben.provider, proposal).unwrap();
    let ProcessedMessageContent::ProposalMessage(proposal) = processed.into_content() else {
        panic!("no proposal");
    };
    other
        .store_pending_proposal(ben.provider.storage(), *proposal)
        .unwrap();
    let by_value = PreSharedKeyProposal::new(psk(&anna, b"two"));
    let (commit, _, _) = group
        .commit_builder()
        .add_proposal(Proposal::PreSharedKey(Box::new(by_value)))
        .load_psks(anna.provider.storage())
        .unwrap()
        .build(
            anna.provider.rand(),
            anna.provider.crypto(),
            &anna.signer,
            |_| true,
        )
        .unwrap()
        .stage_commit(&anna.provider)
        .unwrap()
        .into_contents();
    let commit = inward(&commit).try_into_protocol_message().unwrap();
    let refused = other.process_message(&ben.provider, commit).unwrap_err();
    let text = format!("{refused:?}");
    assert!(text.contains("ConfirmationTagMismatch"), "{text}");
}
