//! What a handle of [`super::openmls_peer`] holds, and what it does in one transaction of its store.

use std::{collections::HashMap, sync::Arc};

use client_cli::store::{Step, Store, StoreError};
use openmls::{
    ciphersuite::hash_ref::ProposalRef,
    messages::group_info::VerifiableGroupInfo,
    prelude::{tls_codec::Deserialize as _, *},
    schedule::{ExternalPsk, PreSharedKeyId, Psk, psk::ResumptionPskUsage},
    treesync::RatchetTree,
};
use openmls_basic_credential::SignatureKeyPair;

use super::{
    peer::{Answer, Refusal, suite_of},
    proto::{Extension as WireExtension, *},
};

/// What openmls' rust-crypto provider has.
pub(super) const SUITES: [Ciphersuite; 3] = [
    Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
    Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256,
    Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519,
];
/// Past epochs, and their resumption PSKs, that a member keeps: scripts go back further than a product would.
pub(super) const PAST_EPOCHS: usize = 32;
pub(super) const NO_REINIT: &str = "openmls 0.9.2 has no ReInit";
pub(super) const NO_BRANCH: &str = "openmls 0.9.2 has no subgroup branching";
pub(super) const NO_EXTERNAL: &str = "openmls 0.9.2 takes no PSK and no ReInit proposal from an external sender (message type valn1502 in its validation)";

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Framed proposals of the current epoch that a member knows, its own ones too, and their references.
pub(super) type Known = HashMap<Vec<u8>, ProposalRef>;

/// One identity with its store: a pending join, then a state.
pub(super) struct Actor {
    pub(super) store: Store,
    pub(super) signer: Arc<SignatureKeyPair>,
    pub(super) suite: Ciphersuite,
    pub(super) group: Option<GroupId>,
    pub(super) known: Known,
}

/// A signer that is no member.
pub(super) struct Outside {
    pub(super) signer: Arc<SignatureKeyPair>,
    pub(super) sender: ExternalSender,
}

pub(super) fn tls<T>(value: &T) -> Answer<Vec<u8>>
where
    T: openmls::prelude::tls_codec::Serialize,
{
    value.tls_serialize_detached().map_err(Refusal::failed)
}

pub(super) fn message(bytes: &[u8]) -> Answer<MlsMessageBodyIn> {
    Ok(MlsMessageIn::tls_deserialize_exact(bytes)
        .map_err(|error| Refusal::invalid(format!("no MLSMessage: {error:?}")))?
        .extract())
}

pub(super) fn protocol_message(bytes: &[u8]) -> Answer<ProtocolMessage> {
    MlsMessageIn::tls_deserialize_exact(bytes)
        .map_err(|error| Refusal::invalid(format!("no MLSMessage: {error:?}")))?
        .try_into_protocol_message()
        .map_err(|_| Refusal::invalid("no message of a group"))
}

pub(super) fn key_package(provider: &impl OpenMlsProvider, bytes: &[u8]) -> Answer<KeyPackage> {
    let MlsMessageBodyIn::KeyPackage(package) = message(bytes)? else {
        return Err(Refusal::invalid("no KeyPackage"));
    };
    package
        .validate(provider.crypto(), ProtocolVersion::Mls10)
        .map_err(Refusal::failed)
}

pub(super) fn group_info(bytes: &[u8]) -> Answer<VerifiableGroupInfo> {
    let MlsMessageBodyIn::GroupInfo(info) = message(bytes)? else {
        return Err(Refusal::invalid("no GroupInfo"));
    };
    Ok(info)
}

/// Empty: there is none.
pub(super) fn tree_of(bytes: &[u8]) -> Answer<Option<RatchetTreeIn>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    RatchetTreeIn::tls_deserialize_exact(bytes)
        .map(Some)
        .map_err(|error| Refusal::invalid(format!("no ratchet tree: {error:?}")))
}

pub(super) fn config(encrypt_handshake: bool) -> MlsGroupJoinConfig {
    MlsGroupJoinConfig::builder()
        .wire_format_policy(wire_format(encrypt_handshake))
        .use_ratchet_tree_extension(true)
        .max_past_epochs(PAST_EPOCHS)
        .number_of_resumption_psks(PAST_EPOCHS)
        .sender_ratchet_configuration(SenderRatchetConfiguration::new(64, 10_000))
        .build()
}

