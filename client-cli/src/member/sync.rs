//! Welcomes and logs up to their heads, and what a crash left open.

use std::sync::PoisonError;

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{
        AckWelcomesRequest, Entry, FetchPayloadRequest, FetchTreeRequest, GroupSummary,
        ListGroupsRequest, ListWelcomesRequest, Pruned, ReadLogRequest, TreeNode, Welcome,
        WelcomeRef, entry,
    },
    status::Refusal,
};
use openmls::prelude::RatchetTreeIn;
use sha2::{Digest as _, Sha256};

use super::{Member, enroll::KEY_PACKAGES};
use crate::{
    core::{
        CoreError,
        apply::{self, Page, Received},
        group, guarded, join, outbox,
        records::{self, GroupName, GroupRecord, GroupState, JournalEntry},
    },
    failure::{Failure, code_name, reason_name},
    fault,
    progress::Task,
};

/// Entries in one transaction.
const PAGE: u32 = 200;

/// What a sync did.
#[derive(Debug, Default)]
pub struct Synced {
    /// Groups that this device joined.
    pub joined: Vec<GroupName>,
    /// New entries, in order, by group.
    pub entries: Vec<(GroupName, JournalEntry)>,
    /// Own operations whose outcome was not known, and is now.
    pub resolved: Vec<Resolved>,
}

/// What a log says next.
enum Part {
    Entries(Vec<Entry>),
    Pruned(Pruned),
}

/// An operation that a crash or a lost answer had left open.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Where.
    pub group: GroupName,
    /// Which.
    pub message_id: [u8; 16],
    /// Where it stands; `None` when the server refused it.
    pub seq: Option<u64>,
    /// The server had it already.
    pub replayed: bool,
    /// Why it can never be accepted, by the name of the reason; it is kept no more.
    pub refused: Option<String>,
}

fn refused_name(refusal: &Refusal) -> String {
    let reason = refusal.reason.map(reason_name);
    reason.unwrap_or_else(|| code_name(refusal.code)).to_owned()
}

impl Member {
    /// Everything: Welcomes, all groups (or only one), what was left open, and the stock of KeyPackages.
    ///
    /// # Errors
    /// The refusal, or no answer, or the store.
    pub async fn sync(&self, only: Option<&GroupName>) -> Result<Synced, Failure> {
        // The groups first, the Welcomes after: a Welcome comes with its membership.
        let listed = match only {
            None => self.listed().await?,
            Some(_) => Vec::new(),
        };
        let mut synced = Synced {
            joined: self.join_all().await?,
            ..Synced::default()
        };
        synced.joined.extend(self.find_again(listed).await?);
        let groups = self.step(|step, _| Ok(records::groups(step)?))?;
        for record in groups {
            if only.is_some_and(|name| *name != record.name) {
                continue;
            }
            let name = &record.name;
            if record.state.ended() {
                continue;
            }
            self.resolve(name, &mut synced).await?;
            let mut entries = self.read_up(name).await?;
            entries.extend(self.heal(name, true).await?);
            synced
                .entries
                .extend(entries.into_iter().map(|entry| (name.clone(), entry)));
        }
        if only.is_none() {
            self.replace_on().await?;
        }
        let stock = self.key_package_stock().await?;
        let suite = u32::from(u16::from(group::SUITES[0]));
        let own = stock.iter().find(|s| s.suite == suite);
        if own.is_none_or(|s| s.one_time < KEY_PACKAGES / 2 || !s.last_resort) {
            self.fill_key_packages(group::SUITES[0], KEY_PACKAGES)
                .await?;
        }
        Ok(synced)
    }

    /// The groups that the server knows this device as a member of.
    async fn listed(&self) -> Result<Vec<GroupName>, Failure> {
        let answer = self
            .delivery(ListGroupsRequest {}, async |mut client, request| {
                let mut parts = client.list_groups(request).await?.into_inner();
                let mut groups = Vec::new();
                while let Some(part) = parts.message().await? {
                    groups.extend(part.groups);
                }
                Ok(groups)
            })
            .await?;
        let member = |group: &GroupSummary| group.removed_seq == 0 && !group.closed;
        let groups = answer.value.into_iter().filter(member);
        Ok(groups
            .filter_map(|group| Some(GroupName::from_ref(group.group.as_ref()?)))
            .collect())
    }

