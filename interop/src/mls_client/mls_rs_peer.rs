//! mls-rs behind the protocol. It commits to everything that it has proposed or taken in during an epoch.

use mls_rs::{
    CipherSuite, CipherSuiteProvider as _, CryptoProvider as _, ExtensionList, Group, MlsMessage,
    ProtocolVersion,
    extension::built_in::ExternalSendersExt,
    group::ReceivedMessage,
    identity::{SigningIdentity, basic::BasicCredential},
    mls_rs_codec::{MlsDecode as _, MlsEncode as _},
    psk::ExternalPskId,
};
use mls_rs_crypto_rustcrypto::RustCryptoProvider;

use super::{
    handles::{Handles, Keys},
    mls_rs_state::*,
    peer::{Answer, Peer, Refusal},
    proto::*,
};

enum Handle {
    Member(Box<Member>),
    Outside(Box<Signer>),
}

/// mls-rs behind the protocol.
#[derive(Default)]
pub struct MlsRsPeer {
    handles: Handles<Handle>,
    keys: Keys<Signer>,
}

impl MlsRsPeer {
    fn signer(&self, suite: CipherSuite, identity: &[u8]) -> Answer<Signer> {
        self.keys.of(identity, suite.into(), || {
            let (secret, public) = RustCryptoProvider::default()
                .cipher_suite_provider(suite)
                .ok_or_else(|| Refusal::unsupported("no such suite"))?
                .signature_key_generate()
                .map_err(Refusal::failed)?;
            let credential = BasicCredential::new(identity.to_vec()).into_credential();
            Ok(Signer {
                secret,
                identity: SigningIdentity::new(credential, public),
            })
        })
    }

    fn new_member(&self, number: u32, identity: &[u8]) -> Answer<Member> {
        let suite = suite(number)?;
        Ok(Member::new(suite, self.signer(suite, identity)?))
    }

    fn member<R>(&self, number: u32, work: impl FnOnce(&mut Member) -> Answer<R>) -> Answer<R> {
        self.handles.with(number, |handle| match handle {
            Handle::Member(member) => work(member),
            Handle::Outside(_) => Err(Refusal::invalid("the handle is an external signer")),
        })
    }

    /// Makes a proposal by reference.
    fn propose<E: std::fmt::Debug>(
        &self,
        number: u32,
        make: impl FnOnce(&mut Group<Config>) -> Result<MlsMessage, E>,
    ) -> Answer<ProposalResponse> {
        self.member(number, |member| {
            let made = make(member.group()?).map_err(Refusal::failed)?;
            member.proposed(&made)
        })
    }

    fn keep(&self, member: Member) -> u32 {
        self.handles.keep(Handle::Member(Box::new(member)))
    }
}

impl Peer for MlsRsPeer {
    fn name(&self, _request: NameRequest) -> Answer<NameResponse> {
        Ok(NameResponse {
            name: "mls-rs".into(),
        })
    }

    fn supported_ciphersuites(
        &self,
        _request: SupportedCiphersuitesRequest,
    ) -> Answer<SupportedCiphersuitesResponse> {
        let suites = RustCryptoProvider::default().supported_cipher_suites();
        Ok(SupportedCiphersuitesResponse {
            ciphersuites: suites.into_iter().map(|s| u16::from(s).into()).collect(),
        })
    }

    fn create_group(&self, request: CreateGroupRequest) -> Answer<CreateGroupResponse> {
        let mut member = self.new_member(request.cipher_suite, &request.identity)?;
        member.rules.encrypt_handshake(request.encrypt_handshake);
        let group = member
            .client
            .create_group_with_id(
                request.group_id,
                ExtensionList::new(),
                ExtensionList::new(),
                None,
            )
            .map_err(Refusal::failed)?;
        member.group = Some(group);
        Ok(CreateGroupResponse {
            state_id: self.keep(member),
        })
    }

    fn create_key_package(
        &self,
        request: CreateKeyPackageRequest,
    ) -> Answer<CreateKeyPackageResponse> {
        let member = self.new_member(request.cipher_suite, &request.identity)?;
        let package = member
            .client
            .generate_key_package_message(ExtensionList::new(), ExtensionList::new(), None)
            .map_err(Refusal::failed)?;
        let (init_priv, encryption_priv) = member.secrets()?;
        Ok(CreateKeyPackageResponse {
            key_package: bytes(&package)?,
            init_priv,
            encryption_priv,
            signature_priv: member.signer.secret.to_vec(),
            transaction_id: self.keep(member),
        })
    }

