//! What a member does without being asked when something is wrong: it reports, waits for the others, comes back, repairs, removes, says again.

use std::time::Duration;

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{
        ListPendingRemovalsRequest, PendingRemoval, PutGroupInfoRequest, ReportEpochRequest,
        Requested, report_epoch_request::Report, requested::What,
    },
};

use super::{Member, commit::Tally};
use crate::{
    core::{
        CoreError, group,
        outbox::{self, Outgoing},
        records::{self, GroupName, GroupRecord, GroupState, Intent, JournalEntry, Trouble},
        recovery, removal, stage,
    },
    failure::Failure,
    outcomes::{Loop, Outcomes},
};

/// A Commit whose failure was reported is taken back within this time, or stands; seconds. Twice what servers wait by default would be too long to be
/// silent: who comes back too early only has to come back once more.
const VOID_SECONDS: i64 = 12;
/// A device renews its leaf at the server's request once in this time, seconds.
const WARM_SECONDS: i64 = 600;
/// When it last did, by the group's name.
const WARMED: &str = "warmed";
const LOOK: Duration = Duration::from_millis(500);
/// Another copy of the profile that shows itself more often than this is a matter for a person: two copies would push each other out for ever.
const COPIES: u32 = 1;

/// Is there something that [`Member::heal`] may mend?
pub(super) fn ails(record: &GroupRecord) -> bool {
    match record.state {
        GroupState::NeedsRejoin(_) => record.copies <= COPIES,
        GroupState::Active => record.repair || record.refresh || !record.resend.is_empty(),
        _ => false,
    }
}

/// What nobody waits for may fail: whether it was done, or was refused by the server or by openmls and comes up again by itself.
pub(super) fn unless_refused<T>(done: Result<T, Failure>) -> Result<bool, Failure> {
    match done {
        Ok(_) => Ok(true),
        Err(Failure::Refused(_) | Failure::Races { .. }) => Ok(false),
        Err(Failure::Core(error)) if !matches!(error, CoreError::Store(_)) => Ok(false),
        Err(failure) => Err(failure),
    }
}

impl Member {
    /// Mends what can be mended of a group; what was read on the way. With `patience`, waits for the others' judgement on a Commit that this device
    /// cannot merge; without, it is to be called again.
    ///
    /// # Errors
    /// No answer, or the store. What the server or openmls refuses is left as it is, for the next time.
    pub async fn heal(
        &self,
        name: &GroupName,
        patience: bool,
    ) -> Result<Vec<JournalEntry>, Failure> {
        let mut read = Vec::new();
        loop {
            let record = self.record(name)?;
            if !ails(&record) {
                return Ok(read);
            }
            if record.state == GroupState::Active {
                if record.repair {
                    self.repair(name, &record).await?;
                }
                if record.refresh {
                    self.refresh(name).await?;
                }
                self.say_again(name).await?;
                return Ok(read);
            }
            if let Some(trouble) = &record.trouble
                && self.is_open(name, trouble).await?
            {
                if !patience {
                    return Ok(read);
                }
                tokio::time::sleep(LOOK).await;
                read.extend(self.read_up(name).await?);
                continue;
            }
            if !self.come_back(name).await? {
                return Ok(read);
            }
            read.extend(self.read_up(name).await?);
        }
    }

    /// May the Commit still be taken back? Reports it, the first time.
    async fn is_open(&self, name: &GroupName, trouble: &Trouble) -> Result<bool, Failure> {
        let reported_at = match trouble.reported_at {
            Some(at) => at,
            None => {
                let report =
                    self.step(|step, context| recovery::report(step, context, name, trouble));
                let report = match report {
                    Ok(report) => Report::Failure(report),
                    // Without a state there is nothing to sign for.
                    Err(Failure::Core(CoreError::Unknown)) => return Ok(false),
                    Err(failure) => return Err(failure),
                };
                if self.report(name, trouble.seq, report).await?.is_none() {
                    // Taken back meanwhile, or not ours to judge: the log says which.
                    self.read_up(name).await?;
                }
                let at = self.now();
                self.step(|step, _| {
                    records::change(step, name, |record| {
                        if let Some(open) = &mut record.trouble {
                            open.reported_at = Some(at);
                        }
                    })
                })?;
                at
            }
        };
        let record = self.record(name)?;
        Ok(record
            .trouble
            .is_some_and(|open| open.seq == trouble.seq && record.settled_seq < open.seq)
            && self.now() < reported_at + VOID_SECONDS)
    }

