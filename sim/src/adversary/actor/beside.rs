//! What is stored or reported beside the log: GroupInfos, KeyPackages, reports.

use anyhow::{Context as _, anyhow};
use chancery_proto::{
    delivery::v1::{report_epoch_request::Report, *},
    group_info::GroupInfo,
    suite::Suite,
    tree::Tree,
};
use client_cli::core::{
    group::{self, MAX_BYTES},
    records::{self, Trouble},
    recovery,
};
use sha2::{Digest as _, Sha256};

use super::super::{
    craft::{self, InfoChange, PackageChange},
    grammar::Kind,
};

use super::*;

impl Actor {
    pub(super) async fn put(&self, kind: Kind) -> anyhow::Result<Done> {
        let (bytes, tree, epoch_seq) = self.craft(|step, context| {
            let record = records::known(step, &self.group)?;
            let mls = group::load(step, &self.group)?;
            let bytes = group::export_group_info(step, context, &mls)?;
            Ok((
                bytes,
                group::tree_of(&mls.export_ratchet_tree())?,
                record.epoch_seq,
            ))
        })?;
        let parsed = GroupInfo::parse(&bytes, MAX_BYTES)?;
        let (change, tree) = match kind {
            Kind::PutSuite => {
                let change = InfoChange {
                    suite: Some(3),
                    ..InfoChange::default()
                };
                (change, tree)
            }
            Kind::PutWindow => (other_policy(&bytes)?, tree),
            Kind::PutAlone => {
                let place = 2 * parsed.signer;
                let own = tree.nodes().find(|(index, _)| *index == place);
                let own = own.context("no leaf")?.1.to_vec();
                let mut alone = Tree::blank(1)?;
                alone.set(0, Some(&own))?;
                let suite = Suite::from_code(parsed.suite).context("suite")?;
                let change = InfoChange {
                    replace: Some((parsed.tree_hash.clone(), alone.hash(suite))),
                    signer: Some(0),
                    ..InfoChange::default()
                };
                (change, alone)
            }
            _ => {
                let change = InfoChange {
                    external_pub: Some(Some(vec![9; 32])),
                    ..InfoChange::default()
                };
                (change, tree)
            }
        };
        let request = PutGroupInfoRequest {
            group: Some(self.group.to_ref()),
            epoch_seq,
            group_info: craft::group_info(&bytes, &change, &self.key()?)?.into(),
            tree: Some(tree.to_update()),
        };
        let put = self
            .member
            .delivery(request, async |mut client, request| {
                Ok(client.put_group_info(request).await?.into_inner())
            })
            .await;
        Ok(put.map(|_| Vec::new()))
    }

    /// The second device publishes a bent KeyPackage; whoever adds it meets it first.
    pub(super) async fn package(&self, kind: Kind) -> anyhow::Result<Done> {
        let request = PublishKeyPackagesRequest {
            key_packages: vec![self.bent_package(kind).await?.into()],
            ..PublishKeyPackagesRequest::default()
        };
        let published = self
            .second
            .delivery(request, async |mut client, request| {
                Ok(client.publish_key_packages(request).await?.into_inner())
            })
            .await;
        Ok(published.map(|_| Vec::new()))
    }

    /// A KeyPackage of the second device with something bent in it.
    pub(crate) async fn bent_package(&self, kind: Kind) -> anyhow::Result<Vec<u8>> {
        let change = match kind {
            Kind::PackageInit => PackageChange::InitKey(&[1; 5]),
            Kind::PackageLeaf => PackageChange::EncryptionKey(&[1; 5]),
            Kind::PackageLowOrder => PackageChange::EncryptionKey(&[0; 32]),
            Kind::PackageSame => PackageChange::SameKeys,
            Kind::PackageGrease => PackageChange::Grease,
            _ => PackageChange::DefaultTypes,
        };
        let person = &self.second.identity().person;
        let name = (person.domain.clone(), person.device);
        let package = self.packages(&[name]).await?.into_iter().next();
        let key = self.second.identity().leaf_key(group::SUITES[0])?;
        craft::key_package(&package.context("no answer")?, change, &key)
    }

    /// An entry's payload, as the log has it.
    async fn payload(&self, seq: u64) -> anyhow::Result<Vec<u8>> {
        let before = seq.checked_sub(1).context("the creation has no entry")?;
        let request = ReadLogRequest {
            group: Some(self.group.to_ref()),
            after_seq: before,
            ..ReadLogRequest::default()
        };
        let read = self
            .member
            .delivery(request, async |mut client, request| {
                client.read_log(request).await?.get_mut().message().await
            })
            .await?;
        let page = read.value.context("no page")?;
        let entries = page.entries.context("no entries")?.entries;
        match entries.first().and_then(|entry| entry.body.as_ref()) {
            Some(entry::Body::Payload(payload)) => Ok(payload.to_vec()),
            _ => Err(anyhow!("no payload")),
        }
    }

    pub(super) async fn report(&self, kind: Kind) -> anyhow::Result<Done> {
        let record = self.member.record(&self.group)?;
        let payload = self.payload(record.epoch_seq).await?;
        let trouble = Trouble {
            seq: record.epoch_seq,
            sha256: Sha256::digest(&payload).into(),
            reason: 1,
            reported_at: None,
        };
        let mut failure =
            self.craft(|step, context| recovery::report(step, context, &self.group, &trouble))?;
        if kind == Kind::ReportSpoilt {
            let mut signature = failure.signature.to_vec();
            spoil_last(&mut signature);
            failure.signature = signature.into();
        }
        let request = ReportEpochRequest {
            group: Some(self.group.to_ref()),
            epoch_seq: record.epoch_seq,
            report: Some(Report::Failure(failure)),
        };
        let reported = self
            .member
            .delivery(request, async |mut client, request| {
                Ok(client.report_epoch(request).await?.into_inner())
            })
            .await;
        Ok(reported.map(|_| Vec::new()))
    }
}