    fn join_group(&self, request: JoinGroupRequest) -> Answer<JoinGroupResponse> {
        self.member(request.transaction_id, |member| {
            member.rules.encrypt_handshake(request.encrypt_handshake);
            let tree = tree_of(&request.ratchet_tree)?;
            let (group, _) = member
                .client
                .join_group(tree, &message(&request.welcome)?, None)
                .map_err(Refusal::failed)?;
            member.group = Some(group);
            Ok(JoinGroupResponse {
                state_id: request.transaction_id,
                epoch_authenticator: member.authenticator()?,
            })
        })
    }

    fn external_join(&self, request: ExternalJoinRequest) -> Answer<ExternalJoinResponse> {
        let suite = message(&request.group_info)?
            .cipher_suite()
            .ok_or_else(|| Refusal::invalid("no GroupInfo"))?;
        let mut member = self.new_member(u16::from(suite).into(), &request.identity)?;
        let joined = member.external(request)?;
        Ok(ExternalJoinResponse {
            state_id: self.keep(member),
            ..joined
        })
    }

    fn group_info(&self, request: GroupInfoRequest) -> Answer<GroupInfoResponse> {
        self.member(request.state_id, |member| {
            let info = member
                .group()?
                .group_info_message_allowing_ext_commit(!request.external_tree)
                .map_err(Refusal::failed)?;
            Ok(GroupInfoResponse {
                group_info: bytes(&info)?,
                ratchet_tree: member.tree(request.external_tree)?,
            })
        })
    }

    fn state_auth(&self, request: StateAuthRequest) -> Answer<StateAuthResponse> {
        self.member(request.state_id, |member| {
            Ok(StateAuthResponse {
                state_auth_secret: member.authenticator()?,
            })
        })
    }

    fn export(&self, request: ExportRequest) -> Answer<ExportResponse> {
        let length = request.key_length.try_into().map_err(Refusal::failed)?;
        self.member(request.state_id, |member| {
            let secret = member
                .group()?
                .export_secret(request.label.as_bytes(), &request.context, length)
                .map_err(Refusal::failed)?;
            Ok(ExportResponse {
                exported_secret: secret.as_bytes().to_vec(),
            })
        })
    }

    fn protect(&self, request: ProtectRequest) -> Answer<ProtectResponse> {
        self.member(request.state_id, |member| {
            let made = member
                .group()?
                .encrypt_application_message(&request.plaintext, request.authenticated_data)
                .map_err(Refusal::failed)?;
            Ok(ProtectResponse {
                ciphertext: bytes(&made)?,
            })
        })
    }

    fn unprotect(&self, request: UnprotectRequest) -> Answer<UnprotectResponse> {
        self.member(request.state_id, |member| {
            let received = member
                .group()?
                .process_incoming_message(message(&request.ciphertext)?)
                .map_err(Refusal::failed)?;
            let ReceivedMessage::ApplicationMessage(text) = received else {
                return Err(Refusal::invalid("no application message"));
            };
            Ok(UnprotectResponse {
                plaintext: text.data().to_vec(),
                authenticated_data: text.authenticated_data,
            })
        })
    }

    fn store_psk(&self, request: StorePskRequest) -> Answer<StorePskResponse> {
        self.member(request.state_or_transaction_id, |member| {
            let id = ExternalPskId::new(request.psk_id);
            member
                .client
                .secret_store()
                .insert(id, request.psk_secret.into());
            Ok(StorePskResponse {})
        })
    }

    fn add_proposal(&self, request: AddProposalRequest) -> Answer<ProposalResponse> {
        let package = message(&request.key_package)?;
        self.propose(request.state_id, |g| g.propose_add(package, vec![]))
    }

    fn update_proposal(&self, request: UpdateProposalRequest) -> Answer<ProposalResponse> {
        self.propose(request.state_id, |g| g.propose_update(vec![]))
    }

    fn remove_proposal(&self, request: RemoveProposalRequest) -> Answer<ProposalResponse> {
        self.member(request.state_id, |member| {
            let group = member.group()?;
            let leaf = leaf_of(&group.roster(), &request.removed_id)?;
            let made = group
                .propose_remove(leaf, vec![])
                .map_err(Refusal::failed)?;
            member.proposed(&made)
        })
    }

    fn external_psk_proposal(
        &self,
        request: ExternalPskProposalRequest,
    ) -> Answer<ProposalResponse> {
        let id = ExternalPskId::new(request.psk_id);
        self.propose(request.state_id, |g| g.propose_external_psk(id, vec![]))
    }

    fn resumption_psk_proposal(
        &self,
        request: ResumptionPskProposalRequest,
    ) -> Answer<ProposalResponse> {
        let epoch = request.epoch_id;
        self.propose(request.state_id, |g| {
            g.propose_resumption_psk(epoch, vec![])
        })
    }

    fn group_context_extensions_proposal(
        &self,
        request: GroupContextExtensionsProposalRequest,
    ) -> Answer<ProposalResponse> {
        let extensions = extensions(request.extensions)?;
        self.propose(request.state_id, |g| {
            g.propose_group_context_extensions(extensions, vec![])
        })
    }

