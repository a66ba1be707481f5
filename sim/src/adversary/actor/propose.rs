//! Proposals, by reference.

use chancery_proto::{commit_info::MessageData, delivery::v1::*};
use client_cli::{
    core::{CoreError, group, identity::LeafKey, records},
    failure::Failure,
    store::Step,
};
use openmls::prelude::*;

use super::*;

impl Actor {
    pub(super) async fn propose(&self, kind: Kind) -> anyhow::Result<Result<(), Failure>> {
        let package = match kind {
            Kind::ProposeMember => {
                let victim = (self.victim.domain.clone(), self.victim.device);
                self.packages(&[victim]).await?.into_iter().next()
            }
            Kind::ProposeTwice => Some(self.newcomers_package().await?),
            _ => None,
        };
        let times = if kind == Kind::ProposeTwice { 2 } else { 1 };
        let mut last = Ok(());
        for _ in 0..times {
            let id = self.id();
            let request = self.craft(|step, context| {
                let record = records::known(step, &self.group)?;
                let mut mls = group::load(step, &self.group)?;
                let data = MessageData {
                    message_id: Some(id),
                    commit_info: None,
                };
                mls.set_aad(data.encode());
                let key = context.identity.leaf_key(mls.ciphersuite())?;
                let message = self.proposal(step, &mut mls, &key, kind, package.as_deref())?;
                Ok(SendMessageRequest {
                    group: Some(self.group.to_ref()),
                    message_id: id.to_vec().into(),
                    message: message.to_bytes().map_err(broken)?.into(),
                    epoch_seq: record.epoch_seq,
                    ..SendMessageRequest::default()
                })
            })?;
            last = self.send(request).await;
        }
        Ok(last)
    }

    fn proposal(
        &self,
        step: &Step<'_>,
        mls: &mut MlsGroup,
        key: &LeafKey,
        kind: Kind,
        package: Option<&[u8]>,
    ) -> Result<MlsMessageOut, CoreError> {
        let provider = step.provider();
        let extended = |mls: &mut MlsGroup, extensions| {
            mls.propose_group_context_extensions(provider, extensions, key)
        };
        Ok(match kind {
            Kind::ProposePsk => {
                let psk = unknown_psk(step, mls)?;
                mls.propose_pre_shared_key(provider, key, psk)
                    .map_err(broken)?
                    .0
            }
            Kind::ProposeMember | Kind::ProposeTwice => {
                let package = read_package(step, package.unwrap_or_default())?;
                mls.propose_add_member(provider, key, &package)
                    .map_err(broken)?
                    .0
            }
            Kind::ProposeRemove => {
                let leaf = leaf_of(mls, &self.victim)?;
                mls.propose_remove_member(provider, key, leaf)
                    .map_err(broken)?
                    .0
            }
            Kind::ProposeUpdate => {
                let parameters = LeafNodeParameters::default();
                mls.propose_self_update(provider, key, parameters)
                    .map_err(broken)?
                    .0
            }
            Kind::ProposeCustom => {
                let custom = CustomProposal::new(0xF00D, vec![1, 2, 3]);
                mls.propose_custom_proposal_by_reference(provider, key, custom)
                    .map_err(broken)?
                    .0
            }
            Kind::ProposeNothing => extended(mls, Extensions::empty()).map_err(broken)?.0,
            _ => {
                let extensions = policy_of_kind(mls, kind)?;
                extended(mls, extensions).map_err(broken)?.0
            }
        })
    }
}
