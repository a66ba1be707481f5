//! The hostile member: its keys are true, and nothing of what it emits is kept in its own state.

use std::{cell::RefCell, rc::Rc};

use anyhow::{Context as _, anyhow};
use chancery_proto::{
    commit_info::{CommitInfo, MessageData},
    common::v1::DeviceRef,
    delivery::v1::{report_epoch_request::Report, *},
    group_info::GroupInfo,
    key_package,
    policy::{ExternalJoin, POLICY_EXTENSION, Policy},
    suite::Suite,
    tree::Tree,
    welcome::{Welcome as CutWelcome, assemble},
    wire::Write as _,
};
use client_cli::{
    core::{
        Context as MemberContext, CoreError,
        commit::bundle_of,
        group::{self, MAX_BYTES},
        identity::{LeafKey, members, person_of},
        join,
        records::{self, GroupName, Person, Trouble},
        recovery,
    },
    failure::Failure,
    member::{Member, directory::Name},
    store::Step,
};
use openmls::{
    prelude::{tls_codec::Deserialize as _, *},
    schedule::{ExternalPsk, PreSharedKeyId, Psk},
};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::{
    craft::{self, InfoChange, PackageChange},
    grammar::Kind,
};

/// What came of an object.
#[derive(Debug)]
pub enum Answer {
    /// The service took it.
    Accepted,
    /// The service refused it.
    Refused(String),
}

/// Its device, the group that it is in, and whom it aims at.
pub struct Actor {
    /// The hostile member.
    pub member: Rc<Member>,
    /// Another device of the same person, which publishes what the first one cannot.
    pub second: Rc<Member>,
    /// The group.
    pub group: GroupName,
    /// An honest member.
    pub victim: Person,
    /// An honest device that is not in the group.
    pub newcomer: Person,
    /// A message that was framed and not sent yet.
    late: RefCell<Option<SendMessageRequest>>,
    texts: RefCell<u64>,
}

/// What a Commit of the actor holds.
#[derive(Default)]
struct Plan {
    add: Vec<Vec<u8>>,
    remove: Vec<Person>,
    psk: bool,
    context: Option<Extensions<GroupContext>>,
}

fn broken(error: impl std::fmt::Display) -> CoreError {
    CoreError::Malformed(error.to_string())
}

impl Actor {
    /// A member that does not mean well.
    pub fn new(
        member: Rc<Member>,
        second: Rc<Member>,
        group: GroupName,
        victim: Person,
        newcomer: Person,
    ) -> Self {
        Self {
            member,
            second,
            group,
            victim,
            newcomer,
            late: RefCell::default(),
            texts: RefCell::default(),
        }
    }

    fn id(&self) -> [u8; 16] {
        self.member.new_id()
    }

    fn key(&self) -> anyhow::Result<LeafKey> {
        Ok(self.member.identity().leaf_key(group::SUITES[0])?)
    }

    /// Makes something of the group's state, and keeps nothing of it.
    fn craft<T>(
        &self,
        make: impl FnOnce(&Step<'_>, MemberContext<'_>) -> Result<T, CoreError>,
    ) -> anyhow::Result<T> {
        let mut made = Err(anyhow!("the state cannot be used"));
        let undone = self.member.step(|step, context| {
            made = make(step, context).map_err(|error| anyhow!("{error}"));
            Err::<(), _>(broken("nothing of it is kept"))
        });
        drop(undone);
        made
    }

    /// Comes to where the group is, so that what it emits is of the current epoch.
    async fn catch_up(&self) -> anyhow::Result<()> {
        let look = || self.member.record(&self.group);
        self.member.step(|step, _| {
            if let Some(mut record) = records::group(step, &self.group)? {
                record.copies = 0;
                records::put_group(step, &record)?;
            }
            Ok::<_, CoreError>(())
        })?;
        self.member.sync(None).await?;
        let active = |record: records::GroupRecord| {
            record.state == records::GroupState::Active && record.pending.is_none()
        };
        if !look().is_ok_and(active) {
            self.member.rejoin_by_hand(&self.group).await?;
        }
        Ok(())
    }

