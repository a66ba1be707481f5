//! openmls behind the protocol, on our client's store: every step is one transaction, and the group is read from the store at each.
//!
//! openmls 0.9.2 has no ReInit, no branch, and takes no PSK or ReInit proposal from an external sender: those steps are refused with that reason.

use std::sync::Arc;

use openmls::prelude::{tls_codec::Deserialize as _, *};
use openmls_basic_credential::SignatureKeyPair;

use super::{
    handles::{Handles, Keys},
    openmls_state::*,
    peer::{Answer, Peer, Refusal, suite_of},
    proto::*,
};

enum Handle {
    Actor(Box<Actor>),
    Outside(Outside),
}

/// openmls behind the protocol.
#[derive(Default)]
pub struct OpenMlsPeer {
    handles: Handles<Handle>,
    keys: Keys<Arc<SignatureKeyPair>>,
}

impl OpenMlsPeer {
    fn suite(number: u32) -> Answer<Ciphersuite> {
        Ciphersuite::try_from(suite_of(number)?)
            .ok()
            .filter(|suite| SUITES.contains(suite))
            .ok_or_else(|| Refusal::Unsupported(format!("openmls has no suite {number}")))
    }

    fn signer(&self, suite: Ciphersuite, identity: &[u8]) -> Answer<Arc<SignatureKeyPair>> {
        self.keys.of(identity, suite.into(), || {
            SignatureKeyPair::new(suite.signature_algorithm())
                .map(Arc::new)
                .map_err(Refusal::failed)
        })
    }

    fn member<R>(&self, number: u32, work: impl FnOnce(&mut Actor) -> Answer<R>) -> Answer<R> {
        self.handles.with(number, |handle| match handle {
            Handle::Actor(member) => work(member),
            Handle::Outside(_) => Err(Refusal::invalid("the handle is an external signer")),
        })
    }

    fn open<R>(&self, number: u32, work: impl FnOnce(&mut Open<'_>) -> Answer<R>) -> Answer<R> {
        self.member(number, |member| member.open(work))
    }

    fn keep(&self, member: Actor) -> u32 {
        self.handles.keep(Handle::Actor(Box::new(member)))
    }
}

impl Peer for OpenMlsPeer {
    fn name(&self, _request: NameRequest) -> Answer<NameResponse> {
        Ok(NameResponse {
            name: "Chancery client (openmls)".into(),
        })
    }

    fn supported_ciphersuites(
        &self,
        _request: SupportedCiphersuitesRequest,
    ) -> Answer<SupportedCiphersuitesResponse> {
        Ok(SupportedCiphersuitesResponse {
            ciphersuites: SUITES.map(|suite| u16::from(suite).into()).to_vec(),
        })
    }

    fn create_group(&self, request: CreateGroupRequest) -> Answer<CreateGroupResponse> {
        let suite = Self::suite(request.cipher_suite)?;
        let signer = self.signer(suite, &request.identity)?;
        let mut member = Actor::new(suite, signer)?;
        let signer = &*member.signer;
        let group = member.store.step(|step| {
            MlsGroup::builder()
                .with_group_id(GroupId::from_slice(&request.group_id))
                .ciphersuite(suite)
                .with_wire_format_policy(wire_format(request.encrypt_handshake))
                .use_ratchet_tree_extension(true)
                .max_past_epochs(PAST_EPOCHS)
                .number_of_resumption_psks(PAST_EPOCHS)
                .sender_ratchet_configuration(SenderRatchetConfiguration::new(64, 10_000))
                .with_capabilities(capabilities())
                .build(
                    step.provider(),
                    signer,
                    credential_with_key(&request.identity, signer),
                )
                .map_err(Refusal::failed)
        })?;
        member.group = Some(group.group_id().clone());
        Ok(CreateGroupResponse {
            state_id: self.keep(member),
        })
    }

    fn create_key_package(
        &self,
        request: CreateKeyPackageRequest,
    ) -> Answer<CreateKeyPackageResponse> {
        let suite = Self::suite(request.cipher_suite)?;
        let mut member = Actor::new(suite, self.signer(suite, &request.identity)?)?;
        let bundle = member.key_package(&request.identity)?;
        Ok(CreateKeyPackageResponse {
            key_package: tls(&MlsMessageOut::from(bundle.key_package().clone()))?,
            init_priv: bundle.init_private_key().to_vec(),
            // openmls does not give the leaf's key away.
            encryption_priv: Vec::new(),
            // openmls does not give a signature key away either.
            signature_priv: Vec::new(),
            transaction_id: self.keep(member),
        })
    }

    fn join_group(&self, request: JoinGroupRequest) -> Answer<JoinGroupResponse> {
        self.member(request.transaction_id, |member| {
            Ok(JoinGroupResponse {
                state_id: request.transaction_id,
                epoch_authenticator: member.join(&request)?,
            })
        })
    }

    fn external_join(&self, request: ExternalJoinRequest) -> Answer<ExternalJoinResponse> {
        let suite = group_info(&request.group_info)?.ciphersuite();
        let suite = Self::suite(u16::from(suite).into())?;
        let mut member = Actor::new(suite, self.signer(suite, &request.identity)?)?;
        let joined = member.external(&request)?;
        Ok(ExternalJoinResponse {
            state_id: self.keep(member),
            ..joined
        })
    }