pub(super) fn wire_format(encrypt_handshake: bool) -> WireFormatPolicy {
    if encrypt_handshake {
        PURE_CIPHERTEXT_WIRE_FORMAT_POLICY
    } else {
        PURE_PLAINTEXT_WIRE_FORMAT_POLICY
    }
}

pub(super) fn capabilities() -> Capabilities {
    Capabilities::new(
        None,
        Some(&SUITES),
        None,
        None,
        Some(&[CredentialType::Basic]),
    )
}

pub(super) fn credential(identity: &[u8]) -> Credential {
    BasicCredential::new(identity.to_vec()).into()
}

pub(super) fn credential_with_key(identity: &[u8], signer: &SignatureKeyPair) -> CredentialWithKey {
    CredentialWithKey {
        credential: credential(identity),
        signature_key: signer.public().into(),
    }
}

/// Extensions as the protocol has them, through their encoding: openmls gives each type its own shape.
pub(super) fn extensions(extensions: &[WireExtension]) -> Answer<Extensions<GroupContext>> {
    use chancery_proto::wire::Write as _;
    let mut list = Vec::new();
    for extension in extensions {
        list.put(&suite_of(extension.extension_type)?.to_be_bytes());
        list.put_vector(&extension.extension_data);
    }
    let mut encoded = Vec::new();
    encoded.put_vector(&list);
    Extensions::tls_deserialize_exact(&encoded)
        .map_err(|error| Refusal::invalid(format!("extensions: {error:?}")))
}

pub(super) fn leaf_of(group: &MlsGroup, identity: &[u8]) -> Answer<LeafNodeIndex> {
    let wanted = credential(identity);
    group
        .members()
        .find(|member| member.credential == wanted)
        .map(|member| member.index)
        .ok_or_else(|| {
            Refusal::Invalid(format!(
                "{} is no member",
                String::from_utf8_lossy(identity)
            ))
        })
}

pub(super) fn external_psk(
    provider: &impl OpenMlsProvider,
    suite: Ciphersuite,
    id: &[u8],
) -> Answer<PreSharedKeyId> {
    let psk = Psk::External(ExternalPsk::new(id.to_vec()));
    PreSharedKeyId::new(suite, provider.rand(), psk).map_err(Refusal::failed)
}

pub(super) fn resumption_psk(
    provider: &impl OpenMlsProvider,
    group: &MlsGroup,
    epoch: u64,
) -> Answer<PreSharedKeyId> {
    let nonce = provider
        .rand()
        .random_vec(group.ciphersuite().hash_length())
        .map_err(Refusal::failed)?;
    Ok(PreSharedKeyId::resumption(
        ResumptionPskUsage::Application,
        group.group_id().clone(),
        epoch.into(),
        nonce,
    ))
}

/// A member's group inside one transaction of its store.
pub(super) struct Open<'a> {
    pub(super) step: &'a Step<'a>,
    pub(super) group: MlsGroup,
    pub(super) signer: &'a SignatureKeyPair,
    pub(super) known: &'a mut Known,
}