    /// Emits one object of a kind.
    ///
    /// # Errors
    /// It cannot be made: the actor is out of the group, or somebody is not where it must be.
    pub async fn emit(&self, kind: Kind) -> anyhow::Result<Answer> {
        self.catch_up().await?;
        let done = match kind {
            Kind::ProposePsk
            | Kind::ProposeMember
            | Kind::ProposeTwice
            | Kind::ProposeRemove
            | Kind::ProposeUpdate
            | Kind::ProposeCustom
            | Kind::ProposeWindow
            | Kind::ProposeNoJoin
            | Kind::ProposeHome
            | Kind::ProposeNothing => self.propose(kind).await?,
            Kind::ExternalOther
            | Kind::ExternalNone
            | Kind::ExternalTwo
            | Kind::ExternalUnsigned => self.submit(self.external(kind).await?).await,
            Kind::PutSuite | Kind::PutWindow | Kind::PutAlone | Kind::PutPub => {
                self.put(kind).await?
            }
            Kind::PackageInit
            | Kind::PackageLeaf
            | Kind::PackageLowOrder
            | Kind::PackageSame
            | Kind::PackageDefaults => self.package(kind).await?,
            Kind::ReportSlander | Kind::ReportSpoilt => self.report(kind).await?,
            Kind::LeaveAndStay => self.member.leave(&self.group).await.map(|_| ()),
            Kind::MessageBytes
            | Kind::MessageEmpty
            | Kind::MessageOtherId
            | Kind::MessageRepeated
            | Kind::MessageLate => self.message(kind).await?,
            _ => {
                let request = self.commit(kind).await?;
                let first = self.submit(request.clone()).await;
                if kind == Kind::CommitRepeated && first.is_ok() {
                    let mut again = request;
                    let mut bytes = again.bundles[0].commit.to_vec();
                    spoil_last(&mut bytes);
                    again.bundles[0].commit = bytes.into();
                    self.submit(again).await
                } else {
                    first
                }
            }
        };
        Ok(match done {
            Ok(()) => Answer::Accepted,
            Err(failure) => Answer::Refused(failure.to_string()),
        })
    }

    async fn submit(&self, request: SubmitCommitRequest) -> Result<(), Failure> {
        self.member
            .delivery(request, async |mut client, request| {
                Ok(client.submit_commit(request).await?.into_inner())
            })
            .await
            .map(|_| ())
    }

    async fn send(&self, request: SendMessageRequest) -> Result<(), Failure> {
        self.member
            .delivery(request, async |mut client, request| {
                Ok(client.send_message(request).await?.into_inner())
            })
            .await
            .map(|_| ())
    }

    /// KeyPackages of these devices, asked for like anybody does.
    async fn packages(&self, devices: &[Name]) -> anyhow::Result<Vec<Vec<u8>>> {
        let request = ClaimKeyPackagesRequest {
            claim_id: self.id().to_vec().into(),
            devices: devices
                .iter()
                .map(|(domain, id)| DeviceRef {
                    domain: domain.clone(),
                    id: id.to_vec().into(),
                })
                .collect(),
            suites: vec![u16::from(group::SUITES[0]).into()],
            ..ClaimKeyPackagesRequest::default()
        };
        let claims = self.member.ask_for_key_packages(request).await?;
        let packages: Vec<Vec<u8>> = claims.iter().map(|c| c.key_package.to_vec()).collect();
        if packages.iter().any(Vec::is_empty) {
            return Err(anyhow!("somebody has no KeyPackage"));
        }
        Ok(packages)
    }

    async fn newcomers_package(&self) -> anyhow::Result<Vec<u8>> {
        let packages = self
            .packages(&[(self.newcomer.domain.clone(), self.newcomer.device)])
            .await?;
        packages.into_iter().next().context("no answer")
    }

    // --- proposals -------------------------------------------------------------------------------

