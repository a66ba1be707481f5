//! Entries of the log: the chain is checked, each entry processed, merged and written to the journal. One transaction for a page.

use chancery_proto::{
    chain::{self, ChainInput},
    commit_info::MessageData,
    delivery::v1::{Entry, EntryKind, Pruned, ReplacedPayload},
    mutants::{self, Mutant},
};
use openmls::prelude::{tls_codec::Deserialize as _, *};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::{
    Context, CoreError, check, group, guarded,
    identity::{person_named, person_of},
    leaves, left_out, mls, outbox,
    pending::{self, EntryStep},
    proposals,
    records::{
        self, Accepted, GroupName, GroupRecord, GroupState, JournalEntry, Operation, Person,
    },
    recovery, removal,
};
use crate::store::Step;

/// An entry with its whole payload.
#[derive(Debug, Clone)]
pub struct Received {
    /// As it came.
    pub entry: Entry,
    /// Fetched apart when it is large.
    pub payload: Vec<u8>,
}

/// What a page did.
#[derive(Debug, Default)]
pub struct Page {
    /// New in the journal, in order.
    pub entries: Vec<JournalEntry>,
    /// The server's history is not the one that this device has read.
    pub history_changed: bool,
    /// This device is no longer a member.
    pub removed: bool,
}

/// Applies entries in order. What was applied before is passed over; a hole is an error.
///
/// # Errors
/// [`CoreError::State`] for a hole, or the store. An entry that cannot be used is no error: it is written down with the reason.
pub fn page(
    step: &Step<'_>,
    context: Context<'_>,
    name: &GroupName,
    received: &[Received],
) -> Result<Page, CoreError> {
    let mut record = records::known(step, name)?;
    let mut page = Page::default();
    let mut open = Open::default();
    for one in received {
        let entry = &one.entry;
        if entry.seq <= record.head_seq {
            continue;
        }
        if record.state.ended() {
            break;
        }
        let value = match (&record.state, entry.seq == record.head_seq + 1) {
            (_, true) => chain_after(&record, one),
            // Of a later membership: it begins with a Welcome, or from outside.
            (GroupState::Removed, false) => break,
            // Between two memberships there is nothing to compare with.
            (GroupState::NeedsRejoin(_), false) => chain_of(entry)?,
            (_, false) => {
                return Err(CoreError::State(format!(
                    "at seq {}, and {} came",
                    record.head_seq, entry.seq
                )));
            }
        };
        let broken_promise = |(seq, chain): &(u64, Vec<u8>)| *seq == entry.seq && *chain != value;
        if (!entry.chain.is_empty() && entry.chain != value[..])
            || record.promised.as_ref().is_some_and(broken_promise)
        {
            record.state = GroupState::HistoryChanged;
            page.history_changed = true;
            break;
        }
        let mut written = journal(entry, value);
        apply(step, context, &mut record, &mut open, one, &mut written)?;
        record.head_seq = entry.seq;
        record.chain = value;
        records::put_entry(step, name, &written)?;
        page.entries.push(written);
        page.removed |= record.state == GroupState::Removed;
    }
    records::put_group(step, &record)?;
    if let Some(group) = open.0 {
        group::keep(step, group);
    }
    Ok(page)
}

/// Passes over entries that the server no longer keeps.
///
/// # Errors
/// A hole before them, or the store.
pub fn pruned(step: &Step<'_>, name: &GroupName, gap: &Pruned) -> Result<(), CoreError> {
    let mut record = records::known(step, name)?;
    if gap.to_seq <= record.head_seq {
        return Ok(());
    }
    if gap.from_seq > record.head_seq + 1 {
        return Err(CoreError::State(format!(
            "at seq {}, and the log goes on at {}",
            record.head_seq, gap.from_seq
        )));
    }
    record.head_seq = gap.to_seq;
    record.chain = gap
        .chain
        .as_ref()
        .try_into()
        .map_err(|_| CoreError::Malformed("a chain value of another length".into()))?;
    Ok(records::put_group(step, &record)?)
}