    /// Says what this device knows of an epoch; `None` where the server does not want to know.
    async fn report(
        &self,
        name: &GroupName,
        epoch_seq: u64,
        report: Report,
    ) -> Result<Option<u64>, Failure> {
        let request = ReportEpochRequest {
            group: Some(name.to_ref()),
            epoch_seq,
            report: Some(report),
        };
        let answer = self
            .delivery(request, async |mut client, request| {
                Ok(client.report_epoch(request).await?.into_inner())
            })
            .await;
        match answer {
            Ok(answer) => {
                let settled = answer.value.settled_seq;
                self.step(|step, _| Ok(records::settled(step, name, settled)?))?;
                Ok(Some(settled))
            }
            Err(Failure::Refused(_)) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Comes back; false where that is not possible now. A group whose roster this device is not in any more is one
    /// that it was removed from.
    pub(super) async fn come_back(&self, name: &GroupName) -> Result<bool, Failure> {
        let back = Box::pin(self.rejoin(name)).await;
        if let Err(failure) = &back
            && failure.reason() == Some(Reason::Group)
        {
            self.step(|step, _| {
                let Some(mut record) = records::group(step, name)? else {
                    return Ok(());
                };
                if matches!(record.state, GroupState::NeedsRejoin(_)) && record.pending.is_none() {
                    record.state = GroupState::Removed;
                    record.trouble = None;
                    records::put_group(step, &record)?;
                }
                Ok(())
            })?;
        }
        unless_refused(back)
    }

    /// Puts this device's own GroupInfo and tree in the place of false ones.
    async fn repair(&self, name: &GroupName, record: &GroupRecord) -> Result<(), Failure> {
        let (group_info, tree) = self.step(|step, context| {
            group::look(step, name, |mls_group| {
                Ok((
                    group::export_group_info(step, context, mls_group)?,
                    group::tree_of(&mls_group.export_ratchet_tree())?.to_update(),
                ))
            })
        })?;
        let request = PutGroupInfoRequest {
            group: Some(name.to_ref()),
            epoch_seq: record.epoch_seq,
            group_info: group_info.into(),
            tree: Some(tree),
        };
        let answer = self
            .delivery(request, async |mut client, request| {
                Ok(client.put_group_info(request).await?.into_inner())
            })
            .await;
        match answer {
            // Another epoch began: its own GroupInfo is judged by itself.
            Ok(_) | Err(Failure::Refused(_)) => {
                self.step(|step, _| records::change(step, name, |record| record.repair = false))
            }
            Err(failure) => Err(failure),
        }
    }

    /// Begins a new epoch after a void; whoever was first has done it for all.
    async fn refresh(&self, name: &GroupName) -> Result<(), Failure> {
        unless_refused(Box::pin(self.update(name)).await).map(|_| ())
    }

    /// Sends what was taken back, under new ids.
    async fn say_again(&self, name: &GroupName) -> Result<(), Failure> {
        let ids = self.step(|step, _| {
            let mut record = records::known(step, name)?;
            let texts = std::mem::take(&mut record.resend);
            let mut ids = Vec::with_capacity(texts.len());
            for text in texts {
                // In one step: a crash neither loses a text nor doubles it.
                let id = self.new_id();
                outbox::put(step, name, &id, &Outgoing::unframed(&text))?;
                ids.push(id);
            }
            records::put_group(step, &record)?;
            Ok(ids)
        })?;
        let mut outcomes = Outcomes::of(Loop::SaidAgain);
        for id in ids {
            let item = uuid::Uuid::from_bytes(id);
            outcomes.run(item, Box::pin(self.deliver(name, id))).await?;
        }
        // What was not accepted is kept, or was refused for good; `sync` tells.
        Ok(())
    }

    /// Does what the server asks this device to do, as far as signatures say so too.
    ///
    /// # Errors
    /// No answer, or the store.
    pub(super) async fn asked(&self, requested: &Requested) -> Result<(), Failure> {
        let Some(reference) = &requested.group else {
            return Ok(());
        };
        let name = GroupName::from_ref(reference);
        let known = self.step(|step, _| Ok(records::group(step, &name)?))?;
        let Some(record) = known.filter(|record| record.state == GroupState::Active) else {
            return Ok(());
        };
        match &requested.what {
            Some(What::Remove(_)) => {
                self.read_up(&name).await?;
                unless_refused(self.remove_revoked(&name).await).map(|_| ())
            }
            Some(What::Update(item)) => self.warm(&name, item.epoch_seq).await,
            Some(What::Report(item)) if item.epoch_seq == record.epoch_seq => {
                let hash = self.step(|step, _| recovery::state_hash(step, &name))?;
                let report = Report::StateHash(hash.to_vec().into());
                self.report(&name, item.epoch_seq, report).await.map(|_| ())
            }
            _ => Ok(()),
        }
    }

    /// Renews this device's leaf because the server asks for it: a tree whose upper nodes are blank makes everybody's Commits large. It is tried once and in that
    /// epoch only, and not again for a while, so that no server can make a device work without end.
    async fn warm(&self, name: &GroupName, epoch_seq: u64) -> Result<(), Failure> {
        self.read_up(name).await?;
        let now = self.now();
        let staged = self.step(|step, context| {
            let mut record = records::known(step, name)?;
            let space = name.to_string();
            let last: Option<i64> = step.get(WARMED, space.as_bytes())?;
            let again = last.is_none_or(|at| now - at >= WARM_SECONDS || at > now);
            let fits = record.state == GroupState::Active
                && record.epoch_seq == epoch_seq
                && record.pending.is_none();
            if !fits || !again {
                return Ok(false);
            }
            step.put(WARMED, space.as_bytes(), &now)?;
            let update = Intent {
                update: true,
                ..Intent::default()
            };
            stage::stage(step, context, &mut record, &update, self.new_id())?;
            Ok(true)
        });
        // What openmls refuses is no reason to stop listening.
        if matches!(staged, Ok(true)) {
            unless_refused(self.settle(name, &mut Tally::default()).await)?;
        }
        unless_refused(staged).map(|_| ())
    }

    /// Removes the members whose removal is signed for; false where nobody's is.
    ///
    /// # Errors
    /// The refusal, no answer, or the store.
    pub async fn remove_revoked(&self, name: &GroupName) -> Result<bool, Failure> {
        if !self.note_removals(name).await? {
            return Ok(false);
        }
        match self.change(name, Intent::default(), Tally::default()).await {
            Ok(_) | Err(Failure::Core(CoreError::Nothing)) => Ok(true),
            Err(failure) => Err(failure),
        }
    }

    /// Asks who is to be removed, and notes those whose removal is signed for; false where nobody's is.
    ///
    /// # Errors
    /// The refusal, no answer, or the store.
    pub(super) async fn note_removals(&self, name: &GroupName) -> Result<bool, Failure> {
        let removals = self.pending_removals(name).await?;
        self.step(|step, context| {
            let mut record = records::known(step, name)?;
            let mls_group = group::load(step, name)?;
            for removal in &removals {
                if removal.leaving {
                    let (evidence, now) = (&removal.evidence, context.now);
                    match removal::leaves(step, &record, &mls_group, evidence, now) {
                        Ok(person) if !record.leaving.contains(&person) => {
                            record.leaving.push(person);
                        }
                        _ => {}
                    }
                    continue;
                }
                // What nobody signed for is passed over: the server cannot make anyone evict.
                let gone = removal::revoked(context, &mls_group, &removal.evidence);
                for person in gone.unwrap_or_default() {
                    removal::note(step, context, &mut record, &person)?;
                }
            }
            group::keep(step, mls_group);
            let own = &context.identity.person;
            let some = !record.revoked.is_empty() || record.leaving.iter().any(|p| p != own);
            records::put_group(step, &record)?;
            Ok(some)
        })
    }

    async fn pending_removals(&self, name: &GroupName) -> Result<Vec<PendingRemoval>, Failure> {
        let (mut removals, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListPendingRemovalsRequest {
                group: Some(name.to_ref()),
                page_token,
            };
            let page = self
                .delivery(request, async |mut client, request| {
                    Ok(client.list_pending_removals(request).await?.into_inner())
                })
                .await?
                .value;
            removals.extend(page.removals);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(removals);
            }
        }
    }

    /// A refusal that says that revoked devices come first: notes them, where somebody signed for it.
    pub(super) async fn heeds(&self, name: &GroupName, failure: &Failure) -> Result<bool, Failure> {
        if failure.reason() != Some(Reason::PendingRemoval) {
            return Ok(false);
        }
        self.read_up(name).await?;
        self.note_removals(name).await
    }
}
