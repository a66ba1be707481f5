//! The JSON of answers. `docs/cli.md` describes every shape; the snapshots in `tests/` hold them still.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chancery_proto::{
    auth::v1::{Device, DeviceState, User},
    certificate::{device_uri, user_uri},
    delivery::v1::{EntryKind, Outcome, Stock},
};
use openmls::prelude::{Credential, MlsGroup};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    core::{
        Context, group,
        left_out::LeftOut,
        proposals::Received,
        records::{GroupRecord, GroupState, JournalEntry, Person},
    },
    member::{
        Member,
        commit::{Committed, Tally},
        listen::Event,
        outbox::Waiting,
        send::Sent,
        sync::Synced,
        welcomes::PutAside,
    },
    outcomes::Failed,
};

fn uris(people: &[Person]) -> Vec<String> {
    people.iter().map(Person::device_uri).collect()
}

fn uuid(bytes: &[u8]) -> Option<Uuid> {
    Uuid::from_slice(bytes).ok()
}

fn outcome(number: i32) -> String {
    let name = Outcome::try_from(number).unwrap_or_default().as_str_name();
    name.trim_start_matches("OUTCOME_").to_lowercase()
}

/// `whoami`, `enroll`
pub fn whoami(member: &Member) -> Value {
    let person = &member.identity().person;
    json!({
        "user": person.user_uri(),
        "device": person.device_uri(),
        "domain": person.domain,
        "delivery_domain": member.profile().delivery_domain,
    })
}

/// `devices`
pub fn devices(devices: &[Device]) -> Value {
    let one = |device: &Device| {
        let state = DeviceState::try_from(device.state).unwrap_or_default();
        json!({
            "device": device.device.as_ref().and_then(|d| Some(device_uri(&d.domain, uuid(&d.id)?))),
            "user": device.user.as_ref().and_then(|u| Some(user_uri(&u.domain, uuid(&u.id)?))),
            "name": device.name,
            "state": state.as_str_name().trim_start_matches("DEVICE_STATE_").to_lowercase(),
            "enrolled_at": device.enrolled_at,
        })
    };
    json!({ "devices": devices.iter().map(one).collect::<Vec<_>>() })
}

/// `users search`
pub fn users(users: &[User]) -> Value {
    let one = |user: &User| {
        json!({
            "user": user.user.as_ref().and_then(|u| Some(user_uri(&u.domain, uuid(&u.id)?))),
            "display_name": user.display_name,
            "handle": user.handle,
            "organisation": user.organisation,
            "suspended": user.suspended,
        })
    };
    json!({ "users": users.iter().map(one).collect::<Vec<_>>() })
}

/// `keys`
pub fn stock(stock: &[Stock]) -> Value {
    let one = |stock: &Stock| {
        json!({
            "suite": stock.suite,
            "one_time": stock.one_time,
            "last_resort": stock.last_resort,
            "last_resort_claims": stock.last_resort_claims,
        })
    };
    json!({ "stock": stock.iter().map(one).collect::<Vec<_>>() })
}

fn tally(tally: &Tally, value: &mut Value) {
    value["races"] = json!(tally.races);
    value["winner_seqs"] = json!(tally.winner_seqs);
    value["unknown_outcomes"] = json!(tally.unknown_outcomes);
}

/// Every command that ends in a Commit.
pub fn committed(done: &Committed) -> Value {
    let mut value = json!({
        "group": done.group.to_string(),
        "seq": done.accepted.seq,
        "epoch": done.accepted.epoch,
        "epoch_seq": done.accepted.seq,
        "chain": hex::encode(&done.accepted.chain),
        "message_id": Uuid::from_bytes(done.message_id),
        "outcome": outcome(done.accepted.outcome),
        "replayed": done.accepted.replayed,
        "added": uris(&done.added),
        "removed": uris(&done.removed),
        "left_out": done.left_out.iter().map(|(device, why)| json!({ "device": device, "why": why })).collect::<Vec<_>>(),
    });
    tally(&done.tally, &mut value);
    value
}

