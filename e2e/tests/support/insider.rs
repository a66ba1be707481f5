//! A member that lies: raw openmls with a false hand in its cryptography, and bytes changed before they are sent.

#![allow(
    unreachable_pub,
    clippy::allow_attributes,
    reason = "a module of one test"
)]

use std::sync::atomic::{AtomicUsize, Ordering};

use chancery_proto::{
    commit_info::{CommitInfo, MessageData},
    delivery::v1::{
        CommitResult, FailureReport, ReportEpochRequest, SubmitCommitRequest,
        report_epoch_request::Report,
    },
    group_info::GroupInfo,
    welcome::{Welcome, assemble},
    wire::Write as _,
};
use client_cli::{
    core::{
        commit::bundle_of,
        group,
        identity::members,
        records::{self, GroupName, Person, Trouble},
        recovery,
    },
    member::Member,
};
use openmls::prelude::*;
use openmls_rust_crypto::RustCrypto;
use openmls_traits::{crypto::OpenMlsCrypto, signatures::Signer as _};

/// 16 random bytes.
pub fn new_id() -> [u8; 16] {
    *uuid::Uuid::new_v4().as_bytes()
}

/// What an insider makes of a Commit.
#[derive(Default)]
pub struct Plan {
    /// MLSMessage(KeyPackage) of whom to add.
    pub add: Vec<Vec<u8>>,
    /// Whom to remove.
    pub remove: Vec<Person>,
    /// Every second path secret is encrypted to nobody.
    pub half_the_path: bool,
}

/// An enrolled device with a group that it does not mean well.
pub struct Insider {
    pub member: Member,
    pub name: GroupName,
}

impl Insider {
    /// A Commit made by openmls, with the CommitInfo as `lie` leaves it. Nothing is sent.
    pub fn commit(&self, plan: &Plan, lie: impl FnOnce(&mut CommitInfo)) -> SubmitCommitRequest {
        self.member
            .step(|step, context| {
                let record = records::group(step, &self.name)?.unwrap();
                let mut mls_group = group::load(step, &self.name)?;
                let roster = group::roster(&mls_group)?;
                let provider = step.provider();
                let packages = plan.add.iter().map(|bytes| {
                    use openmls::prelude::tls_codec::Deserialize as _;
                    let message = MlsMessageIn::tls_deserialize_exact(bytes).unwrap();
                    let MlsMessageBodyIn::KeyPackage(package) = message.extract() else {
                        panic!("not a KeyPackage");
                    };
                    package
                        .validate(provider.crypto(), ProtocolVersion::Mls10)
                        .unwrap()
                });
                let packages: Vec<KeyPackage> = packages.collect();
                let added: Vec<Person> = packages
                    .iter()
                    .map(|package| {
                        let leaf = package.leaf_node();
                        client_cli::core::identity::person_of(
                            leaf.credential(),
                            leaf.signature_key().as_slice(),
                        )
                        .unwrap()
                    })
                    .collect();
                let removed = roster.iter().filter(|(_, p)| plan.remove.contains(p));
                let removed: Vec<LeafNodeIndex> = removed.map(|(index, _)| *index).collect();
                let mut info = CommitInfo {
                    added: members(added),
                    removed: members(plan.remove.clone()),
                    seen_seq: record.head_seq,
                    seen_chain: record.chain,
                    ..CommitInfo::default()
                };
                lie(&mut info);
                let message_id = new_id();
                let data = MessageData {
                    message_id: Some(message_id),
                    commit_info: Some(info),
                };
                mls_group.set_aad(data.encode());
                let before = mls_group.export_ratchet_tree();
                let key = context.identity.leaf_key(mls_group.ciphersuite())?;
                let crypto = FalseHand {
                    inner: provider.crypto(),
                    every: if plan.half_the_path { 2 } else { usize::MAX },
                    seals: AtomicUsize::new(0),
                };
                let bundle = mls_group
                    .commit_builder()
                    .propose_adds(packages)
                    .propose_removals(removed)
                    .force_self_update(true)
                    .load_psks(provider.storage())
                    .unwrap()
                    .create_group_info(true)
                    .build(provider.rand(), &crypto, &key, |_| true)
                    .unwrap()
                    .stage_commit(provider)
                    .unwrap();
                let after = mls_group
                    .pending_commit()
                    .unwrap()
                    .export_ratchet_tree(provider.crypto(), before.clone())
                    .unwrap()
                    .unwrap();
                let tree = group::tree_of(&after)?.update_since(&group::tree_of(&before)?);
                Ok(SubmitCommitRequest {
                    group: Some(self.name.to_ref()),
                    epoch_seq: record.epoch_seq,
                    bundles: vec![bundle_of(bundle, message_id, tree)?],
                })
            })
            .unwrap()
    }

