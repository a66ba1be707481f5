//! Commits, and what goes beside them.

use anyhow::Context as _;
use chancery_proto::{
    commit_info::{CommitInfo, MessageData},
    delivery::v1::*,
    group_info::GroupInfo,
    key_package,
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
        identity::{members, person_of},
        records::{self, Person},
    },
    store::Step,
};
use openmls::prelude::*;

use super::super::{
    craft::{self, InfoChange},
    grammar::Kind,
};

use super::*;

impl Actor {
    async fn plan(&self, kind: Kind) -> anyhow::Result<Plan> {
        let mut plan = Plan::default();
        let adds = matches!(
            kind,
            Kind::CommitOtherUser
                | Kind::WelcomeSpoilt
                | Kind::WelcomeNone
                | Kind::WelcomeOther
                | Kind::WelcomeSuite
                | Kind::WelcomeSwapped
                | Kind::GhostLeaf
        );
        anyhow::ensure!(!adds || !self.is_in(&self.newcomer), "nobody to add");
        match kind {
            Kind::CommitPsk => plan.psk = true,
            Kind::CommitHalfPath => plan.wrong = Wrong::HalfThePath,
            Kind::CommitLowOrder => plan.wrong = Wrong::LowOrder,
            Kind::CommitRemovesMore => plan.remove.push(self.victim.clone()),
            Kind::CommitOtherUser
            | Kind::WelcomeSpoilt
            | Kind::WelcomeNone
            | Kind::WelcomeOther
            | Kind::WelcomeSuite => plan.add.push(self.newcomers_package().await?),
            Kind::WelcomeSwapped => {
                let second = self.second_person();
                anyhow::ensure!(!self.is_in(second), "nobody to add beside it");
                let second = Self::name_of(second);
                plan.add.push(self.newcomers_package().await?);
                plan.add.extend(self.packages(&[second]).await?);
            }
            Kind::GhostLeaf => plan.add.push(self.ghost()?),
            _ => {}
        }
        Ok(plan)
    }

    pub(super) async fn commit(&self, kind: Kind) -> anyhow::Result<SubmitCommitRequest> {
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

    /// A spoilt Commit that says its whole tree, whatever tree the service has.
    pub(super) async fn garbage_with_its_tree(&self) -> anyhow::Result<SubmitCommitRequest> {
        let mut request = self.commit(Kind::CommitGarbage).await?;
        let before = self.craft(|step, _| {
            let mls = group::load(step, &self.group)?;
            group::tree_of(&mls.export_ratchet_tree())
        })?;
        let bundle = request.bundles.first_mut().context("no bundle")?;
        let update = bundle.tree.as_ref().context("no tree")?;
        bundle.tree = Some(craft::updated(&before, update)?.to_update());
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
            Kind::CommitUnknownProposal => info.proposals.push(info.seen_seq + 1_000),
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
        let hand = FalseHand::new(provider.crypto(), plan.wrong);
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
            .build(provider.rand(), &hand, &key, |_| true)
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
                        index: foreign_place(width),
                        node: Some(FOREIGN.to_vec().into()),
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
            Kind::WelcomeSuite => {
                let mut welcome = cut(bundle)?;
                welcome.suite = 3;
                put_welcome(bundle, &welcome);
            }
            Kind::WelcomeSwapped => {
                let mut welcome = cut(bundle)?;
                let [first, second] = welcome.secrets.as_mut_slice() else {
                    anyhow::bail!("not two joiners");
                };
                let renamed = (renamed(first, &second.0), renamed(second, &first.0));
                (first.1, second.1) = renamed;
                put_welcome(bundle, &welcome);
            }
            Kind::WelcomeNone => bundle.welcomes.clear(),
            Kind::WelcomeOther | Kind::GhostLeaf => {
                // The secrets stay, the KeyPackageRef is one that the server knows.
                let package = other.context("no KeyPackage")?;
                let package = key_package::KeyPackage::parse(package, MAX_BYTES)?;
                let reference = package.reference().context("no reference")?;
                let mut welcome = cut(bundle)?;
                welcome.secrets[0].1 = renamed(&welcome.secrets[0], &reference);
                put_welcome(bundle, &welcome);
            }
            _ => {}
        }
        Ok(())
    }

    /// A KeyPackage under a certificate that its own key signed, in the newcomer's name.
    fn ghost(&self) -> anyhow::Result<Vec<u8>> {
        super::super::ghost::key_package(&self.newcomer)
    }
}

/// It begins as a parent node does, and is none.
const FOREIGN: [u8; 4] = [1, 2, 0xff, 0xff];

/// The parent of all that a tree of `width` leaves gains when it becomes twice as wide.
const fn foreign_place(width: u32) -> u32 {
    3 * width - 1
}

/// The hash of a tree that is twice as wide as one of `width` leaves; with a node that is none.
fn foreign_hash(tree: &Tree, kind: Kind, width: u32) -> anyhow::Result<Vec<u8>> {
    let suite = Suite::from_code(u16::from(group::SUITES[0])).context("suite")?;
    let mut tree = tree.clone();
    if kind == Kind::TreeForeign {
        // Where even this reader of trees takes no such node, nobody does, and its hash does not matter.
        let _nowhere = tree.set(foreign_place(width), Some(&FOREIGN));
    }
    Ok(tree.hash(suite))
}

/// The secrets of one joiner under the KeyPackageRef of another.
fn renamed((old, secrets): &(Vec<u8>, Vec<u8>), reference: &[u8]) -> Vec<u8> {
    let mut prefix = Vec::new();
    prefix.put_vector(old);
    let mut renamed = Vec::new();
    renamed.put_vector(reference);
    renamed.put(&secrets[prefix.len()..]);
    renamed
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
