//! Steps that make new groups out of old ones, and proposals from outside.

use super::{
    check::{self, Effect, Expected},
    script::{Description, ReInit},
    session::{Done, Session, Stop, rpc},
    steps::{same, wire_extensions},
};
use crate::mls_client::proto::*;

impl Session<'_> {
    /// Group id and suite of a group that takes this one's place.
    pub(super) fn new_group(&self, other_id: bool, other_suite: bool) -> Done<(Vec<u8>, u16)> {
        let mut id = self.group_id.clone();
        if other_id {
            id.extend_from_slice(b"++");
        }
        if !other_suite {
            return Ok((id, self.suite));
        }
        let common = self.common_suites()?;
        let other = common.into_iter().find(|suite| *suite != self.suite);
        let other =
            other.ok_or_else(|| Stop::Unsupported("the servers share no other suite".into()))?;
        Ok((id, other))
    }

    pub(super) async fn reinit(&mut self, step: &ReInit) -> Done {
        let mut everybody = vec![step.committer.clone(), step.welcomer.clone()];
        everybody.extend(step.members.iter().cloned());
        everybody.extend((!step.proposer.is_empty()).then(|| step.proposer.clone()));
        everybody.sort();
        everybody.dedup();
        let proposal = if step.proposer.is_empty() {
            self.earlier(step.proposal, "proposal", |p| p.proposal.clone())?
                .0
        } else {
            let (group_id, suite) = self.new_group(step.change_group_id, step.change_suite)?;
            self.suite = suite;
            let request = ReInitProposalRequest {
                state_id: self.state(&step.proposer)?,
                cipher_suite: suite.into(),
                group_id,
                extensions: wire_extensions(&step.extensions),
            };
            rpc!(self, &step.proposer, re_init_proposal, request).proposal
        };
        let committer = step.committer.as_str();
        let state_id = self.state(committer)?;
        let request = CommitRequest {
            state_id,
            by_reference: vec![proposal.clone()],
            ..CommitRequest::default()
        };
        let commit = rpc!(self, committer, re_init_commit, request).commit;
        let expected = Expected {
            by_value: &[],
            by_reference: &[Effect::ReInit],
            force_path: false,
        };
        check::commit(&commit, self.encrypt, expected)?;
        let request = HandlePendingCommitRequest { state_id };
        let first = rpc!(self, committer, handle_pending_re_init_commit, request);
        let authenticator = first.epoch_authenticator.clone();
        let mut ended = vec![(committer.to_owned(), first)];
        for member in everybody.iter().filter(|member| *member != committer) {
            let request = HandleCommitRequest {
                state_id: self.state(member)?,
                proposal: vec![proposal.clone()],
                commit: commit.clone(),
            };
            let answer = rpc!(self, member, handle_re_init_commit, request);
            same(member, &answer.epoch_authenticator, &authenticator)?;
            ended.push((member.clone(), answer));
        }
        self.reinit_welcome(step, everybody, ended).await
    }

    async fn reinit_welcome(
        &mut self,
        step: &ReInit,
        everybody: Vec<String>,
        ended: Vec<(String, HandleReInitCommitResponse)>,
    ) -> Done {
        let welcomer = step.welcomer.as_str();
        let own = ended.iter().find(|(member, _)| member == welcomer);
        let reinit_id = own.map(|(_, answer)| answer.reinit_id).unwrap_or_default();
        let others = ended.iter().filter(|(member, _)| member != welcomer);
        let request = ReInitWelcomeRequest {
            reinit_id,
            key_package: others.clone().map(|(_, a)| a.key_package.clone()).collect(),
            force_path: step.force_path,
            external_tree: step.external_tree,
        };
        let made = rpc!(self, welcomer, re_init_welcome, request);
        let view = self.epoch_of(everybody);
        self.enter(welcomer, made.state_id, view.clone())?;
        for (member, answer) in others {
            let request = HandleReInitWelcomeRequest {
                reinit_id: answer.reinit_id,
                welcome: made.welcome.clone(),
                ratchet_tree: made.ratchet_tree.clone(),
            };
            let joined = rpc!(self, member, handle_re_init_welcome, request);
            same(
                member,
                &joined.epoch_authenticator,
                &made.epoch_authenticator,
            )?;
            self.enter(member, joined.state_id, view.clone())?;
        }
        Ok(())
    }

    pub(super) async fn branch(
        &mut self,
        actor: &str,
        members: &[String],
        mut request: CreateBranchRequest,
    ) -> Done {
        for member in members {
            request.key_packages.push(self.key_package(member).await?);
        }
        let made = rpc!(self, actor, create_branch, request);
        let mut everybody = members.to_vec();
        everybody.push(actor.to_owned());
        let view = self.epoch_of(everybody);
        self.enter(actor, made.state_id, view.clone())?;
        for member in members {
            let state_id = self.state(member)?;
            let transaction = self.seat_mut(member)?.transaction.take();
            let request = HandleBranchRequest {
                state_id,
                transaction_id: transaction.unwrap_or_default(),
                welcome: made.welcome.clone(),
                ratchet_tree: made.ratchet_tree.clone(),
            };
            let joined = rpc!(self, member, handle_branch, request);
            same(
                member,
                &joined.epoch_authenticator,
                &made.epoch_authenticator,
            )?;
            self.enter(member, joined.state_id, view.clone())?;
            if joined.state_id != state_id {
                rpc!(self, member, free, FreeRequest { state_id });
            }
        }
        Ok(())
    }

    pub(super) async fn new_member(&mut self, actor: &str, joiner: &str) -> Done {
        let info = self.group_info(actor, false).await?;
        let request = NewMemberAddProposalRequest {
            group_info: info.group_info,
            identity: joiner.as_bytes().to_vec(),
        };
        let made = rpc!(self, joiner, new_member_add_proposal, request);
        self.seat_mut(joiner)?.transaction = Some(made.transaction_id);
        self.keep_proposal(made.proposal, Effect::Add(joiner.to_owned()), true)
    }

    pub(super) async fn external_signer(&mut self, signer: &str) -> Done<Vec<u8>> {
        let request = CreateExternalSignerRequest {
            cipher_suite: self.suite.into(),
            identity: signer.as_bytes().to_vec(),
        };
        let made = rpc!(self, signer, create_external_signer, request);
        self.seat_mut(signer)?.signer = Some(made.signer_id);
        self.external_signers.push(signer.to_owned());
        Ok(made.external_sender)
    }

    pub(super) async fn external_proposal(
        &mut self,
        actor: &str,
        member: &str,
        description: &Description,
    ) -> Done {
        let info = self.group_info(member, true).await?;
        let signer = self.seat(actor)?.signer;
        let place = self.external_signers.iter().position(|s| s == actor);
        let index = place.and_then(|place| u32::try_from(place).ok());
        let (described, effect) = self.described(description)?;
        let request = ExternalSignerProposalRequest {
            signer_id: signer.ok_or_else(|| Stop::Failed(format!("{actor} is no signer")))?,
            signer_index: index.unwrap_or_default(),
            group_info: info.group_info,
            ratchet_tree: info.ratchet_tree,
            description: Some(described),
        };
        let made = rpc!(self, actor, external_signer_proposal, request);
        self.keep_proposal(made.proposal, effect, true)
    }
}