    fn commit(&self, request: CommitRequest) -> Answer<CommitResponse> {
        self.member(request.state_id, |member| member.commit(request))
    }

    fn handle_commit(&self, request: HandleCommitRequest) -> Answer<HandleCommitResponse> {
        self.member(request.state_id, |member| {
            member.handle_commit(&request)?;
            Ok(HandleCommitResponse {
                state_id: request.state_id,
                epoch_authenticator: member.authenticator()?,
            })
        })
    }

    fn handle_pending_commit(
        &self,
        request: HandlePendingCommitRequest,
    ) -> Answer<HandleCommitResponse> {
        self.member(request.state_id, |member| {
            member.apply_pending()?;
            Ok(HandleCommitResponse {
                state_id: request.state_id,
                epoch_authenticator: member.authenticator()?,
            })
        })
    }

    fn re_init_proposal(&self, request: ReInitProposalRequest) -> Answer<ProposalResponse> {
        let suite = suite(request.cipher_suite)?;
        let extensions = extensions(request.extensions)?;
        self.propose(request.state_id, |g| {
            g.propose_reinit(
                Some(request.group_id),
                ProtocolVersion::MLS_10,
                suite,
                extensions,
                vec![],
            )
        })
    }

    fn re_init_commit(&self, request: CommitRequest) -> Answer<CommitResponse> {
        self.commit(request)
    }

    fn handle_pending_re_init_commit(
        &self,
        request: HandlePendingCommitRequest,
    ) -> Answer<HandleReInitCommitResponse> {
        self.member(request.state_id, |member| {
            let commit = member.apply_pending()?;
            member.reinit(request.state_id, commit, |suite, own| {
                self.signer(suite, own)
            })
        })
    }

    fn handle_re_init_commit(
        &self,
        request: HandleCommitRequest,
    ) -> Answer<HandleReInitCommitResponse> {
        self.member(request.state_id, |member| {
            let commit = member.handle_commit(&request)?;
            member.reinit(request.state_id, commit, |suite, own| {
                self.signer(suite, own)
            })
        })
    }

    fn re_init_welcome(&self, request: ReInitWelcomeRequest) -> Answer<CreateSubgroupResponse> {
        let packages = request.key_package.iter().map(|bytes| message(bytes));
        let packages = packages.collect::<Answer<Vec<_>>>()?;
        self.member(request.reinit_id, |member| {
            member
                .rules
                .commit(request.force_path, request.external_tree);
            let signer = member.signer.clone();
            let made = member
                .group()?
                .clone()
                .get_reinit_client(Some(signer.secret), Some(signer.identity))
                .and_then(|client| client.commit(packages, ExtensionList::new(), None))
                .map_err(Refusal::failed)?;
            member.subgroup(request.reinit_id, made, request.external_tree)
        })
    }

    fn handle_re_init_welcome(
        &self,
        request: HandleReInitWelcomeRequest,
    ) -> Answer<JoinGroupResponse> {
        let (welcome, tree) = (message(&request.welcome)?, tree_of(&request.ratchet_tree)?);
        self.member(request.reinit_id, |member| {
            let signer = member.signer.clone();
            let (group, _) = member
                .group()?
                .clone()
                .get_reinit_client(Some(signer.secret), Some(signer.identity))
                .and_then(|client| client.join(&welcome, tree, None))
                .map_err(Refusal::failed)?;
            member.group = Some(group);
            Ok(JoinGroupResponse {
                state_id: request.reinit_id,
                epoch_authenticator: member.authenticator()?,
            })
        })
    }

    fn create_branch(&self, request: CreateBranchRequest) -> Answer<CreateSubgroupResponse> {
        if !request.extensions.is_empty() {
            // mls-rs branches with the extensions of the group that it branches from.
            return Err(Refusal::unsupported("a branch with extensions of its own"));
        }
        let packages = request.key_packages.iter().map(|bytes| message(bytes));
        let packages = packages.collect::<Answer<Vec<_>>>()?;
        self.member(request.state_id, |member| {
            member
                .rules
                .commit(request.force_path, request.external_tree);
            let made = member
                .group()?
                .branch(request.group_id, packages, None)
                .map_err(Refusal::failed)?;
            member.subgroup(request.state_id, made, request.external_tree)
        })
    }