impl Open<'_> {
    /// Takes in proposals that the member does not know yet.
    pub(super) fn take_in(&mut self, proposals: &[Vec<u8>]) -> Answer<()> {
        let provider = self.step.provider();
        for bytes in proposals {
            if self.known.contains_key(bytes) {
                continue;
            }
            let processed = self
                .group
                .process_message(provider, protocol_message(bytes)?);
            let processed = match processed {
                Err(ProcessMessageError::UnsupportedProposalType) => {
                    return Err(Refusal::unsupported(NO_EXTERNAL));
                }
                processed => processed.map_err(Refusal::failed)?,
            };
            let (ProcessedMessageContent::ProposalMessage(proposal)
            | ProcessedMessageContent::ExternalJoinProposalMessage(proposal)) =
                processed.into_content()
            else {
                return Err(Refusal::invalid("no proposal"));
            };
            let reference = proposal.proposal_reference_ref().clone();
            self.group
                .store_pending_proposal(provider.storage(), *proposal)?;
            self.known.insert(bytes.clone(), reference);
        }
        Ok(())
    }

    pub(super) fn proposed<E: std::fmt::Debug>(
        &mut self,
        made: Result<(MlsMessageOut, ProposalRef), E>,
    ) -> Answer<ProposalResponse> {
        let (message, reference) = made.map_err(Refusal::failed)?;
        let proposal = tls(&message)?;
        self.known.insert(proposal.clone(), reference);
        Ok(ProposalResponse { proposal })
    }

    pub(super) fn commit(&mut self, request: &CommitRequest) -> Answer<CommitResponse> {
        self.take_in(&request.by_reference)?;
        let wanted: Vec<ProposalRef> = request
            .by_reference
            .iter()
            .filter_map(|bytes| self.known.get(bytes).cloned())
            .collect();
        let provider = self.step.provider();
        let mut adds = Vec::new();
        let mut removes = Vec::new();
        let mut context = None;
        for described in &request.by_value {
            match described.proposal_type.as_slice() {
                b"add" => adds.push(key_package(provider, &described.key_package)?),
                b"remove" => removes.push(leaf_of(&self.group, &described.removed_id)?),
                b"externalPSK" => {
                    let suite = self.group.ciphersuite();
                    self.psk_by_value(external_psk(provider, suite, &described.psk_id)?)?;
                }
                b"resumptionPSK" => {
                    let id = resumption_psk(provider, &self.group, described.epoch_id)?;
                    self.psk_by_value(id)?;
                }
                b"groupContextExtensions" => context = Some(extensions(&described.extensions)?),
                other => {
                    return Err(Refusal::Invalid(format!(
                        "a Commit by value has no {}",
                        String::from_utf8_lossy(other)
                    )));
                }
            }
        }
        let before = self.group.export_ratchet_tree();
        let mut builder = self
            .group
            .commit_builder()
            .propose_adds(adds)
            .propose_removals(removes)
            .force_self_update(request.force_path);
        if let Some(context) = context {
            builder = builder
                .propose_group_context_extensions(context)
                .map_err(Refusal::failed)?;
        }
        let bundle = builder
            .load_psks(provider.storage())
            .map_err(Refusal::failed)?
            .create_group_info(true)
            .use_ratchet_tree_extension(!request.external_tree)
            .build(provider.rand(), provider.crypto(), self.signer, |queued| {
                queued.proposal_or_ref_type() == ProposalOrRefType::Proposal
                    || wanted.contains(queued.proposal_reference_ref())
            })
            .map_err(Refusal::failed)?
            .stage_commit(provider)
            .map_err(Refusal::failed)?;
        let (commit, welcome, _) = bundle.into_messages();
        let ratchet_tree = if request.external_tree {
            tls(&self.tree_after(before)?)?
        } else {
            Vec::new()
        };
        Ok(CommitResponse {
            commit: tls(&commit)?,
            welcome: welcome.map(|w| tls(&w)).transpose()?.unwrap_or_default(),
            ratchet_tree,
        })
    }

    /// Through the proposal store: of PSKs that are given to the Commit's builder openmls 0.9.2 mixes the secrets in before those of the store, and puts the
    /// proposals behind them, so that nobody else comes to the same epoch.
    fn psk_by_value(&mut self, id: PreSharedKeyId) -> Answer<()> {
        self.group
            .propose_pre_shared_key_by_value(self.step.provider(), self.signer, id)
            .map(|_| ())
            .map_err(Refusal::failed)
    }

    pub(super) fn tree_after(&self, before: RatchetTree) -> Answer<RatchetTree> {
        self.group
            .pending_commit()
            .ok_or_else(|| Refusal::Failed("no pending Commit".into()))?
            .export_ratchet_tree(self.step.provider().crypto(), before)
            .map_err(Refusal::failed)?
            .ok_or_else(|| Refusal::Failed("the pending Commit has no tree".into()))
    }

    pub(super) fn handle_commit(
        &mut self,
        request: &HandleCommitRequest,
    ) -> Answer<HandleCommitResponse> {
        self.take_in(&request.proposal)?;
        let provider = self.step.provider();
        let processed = self
            .group
            .process_message(provider, protocol_message(&request.commit)?)
            .map_err(Refusal::failed)?;
        let ProcessedMessageContent::StagedCommitMessage(staged) = processed.into_content() else {
            return Err(Refusal::invalid("no Commit of another member"));
        };
        self.group
            .merge_staged_commit(provider, *staged)
            .map_err(Refusal::failed)?;
        self.known.clear();
        Ok(self.in_epoch(request.state_id))
    }

    pub(super) fn in_epoch(&self, state_id: u32) -> HandleCommitResponse {
        HandleCommitResponse {
            state_id,
            epoch_authenticator: self.group.epoch_authenticator().as_slice().to_vec(),
        }
    }
}