    /// A Commit that nobody can open.
    pub fn garbage(&self) -> SubmitCommitRequest {
        let mut request = self.commit(&Plan::default(), |_| {});
        let mut commit = request.bundles[0].commit.to_vec();
        *commit.last_mut().unwrap() ^= 1;
        request.bundles[0].commit = commit.into();
        request
    }

    pub async fn submit(&self, request: SubmitCommitRequest) -> CommitResult {
        let answer = self
            .member
            .delivery(request, async |mut client, request| {
                Ok(client.submit_commit(request).await?.into_inner())
            })
            .await
            .unwrap();
        answer.value.results.into_iter().next().unwrap()
    }

    /// A GroupInfo of the same epoch and tree with another external_pub, signed for.
    pub fn false_group_info(&self, request: &mut SubmitCommitRequest) {
        let true_one = request.bundles[0].group_info.clone();
        let info = GroupInfo::parse(&true_one, group::MAX_BYTES).unwrap();
        let mut extension = 4u16.to_be_bytes().to_vec();
        let mut key = Vec::new();
        key.put_vector(&[9; 32]);
        extension.put_vector(&key);
        let mut body = info.group_context.clone();
        body.put_vector(&extension);
        body.put_vector(&info.confirmation_tag);
        body.put(&info.signer.to_be_bytes());
        let mut signed = Vec::new();
        signed.put_vector(b"MLS 1.0 GroupInfoTBS");
        signed.put_vector(&body);
        let key = self.member.identity().leaf_key(group::SUITES[0]).unwrap();
        body.put_vector(&key.sign(&signed).unwrap());
        request.bundles[0].group_info = [&[0, 1, 0, 4], body.as_slice()].concat().into();
    }

    /// Says that it cannot use a good Commit.
    pub async fn slander(&self, seq: u64, sha256: [u8; 32]) -> Option<u64> {
        let trouble = Trouble {
            seq,
            sha256,
            reason: 1,
            reported_at: None,
        };
        let failure: FailureReport = self
            .member
            .step(|step, context| recovery::report(step, context, &self.name, &trouble))
            .unwrap();
        let request = ReportEpochRequest {
            group: Some(self.name.to_ref()),
            epoch_seq: seq,
            report: Some(Report::Failure(failure)),
        };
        let answer = self
            .member
            .delivery(request, async |mut client, request| {
                Ok(client.report_epoch(request).await?.into_inner())
            })
            .await;
        answer.ok().map(|answer| answer.value.settled_seq)
    }
}

/// Spoils the Welcome of one joiner: it is of the right form, and opens to nothing.
pub fn spoil_welcome(request: &mut SubmitCommitRequest, place: usize) {
    let bytes = request.bundles[0].welcomes[0].clone();
    let mut welcome = Welcome::parse(&bytes, group::MAX_BYTES).unwrap();
    *welcome.secrets[place].1.last_mut().unwrap() ^= 1;
    let secrets: Vec<u8> = welcome
        .secrets
        .iter()
        .flat_map(|(_, s)| s.clone())
        .collect();
    let spoiled = assemble(welcome.suite, &secrets, &welcome.encrypted_group_info);
    request.bundles[0].welcomes = vec![spoiled.into()];
}

/// Cryptography that encrypts some path secrets to nobody.
struct FalseHand<'a> {
    inner: &'a RustCrypto,
    every: usize,
    seals: AtomicUsize,
}

