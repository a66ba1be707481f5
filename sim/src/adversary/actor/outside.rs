//! External Commits.

use chancery_proto::{delivery::v1::*, group_info::GroupInfo};
use client_cli::core::{
    group::{self, MAX_BYTES},
    join,
};
use prost::Message as _;

use super::{super::craft, *};

impl Actor {
    pub(super) async fn external(&self, kind: Kind) -> anyhow::Result<SubmitCommitRequest> {
        let request = GetGroupInfoRequest {
            group: Some(self.group.to_ref()),
        };
        let info = self
            .member
            .delivery(request, async |mut client, request| {
                Ok(client.get_group_info(request).await?.into_inner())
            })
            .await?
            .value;
        let tree = self.member.tree(&self.group, info.epoch_seq).await?;
        let stored = GroupInfo::parse(&info.group_info, MAX_BYTES)?;
        let id = self.id();
        let (mut request, own, victim) = self.craft(|step, context| {
            let mls = group::load(step, &self.group)?;
            let own = mls.own_leaf_index().u32();
            let victim = leaf_of(&mls, &self.victim)?.u32();
            let record = join::external(step, context, &self.group, &info, tree, id)?;
            let pending = record.pending.ok_or_else(|| broken("nothing is pending"))?;
            let request = SubmitCommitRequest::decode(pending.request.as_slice());
            Ok((request.map_err(broken)?, own, victim))
        })?;
        let removes: Vec<u32> = match kind {
            Kind::ExternalOther => vec![victim],
            Kind::ExternalNone => vec![],
            Kind::ExternalTwo => vec![own, victim],
            _ => vec![own],
        };
        let bytes = request.bundles[0].commit.to_vec();
        let spoilt = kind == Kind::ExternalUnsigned;
        let key = self.key()?;
        let bent = craft::external_commit(&bytes, &removes, &stored.group_context, &key, spoilt)?;
        request.bundles[0].commit = bent.into();
        Ok(request)
    }
}