    fn group_info(&self, request: GroupInfoRequest) -> Answer<GroupInfoResponse> {
        self.open(request.state_id, |open| {
            let crypto = open.step.provider().crypto();
            let info = open
                .group
                .export_group_info(crypto, open.signer, !request.external_tree)
                .map_err(Refusal::failed)?;
            let ratchet_tree = if request.external_tree {
                tls(&open.group.export_ratchet_tree())?
            } else {
                Vec::new()
            };
            Ok(GroupInfoResponse {
                group_info: tls(&info)?,
                ratchet_tree,
            })
        })
    }

    fn state_auth(&self, request: StateAuthRequest) -> Answer<StateAuthResponse> {
        self.open(request.state_id, |open| {
            Ok(StateAuthResponse {
                state_auth_secret: open.group.epoch_authenticator().as_slice().to_vec(),
            })
        })
    }

    fn export(&self, request: ExportRequest) -> Answer<ExportResponse> {
        let length = request.key_length.try_into().map_err(Refusal::failed)?;
        self.open(request.state_id, |open| {
            let crypto = open.step.provider().crypto();
            let exported_secret = open
                .group
                .export_secret(crypto, &request.label, &request.context, length)
                .map_err(Refusal::failed)?;
            Ok(ExportResponse { exported_secret })
        })
    }

    fn protect(&self, request: ProtectRequest) -> Answer<ProtectResponse> {
        self.open(request.state_id, |open| {
            open.group.set_aad(request.authenticated_data);
            let message = open
                .group
                .create_message(open.step.provider(), open.signer, &request.plaintext)
                .map_err(Refusal::failed)?;
            Ok(ProtectResponse {
                ciphertext: tls(&message)?,
            })
        })
    }

    fn unprotect(&self, request: UnprotectRequest) -> Answer<UnprotectResponse> {
        self.open(request.state_id, |open| {
            let processed = open
                .group
                .process_message(open.step.provider(), protocol_message(&request.ciphertext)?)
                .map_err(Refusal::failed)?;
            let authenticated_data = processed.aad().to_vec();
            let ProcessedMessageContent::ApplicationMessage(text) = processed.into_content() else {
                return Err(Refusal::invalid("no application message of another member"));
            };
            Ok(UnprotectResponse {
                authenticated_data,
                plaintext: text.into_bytes(),
            })
        })
    }

    fn store_psk(&self, request: StorePskRequest) -> Answer<StorePskResponse> {
        self.member(request.state_or_transaction_id, |member| {
            member.store_psk(&request.psk_id, &request.psk_secret)?;
            Ok(StorePskResponse {})
        })
    }

    fn add_proposal(&self, request: AddProposalRequest) -> Answer<ProposalResponse> {
        self.open(request.state_id, |open| {
            let provider = open.step.provider();
            let package = key_package(provider, &request.key_package)?;
            let made = open
                .group
                .propose_add_member(provider, open.signer, &package);
            open.proposed(made)
        })
    }

    fn update_proposal(&self, request: UpdateProposalRequest) -> Answer<ProposalResponse> {
        self.open(request.state_id, |open| {
            let leaf = LeafNodeParameters::default();
            let made = open
                .group
                .propose_self_update(open.step.provider(), open.signer, leaf);
            open.proposed(made)
        })
    }

    fn remove_proposal(&self, request: RemoveProposalRequest) -> Answer<ProposalResponse> {
        self.open(request.state_id, |open| {
            let leaf = leaf_of(&open.group, &request.removed_id)?;
            let made = open
                .group
                .propose_remove_member(open.step.provider(), open.signer, leaf);
            open.proposed(made)
        })
    }

    fn external_psk_proposal(
        &self,
        request: ExternalPskProposalRequest,
    ) -> Answer<ProposalResponse> {
        self.open(request.state_id, |open| {
            let provider = open.step.provider();
            let id = external_psk(provider, open.group.ciphersuite(), &request.psk_id)?;
            let made = open.group.propose_pre_shared_key(provider, open.signer, id);
            open.proposed(made)
        })
    }

    fn resumption_psk_proposal(
        &self,
        request: ResumptionPskProposalRequest,
    ) -> Answer<ProposalResponse> {
        self.open(request.state_id, |open| {
            let provider = open.step.provider();
            let id = resumption_psk(provider, &open.group, request.epoch_id)?;
            let made = open.group.propose_pre_shared_key(provider, open.signer, id);
            open.proposed(made)
        })
    }

    fn group_context_extensions_proposal(
        &self,
        request: GroupContextExtensionsProposalRequest,
    ) -> Answer<ProposalResponse> {
        self.open(request.state_id, |open| {
            let made = open.group.propose_group_context_extensions(
                open.step.provider(),
                extensions(&request.extensions)?,
                open.signer,
            );
            open.proposed(made)
        })
    }

