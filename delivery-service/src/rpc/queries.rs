//! What is only read: facts of the service, groups, rosters, trees.

use chancery_proto::{common::v1::Reason, delivery::v1::*, suite};
use service_kit::db::{Db, DbError, GenericClient};
use tonic::Status;

use crate::{
    access::caller::Caller,
    error::{Error, status},
    ordering::group::Stage,
    reading::log,
    rpc::Rpc,
    store, wire,
};

/// Members in one part of a roster.
const ROSTER_PART: usize = 1_000;
/// Indices that are read at once, half of them leaves of some hundred bytes each.
const TREE_PART: u32 = 256;
/// Nodes' bytes in one part of a tree: a parent that names thousands of unmerged leaves is larger than all leaves of a part.
const TREE_PART_BYTES: usize = 128 * 1024;

/// Trees are kept for Welcomes that wait, and as far back as a void may lead.
async fn check_kept<C: GenericClient>(
    client: &C,
    group: &[u8],
    epoch_seq: u64,
) -> Result<(), Error> {
    let head = store::groups::head(client, group)
        .await
        .map_err(DbError::from)?
        .ok_or_else(Error::no_group)?;
    let oldest = store::tree::oldest_kept(client, group, head.settled_seq)
        .await
        .map_err(DbError::from)?;
    if epoch_seq < oldest {
        return Err(Error::refused(
            Reason::EpochTooOld,
            "the tree of this epoch is no longer kept: no Welcome waits for it",
        ));
    }
    Ok(())
}

/// A tree that is read as it is sent, a part at a time.
pub(super) struct TreePages {
    db: Db,
    group: Vec<u8>,
    epoch_seq: u64,
    tree_width: u32,
    /// None behind the last part.
    next_index: Option<u32>,
}

impl TreePages {
    /// The next part; the first one comes also of a tree without nodes. An epoch's tree never changes, so that each part may be read by itself.
    pub(super) async fn next(self) -> Result<Option<(FetchTreeResponse, Self)>, Status> {
        self.read().await.map_err(status)
    }

    async fn read(mut self) -> Result<Option<(FetchTreeResponse, Self)>, Error> {
        let Some(from) = self.next_index else {
            return Ok(None);
        };
        let client = self.db.client().await?;
        let (group, seq) = (&self.group, self.epoch_seq);
        let all = self.tree_width.saturating_mul(2).saturating_sub(1);
        let until = from.saturating_add(TREE_PART).min(all);
        let nodes = store::tree::range_at(&client, group, seq, from..until)
            .await
            .map_err(DbError::from)?;
        // After it was read: what was deleted before is not missing from it.
        check_kept(&client, group, seq).await?;
        drop(client);
        self.next_index = (until < all).then_some(until);
        let mut part = FetchTreeResponse {
            epoch_seq: self.epoch_seq,
            tree_width: self.tree_width,
            nodes: Vec::new(),
        };
        let mut bytes = 0;
        for (index, node) in nodes {
            bytes += node.len();
            if bytes > TREE_PART_BYTES && !part.nodes.is_empty() {
                self.next_index = Some(index);
                break;
            }
            part.nodes.push(TreeNode {
                index,
                node: Some(node.into()),
            });
        }
        Ok(Some((part, self)))
    }
}

impl Rpc {
    pub(super) async fn info(&self) -> Result<GetServiceInfoResponse, Error> {
        let config = &self.node.config;
        let client = self.node.db.client().await?;
        let now = store::groups::now(&client).await.map_err(DbError::from)?;
        let incarnation = store::groups::incarnation(&client)
            .await
            .map_err(DbError::from)?;
        let suites = config.suites.iter().map(|code| Suite {
            code: u32::from(*code),
            name: suite::Suite::from_code(*code)
                .map(|suite| suite.name().to_owned())
                .unwrap_or_default(),
            status: SuiteStatus::Allowed.into(),
        });
        Ok(GetServiceInfoResponse {
            domain: config.domain.clone(),
            limits: config.limits.published(),
            suites: suites.collect(),
            retention_days: config.limits.retention_days.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            server_time_micros: now,
            incarnation: incarnation.as_bytes().to_vec().into(),
            auth_domains: self.node.domains.names(),
            clock_leeway_seconds: config.clock_leeway_seconds.into(),
        })
    }