    /// Comes back into groups that this profile knows nothing of, though it is in their rosters: a profile that was restored from before it joined.
    async fn find_again(&self, listed: Vec<GroupName>) -> Result<Vec<GroupName>, Failure> {
        let mut found = Vec::new();
        for name in listed {
            let known = self.step(|step, _| Ok(records::group(step, &name)?))?;
            let lost = known.is_none_or(|record| record.state == GroupState::Removed);
            if lost && self.come_back(&name).await? {
                found.push(name);
            }
        }
        Ok(found)
    }

    async fn resolve(&self, name: &GroupName, synced: &mut Synced) -> Result<(), Failure> {
        let mut resolved = |message_id, outcome: Option<&records::Accepted>, refused| {
            synced.resolved.push(Resolved {
                group: name.clone(),
                message_id,
                seq: outcome.map(|a| a.seq),
                replayed: outcome.is_some_and(|a| a.replayed),
                refused,
            });
        };
        if let Some(settled) = self.settle(name, &mut Default::default()).await? {
            resolved(settled.message_id, settled.accepted.as_ref(), None);
        }
        let unsent = self.step(|step, _| Ok(outbox::unsent(step, name)?))?;
        for id in unsent {
            let Ok(id) = <[u8; 16]>::try_from(id) else {
                continue;
            };
            match self.deliver(name, id).await {
                Ok(sent) => resolved(id, Some(&sent.accepted), None),
                Err(Failure::Refused(refusal)) => {
                    resolved(id, None, Some(refused_name(&refusal)));
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// A group's record.
    ///
    /// # Errors
    /// Not known here, or the store.
    pub fn record(&self, name: &GroupName) -> Result<GroupRecord, Failure> {
        self.step(|step, _| records::known(step, name))
    }

    /// Reads a group's log up to its head.
    ///
    /// # Errors
    /// `HISTORY_CHANGED` (the group is stopped then), other refusals, no answer, or the store.
    pub async fn read_up(&self, name: &GroupName) -> Result<Vec<JournalEntry>, Failure> {
        let mut all = Vec::new();
        loop {
            let record = self.record(name)?;
            if record.state.ended() || record.state == GroupState::Creating {
                return Ok(all);
            }
            let (parts, head) = match self.read_page(&record).await {
                Err(failure) if failure.reason() == Some(Reason::HistoryChanged) => {
                    self.stop(name)?;
                    return Err(failure);
                }
                Err(failure) if failure.reason() == Some(Reason::CursorTooOld) => {
                    self.too_old(name)?;
                    return Ok(all);
                }
                other => other?,
            };
            let promised = record.promised.as_ref().map_or(0, |(seq, _)| *seq);
            if head > 0 && head < promised {
                // What was acknowledged is gone: an older database was restored.
                self.stop(name)?;
                return Err(CoreError::State("history_changed".into()).into());
            }
            for part in &parts {
                match part {
                    Part::Pruned(gap) => self.step(|step, _| apply::pruned(step, name, gap))?,
                    Part::Entries(entries) => {
                        let done = self.take(name, entries).await?;
                        all.extend(done.entries);
                        if done.history_changed {
                            return Err(CoreError::State("history_changed".into()).into());
                        }
                    }
                }
            }
            let reached = self.record(name)?.head_seq;
            self.progress.at(Task::CatchingUp, reached, head);
            if parts.is_empty() || reached >= head || reached == record.head_seq {
                let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
                read.insert(name.clone());
                return Ok(all);
            }
        }
    }

    /// The same for a group that may not be known, or may not be readable any more.
    pub(super) async fn read_to_the_end(&self, name: &GroupName) -> Result<(), Failure> {
        let known = self.step(|step, _| Ok(records::group(step, name)?))?;
        if known.is_none() {
            return Ok(());
        }
        match self.read_up(name).await {
            Err(failure @ Failure::Unanswered { .. }) => Err(failure),
            _ => Ok(()),
        }
    }

    /// Reads the log once since this profile was opened: before it speaks, a copy that was restored must see what it had said already.
    ///
    /// # Errors
    /// See [`Member::read_up`].
    pub(super) async fn read_once(&self, name: &GroupName) -> Result<(), Failure> {
        let done = {
            let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            read.contains(name)
        };
        if !done {
            self.read_up(name).await?;
        }
        Ok(())
    }

    /// What lies before cannot be read any more: only an external Commit helps.
    pub(super) fn too_old(&self, name: &GroupName) -> Result<(), Failure> {
        self.step(|step, _| {
            records::change(step, name, |record| {
                record.state =
                    GroupState::NeedsRejoin("the log that it missed is past retention".into());
                record.skip_to_head = true;
            })
        })
    }

    async fn read_page(&self, record: &GroupRecord) -> Result<(Vec<Part>, u64), Failure> {
        let request = ReadLogRequest {
            group: Some(record.name.to_ref()),
            after_seq: record.head_seq,
            after_chain: if record.head_seq == 0 {
                Default::default()
            } else {
                record.chain.to_vec().into()
            },
            page_entries: PAGE,
        };
        let answer = self
            .delivery(request, async |mut client, request| {
                let mut stream = client.read_log(request).await?.into_inner();
                let (mut parts, mut head) = (Vec::new(), 0);
                while let Some(part) = stream.message().await? {
                    parts.extend(part.pruned.map(Part::Pruned));
                    if let Some(part) = part.entries {
                        head = part.head_seq;
                        if !part.entries.is_empty() {
                            parts.push(Part::Entries(part.entries));
                        }
                    }
                }
                Ok((parts, head))
            })
            .await?;
        Ok(answer.value)
    }

    /// The group's history changed: nothing more is sent to it or read from it.
    ///
    /// # Errors
    /// The store.
    pub fn stop(&self, name: &GroupName) -> Result<(), Failure> {
        self.step(|step, _| {
            records::change(step, name, |record| {
                record.state = GroupState::HistoryChanged
            })
        })
    }

    /// Applies entries, their large payloads fetched first.
    ///
    /// # Errors
    /// No answer, a payload that is not what the log says, or the store.
    pub async fn take(&self, name: &GroupName, entries: &[Entry]) -> Result<Page, Failure> {
        let mut received = Vec::with_capacity(entries.len());
        for entry in entries {
            let payload = match &entry.body {
                Some(entry::Body::Payload(bytes)) => bytes.to_vec(),
                Some(entry::Body::PayloadRef(reference)) => {
                    let bytes = self.payload(name, entry.seq).await?;
                    if Sha256::digest(&bytes)[..] != reference.sha256[..] {
                        return Err(Failure::Answer(format!(
                            "the payload of seq {} is another one",
                            entry.seq
                        )));
                    }
                    bytes
                }
                None => Vec::new(),
            };
            received.push(Received {
                entry: entry.clone(),
                payload,
            });
        }
        fault::point("before-merge");
        let page = self.step(|step, context| apply::page(step, context, name, &received))?;
        fault::point("after-merge");
        Ok(page)
    }

    /// One entry's whole payload.
    ///
    /// # Errors
    /// The refusal, or no answer.
    pub async fn payload(&self, name: &GroupName, seq: u64) -> Result<Vec<u8>, Failure> {
        let request = FetchPayloadRequest {
            group: Some(name.to_ref()),
            seq,
        };
        let answer = self
            .delivery(request, async |mut client, request| {
                let mut chunks = client.fetch_payload(request).await?.into_inner();
                let mut bytes = Vec::new();
                while let Some(part) = chunks.message().await? {
                    bytes.extend_from_slice(&part.chunk);
                }
                Ok(bytes)
            })
            .await?;
        Ok(answer.value)
    }

    /// The tree of an epoch.
    ///
    /// # Errors
    /// The refusal, no answer, or nodes that are no tree.
    pub async fn tree(&self, name: &GroupName, epoch_seq: u64) -> Result<RatchetTreeIn, Failure> {
        let request = FetchTreeRequest {
            group: Some(name.to_ref()),
            epoch_seq,
            current: false,
        };
        let (width, nodes) = self
            .delivery(request, async |mut client, request| {
                let mut parts = client.fetch_tree(request).await?.into_inner();
                let (mut width, mut nodes) = (0, Vec::new());
                while let Some(part) = parts.message().await? {
                    width = part.tree_width;
                    nodes.extend(part.nodes);
                    let at = nodes.last().map_or(0, |node: &TreeNode| node.index.into());
                    self.progress.at(Task::Joining, at, 2 * u64::from(width));
                }
                Ok((width, nodes))
            })
            .await?
            .value;
        self.progress.at(Task::Joining, 0, 0);
        Ok(group::ratchet_tree(width, &nodes)?)
    }

    /// Unacknowledged Welcomes of this device.
    ///
    /// # Errors
    /// The refusal, or no answer.
    pub async fn welcomes(&self) -> Result<Vec<Welcome>, Failure> {
        let answer = self
            .delivery(
                ListWelcomesRequest::default(),
                async |mut client, request| {
                    let mut parts = client.list_welcomes(request).await?.into_inner();
                    let mut welcomes = Vec::new();
                    while let Some(part) = parts.message().await? {
                        welcomes.extend(part.welcomes);
                    }
                    Ok(welcomes)
                },
            )
            .await?;
        Ok(answer.value)
    }

    /// Joins every group that a Welcome waits for.
    ///
    /// # Errors
    /// The first failure that may pass; Welcomes that can never be used are put aside.
    pub async fn join_all(&self) -> Result<Vec<GroupName>, Failure> {
        let welcomes = self.welcomes().await?;
        let mut joined = Vec::new();
        for welcome in welcomes {
            joined.extend(self.join(&welcome).await?);
        }
        Ok(joined)
    }

    /// Uses one Welcome and acknowledges it; the group, when it was new.
    ///
    /// # Errors
    /// The refusal, no answer, or the store.
    pub async fn join(&self, welcome: &Welcome) -> Result<Option<GroupName>, Failure> {
        let Some(reference) = &welcome.group else {
            return Err(Failure::Answer("a Welcome without a group".into()));
        };
        let name = GroupName::from_ref(reference);
        let known = self.step(|step, _| join::known(step, &name, welcome.seq))?;
        let joined = if known {
            None
        } else {
            // Another membership may have ended before this one began: what was said in it is read first, as long as its keys are here.
            self.read_to_the_end(&name).await?;
            let tree = self.tree(&name, welcome.epoch_seq).await?;
            self.enter(welcome, &name, tree)?.then(|| name.clone())
        };
        fault::point("before-welcome-ack");
        let request = AckWelcomesRequest {
            welcomes: vec![WelcomeRef {
                group: welcome.group.clone(),
                seq: welcome.seq,
            }],
        };
        self.delivery(request, async |mut client, request| {
            client.ack_welcomes(request).await
        })
        .await?;
        fault::point("after-welcome-ack");
        Ok(joined)
    }

    /// Uses a Welcome with the tree of its epoch; false where nothing came of it: another process of this profile has used it meanwhile, whose state is
    /// not to be lost, or it can never be used, and the group waits for a rejoin.
    ///
    /// # Errors
    /// The store.
    pub fn enter(
        &self,
        welcome: &Welcome,
        name: &GroupName,
        tree: RatchetTreeIn,
    ) -> Result<bool, Failure> {
        self.step(|step, context| {
            if join::known(step, name, welcome.seq)? {
                return Ok(false);
            }
            match step.attempt(|| guarded(|| join::welcome(step, context, welcome, tree))) {
                Err(CoreError::Store(error)) => Err(error.into()),
                Err(error) => join::failed(step, welcome, name, &error.to_string()).map(|()| false),
                Ok(_) => Ok(true),
            }
        })
    }
}
