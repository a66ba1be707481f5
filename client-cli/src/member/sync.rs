//! Welcomes and logs up to their heads, and what a crash left open.

use std::sync::PoisonError;

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{
        Entry, FetchPayloadRequest, GroupSummary, ListGroupsRequest, Pruned, ReadLogRequest, entry,
    },
    mutants::{self, Mutant},
    status::Refusal,
};
use sha2::{Digest as _, Sha256};

use super::{Member, commit::Tally, left_out::Eager, welcomes::PutAside};
use crate::{
    core::{
        CoreError,
        apply::{self, Page, Received},
        outbox,
        records::{self, GroupName, GroupRecord, GroupState, JournalEntry},
    },
    failure::{Failure, code_name, reason_name},
    fault,
    outcomes::{Failed, Loop, Outcomes, ends_loop},
    progress::Task,
};

/// Entries in one transaction.
const PAGE: u32 = 200;

/// What a sync did.
#[derive(Debug, Default)]
pub struct Synced {
    /// Groups that this device joined, each once.
    pub joined: Vec<GroupName>,
    /// Welcomes that can never be used.
    pub put_aside: Vec<PutAside>,
    /// New entries, in order, by group.
    pub entries: Vec<(GroupName, JournalEntry)>,
    /// Own operations whose outcome was not known, and is now.
    pub resolved: Vec<Resolved>,
    /// The server says that its database was restored: this device published other KeyPackages.
    pub server_restored: bool,
    /// What failed while everything else went on.
    pub failed: Vec<Failed>,
}

impl Synced {
    fn took(&mut self, name: &GroupName, entries: Vec<JournalEntry>) {
        let entries = entries.into_iter();
        self.entries
            .extend(entries.map(|entry| (name.clone(), entry)));
    }
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
    /// Everything: Welcomes, all groups (or only one), what was left open, devices that were left out, and the stock of
    /// KeyPackages. What fails of one group or Welcome is in the answer, and ends nothing else.
    ///
    /// # Errors
    /// See [`crate::outcomes::ends_loop`]; where only one group is meant, its failure.
    pub async fn sync(&self, only: Option<&GroupName>) -> Result<Synced, Failure> {
        let mut synced = Synced::default();
        // The groups first, the Welcomes after: a Welcome comes with its membership.
        let listed = match only {
            None => {
                synced.server_restored = self.compare_incarnation().await?;
                self.listed().await?
            }
            Some(_) => Vec::new(),
        };
        let joins = Box::pin(self.join_all()).await?;
        (synced.joined, synced.put_aside) = (joins.joined, joins.put_aside);
        synced.failed = joins.failed;
        synced.failed.extend(self.take_unpinned());
        let lost = listed
            .into_iter()
            .filter(|name| !joins.waiting.contains(name));
        self.find_again(lost.collect(), &mut synced).await?;
        let mut outcomes = Outcomes::of(Loop::Groups);
        for record in self.step(|step, _| Ok(records::groups(step)?))? {
            if only.is_some_and(|name| *name != record.name) || record.state.ended() {
                continue;
            }
            let name = &record.name;
            outcomes
                .run(name, Box::pin(self.sync_group(name, &mut synced)))
                .await?;
        }
        synced.failed.extend(outcomes.failed());
        if only.is_some() {
            let own = |f: &Failed| matches!(f.of, Loop::Groups | Loop::Unsent);
            if let Some(place) = synced.failed.iter().position(own) {
                return Err(synced.failed.swap_remove(place).failure);
            }
            return Ok(synced);
        }
        self.replace_on(&mut synced.failed).await?;
        self.add_left_out(Eager::Yes, &mut synced.failed).await?;
        self.refill_key_packages().await?;
        Ok(synced)
    }

