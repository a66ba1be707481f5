//! Commits that this device cannot merge, and Commits that were taken back.

use chancery_proto::{
    common::v1::DeviceRef,
    delivery::v1::{EntryKind, FailureReason, FailureReport, VoidPayload},
    signed,
};
use openmls::prelude::{Member, MlsGroup};
use openmls_traits::signatures::Signer as _;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::{
    Context, CoreError, group,
    identity::person_of,
    mls,
    records::{self, GroupName, GroupRecord, GroupState, JournalEntry, Merged, Person, Trouble},
};
use crate::store::Step;

/// How long a failure report stands, seconds.
const REPORT_SECONDS: i64 = 7 * 86_400;
/// Merged Commits that are remembered for a void; a server that settles nothing for longer is not believed about older ones.
const MERGED: usize = 256;
/// Label of the exporter (RFC 9420 section 8.5).
const EXPORTER: &str = "chancery epoch report";

/// How the note of an entry begins that was taken back.
const TAKEN_BACK: &str = "taken back by seq ";

/// Whether an entry was taken back by a later one.
pub fn is_taken_back(entry: &JournalEntry) -> bool {
    entry
        .note
        .as_ref()
        .is_some_and(|note| note.starts_with(TAKEN_BACK))
}

/// Why a Commit cannot be merged, as it is reported.
fn reason(error: &CoreError) -> FailureReason {
    match error {
        CoreError::OtherLog => FailureReason::Log,
        CoreError::Malformed(_) | CoreError::Distrusted(_) => FailureReason::Rules,
        _ => FailureReason::Mls,
    }
}

/// Notes a Commit that cannot be merged: it is reported, and either it is taken back or this device comes back by an external Commit.
pub fn failed(record: &mut GroupRecord, seq: u64, payload: &[u8], error: &CoreError) {
    record.state = GroupState::NeedsRejoin(error.to_string());
    record.trouble = Some(Trouble {
        seq,
        sha256: Sha256::digest(payload).into(),
        reason: u32::try_from(i32::from(reason(error))).unwrap_or(1),
        reported_at: None,
    });
}

/// All members with the keys of their leaves.
fn leaves(mls_group: &MlsGroup) -> Result<Vec<(Person, Vec<u8>)>, CoreError> {
    let leaf = |member: Member| {
        let person = person_of(&member.credential, &member.signature_key)?;
        Ok((person, member.signature_key))
    };
    mls_group.members().map(leaf).collect()
}

/// The members of these devices with the keys of their leaves, before a Commit removes them.
///
/// # Errors
/// A leaf that does not say who it is.
pub fn leaves_of(
    mls_group: &MlsGroup,
    people: &[Person],
) -> Result<Vec<(Person, Vec<u8>)>, CoreError> {
    if people.is_empty() {
        return Ok(Vec::new());
    }
    let mut leaves = leaves(mls_group)?;
    leaves.retain(|(person, _)| people.contains(person));
    Ok(leaves)
}

/// Remembers a merged Commit, as long as it may be taken back.
pub fn merged(
    record: &mut GroupRecord,
    payload: &[u8],
    written: &JournalEntry,
    removed: Vec<(Person, Vec<u8>)>,
) {
    record.merged.push(Merged {
        removed,
        seq: written.seq,
        sha256: Sha256::digest(payload).into(),
        committer: written.sender.clone().or(written.unverified_sender.clone()),
        added: written.added.clone(),
    });
    let over = record.merged.len().saturating_sub(MERGED);
    record.merged.drain(..over);
}

/// What this device says of the epoch that it is in: SHA-256 of an exporter value.
///
/// # Errors
/// openmls.
pub fn state_hash(step: &Step<'_>, name: &GroupName) -> Result<[u8; 32], CoreError> {
    let crypto = openmls_traits::OpenMlsProvider::crypto(step.provider());
    let secret = group::look(step, name, |group| {
        group.export_secret(crypto, EXPORTER, &[], 32).map_err(mls)
    })?;
    Ok(Sha256::digest(secret).into())
}