fn chain_of(entry: &Entry) -> Result<[u8; 32], CoreError> {
    entry
        .chain
        .as_ref()
        .try_into()
        .map_err(|_| CoreError::Malformed("a chain value of another length".into()))
}

fn chain_after(record: &GroupRecord, one: &Received) -> [u8; 32] {
    chain::next(
        &record.chain,
        &ChainInput {
            group: &record.name.id,
            seq: one.entry.seq,
            epoch_seq: one.entry.epoch_seq,
            kind: one.entry.kind,
            message_id: &one.entry.message_id,
            accepted_at_micros: one.entry.accepted_at_micros,
            payload_sha256: &Sha256::digest(&one.payload).into(),
        },
    )
}

fn journal(entry: &Entry, chain: [u8; 32]) -> JournalEntry {
    JournalEntry {
        seq: entry.seq,
        kind: entry.kind,
        message_id: entry.message_id.to_vec(),
        accepted_at_micros: entry.accepted_at_micros,
        epoch: entry.epoch,
        epoch_seq: entry.epoch_seq,
        chain,
        ..JournalEntry::default()
    }
}

/// openmls' state of the group, loaded once for a page, and again after a failure.
#[derive(Default)]
struct Open(Option<MlsGroup>);

impl Open {
    fn get(&mut self, step: &Step<'_>, name: &GroupName) -> Result<&mut MlsGroup, CoreError> {
        let group = match self.0.take() {
            Some(group) => group,
            None => group::load(step, name)?,
        };
        Ok(self.0.insert(group))
    }
}

/// One entry. A failure of openmls undoes what it wrote, is written down, and the cursor moves on.
fn apply(
    step: &Step<'_>,
    context: Context<'_>,
    record: &mut GroupRecord,
    open: &mut Open,
    one: &Received,
    written: &mut JournalEntry,
) -> Result<(), CoreError> {
    let kind = EntryKind::try_from(i32::try_from(one.entry.kind).unwrap_or_default());
    let commit = matches!(kind, Ok(EntryKind::Commit | EntryKind::ExternalCommit));
    if own(step, context, record, open, one, written)? {
        return Ok(());
    }
    if one.entry.seq < record.rejoined_seq {
        written.skipped = Some("before this device came back".into());
        return Ok(());
    }
    if let Ok(
        kind @ (EntryKind::Void
        | EntryKind::Replaced
        | EntryKind::LeaveRequest
        | EntryKind::RemovalRequested),
    ) = kind
    {
        return by_service(step, context, record, open, one, written, kind);
    }
    match &record.state {
        // What was said in the epochs before is read all the same.
        GroupState::NeedsRejoin(_)
            if kind == Ok(EntryKind::Application) && before_trouble(record, &one.entry) => {}
        GroupState::NeedsRejoin(why) => {
            written.skipped = Some(format!("waiting for a rejoin: {why}"));
            return Ok(());
        }
        GroupState::Removed => {
            written.skipped = Some("after this device was removed".into());
            return Ok(());
        }
        _ => {}
    }
    if !commit && !matches!(kind, Ok(EntryKind::Application | EntryKind::Proposal)) {
        written.skipped = Some("of a kind that this program does not know".into());
        return Ok(());
    }
    if one.entry.epoch_seq < record.joined_seq.max(record.rejoined_seq) && !commit {
        written.skipped = Some("of an epoch before this device joined".into());
        return Ok(());
    }
    let before = (record.clone(), written.clone());
    let work = || process(step, context, record, open, one, written);
    match step.attempt(|| guarded(work)) {
        Ok(()) => {}
        Err(CoreError::Store(error)) => return Err(error.into()),
        Err(error) => {
            (*record, *written) = before;
            *open = Open::default();
            if matches!(error, CoreError::Copied) {
                // This state's next message would use keys a second time.
                record.copies += 1;
                record.pending = None;
                record.state = GroupState::NeedsRejoin(error.to_string());
                group::forget(step, &record.name)?;
            } else if commit {
                // Every honest member sees the same; without this Commit nothing later can be read.
                recovery::failed(record, one.entry.seq, &one.payload, &error);
            }
            written.skipped = Some(error.to_string());
        }
    }
    Ok(())
}

