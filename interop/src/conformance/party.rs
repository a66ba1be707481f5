//! Devices on the contract with mls-rs under them. Requests are built, not sent: a check may spoil them first.

use anyhow::{Context as _, ensure};
use chancery_proto::{
    commit_info::CommitInfo,
    common::v1::GroupRef,
    delivery::v1::{CommitResult, SendMessageRequest, SubmitCommitRequest, Welcome},
    policy::Policy,
};
use tonic::Status;
use uuid::Uuid;

use crate::{
    contract::{aad, bundle, members},
    engine::{Engine, Identity},
    mls_rs_engine,
    wire::{Device, Person, Place, full_tree, group_ref},
};

/// Every server of version 1 has this suite.
pub const SUITE: u16 = 1;

/// A device and its MLS library.
pub struct Party {
    /// The device.
    pub device: Device,
    /// The library.
    pub engine: Box<dyn Engine>,
}

/// All of them.
pub struct Parties {
    /// Creates.
    pub anna: Party,
    /// Is added.
    pub ben: Party,
    /// Is added too.
    pub cleo: Party,
    /// Stays outside.
    pub dora: Party,
}

/// What a Commit is to do.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Devices and their KeyPackages.
    pub add: Vec<(Person, Vec<u8>)>,
    /// Devices.
    pub remove: Vec<Person>,
    /// Seqs of proposals that it takes in.
    pub proposals: Vec<u64>,
    /// Devices that those remove.
    pub proposed: Vec<Person>,
}

/// 16 random bytes.
pub fn fresh_id() -> [u8; 16] {
    *Uuid::new_v4().as_bytes()
}

impl Party {
    /// Enrolls a device.
    ///
    /// # Errors
    /// A service refuses.
    pub async fn enroll(place: &Place, code: String, handle: &str) -> anyhow::Result<Self> {
        let device = Device::enroll(place, code, handle)
            .await
            .with_context(|| format!("{handle} enrolls"))?;
        let key = device.leaf_key(SUITE)?;
        let identity = Identity {
            certificate: &key.certificate,
            secret: &key.secret,
            public_key: &key.public_key,
        };
        Ok(Self {
            engine: mls_rs_engine::start(SUITE, &identity)?,
            device,
        })
    }

    /// Who it is.
    pub fn person(&self) -> Person {
        self.device.person
    }

    /// The group on the wire.
    pub fn group(&self, id: &[u8]) -> Option<GroupRef> {
        group_ref(&self.device.domain, id)
    }

    /// Publishes a KeyPackage, and who it is for.
    ///
    /// # Errors
    /// The service refuses.
    pub async fn offer(&mut self) -> anyhow::Result<(Person, Vec<u8>)> {
        let package = self.engine.key_package(false)?;
        self.device.publish(vec![package.clone()]).await?;
        Ok((self.person(), package))
    }

    /// A new group of this device alone.
    ///
    /// # Errors
    /// The service refuses.
    pub async fn create(&mut self) -> anyhow::Result<Vec<u8>> {
        let policy = Policy::for_domain(&self.device.domain);
        self.create_with(&policy).await
    }

    /// The same, with this policy.
    ///
    /// # Errors
    /// The service refuses.
    pub async fn create_with(&mut self, policy: &Policy) -> anyhow::Result<Vec<u8>> {
        let id = [fresh_id(), fresh_id()].concat();
        let epoch = self.engine.create(&id, &policy.encode())?;
        let tree = full_tree(&epoch.tree)?;
        self.device
            .create_group(&id, SUITE, epoch.group_info, tree)
            .await?;
        Ok(id)
    }

    /// What a Commit says of itself, as it should.
    ///
    /// # Errors
    /// The service does not say where the log stands.
    pub async fn commit_info(&mut self, group: &[u8], plan: &Plan) -> anyhow::Result<CommitInfo> {
        let stored = self.device.group_info(group).await?;
        let added = plan.add.iter().map(|(person, _)| *person);
        let removed = plan.remove.iter().chain(&plan.proposed).copied();
        Ok(CommitInfo {
            added: members(&self.device.domain, added),
            removed: members(&self.device.domain, removed),
            proposals: plan.proposals.clone(),
            seen_seq: stored.head_seq,
            seen_chain: stored.chain[..].try_into().context("a chain value")?,
            ..CommitInfo::default()
        })
    }

    /// Builds a Commit with this CommitInfo; it stays pending in the library.
    ///
    /// # Errors
    /// The library says no.
    pub async fn build(
        &mut self,
        group: &[u8],
        plan: &Plan,
        info: Option<CommitInfo>,
    ) -> anyhow::Result<SubmitCommitRequest> {
        let domain = self.device.domain.clone();
        let roster = self.engine.roster(group)?;
        let mut leaves = Vec::new();
        for (index, der) in &roster {
            if plan.remove.contains(&Person::of(der, &domain)?) {
                leaves.push(*index);
            }
        }
        let packages: Vec<Vec<u8>> = plan.add.iter().map(|(_, bytes)| bytes.clone()).collect();
        let id = fresh_id();
        let data = aad(id, info);
        let made = self.engine.commit(group, &packages, &leaves, &data)?;
        let epoch_seq = self.device.group_info(group).await?.epoch_seq;
        Ok(SubmitCommitRequest {
            group: self.group(group),
            epoch_seq,
            bundles: vec![bundle(id, made)?],
        })
    }