    async fn propose(&self, kind: Kind) -> anyhow::Result<Result<(), Failure>> {
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

    // --- Commits ---------------------------------------------------------------------------------

    async fn plan(&self, kind: Kind) -> anyhow::Result<Plan> {
        let mut plan = Plan::default();
        match kind {
            Kind::CommitPsk => plan.psk = true,
            Kind::CommitRemovesMore => plan.remove.push(self.victim.clone()),
            Kind::CommitOtherUser
            | Kind::WelcomeSpoilt
            | Kind::WelcomeNone
            | Kind::WelcomeOther => plan.add.push(self.newcomers_package().await?),
            Kind::GhostLeaf => plan.add.push(self.ghost()?),
            _ => {}
        }
        Ok(plan)
    }

    async fn commit(&self, kind: Kind) -> anyhow::Result<SubmitCommitRequest> {
        let plan = self.plan(kind).await?;
        let other = match kind {
            Kind::GhostLeaf | Kind::WelcomeOther => Some(self.newcomers_package().await?),
            _ => None,
        };
        let (mut request, before) = self.craft(|step, context| {
            let mls = group::load(step, &self.group)?;
            let before = group::tree_of(&mls.export_ratchet_tree())?;
            let extensions = match kind {
                Kind::CommitWindow => Some(policy_of_kind(&mls, Kind::ProposeWindow)?),
                _ => None,
            };
            let plan = Plan {
                context: extensions,
                ..plan
            };
            let request = self.staged(step, context, mls, plan, |info| self.lie(kind, info))?;
            Ok((request, before))
        })?;
        self.bend(kind, &mut request, &before, other.as_deref())?;
        Ok(request)
    }

    fn lie(&self, kind: Kind, info: &mut CommitInfo) {
        let victim = members(vec![self.victim.clone()]);
        match kind {
            Kind::CommitRemovesMore => info.removed.clear(),
            Kind::CommitRemovesLess => info.removed.extend(victim),
            Kind::CommitOtherUser => {
                for added in &mut info.added {
                    added.user = self.victim.user;
                }
            }
            Kind::CommitSeenAhead => info.seen_seq += 5,
            Kind::CommitSeenOther => info.seen_chain = [7; 32],
            Kind::CommitUnknownProposal => info.proposals.push(info.seen_seq),
            _ => {}
        }
    }

    fn staged(
        &self,
        step: &Step<'_>,
        context: MemberContext<'_>,
        mut mls: MlsGroup,
        plan: Plan,
        lie: impl FnOnce(&mut CommitInfo),
    ) -> Result<SubmitCommitRequest, CoreError> {
        let provider = step.provider();
        let record = records::known(step, &self.group)?;
        let packages: Result<Vec<KeyPackage>, CoreError> = plan
            .add
            .iter()
            .map(|bytes| read_package(step, bytes))
            .collect();
        let packages = packages?;
        let added: Result<Vec<Person>, CoreError> = packages
            .iter()
            .map(|package| {
                let leaf = package.leaf_node();
                person_of(leaf.credential(), leaf.signature_key().as_slice())
            })
            .collect();
        let removed: Result<Vec<LeafNodeIndex>, CoreError> = plan
            .remove
            .iter()
            .map(|person| leaf_of(&mls, person))
            .collect();
        let mut info = CommitInfo {
            added: members(added?),
            removed: members(plan.remove.clone()),
            seen_seq: record.head_seq,
            seen_chain: record.chain,
            ..CommitInfo::default()
        };
        lie(&mut info);
        let id = self.id();
        let data = MessageData {
            message_id: Some(id),
            commit_info: Some(info),
        };
        let mut proposals = Vec::new();
        if plan.psk {
            let psk = unknown_psk(step, &mls)?;
            proposals.push(Proposal::PreSharedKey(Box::new(PreSharedKeyProposal::new(
                psk,
            ))));
        }
        mls.set_aad(data.encode());
        let before = mls.export_ratchet_tree();
        let key = context.identity.leaf_key(mls.ciphersuite())?;
        let mut builder = mls
            .commit_builder()
            .consume_proposal_store(false)
            .propose_adds(packages)
            .propose_removals(removed?)
            .add_proposals(proposals)
            .force_self_update(true);
        if let Some(extensions) = plan.context {
            builder = builder
                .propose_group_context_extensions(extensions)
                .map_err(broken)?;
        }
        let bundle = builder
            .load_psks(provider.storage())
            .map_err(broken)?
            .create_group_info(true)
            .build(provider.rand(), provider.crypto(), &key, |_| true)
            .map_err(broken)?
            .stage_commit(provider)
            .map_err(broken)?;
        let after = mls
            .pending_commit()
            .ok_or_else(|| broken("nothing is staged"))?
            .export_ratchet_tree(provider.crypto(), before.clone())
            .map_err(broken)?
            .ok_or_else(|| broken("no tree"))?;
        let tree = group::tree_of(&after)?.update_since(&group::tree_of(&before)?);
        Ok(SubmitCommitRequest {
            group: Some(self.group.to_ref()),
            epoch_seq: record.epoch_seq,
            bundles: vec![bundle_of(bundle, id, tree)?],
        })
    }

    /// Bends what goes beside a Commit.
    fn bend(
        &self,
        kind: Kind,
        request: &mut SubmitCommitRequest,
        before: &Tree,
        other: Option<&[u8]>,
    ) -> anyhow::Result<()> {
        let key = self.key()?;
        let bundle = request.bundles.first_mut().context("no bundle")?;
        let info = |change: &InfoChange, bytes: &[u8]| craft::group_info(bytes, change, &key);
        let own_info = bundle.group_info.to_vec();
        match kind {
            Kind::CommitGarbage => {
                let mut bytes = bundle.commit.to_vec();
                spoil_last(&mut bytes);
                bundle.commit = bytes.into();
            }
            Kind::InfoSpoilt => {
                let change = InfoChange {
                    spoilt: true,
                    ..InfoChange::default()
                };
                bundle.group_info = info(&change, &own_info)?.into();
            }
            Kind::InfoSigner => {
                let parsed = GroupInfo::parse(&own_info, MAX_BYTES)?;
                let change = InfoChange {
                    signer: Some(u32::from(parsed.signer == 0)),
                    ..InfoChange::default()
                };
                bundle.group_info = info(&change, &own_info)?.into();
            }
            Kind::InfoPub | Kind::InfoNoPub => {
                let change = InfoChange {
                    external_pub: Some((kind == Kind::InfoPub).then(|| vec![9; 32])),
                    ..InfoChange::default()
                };
                bundle.group_info = info(&change, &own_info)?.into();
            }
            Kind::InfoWindow => {
                let change = other_policy(&own_info)?;
                bundle.group_info = info(&change, &own_info)?.into();
            }
            Kind::InfoSuite => {
                let change = InfoChange {
                    suite: Some(3),
                    ..InfoChange::default()
                };
                bundle.group_info = info(&change, &own_info)?.into();
            }
            Kind::TreeMissing => {
                let update = bundle.tree.as_mut().context("no tree")?;
                update.nodes.pop();
            }
            Kind::TreeForeign | Kind::TreeWide => {
                let update = bundle.tree.as_ref().context("no tree")?;
                let mut tree = craft::updated(before, update)?;
                let width = tree.width();
                tree.resize(width * 2)?;
                let nodes = tree.to_update();
                let mut update = nodes;
                if kind == Kind::TreeForeign {
                    update.nodes.push(TreeNode {
                        index: 4 * width - 2,
                        node: Some(vec![1, 1, 0xff, 0xff].into()),
                    });
                }
                let hash = foreign_hash(&tree, kind, width)?;
                let parsed = GroupInfo::parse(&own_info, MAX_BYTES)?;
                let change = InfoChange {
                    replace: Some((parsed.tree_hash, hash)),
                    ..InfoChange::default()
                };
                bundle.group_info = info(&change, &own_info)?.into();
                bundle.tree = Some(update);
            }
            Kind::WelcomeSpoilt => {
                let mut welcome = cut(bundle)?;
                spoil_last(&mut welcome.secrets[0].1);
                put_welcome(bundle, &welcome);
            }
            Kind::WelcomeNone => bundle.welcomes.clear(),
            Kind::WelcomeOther | Kind::GhostLeaf => {
                // The secrets stay, the KeyPackageRef is one that the server knows.
                let package = other.context("no KeyPackage")?;
                let package = key_package::KeyPackage::parse(package, MAX_BYTES)?;
                let reference = package.reference().context("no reference")?;
                let mut welcome = cut(bundle)?;
                let (old, secrets) = &mut welcome.secrets[0];
                let mut prefix = Vec::new();
                prefix.put_vector(old);
                let mut renamed = Vec::new();
                renamed.put_vector(&reference);
                renamed.put(&secrets[prefix.len()..]);
                *secrets = renamed;
                put_welcome(bundle, &welcome);
            }
            _ => {}
        }
        Ok(())
    }

    /// A KeyPackage under a certificate that its own key signed, in the newcomer's name.
    fn ghost(&self) -> anyhow::Result<Vec<u8>> {
        super::ghost::key_package(&self.newcomer)
    }

    // --- from outside ----------------------------------------------------------------------------

    async fn external(&self, kind: Kind) -> anyhow::Result<SubmitCommitRequest> {
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

    // --- beside the log --------------------------------------------------------------------------

    async fn put(&self, kind: Kind) -> anyhow::Result<Result<(), Failure>> {
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
        Ok(put.map(|_| ()))
    }

    /// The second device publishes a bent KeyPackage; whoever adds it meets it first.
    async fn package(&self, kind: Kind) -> anyhow::Result<Result<(), Failure>> {
        let change = match kind {
            Kind::PackageInit => PackageChange::InitKey(&[1; 5]),
            Kind::PackageLeaf => PackageChange::EncryptionKey(&[1; 5]),
            Kind::PackageLowOrder => PackageChange::EncryptionKey(&[0; 32]),
            Kind::PackageSame => PackageChange::SameKeys,
            _ => PackageChange::DefaultTypes,
        };
        let person = &self.second.identity().person;
        let name = (person.domain.clone(), person.device);
        let package = self.packages(&[name]).await?.into_iter().next();
        let key = self.second.identity().leaf_key(group::SUITES[0])?;
        let bent = craft::key_package(&package.context("no answer")?, change, &key)?;
        let request = PublishKeyPackagesRequest {
            key_packages: vec![bent.into()],
            ..PublishKeyPackagesRequest::default()
        };
        let published = self
            .second
            .delivery(request, async |mut client, request| {
                Ok(client.publish_key_packages(request).await?.into_inner())
            })
            .await;
        Ok(published.map(|_| ()))
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

    async fn report(&self, kind: Kind) -> anyhow::Result<Result<(), Failure>> {
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
        Ok(reported.map(|_| ()))
    }

    // --- messages --------------------------------------------------------------------------------

    fn framed(
        &self,
        text: &[u8],
        inside: [u8; 16],
        outside: [u8; 16],
    ) -> anyhow::Result<SendMessageRequest> {
        self.craft(|step, context| {
            let record = records::known(step, &self.group)?;
            let mut mls = group::load(step, &self.group)?;
            let data = MessageData {
                message_id: Some(inside),
                commit_info: None,
            };
            mls.set_aad(data.encode());
            let key = context.identity.leaf_key(mls.ciphersuite())?;
            let message = mls
                .create_message(step.provider(), &key, text)
                .map_err(broken)?;
            Ok(SendMessageRequest {
                group: Some(self.group.to_ref()),
                message_id: outside.to_vec().into(),
                message: message.to_bytes().map_err(broken)?.into(),
                epoch_seq: record.epoch_seq,
                ..SendMessageRequest::default()
            })
        })
    }

    async fn message(&self, kind: Kind) -> anyhow::Result<Result<(), Failure>> {
        *self.texts.borrow_mut() += 1;
        let text = format!("{} {}", super::EVIL, self.texts.borrow()).into_bytes();
        let (id, other) = (self.id(), self.id());
        let request = match kind {
            Kind::MessageBytes => self.framed(&[0xff, 0xfe, 0], id, id)?,
            Kind::MessageEmpty => self.framed(&[], id, id)?,
            Kind::MessageOtherId => self.framed(&text, id, other)?,
            Kind::MessageRepeated => {
                let first = self.framed(&text, id, id)?;
                let again = SendMessageRequest {
                    message_id: other.to_vec().into(),
                    ..first.clone()
                };
                drop(self.send(first).await);
                again
            }
            _ => {
                // What was framed the last time goes out today, and today's the next time.
                let framed = self.framed(&text, id, id)?;
                let late = self.late.borrow_mut().replace(framed);
                match late {
                    Some(late) => late,
                    None => return Ok(Ok(())),
                }
            }
        };
        Ok(self.send(request).await)
    }
}

fn spoil_last(bytes: &mut [u8]) {
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
}

fn unknown_psk(step: &Step<'_>, mls: &MlsGroup) -> Result<PreSharedKeyId, CoreError> {
    let provider = step.provider();
    let external = Psk::External(ExternalPsk::new(b"a secret that nobody has".to_vec()));
    let psk = PreSharedKeyId::new(mls.ciphersuite(), provider.rand(), external).map_err(broken)?;
    psk.store(provider, b"secret").map_err(broken)?;
    Ok(psk)
}

fn read_package(step: &Step<'_>, bytes: &[u8]) -> Result<KeyPackage, CoreError> {
    let message = MlsMessageIn::tls_deserialize_exact(bytes).map_err(broken)?;
    let MlsMessageBodyIn::KeyPackage(package) = message.extract() else {
        return Err(broken("no KeyPackage"));
    };
    let crypto = step.provider().crypto();
    package
        .validate(crypto, ProtocolVersion::Mls10)
        .map_err(broken)
}

fn leaf_of(mls: &MlsGroup, person: &Person) -> Result<LeafNodeIndex, CoreError> {
    let roster = group::roster(mls)?;
    let found = roster.iter().find(|(_, member)| member == person);
    found
        .map(|(index, _)| *index)
        .ok_or_else(|| broken("not a member"))
}

/// The group's extensions with another policy.
fn policy_of_kind(mls: &MlsGroup, kind: Kind) -> Result<Extensions<GroupContext>, CoreError> {
    let mut extensions = mls.extensions().clone();
    let mut policy = group::policy_of(&extensions)?;
    match kind {
        Kind::ProposeNoJoin => policy.external_join = ExternalJoin::None,
        Kind::ProposeHome => policy.home_domain = "elsewhere.example".into(),
        _ => policy.past_epochs += 1,
    }
    let extension = Extension::Unknown(POLICY_EXTENSION, UnknownExtension(policy.encode()));
    extensions.add_or_replace(extension).map_err(broken)?;
    Ok(extensions)
}

/// Another policy in a GroupInfo, of the same length.
fn other_policy(bytes: &[u8]) -> anyhow::Result<InfoChange> {
    let policy = GroupInfo::parse(bytes, MAX_BYTES)?.policy()?;
    let other = Policy {
        past_epochs: policy.past_epochs ^ 8,
        ..policy.clone()
    };
    Ok(InfoChange {
        replace: Some((policy.encode(), other.encode())),
        ..InfoChange::default()
    })
}

/// The hash of a tree that is twice as wide as one of `width` leaves; with a node in its last place that is none.
fn foreign_hash(tree: &Tree, kind: Kind, width: u32) -> anyhow::Result<Vec<u8>> {
    let suite = Suite::from_code(u16::from(group::SUITES[0])).context("suite")?;
    let mut tree = tree.clone();
    if kind == Kind::TreeForeign {
        // Where even this reader of trees takes no such node, nobody does, and its hash does not matter.
        let _nowhere = tree.set(4 * width - 2, Some(&[1, 1, 0xff, 0xff]));
    }
    Ok(tree.hash(suite))
}

fn cut(bundle: &CommitBundle) -> anyhow::Result<CutWelcome> {
    let bytes = bundle.welcomes.first().context("no Welcome")?;
    Ok(CutWelcome::parse(bytes, MAX_BYTES)?)
}

fn put_welcome(bundle: &mut CommitBundle, welcome: &CutWelcome) {
    let secrets = welcome
        .secrets
        .iter()
        .flat_map(|(_, secrets)| secrets.clone());
    let secrets: Vec<u8> = secrets.collect();
    let bytes = assemble(welcome.suite, &secrets, &welcome.encrypted_group_info);
    bundle.welcomes = vec![bytes.into()];
}