/// Framed in an epoch before the Commit that cannot be merged.
/// With the state that read them still there: an external Commit under way has put its own in its place.
fn before_trouble(record: &GroupRecord, entry: &Entry) -> bool {
    let replaced = record
        .pending
        .as_ref()
        .is_some_and(|pending| pending.operation == Operation::External);
    let trouble = record.trouble.as_ref();
    !replaced && trouble.is_some_and(|trouble| entry.epoch_seq < trouble.seq)
}

/// Nothing more is known of devices that are no longer in.
fn gone(record: &mut GroupRecord, removed: &[Person]) {
    record.distrusted.retain(|p| !removed.contains(p));
    record.leaving.retain(|p| !removed.contains(p));
    record.revoked.retain(|p| !removed.contains(p));
}

/// A member asks to be removed, or the Authentication Service says that it is gone: whoever signed for it, not the server.
fn removal(
    step: &Step<'_>,
    context: Context<'_>,
    record: &mut GroupRecord,
    open: &mut Open,
    one: &Received,
    written: &mut JournalEntry,
    kind: EntryKind,
) -> Result<(), CoreError> {
    let mls_group = open.get(step, &record.name)?;
    if kind == EntryKind::LeaveRequest {
        let at = one.entry.accepted_at_micros / 1_000_000;
        let person = removal::leaves(step, record, mls_group, &one.payload, at)?;
        record.leaves |= person == context.identity.person;
        written.sender = Some(person.clone());
        if !record.leaving.contains(&person) {
            record.leaving.push(person);
        }
        return Ok(());
    }
    for person in removal::revoked(context, mls_group, &one.payload)? {
        written.note = Some(format!("{} was revoked", person.device_uri()));
        if !removal::note(step, context, record, &person)? {
            written.skipped =
                Some("more removals in an hour than this device makes unasked".into());
        }
    }
    Ok(())
}

/// The group goes on in another one: only this one is wiped here, whichever news comes first.
fn replaced(
    step: &Step<'_>,
    record: &mut GroupRecord,
    one: &Received,
    written: &mut JournalEntry,
) -> Result<(), CoreError> {
    let payload = ReplacedPayload::decode(one.payload.as_slice()).map_err(mls)?;
    let successor = GroupName::from_ref(&payload.successor.unwrap_or_default());
    group::forget(step, &record.name)?;
    written.note = Some(format!("the group goes on as {successor}"));
    record.state = GroupState::Replaced(successor);
    record.pending = None;
    Ok(())
}

