//! Proposals, by reference.

use chancery_proto::{commit_info::MessageData, delivery::v1::*};
use client_cli::{
    core::{CoreError, group, identity::LeafKey, records},
    store::Step,
};
use openmls::prelude::*;

use super::super::craft::{self, PackageChange};
use super::*;

const BASE_POINT: [u8; 32] = {
    let mut point = [0; 32];
    point[0] = 9;
    point
};

impl Actor {
    pub(super) async fn propose(&self, kind: Kind) -> anyhow::Result<Done> {
        let packages = match kind {
            Kind::ProposeMember => {
                let victim = (self.victim.domain.clone(), self.victim.device);
                let packages = self.packages(&[victim]).await?;
                packages.into_iter().map(Some).collect()
            }
            Kind::ProposeTwice => vec![
                Some(self.newcomers_package().await?),
                Some(self.newcomers_package().await?),
            ],
            Kind::ProposeUnpublished => vec![Some(self.unpublished().await?)],
            _ => vec![None],
        };
        let mut seqs = Vec::new();
        for package in packages {
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
            match self.send(request).await {
                Ok(seq) => seqs.extend(seq),
                Err(failure) => return Ok(Err(failure)),
            }
        }
        Ok(Ok(seqs))
    }

    /// A good KeyPackage of the second device that nobody published.
    async fn unpublished(&self) -> anyhow::Result<Vec<u8>> {
        let person = &self.second.identity().person;
        let name = (person.domain.clone(), person.device);
        let package = self.packages(&[name]).await?.into_iter().next();
        let key = self.second.identity().leaf_key(group::SUITES[0])?;
        // The base point of X25519: a key like any other.
        let change = PackageChange::InitKey(&BASE_POINT);
        craft::key_package(&package.context("no answer")?, change, &key)
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
            Kind::ProposeMember | Kind::ProposeTwice | Kind::ProposeUnpublished => {
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