    /// Which tree is asked for, if it is one that is kept.
    pub(super) async fn tree(
        &self,
        caller: &Caller,
        request: &FetchTreeRequest,
    ) -> Result<TreePages, Error> {
        let group = wire::group_id(&self.node, request.group.as_ref())?;
        let view = log::view(&self.node, caller, group).await?;
        let epoch_seq = match request.current {
            true => view.head.epoch_seq,
            false => request.epoch_seq,
        };
        if !view.holds_epoch(epoch_seq) {
            return Err(Error::no_group());
        }
        let client = self.node.db.client().await?;
        let epoch = store::epochs::find(&client, &view.group, epoch_seq)
            .await
            .map_err(DbError::from)?
            .ok_or_else(|| Error::refused(Reason::UnknownValue, "epoch_seq names no epoch"))?;
        check_kept(&client, &view.group, epoch_seq).await?;
        Ok(TreePages {
            db: self.node.db.clone(),
            group: view.group,
            epoch_seq,
            tree_width: epoch.tree_width,
            next_index: Some(0),
        })
    }

    pub(super) async fn group_info(
        &self,
        caller: &Caller,
        request: &GetGroupInfoRequest,
    ) -> Result<GetGroupInfoResponse, Error> {
        let group = wire::group_id(&self.node, request.group.as_ref())?;
        let view = log::view(&self.node, caller, group).await?;
        if !view.member() {
            return Err(Error::no_group());
        }
        let client = self.node.db.client().await?;
        let epoch = store::epochs::find(&client, &view.group, view.head.epoch_seq)
            .await
            .map_err(DbError::from)?
            .ok_or(Error::Corrupt("the current epoch is missing"))?;
        let created = store::groups::created(&client, &view.group)
            .await
            .map_err(DbError::from)?
            .ok_or(Error::Corrupt("the group's row is missing"))?;
        Ok(GetGroupInfoResponse {
            group_info: epoch.group_info.into(),
            epoch: epoch.epoch,
            epoch_seq: epoch.epoch_seq,
            head_seq: view.head.seq,
            chain: view.head.chain.to_vec().into(),
            group_state_hash: epoch.group_state_hash.into(),
            suite: u32::try_from(created.suite).unwrap_or(0),
        })
    }

    pub(super) async fn roster(
        &self,
        caller: &Caller,
        request: &GetGroupRequest,
    ) -> Result<Vec<GetGroupResponse>, Error> {
        let group = wire::group_id(&self.node, request.group.as_ref())?;
        let view = log::view(&self.node, caller, group).await?;
        let at_seq = match request.at_seq {
            0 => view.head.seq,
            seq => seq,
        };
        if !view.holds(at_seq) {
            return Err(Error::no_group());
        }
        let client = self.node.db.client().await?;
        let members = store::roster::as_of(&client, &view.group, at_seq)
            .await
            .map_err(DbError::from)?;
        let created = store::groups::created(&client, &view.group)
            .await
            .map_err(DbError::from)?
            .ok_or(Error::Corrupt("the group's row is missing"))?;
        let members: Vec<Member> = members
            .into_iter()
            .map(|m| Member {
                device: Some(self.node.domains.device_ref(m.key)),
                user: Some(self.node.domains.user_ref(m.key.domain, m.user)),
                joined_seq: m.joined_seq,
                pending_removal: m.pending,
            })
            .collect();
        let mut answers: Vec<GetGroupResponse> = members
            .chunks(ROSTER_PART)
            .map(|part| GetGroupResponse {
                members: part.to_vec(),
                ..GetGroupResponse::default()
            })
            .collect();
        if answers.is_empty() {
            answers.push(GetGroupResponse::default());
        }
        answers[0].state = Some(wire::state(&self.node, &view.group, &view.head));
        answers[0].suite = u32::try_from(created.suite).unwrap_or(0);
        let forks = store::recovery::distinct_hashes(&client, &view.group, view.head.epoch_seq)
            .await
            .map_err(DbError::from)?;
        answers[0].healthy = view.head.stage == Stage::Open && forks < 2;
        Ok(answers)
    }

    pub(super) async fn groups(&self, caller: &Caller) -> Result<Vec<ListGroupsResponse>, Error> {
        let client = self.node.db.client().await?;
        let groups = store::roster::groups_of(&client, caller.key)
            .await
            .map_err(DbError::from)?;
        drop(client);
        let mut summaries = Vec::new();
        for group in groups {
            let view = log::view(&self.node, caller, group).await?;
            let Some(last) = view.intervals.last() else {
                continue;
            };
            summaries.push(GroupSummary {
                group: Some(wire::group_ref(&self.node, &view.group)),
                state: view
                    .member()
                    .then(|| wire::state(&self.node, &view.group, &view.head)),
                joined_seq: last.joined_seq,
                removed_seq: last.removed_seq.unwrap_or(0),
                closed: view.head.stage != Stage::Open,
            });
        }
        Ok(summaries
            .chunks(ROSTER_PART)
            .map(|part| ListGroupsResponse {
                groups: part.to_vec(),
            })
            .collect())
    }
}