/// What the server itself put into the log. A group whose state is lost hears it too.
fn by_service(
    step: &Step<'_>,
    context: Context<'_>,
    record: &mut GroupRecord,
    open: &mut Open,
    one: &Received,
    written: &mut JournalEntry,
    kind: EntryKind,
) -> Result<(), CoreError> {
    let done = match kind {
        EntryKind::Void => recovery::voided(step, context, record, &one.payload, written),
        EntryKind::Replaced => replaced(step, record, one, written),
        _ => removal(step, context, record, open, one, written, kind),
    };
    *open = Open::default();
    match done {
        Err(CoreError::Store(error)) => Err(error.into()),
        Err(error) => {
            written.skipped = Some(error.to_string());
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// What this device made itself is known by its id: it merges what is pending, and notes what became of it.
fn own(
    step: &Step<'_>,
    context: Context<'_>,
    record: &mut GroupRecord,
    open: &mut Open,
    one: &Received,
    written: &mut JournalEntry,
) -> Result<bool, CoreError> {
    let id = one.entry.message_id.as_ref();
    if let Some(mut message) = outbox::get(step, &record.name, id)? {
        written.text = Some(message.text.clone());
        written.own = true;
        written.sender = Some(context.identity.person.clone());
        if message.accepted.is_none() {
            message.accepted = Some(accepted_by_log(record, one, written));
            outbox::put(step, &record.name, id, &message)?;
        }
        return Ok(true);
    }
    let Some(pending) = record.pending.clone() else {
        return Ok(false);
    };
    if pending::entry_came(Some(&pending.message_id[..]), id, false) != EntryStep::Merge {
        return Ok(false);
    }
    written.own = true;
    written.sender = Some(context.identity.person.clone());
    written.added = pending.added;
    written.removed = pending.removed;
    match pending.operation {
        Operation::Commit => {
            let mls_group = open.get(step, &record.name)?;
            crate::fault::point("between-process-and-merge");
            let removed = recovery::leaves_of(mls_group, &written.removed)?;
            mls_group
                .merge_pending_commit(step.provider())
                .map_err(mls)?;
            gone(record, &written.removed);
            left_out::closed(step, &record.name, &written.added, &written.removed)?;
            recovery::merged(record, &one.payload, written, removed);
            began_epoch(step, context, record, one, mls_group, written)?;
        }
        Operation::External => {
            super::join::accepted(record, one.entry.seq);
            recovery::merged(record, &one.payload, written, Vec::new());
        }
        Operation::Create => {}
    }
    record.pending = None;
    Ok(true)
}

fn accepted_by_log(record: &GroupRecord, one: &Received, written: &JournalEntry) -> Accepted {
    Accepted {
        seq: one.entry.seq,
        epoch: record.epoch,
        chain: written.chain.to_vec(),
        outcome: 0,
        replayed: true,
    }
}

/// After a Commit was merged: the epoch has its name, and the stored GroupInfo is compared with this device's own state.
fn began_epoch(
    step: &Step<'_>,
    context: Context<'_>,
    record: &mut GroupRecord,
    one: &Received,
    mls_group: &MlsGroup,
    written: &mut JournalEntry,
) -> Result<(), CoreError> {
    record.epoch = mls_group.epoch().as_u64();
    record.epoch_seq = one.entry.seq;
    proposals::forget(step, record)?;
    record.repair = false;
    record.refresh = false;
    let claimed = &one.entry.group_state_hash;
    if mls_group.is_active()
        && !claimed.is_empty()
        && *claimed != group::state_hash(step, context, mls_group)?[..]
    {
        record.repair = true;
        let by = written.sender.as_ref().map(Person::device_uri);
        let false_info = format!(
            "the GroupInfo that came with it is not this group's; it is by {}",
            by.as_deref().unwrap_or("nobody known")
        );
        written.note = Some(match written.note.take() {
            Some(note) => format!("{note}; {false_info}"),
            None => false_info,
        });
    }
    Ok(())
}

fn process(
    step: &Step<'_>,
    context: Context<'_>,
    record: &mut GroupRecord,
    open: &mut Open,
    one: &Received,
    written: &mut JournalEntry,
) -> Result<(), CoreError> {
    let message = MlsMessageIn::tls_deserialize_exact(&one.payload)
        .map_err(mls)?
        .try_into_protocol_message()
        .map_err(mls)?;
    let mls_group = open.get(step, &record.name)?;
    let under_way = record.pending.as_ref().map(|p| &p.message_id[..]);
    let commit = message.content_type() == ContentType::Commit;
    if pending::entry_came(under_way, &one.entry.message_id, commit) == EntryStep::Clear {
        // The server's order decided: the other Commit was first.
        mls_group.clear_pending_commit(step.provider().storage())?;
        record.pending = None;
    }
    if commit {
        // What it names by reference is looked up there, also what this device commits never.
        let known = proposals::all(step, &record.name)?;
        proposals::hand_over(step, mls_group, &known)?;
    }
    let processed = mls_group
        .process_message(step.provider(), message)
        .map_err(mls)?;
    crate::fault::point("between-process-and-merge");
    let data = MessageData::decode(processed.aad())?;
    if data.message_id.as_ref().map(<[u8; 16]>::as_slice) != Some(&one.entry.message_id[..])
        && !matches!(
            processed.content(),
            ProcessedMessageContent::OwnPrivateMessage
        )
    {
        return Err(CoreError::Malformed(
            "the entry's message_id is not the sender's".into(),
        ));
    }
    let sender = processed.sender().clone();
    attribute(context, mls_group, &processed, written)?;
    match processed.into_content() {
        ProcessedMessageContent::ApplicationMessage(message) => {
            written.text = Some(message.into_bytes());
        }
        ProcessedMessageContent::ProposalMessage(proposal) => {
            proposals::receive(step, context, record, mls_group, *proposal, written)?;
        }
        ProcessedMessageContent::StagedCommitMessage(staged) => {
            let at = one.entry.accepted_at_micros / 1_000_000;
            let change = check::commit(context, mls_group, &staged, &sender, &data, at)?;
            leaves::check_brought(mls_group, &staged)?;
            let unusable = leaves::unusable_parents(mls_group)?;
            same_log(step, record, &change)?;
            let removed = recovery::leaves_of(mls_group, &change.removed)?;
            mls_group
                .merge_staged_commit(step.provider(), *staged)
                .map_err(mls)?;
            leaves::check_parents(mls_group, &unusable)?;
            gone(record, &change.removed);
            let roster = (&change.added[..], &change.removed[..]);
            left_out::committed(step, &record.name, &change.info.left_out, roster, at)?;
            written.note = marks(&change);
            record.distrusted.extend(change.distrusted);
            (written.added, written.removed) = (change.added, change.removed);
            if written.added.contains(&context.identity.person) {
                // This device's key came in from outside, and not from here.
                return Err(CoreError::Copied);
            }
            recovery::merged(record, &one.payload, written, removed);
            began_epoch(step, context, record, one, mls_group, written)?;
            if !mls_group.is_active() {
                record.state = GroupState::Removed;
            }
        }
        _ => return Err(CoreError::Copied),
    }
    Ok(())
}

/// Who sent it: the certificate that openmls verified it with, which is the sender's of the message's own epoch. The leaf may be somebody else's by the time
/// that it comes.
fn attribute(
    context: Context<'_>,
    mls_group: &MlsGroup,
    processed: &ProcessedMessage,
    written: &mut JournalEntry,
) -> Result<(), CoreError> {
    if mutants::is_on(Mutant::SenderByCurrentLeaf) {
        if let Sender::Member(index) = processed.sender()
            && let Some(member) = mls_group.member_at(*index)
        {
            written.sender = Some(person_of(&member.credential, &member.signature_key)?);
        }
        return Ok(());
    }
    let credential = processed.credential();
    let person = person_named(credential)?;
    let vouched = context.trust.vouched(credential, context.now).is_ok();
    if vouched || mutants::is_on(Mutant::UnverifiedNamed) {
        written.sender = Some(person);
    } else {
        written.unverified_sender = Some(person);
    }
    Ok(())
}

/// What a reader should know about the leaves that a Commit brings.
fn marks(change: &check::Change) -> Option<String> {
    let uris = |people: &[Person]| {
        let uris: Vec<_> = people.iter().map(Person::device_uri).collect();
        uris.join(", ")
    };
    let mut marks = Vec::new();
    if !change.distrusted.is_empty() {
        let who = uris(&change.distrusted);
        marks.push(format!("no pinned root signed the certificate of {who}"));
    }
    if !change.ended.is_empty() {
        let who = uris(&change.ended);
        marks.push(format!("not valid at that time: the certificate of {who}"));
    }
    (!marks.is_empty()).then(|| marks.join("; "))
}

/// The committer says which log it saw; another one than this device's is a split log.
fn same_log(
    step: &Step<'_>,
    record: &GroupRecord,
    change: &check::Change,
) -> Result<(), CoreError> {
    let seen = change.info.seen_seq;
    let ours = if seen == record.head_seq {
        Some(record.chain)
    } else {
        records::entry(step, &record.name, seen)?.map(|entry| entry.chain)
    };
    match ours {
        Some(chain) if chain != change.info.seen_chain => Err(CoreError::OtherLog),
        _ => Ok(()),
    }
}