impl Actor {
    pub(super) fn new(suite: Ciphersuite, signer: Arc<SignatureKeyPair>) -> Answer<Self> {
        Ok(Self {
            store: Store::in_memory()?,
            signer,
            suite,
            group: None,
            known: Known::new(),
        })
    }

    /// Works on the group in one transaction: a failure leaves everything as it was.
    pub(super) fn open<R>(&mut self, work: impl FnOnce(&mut Open<'_>) -> Answer<R>) -> Answer<R> {
        let id = self
            .group
            .clone()
            .ok_or_else(|| Refusal::invalid("the handle is no state of a group yet"))?;
        let signer = &*self.signer;
        let mut known = self.known.clone();
        let done = self.store.step(|step| {
            let group = MlsGroup::load(step.provider().storage(), &id)?
                .ok_or_else(|| Refusal::Failed("the store has lost the group".into()))?;
            work(&mut Open {
                step,
                group,
                signer,
                known: &mut known,
            })
        })?;
        self.known = known;
        Ok(done)
    }

    pub(super) fn key_package(&mut self, identity: &[u8]) -> Answer<KeyPackageBundle> {
        let (signer, suite) = (&*self.signer, self.suite);
        self.store.step(|step| {
            KeyPackage::builder()
                .leaf_node_capabilities(capabilities())
                .build(
                    suite,
                    step.provider(),
                    signer,
                    credential_with_key(identity, signer),
                )
                .map_err(Refusal::failed)
        })
    }

    pub(super) fn store_psk(&mut self, id: &[u8], secret: &[u8]) -> Answer<()> {
        let suite = self.suite;
        self.store.step(|step| {
            external_psk(step.provider(), suite, id)?
                .store(step.provider(), secret)
                .map_err(Refusal::failed)
        })
    }

    pub(super) fn join(&mut self, request: &JoinGroupRequest) -> Answer<Vec<u8>> {
        let MlsMessageBodyIn::Welcome(welcome) = message(&request.welcome)? else {
            return Err(Refusal::invalid("no Welcome"));
        };
        let tree = tree_of(&request.ratchet_tree)?;
        let config = config(request.encrypt_handshake);
        let group = self.store.step(|step| {
            let provider = step.provider();
            let mut staged = StagedWelcome::build_from_welcome(provider, &config, welcome)
                .map_err(Refusal::failed)?;
            if let Some(tree) = tree {
                staged = staged.with_ratchet_tree(tree);
            }
            staged
                .build()
                .map_err(Refusal::failed)?
                .into_group(provider)
                .map_err(Refusal::failed)
        })?;
        self.group = Some(group.group_id().clone());
        Ok(group.epoch_authenticator().as_slice().to_vec())
    }

    pub(super) fn external(
        &mut self,
        request: &ExternalJoinRequest,
    ) -> Answer<ExternalJoinResponse> {
        for psk in &request.psks {
            self.store_psk(&psk.psk_id, &psk.psk_secret)?;
        }
        let info = group_info(&request.group_info)?;
        let tree = tree_of(&request.ratchet_tree)?;
        let (signer, suite) = (&*self.signer, self.suite);
        let (group, commit) = self.store.step(|step| {
            let provider = step.provider();
            let mut builder =
                MlsGroup::external_commit_builder().with_config(config(request.encrypt_handshake));
            if let Some(tree) = tree {
                builder = builder.with_ratchet_tree(tree);
            }
            let psks = request
                .psks
                .iter()
                .map(|psk| {
                    external_psk(provider, suite, &psk.psk_id).map(PreSharedKeyProposal::new)
                })
                .collect::<Answer<Vec<_>>>()?;
            let own = credential_with_key(&request.identity, signer);
            let leaf = LeafNodeParameters::builder()
                .with_capabilities(capabilities())
                .build();
            let (group, bundle) = builder
                .build_group(provider, info, own)
                .map_err(Refusal::failed)?
                .leaf_node_parameters(leaf)
                .add_psk_proposals(psks)
                .load_psks(provider.storage())
                .map_err(Refusal::failed)?
                .build(provider.rand(), provider.crypto(), signer, |_| true)
                .map_err(Refusal::failed)?
                .finalize(provider)
                .map_err(Refusal::failed)?;
            Ok::<_, Refusal>((group, tls(&bundle.into_commit())?))
        })?;
        self.group = Some(group.group_id().clone());
        Ok(ExternalJoinResponse {
            state_id: 0,
            commit,
            epoch_authenticator: group.epoch_authenticator().as_slice().to_vec(),
        })
    }
}

impl Outside {
    /// Where this signer stands among the group's external senders.
    pub(super) fn index(
        &self,
        context_extensions: &[(u16, Vec<u8>)],
    ) -> Answer<SenderExtensionIndex> {
        const EXTERNAL_SENDERS: u16 = 5;
        let (_, data) = context_extensions
            .iter()
            .find(|(kind, _)| *kind == EXTERNAL_SENDERS)
            .ok_or_else(|| Refusal::invalid("the group has no external senders"))?;
        let senders = ExternalSendersExtension::tls_deserialize_exact(data)
            .map_err(|error| Refusal::invalid(format!("external senders: {error:?}")))?;
        senders
            .iter()
            .position(|sender| *sender == self.sender)
            .and_then(|index| u32::try_from(index).ok())
            .map(SenderExtensionIndex::new)
            .ok_or_else(|| Refusal::invalid("this signer is no external sender of the group"))
    }