    /// Builds a Commit as it should be.
    ///
    /// # Errors
    /// The library says no.
    pub async fn stage(
        &mut self,
        group: &[u8],
        plan: &Plan,
    ) -> anyhow::Result<SubmitCommitRequest> {
        let info = self.commit_info(group, plan).await?;
        self.build(group, plan, Some(info)).await
    }

    /// Submits, as it is.
    ///
    /// # Errors
    /// The service's refusal.
    pub async fn submit(&mut self, request: SubmitCommitRequest) -> Result<CommitResult, Status> {
        let answer = self.device.submit(request).await?;
        let first = answer.results.into_iter().next();
        first.ok_or_else(|| Status::data_loss("no result"))
    }

    /// Builds, submits, and applies; the others of the room process it.
    ///
    /// # Errors
    /// Somebody says no.
    pub async fn commit(
        &mut self,
        group: &[u8],
        plan: &Plan,
        others: &mut [&mut Party],
    ) -> anyhow::Result<CommitResult> {
        let request = self.stage(group, plan).await?;
        let commit = request.bundles[0].commit.to_vec();
        let result = self.submit(request).await?;
        self.engine.apply_pending(group)?;
        for other in others {
            other.engine.process(group, &commit)?;
        }
        Ok(result)
    }

    /// The unread Welcome into a group.
    ///
    /// # Errors
    /// There is none.
    pub async fn welcome(&mut self, group: &[u8]) -> anyhow::Result<Welcome> {
        let into = |w: &Welcome| w.group.as_ref().is_some_and(|g| g.id == group);
        let welcomes = self.device.welcomes().await?;
        welcomes.into_iter().find(into).context("no Welcome")
    }

    /// Joins by it.
    ///
    /// # Errors
    /// There is none, or it does not fit.
    pub async fn join(&mut self, group: &[u8]) -> anyhow::Result<Welcome> {
        let welcome = self.welcome(group).await?;
        let tree = self.device.tree(group, welcome.epoch_seq).await?;
        self.engine.join(group, &welcome.welcome, &tree)?;
        self.device.acknowledge(&welcome).await?;
        Ok(welcome)
    }

    /// Frames a text; not sent.
    ///
    /// # Errors
    /// The library says no.
    pub async fn frame(&mut self, group: &[u8], text: &str) -> anyhow::Result<SendMessageRequest> {
        let id = fresh_id();
        let message = self.engine.send(group, text.as_bytes(), &aad(id, None))?;
        self.request(group, id, message).await
    }

    /// Frames a Remove proposal; not sent.
    ///
    /// # Errors
    /// The library says no.
    pub async fn propose(
        &mut self,
        group: &[u8],
        whom: Person,
    ) -> anyhow::Result<SendMessageRequest> {
        let domain = self.device.domain.clone();
        let roster = self.engine.roster(group)?;
        let leaf = roster
            .iter()
            .find(|(_, der)| Person::of(der, &domain).is_ok_and(|person| person == whom));
        let leaf = leaf.context("nobody to remove")?.0;
        let id = fresh_id();
        let message = self.engine.propose_remove(group, leaf, &aad(id, None))?;
        self.request(group, id, message).await
    }

    /// A request to send these bytes in the group's current epoch.
    ///
    /// # Errors
    /// The service does not say which that is.
    pub async fn request(
        &mut self,
        group: &[u8],
        id: [u8; 16],
        message: Vec<u8>,
    ) -> anyhow::Result<SendMessageRequest> {
        Ok(SendMessageRequest {
            group: self.group(group),
            message_id: id.to_vec().into(),
            message: message.into(),
            epoch_seq: self.device.group_info(group).await?.epoch_seq,
            ..SendMessageRequest::default()
        })
    }

    /// Where the log stands.
    ///
    /// # Errors
    /// The service does not say.
    pub async fn head(&mut self, group: &[u8]) -> anyhow::Result<u64> {
        Ok(self.device.group_info(group).await?.head_seq)
    }
}

impl Parties {
    pub(super) async fn enroll(place: &Place, invitations: Vec<String>) -> anyhow::Result<Self> {
        let given = invitations.len();
        ensure!(
            given >= super::DEVICES,
            "{given} invitations, and {} devices enroll",
            super::DEVICES
        );
        let mut codes = invitations.into_iter();
        let mut next = |handle: &'static str| {
            let code = codes.next().unwrap_or_default();
            async move { Party::enroll(place, code, handle).await }
        };
        Ok(Self {
            anna: next("anna").await?,
            ben: next("ben").await?,
            cleo: next("cleo").await?,
            dora: next("dora").await?,
        })
    }

    /// A group of anna and ben.
    ///
    /// # Errors
    /// The service refuses what it must accept.
    pub async fn two(&mut self) -> anyhow::Result<Vec<u8>> {
        let group = self.anna.create().await?;
        let plan = Plan {
            add: vec![self.ben.offer().await?],
            ..Plan::default()
        };
        self.anna.commit(&group, &plan, &mut []).await?;
        self.ben.join(&group).await?;
        Ok(group)
    }

    /// A group of anna, ben and cleo.
    ///
    /// # Errors
    /// The service refuses what it must accept.
    pub async fn three(&mut self) -> anyhow::Result<Vec<u8>> {
        let group = self.anna.create().await?;
        let plan = Plan {
            add: vec![self.ben.offer().await?, self.cleo.offer().await?],
            ..Plan::default()
        };
        self.anna.commit(&group, &plan, &mut []).await?;
        self.ben.join(&group).await?;
        self.cleo.join(&group).await?;
        Ok(group)
    }
}