    /// One group: what was left open, its log up to the head, and what can be mended.
    async fn sync_group(&self, name: &GroupName, synced: &mut Synced) -> Result<(), Failure> {
        // Whatever became of what was open: the log is read all the same.
        let resolved = self.resolve(name, synced).await;
        if let Err(failure) = &resolved
            && ends_loop(failure)
        {
            return resolved;
        }
        let entries = self.read_up(name).await?;
        synced.took(name, entries);
        resolved?;
        let entries = self.heal(name, true).await?;
        synced.took(name, entries);
        Ok(())
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
    async fn find_again(&self, listed: Vec<GroupName>, synced: &mut Synced) -> Result<(), Failure> {
        let mut outcomes = Outcomes::of(Loop::LostGroups);
        for name in listed {
            let known = self.step(|step, _| Ok(records::group(step, &name)?))?;
            if known.is_some_and(|record| record.state != GroupState::Removed) {
                continue;
            }
            let found = outcomes.run(&name, Box::pin(self.come_back(&name))).await?;
            if found == Some(true) && !synced.joined.contains(&name) {
                synced.joined.push(name);
            }
        }
        synced.failed.extend(outcomes.failed());
        Ok(())
    }

    /// Finds out what became of a group's kept Commit and of its kept messages. What the server refuses is settled by
    /// that.
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
        let kept = self.step(|step, _| Ok(records::group(step, name)?))?;
        let kept = kept.and_then(|record| record.pending);
        match self.settle(name, &mut Tally::default()).await {
            Ok(Some(settled)) => resolved(settled.message_id, settled.accepted.as_ref(), None),
            Ok(None) => {}
            Err(Failure::Refused(refusal)) if !mutants::is_on(Mutant::OneFailureEndsTheLoop) => {
                if let Some(kept) = kept {
                    resolved(kept.message_id, None, Some(refused_name(&refusal)));
                }
            }
            Err(failure) => return Err(failure),
        }
        let unsent = self.step(|step, _| Ok(outbox::unsent(step, name)?))?;
        let mut outcomes = Outcomes::of(Loop::Unsent);
        for id in unsent {
            let Ok(id) = <[u8; 16]>::try_from(id) else {
                continue;
            };
            let item = uuid::Uuid::from_bytes(id);
            let delivered = async {
                match self.deliver(name, id).await {
                    Ok(sent) => Ok(Ok(sent.accepted)),
                    Err(failure) if ends_loop(&failure) => Err(failure),
                    Err(Failure::Refused(refusal)) => Ok(Err(refusal)),
                    Err(failure) => Err(failure),
                }
            };
            match outcomes.run(item, Box::pin(delivered)).await? {
                Some(Ok(accepted)) => resolved(id, Some(&accepted), None),
                Some(Err(refusal)) => resolved(id, None, Some(refused_name(&refusal))),
                None => {}
            }
        }
        synced.failed.extend(outcomes.failed());
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
        self.read_until(name, u64::MAX).await
    }

    /// The same up to an entry that is not read any more.
    async fn read_until(&self, name: &GroupName, end: u64) -> Result<Vec<JournalEntry>, Failure> {
        let mut all = Vec::new();
        loop {
            let record = self.record(name)?;
            if record.state.ended()
                || record.state == GroupState::Creating
                || record.head_seq.saturating_add(1) >= end
            {
                return Ok(all);
            }
            let (parts, head) = match self.read_page(&record).await {
                Ok(page) => page,
                Err(failure) if failure.reason() == Some(Reason::CursorTooOld) => {
                    self.too_old(name)?;
                    return Ok(all);
                }
                Err(failure) => return self.not_read(&record, failure).map(|()| all),
            };
            let promised = record.promised.as_ref().map_or(0, |(seq, _)| *seq);
            if head > 0 && head < promised {
                // What was acknowledged is gone: an older database was restored.
                self.stop(name)?;
                return Err(history_changed());
            }
            for part in &parts {
                match part {
                    Part::Pruned(gap) if gap.to_seq < end => {
                        self.step(|step, _| apply::pruned(step, name, gap))?;
                    }
                    Part::Pruned(_) => {}
                    Part::Entries(entries) => {
                        let wanted = entries.iter().take_while(|entry| entry.seq < end).count();
                        let done = self.take(name, &entries[..wanted]).await?;
                        all.extend(done.entries);
                        if done.history_changed {
                            return Err(history_changed());
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

    /// A log that the server does not give: nothing where this device is no member any more, another history where what
    /// it knows of the group was acknowledged to it, or the failure itself.
    fn not_read(&self, record: &GroupRecord, failure: Failure) -> Result<(), Failure> {
        let unknown = failure.reason() == Some(Reason::Group)
            && record.name.domain == self.profile.delivery_domain
            && !mutants::is_on(Mutant::UnknownGroupIsARefusal);
        match &record.state {
            GroupState::Removed if unknown => return Ok(()),
            _ if unknown || failure.reason() == Some(Reason::HistoryChanged) => {
                self.stop(&record.name)?;
            }
            _ => return Err(failure),
        }
        Err(match unknown {
            true => history_changed(),
            false => failure,
        })
    }

    /// The same for a group that may not be known, or may not be readable any more.
    pub(super) async fn read_to_the_end(&self, name: &GroupName) -> Result<(), Failure> {
        self.read_before(name, u64::MAX).await
    }

    /// The same up to an entry that is not read any more: the first one of a later membership, which its Welcome opens.
    pub(super) async fn read_before(&self, name: &GroupName, end: u64) -> Result<(), Failure> {
        let known = self.step(|step, _| Ok(records::group(step, name)?))?;
        if known.is_none() {
            return Ok(());
        }
        match self.read_until(name, end).await {
            Err(failure) if ends_loop(&failure) => Err(failure),
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
}

fn history_changed() -> Failure {
    CoreError::State("history_changed".into()).into()
}