impl OpenMlsCrypto for FalseHand<'_> {
    fn supports(&self, ciphersuite: Ciphersuite) -> Result<(), CryptoError> {
        self.inner.supports(ciphersuite)
    }

    fn supported_ciphersuites(&self) -> Vec<Ciphersuite> {
        self.inner.supported_ciphersuites()
    }

    fn hkdf_extract(
        &self,
        hash_type: HashType,
        salt: &[u8],
        ikm: &[u8],
    ) -> Result<tls_codec::SecretVLBytes, CryptoError> {
        self.inner.hkdf_extract(hash_type, salt, ikm)
    }

    fn hmac(
        &self,
        hash_type: HashType,
        key: &[u8],
        message: &[u8],
    ) -> Result<tls_codec::SecretVLBytes, CryptoError> {
        self.inner.hmac(hash_type, key, message)
    }

    fn hkdf_expand(
        &self,
        hash_type: HashType,
        prk: &[u8],
        info: &[u8],
        okm_len: usize,
    ) -> Result<tls_codec::SecretVLBytes, CryptoError> {
        self.inner.hkdf_expand(hash_type, prk, info, okm_len)
    }

    fn hash(&self, hash_type: HashType, data: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.inner.hash(hash_type, data)
    }

    fn aead_encrypt(
        &self,
        alg: AeadType,
        key: &[u8],
        data: &[u8],
        nonce: &[u8],
        aad: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        self.inner.aead_encrypt(alg, key, data, nonce, aad)
    }

    fn aead_decrypt(
        &self,
        alg: AeadType,
        key: &[u8],
        ct_tag: &[u8],
        nonce: &[u8],
        aad: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        self.inner.aead_decrypt(alg, key, ct_tag, nonce, aad)
    }

    fn signature_key_gen(&self, alg: SignatureScheme) -> Result<(Vec<u8>, Vec<u8>), CryptoError> {
        self.inner.signature_key_gen(alg)
    }

    fn verify_signature(
        &self,
        alg: SignatureScheme,
        data: &[u8],
        pk: &[u8],
        signature: &[u8],
    ) -> Result<(), CryptoError> {
        self.inner.verify_signature(alg, data, pk, signature)
    }

    fn sign(&self, alg: SignatureScheme, data: &[u8], key: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.inner.sign(alg, data, key)
    }

    fn hpke_seal(
        &self,
        config: HpkeConfig,
        pk_r: &[u8],
        info: &[u8],
        aad: &[u8],
        ptxt: &[u8],
    ) -> Result<HpkeCiphertext, CryptoError> {
        let mut sealed = self.inner.hpke_seal(config, pk_r, info, aad, ptxt)?;
        let place = self.seals.fetch_add(1, Ordering::Relaxed);
        if place % self.every == self.every - 1 {
            let mut bytes = sealed.ciphertext.as_slice().to_vec();
            bytes[0] ^= 1;
            sealed.ciphertext = bytes.into();
        }
        Ok(sealed)
    }

    fn hpke_open(
        &self,
        config: HpkeConfig,
        input: &HpkeCiphertext,
        sk_r: &[u8],
        info: &[u8],
        aad: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        self.inner.hpke_open(config, input, sk_r, info, aad)
    }

    fn hpke_setup_sender_and_export(
        &self,
        config: HpkeConfig,
        pk_r: &[u8],
        info: &[u8],
        exporter_context: &[u8],
        exporter_length: usize,
    ) -> Result<(KemOutput, ExporterSecret), CryptoError> {
        self.inner.hpke_setup_sender_and_export(
            config,
            pk_r,
            info,
            exporter_context,
            exporter_length,
        )
    }

    fn hpke_setup_receiver_and_export(
        &self,
        config: HpkeConfig,
        enc: &[u8],
        sk_r: &[u8],
        info: &[u8],
        exporter_context: &[u8],
        exporter_length: usize,
    ) -> Result<ExporterSecret, CryptoError> {
        self.inner.hpke_setup_receiver_and_export(
            config,
            enc,
            sk_r,
            info,
            exporter_context,
            exporter_length,
        )
    }

    fn derive_hpke_keypair(
        &self,
        config: HpkeConfig,
        ikm: &[u8],
    ) -> Result<HpkeKeyPair, CryptoError> {
        self.inner.derive_hpke_keypair(config, ikm)
    }
}