/// One sent message.
pub fn sent(group: &str, sent: &Sent) -> Value {
    json!({
        "group": group,
        "seq": sent.accepted.seq,
        "message_id": Uuid::from_bytes(sent.message_id),
        "chain": hex::encode(&sent.accepted.chain),
        "outcome": outcome(sent.accepted.outcome),
        "replayed": sent.accepted.replayed,
        "epoch": sent.epoch,
        "epoch_seq": sent.epoch_seq,
        "unknown_outcomes": sent.unknown_outcomes,
    })
}

/// `group list`, `sync`
pub fn group_line(record: &GroupRecord) -> Value {
    json!({
        "group": record.name.to_string(),
        "state": record.state_name(),
        "epoch": record.epoch,
        "epoch_seq": record.epoch_seq,
        "head_seq": record.head_seq,
    })
}

/// `group show`
pub fn group(
    record: &GroupRecord,
    mls_group: Option<&MlsGroup>,
    left_out: &[LeftOut],
    proposed: &[Received],
    context: Context<'_>,
) -> Value {
    let mut value = group_line(record);
    value["chain"] = json!(hex::encode(record.chain));
    value["joined_seq"] = json!(record.joined_seq);
    value["rejoined_seq"] = json!(record.rejoined_seq);
    match &record.state {
        GroupState::NeedsRejoin(why) | GroupState::Alarm(why) => value["why"] = json!(why),
        GroupState::Replaced(successor) => value["successor"] = json!(successor.to_string()),
        _ => {}
    }
    value["settled_seq"] = json!(record.settled_seq);
    value["copies"] = json!(record.copies);
    value["revoked"] = json!(uris(&record.revoked));
    value["pending"] = json!(record.pending.as_ref().map(|pending| json!({
        "message_id": Uuid::from_bytes(pending.message_id),
        "operation": pending.operation.name(),
    })));
    value["leaving"] = json!(uris(&record.leaving));
    value["left_out"] = left_out
        .iter()
        .map(|l| json!({ "device": l.device_uri(), "why": l.why, "since": l.since, "own": l.own }))
        .collect();
    value["distrusted"] = json!(uris(&record.distrusted));
    value["ended"] = json!(mls_group.map_or_else(Vec::new, |g| ended(g, context)));
    value["proposals"] = proposed
        .iter()
        .map(|one| {
            json!({
                "seq": one.seq,
                "proposer": one.proposer.as_ref().map(Person::device_uri),
                "kind": one.kind(),
                "refused": one.refused,
            })
        })
        .collect();
    let members = mls_group.map(|g| group::roster(g).unwrap_or_default());
    value["epoch_authenticator"] =
        json!(mls_group.map(|g| hex::encode(g.epoch_authenticator().as_slice())));
    value["members"] = members
        .unwrap_or_default()
        .iter()
        .map(|(index, person)| {
            json!({ "user": person.user_uri(), "device": person.device_uri(), "leaf": index.u32() })
        })
        .collect();
    value
}

/// Members whose certificate is genuine and has ended.
fn ended(mls_group: &MlsGroup, context: Context<'_>) -> Vec<String> {
    let has_ended = |credential: &Credential| {
        let person = context.trust.vouched(credential, context.now).ok()?;
        let ended = context.trust.verify(credential, context.now).is_err();
        ended.then(|| person.device_uri())
    };
    mls_group
        .members()
        .filter_map(|m| has_ended(&m.credential))
        .collect()
}

/// A text that is one.
fn utf8(text: &[u8]) -> Option<&str> {
    std::str::from_utf8(text).ok()
}

/// The bytes of a text that is none: nothing of it is changed.
fn not_utf8(text: &[u8]) -> Option<String> {
    utf8(text).is_none().then(|| STANDARD.encode(text))
}

/// One message that waits for an answer.
pub fn waiting(waiting: &Waiting) -> Value {
    json!({
        "group": waiting.group.to_string(),
        "message_id": Uuid::from_bytes(waiting.message_id),
        "stage": waiting.stage.name(),
        "text": waiting.text.as_deref().and_then(utf8),
        "text_base64": waiting.text.as_deref().and_then(not_utf8),
    })
}