/// The signed report of a Commit that this device cannot merge.
///
/// # Errors
/// The device has no key for the group's suite.
pub fn report(
    step: &Step<'_>,
    context: Context<'_>,
    name: &GroupName,
    trouble: &Trouble,
) -> Result<FailureReport, CoreError> {
    let own = &context.identity.person;
    let expires_at = context.now + REPORT_SECONDS;
    let content = signed::failure(
        (&name.domain, &name.id),
        (&own.domain, &own.device),
        trouble.seq,
        &trouble.sha256,
        trouble.reason,
        expires_at,
    );
    let suite = group::look(step, name, |group| Ok(group.ciphersuite()))?;
    let signature = context
        .identity
        .leaf_key(suite)?
        .sign(&signed::to_be_signed(signed::FAILURE, &content))
        .map_err(|_| CoreError::Mls("the device key cannot sign".into()))?;
    Ok(FailureReport {
        reporter: Some(DeviceRef {
            domain: own.domain.clone(),
            id: own.device.to_vec().into(),
        }),
        commit_seq: trouble.seq,
        commit_sha256: trouble.sha256.to_vec().into(),
        reason: trouble.reason,
        expires_at,
        signature: signature.into(),
    })
}

/// A VOID entry. Whoever did not merge what it takes back is where it was; whoever did checks the signed reports before it believes a word.
///
/// # Errors
/// The store, or an entry that cannot be read.
pub fn voided(
    step: &Step<'_>,
    context: Context<'_>,
    record: &mut GroupRecord,
    payload: &[u8],
    written: &mut JournalEntry,
) -> Result<(), CoreError> {
    let void = VoidPayload::decode(payload).map_err(mls)?;
    let uri = |device: Option<&DeviceRef>| {
        let device = device?;
        let id = uuid::Uuid::from_slice(&device.id).ok()?;
        Some(chancery_proto::certificate::device_uri(&device.domain, id))
    };
    let reporters = void.reports.iter();
    let reporters: Vec<_> = reporters.filter_map(|r| uri(r.reporter.as_ref())).collect();
    written.note = Some(format!(
        "the Commit at seq {}, by {} as the server says, and what was built on it were taken back; reported by {}",
        void.first_seq,
        uri(void.committer.as_ref()).unwrap_or_else(|| "nobody known".into()),
        reporters.join(", "),
    ));
    if void.first_seq <= record.settled_seq {
        return alarm(
            record,
            written,
            "the server took back an epoch that it had called settled",
        );
    }
    if record.joined_seq >= void.first_seq {
        group::forget(step, &record.name)?;
        record.state = GroupState::Removed;
        return Ok(());
    }
    // A state that is lost anyway has nothing to be rolled back.
    let alive = matches!(record.state, GroupState::Active | GroupState::Removed);
    let had_merged = record.merged.iter().find(|m| m.seq == void.first_seq);
    if let Some(merged) = had_merged.filter(|_| alive) {
        if let Err(why) = holds_up(step, record, merged, &void) {
            return alarm(
                record,
                written,
                &format!("a void without good reports: {why}"),
            );
        }
        record.state =
            GroupState::NeedsRejoin(format!("seq {} took back what it had merged", written.seq));
        record.trouble = None;
        record.repair = false;
        record.merged.retain(|m| m.seq < void.first_seq);
    } else if record
        .trouble
        .as_ref()
        .is_some_and(|trouble| trouble.seq >= void.first_seq)
    {
        record.state = GroupState::Active;
        record.trouble = None;
        record.refresh = true;
    } else if record.rejoined_seq >= void.first_seq {
        record.state = GroupState::NeedsRejoin(format!("seq {} took back its return", written.seq));
    }
    mark_voided(step, context, record, &void, written.seq)
}

