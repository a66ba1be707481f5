//! The steps of a script.

use mls_rs::WireFormat;

use super::{
    check::{self, Effect, Expected},
    script::{Action, Commit, Description, Extension, Step},
    session::{Done, Made, Session, Stop, View, rpc},
};
use crate::mls_client::proto::{Extension as WireExtension, *};

pub(super) fn wire_extensions(extensions: &[Extension]) -> Vec<WireExtension> {
    extensions
        .iter()
        .map(|extension| WireExtension {
            extension_type: extension.kind.into(),
            extension_data: extension.data.clone(),
        })
        .collect()
}

impl Session<'_> {
    pub(super) async fn step(&mut self, step: &Step) -> Done {
        let actor = step.actor.as_str();
        match &step.action {
            Action::CreateGroup { members } => self.create_group(actor, members).await,
            Action::CreateKeyPackage => {
                let package = self.key_package(actor).await?;
                let now = self.now()?;
                (now.key_package, now.owner) = (Some(package), actor.to_owned());
                Ok(())
            }
            Action::JoinGroup { welcome } => {
                let made = self.earlier(*welcome, "Commit", |p| p.made.clone())?;
                self.join(actor, &made).await
            }
            Action::ExternalJoin {
                joiner,
                members,
                external_tree,
                remove_prior,
                psks,
            } => {
                let join = ExternalJoin {
                    joiner,
                    members,
                    external_tree: *external_tree,
                    remove_prior: *remove_prior,
                    psks,
                };
                self.external_join(actor, join).await
            }
            Action::InstallExternalPsk { clients } => self.install_psk(clients).await,
            Action::GroupInfo { external_tree } => {
                self.group_info(actor, *external_tree).await.map(|_| ())
            }
            Action::FullCommit {
                commit,
                members,
                joiners,
            } => self.full_commit(actor, commit, members, joiners).await,
            Action::Commit { commit } => self.commit(actor, commit).await.map(|_| ()),
            Action::HandleCommit {
                commit,
                by_reference,
            } => {
                let made = self.earlier(*commit, "Commit", |p| p.made.clone())?;
                let proposals = self.proposals(by_reference)?;
                let proposals = proposals.into_iter().map(|(bytes, _)| bytes).collect();
                self.handle(actor, &made, proposals).await.map(|_| ())
            }
            Action::HandlePendingCommit => self.handle_pending(actor).await.map(|_| ()),
            Action::Protect {
                authenticated_data,
                plaintext,
            } => self.protect(actor, authenticated_data, plaintext).await,
            Action::Unprotect { ciphertext } => self.unprotect(actor, *ciphertext).await,
            Action::ReInit(reinit) => self.reinit(reinit).await,
            Action::Branch {
                members,
                extensions,
                force_path,
                external_tree,
            } => {
                let request = CreateBranchRequest {
                    state_id: self.state(actor)?,
                    group_id: self.random_bytes(16),
                    extensions: wire_extensions(extensions),
                    key_packages: Vec::new(),
                    force_path: *force_path,
                    external_tree: *external_tree,
                };
                self.branch(actor, members, request).await
            }
            Action::NewMemberAddProposal { joiner } => self.new_member(actor, joiner).await,
            Action::ExternalSignerProposal {
                member,
                description,
            } => self.external_proposal(actor, member, description).await,
            proposal => self.propose(actor, proposal).await,
        }
    }

    pub(super) fn random_bytes(&mut self, length: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.random.u8(..))
            .take(length)
            .collect()
    }

    async fn create_group(&mut self, actor: &str, members: &[String]) -> Done {
        let request = CreateGroupRequest {
            group_id: self.group_id.clone(),
            cipher_suite: self.suite.into(),
            encrypt_handshake: self.encrypt,
            identity: actor.as_bytes().to_vec(),
        };
        let state = rpc!(self, actor, create_group, request).state_id;
        let alone = self.epoch_of(vec![actor.to_owned()]);
        self.enter(actor, state, alone)?;
        if members.is_empty() {
            return Ok(());
        }
        let mut by_value = Vec::new();
        for member in members {
            by_value.push(ProposalDescription {
                proposal_type: b"add".to_vec(),
                key_package: self.key_package(member).await?,
                ..ProposalDescription::default()
            });
        }
        let effects: Vec<Effect> = members.iter().cloned().map(Effect::Add).collect();
        let request = CommitRequest {
            state_id: state,
            by_value,
            ..CommitRequest::default()
        };
        let made = self.make(actor, request, &effects, &[]).await?;
        let authenticator = self.handle_pending(actor).await?;
        for member in members {
            let joined = self.join_as(member, &made).await?;
            same(member, &joined, &authenticator)?;
        }
        Ok(())
    }

    pub(super) async fn key_package(&mut self, actor: &str) -> Done<Vec<u8>> {
        let request = CreateKeyPackageRequest {
            cipher_suite: self.suite.into(),
            identity: actor.as_bytes().to_vec(),
        };
        let made = rpc!(self, actor, create_key_package, request);
        check::wire("the KeyPackage", &made.key_package, WireFormat::KeyPackage)?;
        self.seat_mut(actor)?.transaction = Some(made.transaction_id);
        Ok(made.key_package)
    }

    async fn join(&mut self, actor: &str, made: &Made) -> Done {
        self.join_as(actor, made).await.map(|_| ())
    }

    async fn join_as(&mut self, actor: &str, made: &Made) -> Done<Vec<u8>> {
        let transaction = self.seat(actor)?.transaction;
        let transaction_id = transaction
            .ok_or_else(|| Stop::Failed(format!("{actor} has no KeyPackage to join with")))?;
        let request = JoinGroupRequest {
            transaction_id,
            welcome: made.welcome.clone(),
            encrypt_handshake: self.encrypt,
            identity: actor.as_bytes().to_vec(),
            ratchet_tree: made.tree.clone(),
        };
        let joined = rpc!(self, actor, join_group, request);
        self.seat_mut(actor)?.transaction = None;
        self.enter(actor, joined.state_id, made.view.clone())?;
        Ok(joined.epoch_authenticator)
    }

    pub(super) async fn group_info(
        &mut self,
        actor: &str,
        external_tree: bool,
    ) -> Done<GroupInfoResponse> {
        let request = GroupInfoRequest {
            state_id: self.state(actor)?,
            external_tree,
        };
        let info = rpc!(self, actor, group_info, request);
        check::wire("the GroupInfo", &info.group_info, WireFormat::GroupInfo)?;
        Ok(info)
    }

    async fn external_join(&mut self, actor: &str, join: ExternalJoin<'_>) -> Done {
        let info = self.group_info(actor, join.external_tree).await?;
        let mut psks = Vec::new();
        for index in join.psks {
            let (psk_id, psk_secret) = self.earlier(*index, "PSK", |p| p.psk.clone())?;
            psks.push(PreSharedKey { psk_id, psk_secret });
        }
        let request = ExternalJoinRequest {
            group_info: info.group_info,
            ratchet_tree: info.ratchet_tree,
            encrypt_handshake: self.encrypt,
            identity: join.joiner.as_bytes().to_vec(),
            remove_prior: join.remove_prior,
            psks,
        };
        let joined = rpc!(self, join.joiner, external_join, request);
        check::external_commit(&joined.commit, join.psks.len(), join.remove_prior)?;
        let mut effects = vec![Effect::Add(join.joiner.to_owned())];
        if join.remove_prior {
            effects.insert(0, Effect::Remove(join.joiner.to_owned()));
        }
        let before = self.view(actor)?;
        let made = Made {
            view: self.after(&before, &effects),
            commit: joined.commit,
            welcome: Vec::new(),
            tree: Vec::new(),
        };
        self.enter(join.joiner, joined.state_id, made.view.clone())?;
        let mut others: Vec<&str> = join.members.iter().map(String::as_str).collect();
        others.push(actor);
        for member in others {
            let authenticator = self.handle(member, &made, Vec::new()).await?;
            same(member, &authenticator, &joined.epoch_authenticator)?;
        }
        self.now()?.made = Some(made);
        Ok(())
    }

    async fn install_psk(&mut self, clients: &[String]) -> Done {
        let (psk_id, psk_secret) = (self.random_bytes(32), self.random_bytes(32));
        for actor in clients {
            let seat = self.seat(actor)?;
            let handle = seat.state.or(seat.transaction);
            let request = StorePskRequest {
                state_or_transaction_id: handle.ok_or_else(|| {
                    Stop::Failed(format!("{actor} has nothing to keep a PSK for"))
                })?,
                psk_id: psk_id.clone(),
                psk_secret: psk_secret.clone(),
            };
            rpc!(self, actor, store_psk, request);
        }
        self.now()?.psk = Some((psk_id, psk_secret));
        Ok(())
    }

    pub(super) fn proposals(&self, steps: &[usize]) -> Done<Vec<(Vec<u8>, Effect)>> {
        steps
            .iter()
            .map(|index| self.earlier(*index, "proposal", |p| p.proposal.clone()))
            .collect()
    }

    pub(super) fn described(
        &mut self,
        description: &Description,
    ) -> Done<(ProposalDescription, Effect)> {
        let mut described = ProposalDescription {
            proposal_type: description.kind.as_bytes().to_vec(),
            ..ProposalDescription::default()
        };
        let effect = match description.kind.as_str() {
            "add" => {
                let (package, owner) =
                    self.earlier(description.key_package, "KeyPackage", |p| {
                        Some((p.key_package.clone()?, p.owner.clone()))
                    })?;
                described.key_package = package;
                Effect::Add(owner)
            }
            "remove" => {
                described.removed_id = description.removed.as_bytes().to_vec();
                Effect::Remove(description.removed.clone())
            }
            "externalPSK" => {
                described.psk_id = self.earlier(description.psk, "PSK", |p| p.psk.clone())?.0;
                Effect::Psk
            }
            "resumptionPSK" => {
                described.epoch_id = description.epoch;
                Effect::Psk
            }
            "groupContextExtensions" => {
                described.extensions = wire_extensions(&description.extensions);
                Effect::Context
            }
            "reinit" => {
                described.extensions = wire_extensions(&description.extensions);
                (described.group_id, self.suite) =
                    self.new_group(description.change_group_id, description.change_suite)?;
                described.cipher_suite = self.suite.into();
                Effect::ReInit
            }
            other => return Err(Stop::Failed(format!("no proposal type {other:?}"))),
        };
        Ok((described, effect))
    }

    async fn commit(&mut self, actor: &str, commit: &Commit) -> Done<(Made, Vec<Vec<u8>>)> {
        let referred = self.proposals(&commit.by_reference)?;
        let (proposals, by_reference): (Vec<_>, Vec<_>) = referred.into_iter().unzip();
        let mut by_value = Vec::new();
        let mut effects = Vec::new();
        for description in &commit.by_value {
            let (described, effect) = self.described(description)?;
            by_value.push(described);
            effects.push(effect);
        }
        let request = CommitRequest {
            state_id: self.state(actor)?,
            by_reference: proposals.clone(),
            by_value,
            force_path: commit.force_path,
            external_tree: commit.external_tree,
        };
        let made = self.make(actor, request, &effects, &by_reference).await?;
        self.now()?.made = Some(made.clone());
        Ok((made, proposals))
    }

    /// Has a Commit made, and looks at it.
    async fn make(
        &mut self,
        actor: &str,
        request: CommitRequest,
        by_value: &[Effect],
        by_reference: &[Effect],
    ) -> Done<Made> {
        let expected = Expected {
            by_value,
            by_reference,
            force_path: request.force_path,
        };
        let external_tree = request.external_tree;
        let answer = rpc!(self, actor, commit, request);
        check::commit(&answer.commit, self.encrypt, expected)?;
        let effects = [by_reference, by_value].concat();
        let joiners = effects.iter().filter(|e| matches!(e, Effect::Add(_)));
        check::welcome(&answer.welcome, joiners.count())?;
        let before = self.view(actor)?;
        let view = self.after(&before, &effects);
        if external_tree {
            let found = check::members(&answer.ratchet_tree)?;
            if found != view.members {
                return Err(Stop::Failed(format!(
                    "the Commit's tree has the members {found:?}, not {:?}",
                    view.members
                )));
            }
        }
        self.seat_mut(actor)?.pending = Some(view.clone());
        Ok(Made {
            commit: answer.commit,
            welcome: answer.welcome,
            tree: if external_tree {
                answer.ratchet_tree
            } else {
                Vec::new()
            },
            view,
        })
    }

    /// The view that the actor's pending Commit leads to.
    pub(super) fn pending(&mut self, actor: &str) -> Done<View> {
        let pending = self.seat_mut(actor)?.pending.take();
        pending.ok_or_else(|| Stop::Failed(format!("{actor} has no pending Commit")))
    }

    async fn handle_pending(&mut self, actor: &str) -> Done<Vec<u8>> {
        let request = HandlePendingCommitRequest {
            state_id: self.state(actor)?,
        };
        let view = self.pending(actor)?;
        let answer = rpc!(self, actor, handle_pending_commit, request);
        self.enter(actor, answer.state_id, view)?;
        Ok(answer.epoch_authenticator)
    }

    async fn handle(&mut self, actor: &str, made: &Made, proposals: Vec<Vec<u8>>) -> Done<Vec<u8>> {
        let request = HandleCommitRequest {
            state_id: self.state(actor)?,
            proposal: proposals,
            commit: made.commit.clone(),
        };
        let answer = rpc!(self, actor, handle_commit, request);
        self.seat_mut(actor)?.pending = None;
        self.enter(actor, answer.state_id, made.view.clone())?;
        Ok(answer.epoch_authenticator)
    }

    async fn full_commit(
        &mut self,
        actor: &str,
        commit: &Commit,
        members: &[String],
        joiners: &[String],
    ) -> Done {
        let (made, proposals) = self.commit(actor, commit).await?;
        let authenticator = self.handle_pending(actor).await?;
        for member in members {
            let answer = self.handle(member, &made, proposals.clone()).await?;
            // Who was removed is in no epoch any more.
            if made.view.members.contains(member) {
                same(member, &answer, &authenticator)?;
            }
        }
        for joiner in joiners {
            let answer = self.join_as(joiner, &made).await?;
            same(joiner, &answer, &authenticator)?;
        }
        Ok(())
    }

    async fn propose(&mut self, actor: &str, action: &Action) -> Done {
        let state_id = self.state(actor)?;
        let (proposal, effect) = match action {
            Action::AddProposal { key_package } => {
                let (package, owner) = self.earlier(*key_package, "KeyPackage", |p| {
                    Some((p.key_package.clone()?, p.owner.clone()))
                })?;
                let request = AddProposalRequest {
                    state_id,
                    key_package: package,
                };
                (rpc!(self, actor, add_proposal, request), Effect::Add(owner))
            }
            Action::UpdateProposal => {
                let request = UpdateProposalRequest { state_id };
                (rpc!(self, actor, update_proposal, request), Effect::Update)
            }
            Action::RemoveProposal { removed } => {
                let request = RemoveProposalRequest {
                    state_id,
                    removed_id: removed.as_bytes().to_vec(),
                };
                let effect = Effect::Remove(removed.clone());
                (rpc!(self, actor, remove_proposal, request), effect)
            }
            Action::ExternalPskProposal { psk } => {
                let (psk_id, _) = self.earlier(*psk, "PSK", |p| p.psk.clone())?;
                let request = ExternalPskProposalRequest { state_id, psk_id };
                (
                    rpc!(self, actor, external_psk_proposal, request),
                    Effect::Psk,
                )
            }
            Action::ResumptionPskProposal { epoch } => {
                let request = ResumptionPskProposalRequest {
                    state_id,
                    epoch_id: *epoch,
                };
                (
                    rpc!(self, actor, resumption_psk_proposal, request),
                    Effect::Psk,
                )
            }
            Action::GroupContextExtensionsProposal { extensions } => {
                let request = GroupContextExtensionsProposalRequest {
                    state_id,
                    extensions: wire_extensions(extensions),
                };
                let answer = rpc!(self, actor, group_context_extensions_proposal, request);
                (answer, Effect::Context)
            }
            Action::AddExternalSigner { signer } => {
                let external_sender = self.external_signer(signer).await?;
                let request = AddExternalSignerRequest {
                    state_id,
                    external_sender,
                };
                (
                    rpc!(self, actor, add_external_signer, request),
                    Effect::Context,
                )
            }
            _ => return Err(Stop::Failed("a step that is none".into())),
        };
        self.keep_proposal(proposal.proposal, effect, false)
    }

    pub(super) fn keep_proposal(
        &mut self,
        proposal: Vec<u8>,
        effect: Effect,
        outside: bool,
    ) -> Done {
        let expected = check::handshake(self.encrypt && !outside);
        check::wire("the proposal", &proposal, expected)?;
        self.now()?.proposal = Some((proposal, effect));
        Ok(())
    }

    async fn protect(&mut self, actor: &str, data: &str, text: &str) -> Done {
        let request = ProtectRequest {
            state_id: self.state(actor)?,
            authenticated_data: data.as_bytes().to_vec(),
            plaintext: text.as_bytes().to_vec(),
        };
        let made = rpc!(self, actor, protect, request.clone());
        check::wire("the message", &made.ciphertext, WireFormat::PrivateMessage)?;
        let now = self.now()?;
        now.text = Some(request);
        now.ciphertext = made.ciphertext;
        Ok(())
    }

    async fn unprotect(&mut self, actor: &str, index: usize) -> Done {
        let (sent, ciphertext) = self.earlier(index, "message", |p| {
            Some((p.text.clone()?, p.ciphertext.clone()))
        })?;
        let request = UnprotectRequest {
            state_id: self.state(actor)?,
            ciphertext,
        };
        let read = rpc!(self, actor, unprotect, request);
        if read.plaintext != sent.plaintext || read.authenticated_data != sent.authenticated_data {
            return Err(Stop::Failed(format!("{actor} reads another text")));
        }
        Ok(())
    }
}

struct ExternalJoin<'a> {
    joiner: &'a str,
    members: &'a [String],
    external_tree: bool,
    remove_prior: bool,
    psks: &'a [usize],
}

pub(super) fn same(actor: &str, found: &[u8], expected: &[u8]) -> Done {
    if found == expected {
        return Ok(());
    }
    Err(Stop::Failed(format!(
        "{actor} has another epoch authenticator than the committer"
    )))
}