/// One entry of the journal.
pub fn entry(entry: &JournalEntry) -> Value {
    let kind = i32::try_from(entry.kind).ok();
    let kind = kind.and_then(|kind| EntryKind::try_from(kind).ok());
    let kind = match kind {
        Some(kind) => kind
            .as_str_name()
            .trim_start_matches("ENTRY_KIND_")
            .to_lowercase(),
        None => entry.kind.to_string(),
    };
    json!({
        "seq": entry.seq,
        "kind": kind,
        "message_id": uuid(&entry.message_id),
        "accepted_at_micros": entry.accepted_at_micros,
        "epoch": entry.epoch,
        "epoch_seq": entry.epoch_seq,
        "chain": hex::encode(entry.chain),
        "sender": entry.sender.as_ref().map(Person::device_uri),
        "sender_user": entry.sender.as_ref().map(Person::user_uri),
        "unverified_sender": entry.unverified_sender.as_ref().map(Person::device_uri),
        "text": entry.text.as_deref().and_then(utf8),
        "text_base64": entry.text.as_deref().and_then(not_utf8),
        "own": entry.own,
        "added": uris(&entry.added),
        "removed": uris(&entry.removed),
        "skipped": entry.skipped,
        "note": entry.note,
    })
}

/// `sync`
pub fn synced(synced: &Synced, groups: &[GroupRecord]) -> Value {
    let resolved = synced.resolved.iter().map(|r| {
        json!({
            "group": r.group.to_string(),
            "message_id": Uuid::from_bytes(r.message_id),
            "seq": r.seq,
            "replayed": r.replayed,
            "refused": r.refused,
        })
    });
    json!({
        "groups": groups.iter().map(group_line).collect::<Vec<_>>(),
        "joined": synced.joined.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "entries": synced.entries.len(),
        "resolved": resolved.collect::<Vec<_>>(),
        "put_aside": synced.put_aside.iter().map(put_aside).collect::<Vec<_>>(),
        "failed": synced.failed.iter().map(failed).collect::<Vec<_>>(),
        "server_restored": synced.server_restored,
    })
}

fn put_aside(put_aside: &PutAside) -> Value {
    json!({ "group": put_aside.group.to_string(), "seq": put_aside.seq, "why": put_aside.why })
}

/// One item of a loop that failed, in the words of the line on stderr.
fn failed(failed: &Failed) -> Value {
    let mut value = failed.failure.to_json()["error"].take();
    value["of"] = json!(failed.of.name());
    value["item"] = json!(failed.item);
    value
}

/// One line of `listen`.
pub fn event(event: &Event) -> Value {
    match event {
        Event::Entry(group, one) => {
            let mut value = entry(one);
            value["event"] = json!("entry");
            value["group"] = json!(group.to_string());
            value
        }
        Event::Missing {
            group,
            from_seq,
            to_seq,
        } => {
            json!({ "event": "missing", "group": group.to_string(), "from_seq": from_seq, "to_seq": to_seq })
        }
        Event::Joined(group) => json!({ "event": "joined", "group": group.to_string() }),
        Event::CaughtUp => json!({ "event": "caught_up" }),
        Event::Ended(group, at_seq, why) => {
            json!({ "event": "ended", "group": group.to_string(), "at_seq": at_seq, "why": why })
        }
        Event::HistoryChanged(group) => {
            json!({ "event": "history_changed", "group": group.as_ref().map(ToString::to_string) })
        }
        Event::PutAside(one) => {
            let mut value = put_aside(one);
            value["event"] = json!("put_aside");
            value
        }
        Event::ServerRestored => json!({ "event": "server_restored" }),
        Event::Failed(one) => {
            let mut value = failed(one);
            value["event"] = json!("failed");
            value
        }
        Event::Reconnecting(code) => json!({ "event": "reconnecting", "code": code }),
    }
}
