//! Who is to be removed: never on the server's word, only on the signature of the Authentication Service, or of the one who leaves.

use chancery_proto::{
    auth::v1::{DeviceStatus, SignedStatus, StatusChange, device_status, signed_status},
    delivery::v1::LeaveRequestPayload,
    mutants::{self, Mutant},
    signed,
};
use openmls::prelude::MlsGroup;
use prost::Message as _;

use super::{
    Context, CoreError,
    identity::person_of,
    mls,
    records::{self, GroupRecord, JournalEntry, Person},
    recovery,
};
use crate::store::Step;

const META: &str = "meta";
const REMOVALS: &[u8] = b"removals";
const HOUR: i64 = 3_600;
/// Entries of the journal that are looked through at once.
const PAGE: usize = 200;

fn malformed(why: &str) -> CoreError {
    CoreError::Malformed(why.to_owned())
}

/// The member with this device, and its leaf's key.
fn member(mls_group: &MlsGroup, which: impl Fn(&Person) -> bool) -> Option<(Person, Vec<u8>)> {
    mls_group.members().find_map(|member| {
        let person = person_of(&member.credential, &member.signature_key).ok()?;
        which(&person).then_some((person, member.signature_key))
    })
}

/// The Commit that began a member's membership, as far as this device has read; `None` where it lies before.
fn membership_began(
    step: &Step<'_>,
    record: &GroupRecord,
    person: &Person,
) -> Result<Option<u64>, CoreError> {
    let (mut after, mut began) = (0, None);
    loop {
        let entries = records::entries(step, &record.name, after, PAGE)?;
        let Some(last) = entries.last() else {
            return Ok(began);
        };
        after = last.seq;
        let begins = |e: &&JournalEntry| e.added.contains(person) && !recovery::is_taken_back(e);
        let newest = entries.iter().rfind(begins);
        began = newest.map(|e| e.seq).or(began);
    }
}

/// A member asks to be removed: its own leaf's signature says so, and for this membership. `at` is the time that the request is judged at, Unix seconds.
///
/// # Errors
/// Nobody in the group, another signature, a request of an earlier membership or one that has ended; the store.
pub fn leaves(
    step: &Step<'_>,
    record: &GroupRecord,
    mls_group: &MlsGroup,
    evidence: &[u8],
    at: i64,
) -> Result<Person, CoreError> {
    let request = LeaveRequestPayload::decode(evidence).map_err(mls)?;
    let device = request.device.unwrap_or_default();
    let (person, key) = member(mls_group, |p| {
        p.domain == device.domain && p.device[..] == device.id[..]
    })
    .ok_or_else(|| malformed("a leave request of somebody else"))?;
    let content = signed::leave(
        (&record.name.domain, &record.name.id),
        (&person.domain, &person.device),
        request.joined_seq,
        request.expires_at,
    );
    if !signed::verify(&key, signed::LEAVE, &content, &request.signature) {
        return Err(malformed("a leave request without its device's signature"));
    }
    if mutants::is_on(Mutant::OldLeaveHonoured) {
        return Ok(person);
    }
    if request.expires_at < at {
        return Err(malformed("a leave request that has ended"));
    }
    // A device that came back while this one read nothing may name a later Commit than is known here: it signed for that itself.
    if membership_began(step, record, &person)?.is_some_and(|began| request.joined_seq < began) {
        return Err(malformed("a leave request of an earlier membership"));
    }
    Ok(person)
}

/// Members that a signed status ends for ever: a device, or every device of a user.
///
/// # Errors
/// Not signed by the Authentication Service of the subject's domain, another kind of status, or nobody in the group.
pub fn revoked(
    context: Context<'_>,
    mls_group: &MlsGroup,
    evidence: &[u8],
) -> Result<Vec<Person>, CoreError> {
    let item = SignedStatus::decode(evidence).map_err(mls)?;
    let Some(signed_status::Content::Status(bytes)) = &item.content else {
        return Err(malformed("no status"));
    };
    let status = DeviceStatus::decode(bytes.clone()).map_err(mls)?;
    let ends = matches!(
        status.change(),
        StatusChange::Revoked | StatusChange::Deleted
    );
    let subject = status
        .subject
        .as_ref()
        .filter(|_| ends)
        .ok_or_else(|| malformed("a status that ends nothing"))?;
    let domain = match subject {
        device_status::Subject::Device(device) => &device.domain,
        device_status::Subject::User(user) => &user.domain,
    };
    let at = status.at_micros / 1_000_000;
    let key = context.trust.verify_status(domain, &item.chain, at)?;
    if !signed::verify(&key, signed::STATUS, bytes, &item.signature) {
        return Err(CoreError::Distrusted(
            "a status whose signature does not verify".into(),
        ));
    }
    let named = |person: &Person| match subject {
        device_status::Subject::Device(device) => person.device[..] == device.id[..],
        device_status::Subject::User(user) => person.user[..] == user.id[..],
    };
    let gone: Vec<Person> = super::group::roster(mls_group)?
        .into_iter()
        .map(|(_, person)| person)
        .filter(|person| person.domain == *domain && named(person))
        .collect();
    if gone.is_empty() {
        return Err(malformed("a status of somebody who is not in the group"));
    }
    Ok(gone)
}

/// Notes that a member is to be removed by this device's next Commit, within the number of an hour. False where that is used up.
///
/// # Errors
/// The store.
pub fn note(
    step: &Step<'_>,
    context: Context<'_>,
    record: &mut GroupRecord,
    person: &Person,
) -> Result<bool, CoreError> {
    if record.revoked.contains(person) {
        return Ok(true);
    }
    let mut times: Vec<i64> = step.get(META, REMOVALS)?.unwrap_or_default();
    times.retain(|at| (context.now - HOUR..=context.now).contains(at));
    if times.len() >= context.removals_per_hour as usize {
        return Ok(false);
    }
    times.push(context.now);
    step.put(META, REMOVALS, &times)?;
    record.revoked.push(person.clone());
    Ok(true)
}