fn alarm(
    record: &mut GroupRecord,
    written: &mut JournalEntry,
    what: &str,
) -> Result<(), CoreError> {
    written.note = Some(format!("ALARM: {what}"));
    record.state = GroupState::Alarm(what.to_owned());
    Ok(())
}

/// Do the reports say what the server did? By users who were members before the Commit and after it, not the committer's, each by its leaf's signature.
/// What was built on the Commit changes nothing of that: whom a later one removed has a voice, whom one added has none.
fn holds_up(
    step: &Step<'_>,
    record: &GroupRecord,
    merged: &Merged,
    void: &VoidPayload,
) -> Result<(), String> {
    let later = || record.merged.iter().filter(|m| m.seq > merged.seq);
    let mut leaves = group::look(step, &record.name, leaves).map_err(|error| error.to_string())?;
    leaves.extend(later().flat_map(|m| m.removed.iter().cloned()));
    let committer = merged.committer.as_ref();
    let counts = |(person, _): &(Person, Vec<u8>)| {
        committer.is_none_or(|c| (&c.domain, c.user) != (&person.domain, person.user))
            && !merged.added.contains(person)
            && (!later().any(|m| m.added.contains(person))
                || later().any(|m| m.removed.iter().any(|(p, _)| p == person)))
    };
    leaves.retain(counts);
    let users = |people: &mut dyn Iterator<Item = &Person>| {
        let mut users: Vec<_> = people.map(|p| (&p.domain, p.user)).collect();
        users.sort();
        users.dedup();
        users.len()
    };
    let needed = users(&mut leaves.iter().map(|(person, _)| person)).clamp(1, 2);
    let signed = |report: &FailureReport| reporter(record, &leaves, merged, report);
    let found = users(&mut void.reports.iter().filter_map(signed));
    if found < needed {
        return Err(format!("{found} of {needed} users signed for it"));
    }
    Ok(())
}

fn reporter<'l>(
    record: &GroupRecord,
    leaves: &'l [(Person, Vec<u8>)],
    merged: &Merged,
    report: &FailureReport,
) -> Option<&'l Person> {
    let named = report.reporter.as_ref()?;
    let mut of_device = leaves
        .iter()
        .filter(|(person, _)| person.domain == named.domain && person.device[..] == named.id[..]);
    let holds = |person: &Person, key: &[u8]| {
        let content = signed::failure(
            (&record.name.domain, &record.name.id),
            (&person.domain, &person.device),
            merged.seq,
            &merged.sha256,
            report.reason,
            report.expires_at,
        );
        signed::verify(key, signed::FAILURE, &content, &report.signature)
    };
    let found = of_device.find(|(person, key)| holds(person, key));
    found.map(|(person, _)| person)
}

/// The journal says which entries were taken back; what this device had said there is said again.
fn mark_voided(
    step: &Step<'_>,
    context: Context<'_>,
    record: &mut GroupRecord,
    void: &VoidPayload,
    by_seq: u64,
) -> Result<(), CoreError> {
    let mut after = void.first_seq.saturating_sub(1);
    loop {
        let entries = records::entries(step, &record.name, after, 200)?;
        let Some(last) = entries.last() else {
            return Ok(());
        };
        after = last.seq;
        for mut entry in entries {
            if entry.seq > void.last_seq {
                return Ok(());
            }
            let built_on = entry.seq == void.first_seq || entry.epoch_seq >= void.first_seq;
            if !built_on || entry.kind > EntryKind::Application as u32 {
                continue;
            }
            entry.note = Some(format!("{TAKEN_BACK}{by_seq}"));
            let own = entry.sender.as_ref() == Some(&context.identity.person);
            if let Some(text) = entry.text.as_ref().filter(|_| own) {
                record.resend.push(text.clone());
            }
            records::put_entry(step, &record.name, &entry)?;
        }
    }
}