    fn handle_branch(&self, request: HandleBranchRequest) -> Answer<HandleBranchResponse> {
        let made = self.member(request.transaction_id, |pending| {
            Ok(pending.client.key_package_store().key_packages())
        })?;
        let (welcome, tree) = (message(&request.welcome)?, tree_of(&request.ratchet_tree)?);
        self.member(request.state_id, |member| {
            let store = member.client.key_package_store();
            for (id, data) in made {
                store.insert(id, data);
            }
            let (group, _) = member
                .group()?
                .join_subgroup(&welcome, tree, None)
                .map_err(Refusal::failed)?;
            let mut branch = Member::new(group.cipher_suite(), member.signer.clone());
            branch.rules = member.rules.clone();
            branch.group = Some(group);
            let epoch_authenticator = branch.authenticator()?;
            Ok((branch, epoch_authenticator))
        })
        .map(|(branch, epoch_authenticator)| HandleBranchResponse {
            // The old state stays, as the protocol wants it: it is freed by itself.
            state_id: self.keep(branch),
            epoch_authenticator,
        })
    }

    fn new_member_add_proposal(
        &self,
        request: NewMemberAddProposalRequest,
    ) -> Answer<NewMemberAddProposalResponse> {
        let info = message(&request.group_info)?;
        let suite = info
            .cipher_suite()
            .ok_or_else(|| Refusal::invalid("no GroupInfo"))?;
        let member = self.new_member(u16::from(suite).into(), &request.identity)?;
        let (none, empty) = (vec![], ExtensionList::new());
        let proposal = member
            .client
            .external_add_proposal(&info, None, none, empty.clone(), empty, None)
            .map_err(Refusal::failed)?;
        let (init_priv, encryption_priv) = member.secrets()?;
        Ok(NewMemberAddProposalResponse {
            proposal: bytes(&proposal)?,
            init_priv,
            encryption_priv,
            signature_priv: member.signer.secret.to_vec(),
            transaction_id: self.keep(member),
        })
    }

    fn create_external_signer(
        &self,
        request: CreateExternalSignerRequest,
    ) -> Answer<CreateExternalSignerResponse> {
        let signer = self.signer(suite(request.cipher_suite)?, &request.identity)?;
        let external_sender = signer
            .identity
            .mls_encode_to_vec()
            .map_err(Refusal::failed)?;
        Ok(CreateExternalSignerResponse {
            external_sender,
            signer_id: self.handles.keep(Handle::Outside(Box::new(signer))),
        })
    }

    fn add_external_signer(&self, request: AddExternalSignerRequest) -> Answer<ProposalResponse> {
        let sender = SigningIdentity::mls_decode(&mut &*request.external_sender)
            .map_err(|error| Refusal::invalid(format!("no external sender: {error:?}")))?;
        self.member(request.state_id, |member| {
            let group = member.group()?;
            let mut extensions = group.context().extensions().clone();
            let known = extensions
                .get_as::<ExternalSendersExt>()
                .map_err(Refusal::failed)?;
            let mut senders = known.map(|k| k.allowed_senders).unwrap_or_default();
            senders.push(sender);
            extensions
                .set_from(ExternalSendersExt::new(senders))
                .map_err(Refusal::failed)?;
            let made = group
                .propose_group_context_extensions(extensions, vec![])
                .map_err(Refusal::failed)?;
            member.proposed(&made)
        })
    }

    fn external_signer_proposal(
        &self,
        request: ExternalSignerProposalRequest,
    ) -> Answer<ProposalResponse> {
        let signer = self
            .handles
            .with(request.signer_id, |handle| match handle {
                Handle::Outside(signer) => Ok(signer.clone()),
                Handle::Member(_) => Err(Refusal::invalid("the handle is no external signer")),
            })?;
        let described = request
            .description
            .ok_or_else(|| Refusal::invalid("no description"))?;
        let mut group = outside(Some(&signer), &request.group_info, &request.ratchet_tree)?;
        let made = match described.proposal_type.as_slice() {
            b"add" => group.propose_add(message(&described.key_package)?, vec![]),
            b"remove" => {
                let leaf = leaf_of(&group.roster(), &described.removed_id)?;
                group.propose_remove(leaf, vec![])
            }
            b"externalPSK" => {
                group.propose_external_psk(ExternalPskId::new(described.psk_id), vec![])
            }
            b"resumptionPSK" => group.propose_resumption_psk(described.epoch_id, vec![]),
            b"groupContextExtensions" => {
                group.propose_group_context_extensions(extensions(described.extensions)?, vec![])
            }
            b"reinit" => group.propose_reinit(
                Some(described.group_id),
                ProtocolVersion::MLS_10,
                suite(described.cipher_suite)?,
                extensions(described.extensions)?,
                vec![],
            ),
            other => {
                return Err(Refusal::Invalid(format!(
                    "no proposal {}",
                    String::from_utf8_lossy(other)
                )));
            }
        };
        Ok(ProposalResponse {
            proposal: bytes(&made.map_err(Refusal::failed)?)?,
        })
    }

    fn free(&self, request: FreeRequest) -> Answer<FreeResponse> {
        self.handles.free(request.state_id);
        Ok(FreeResponse {})
    }
}