    pub(super) fn propose(
        &self,
        request: &ExternalSignerProposalRequest,
    ) -> Answer<ProposalResponse> {
        let described = request
            .description
            .as_ref()
            .ok_or_else(|| Refusal::invalid("no description"))?;
        let info =
            chancery_proto::group_info::GroupInfo::parse(&request.group_info, super::MAX_BYTES)
                .map_err(|error| Refusal::invalid(error.0))?;
        let index = self.index(&info.context_extensions)?;
        let group = GroupId::from_slice(&info.group_id);
        let epoch = info.epoch.into();
        let provider = openmls_rust_crypto::OpenMlsRustCrypto::default();
        let made = match described.proposal_type.as_slice() {
            b"add" => {
                let package = key_package(&provider, &described.key_package)?;
                ExternalProposal::new_add::<openmls_rust_crypto::OpenMlsRustCrypto>(
                    package,
                    group,
                    epoch,
                    &*self.signer,
                    index,
                )
                .map_err(Refusal::failed)?
            }
            b"remove" => {
                let leaf = self.leaf_of(&request.ratchet_tree, &described.removed_id)?;
                ExternalProposal::new_remove::<openmls_rust_crypto::OpenMlsRustCrypto>(
                    leaf,
                    group,
                    epoch,
                    &*self.signer,
                    index,
                )
                .map_err(Refusal::failed)?
            }
            b"groupContextExtensions" => {
                let extensions = extensions(&described.extensions)?;
                ExternalProposal::new_group_context_extensions::<
                    openmls_rust_crypto::OpenMlsRustCrypto,
                >(extensions, group, epoch, &*self.signer, index)
                .map_err(Refusal::failed)?
            }
            _ => return Err(Refusal::unsupported(NO_EXTERNAL)),
        };
        Ok(ProposalResponse {
            proposal: tls(&made)?,
        })
    }

    pub(super) fn leaf_of(&self, tree: &[u8], identity: &[u8]) -> Answer<LeafNodeIndex> {
        let tree = mls_rs::group::ExportedTree::from_bytes(tree).map_err(Refusal::failed)?;
        super::identities(&tree)
            .into_iter()
            .find(|(_, name)| name == identity)
            .map(|(index, _)| LeafNodeIndex::new(index))
            .ok_or_else(|| Refusal::invalid("no such member"))
    }
}