    fn commit(&self, request: CommitRequest) -> Answer<CommitResponse> {
        self.open(request.state_id, |open| open.commit(&request))
    }

    fn handle_commit(&self, request: HandleCommitRequest) -> Answer<HandleCommitResponse> {
        self.open(request.state_id, |open| open.handle_commit(&request))
    }

    fn handle_pending_commit(
        &self,
        request: HandlePendingCommitRequest,
    ) -> Answer<HandleCommitResponse> {
        self.open(request.state_id, |open| {
            if open.group.pending_commit().is_none() {
                return Err(Refusal::invalid("no Commit is pending"));
            }
            open.group
                .merge_pending_commit(open.step.provider())
                .map_err(Refusal::failed)?;
            open.known.clear();
            Ok(open.in_epoch(request.state_id))
        })
    }

    fn re_init_proposal(&self, _request: ReInitProposalRequest) -> Answer<ProposalResponse> {
        Err(Refusal::unsupported(NO_REINIT))
    }

    fn re_init_commit(&self, _request: CommitRequest) -> Answer<CommitResponse> {
        Err(Refusal::unsupported(NO_REINIT))
    }

    fn handle_pending_re_init_commit(
        &self,
        _request: HandlePendingCommitRequest,
    ) -> Answer<HandleReInitCommitResponse> {
        Err(Refusal::unsupported(NO_REINIT))
    }

    fn handle_re_init_commit(
        &self,
        _request: HandleCommitRequest,
    ) -> Answer<HandleReInitCommitResponse> {
        Err(Refusal::unsupported(NO_REINIT))
    }

    fn re_init_welcome(&self, _request: ReInitWelcomeRequest) -> Answer<CreateSubgroupResponse> {
        Err(Refusal::unsupported(NO_REINIT))
    }

    fn handle_re_init_welcome(
        &self,
        _request: HandleReInitWelcomeRequest,
    ) -> Answer<JoinGroupResponse> {
        Err(Refusal::unsupported(NO_REINIT))
    }

    fn create_branch(&self, _request: CreateBranchRequest) -> Answer<CreateSubgroupResponse> {
        Err(Refusal::unsupported(NO_BRANCH))
    }

    fn handle_branch(&self, _request: HandleBranchRequest) -> Answer<HandleBranchResponse> {
        Err(Refusal::unsupported(NO_BRANCH))
    }

    fn new_member_add_proposal(
        &self,
        request: NewMemberAddProposalRequest,
    ) -> Answer<NewMemberAddProposalResponse> {
        let info = group_info(&request.group_info)?;
        let suite = Self::suite(u16::from(info.ciphersuite()).into())?;
        let mut member = Actor::new(suite, self.signer(suite, &request.identity)?)?;
        let bundle = member.key_package(&request.identity)?;
        let proposal = JoinProposal::new::<client_cli::store::rows::Rows<'_>>(
            bundle.key_package().clone(),
            info.group_id().clone(),
            info.epoch(),
            &*member.signer,
        )
        .map_err(Refusal::failed)?;
        Ok(NewMemberAddProposalResponse {
            proposal: tls(&proposal)?,
            init_priv: bundle.init_private_key().to_vec(),
            encryption_priv: Vec::new(),
            // openmls does not give a signature key away either.
            signature_priv: Vec::new(),
            transaction_id: self.keep(member),
        })
    }

    fn create_external_signer(
        &self,
        request: CreateExternalSignerRequest,
    ) -> Answer<CreateExternalSignerResponse> {
        let suite = Self::suite(request.cipher_suite)?;
        let signer = self.signer(suite, &request.identity)?;
        let sender = ExternalSender::new(signer.public().into(), credential(&request.identity));
        Ok(CreateExternalSignerResponse {
            external_sender: tls(&sender)?,
            signer_id: self
                .handles
                .keep(Handle::Outside(Outside { signer, sender })),
        })
    }

    fn add_external_signer(&self, request: AddExternalSignerRequest) -> Answer<ProposalResponse> {
        let sender = ExternalSender::tls_deserialize_exact(&request.external_sender)
            .map_err(|error| Refusal::invalid(format!("no external sender: {error:?}")))?;
        self.open(request.state_id, |open| {
            let mut extensions = open.group.extensions().clone();
            let mut senders = extensions.external_senders().cloned().unwrap_or_default();
            senders.push(sender);
            extensions
                .add_or_replace(openmls::prelude::Extension::ExternalSenders(senders))
                .map_err(Refusal::failed)?;
            let made = open.group.propose_group_context_extensions(
                open.step.provider(),
                extensions,
                open.signer,
            );
            open.proposed(made)
        })
    }

    fn external_signer_proposal(
        &self,
        request: ExternalSignerProposalRequest,
    ) -> Answer<ProposalResponse> {
        self.handles.with(request.signer_id, |handle| match handle {
            Handle::Outside(outside) => outside.propose(&request),
            Handle::Actor(_) => Err(Refusal::invalid("the handle is no external signer")),
        })
    }

    fn free(&self, request: FreeRequest) -> Answer<FreeResponse> {
        self.handles.free(request.state_id);
        Ok(FreeResponse {})
    }
}
