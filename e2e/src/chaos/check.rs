//! The checker: reads what a run wrote down and decides. It knows nothing of how the run was made, and asks nobody.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::Path,
};

use chancery_proto::{
    chain::{self, ChainInput},
    delivery::v1::EntryKind,
};
use client_cli::core::records::GroupName;
use serde::Serialize;
use uuid::Uuid;

use super::{
    end::{LOG, REUSED, Row, STATES, State},
    history::{self, Asked, Event, Record},
    story::{End, Story, Write},
};
use crate::journals::{self, Acknowledged, Journal};

/// What was counted. Only `acknowledged` and `members_agree` may be other than zero and false.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Messages and Commits that the server acknowledged.
    pub acknowledged: u64,
    /// Of these, or of what somebody read, what is not where it was said to be; and what a member has not read.
    pub lost: u64,
    /// What stands, or was read, twice.
    pub duplicated: u64,
    /// What stands, or was read, in another order than it was accepted in, and breaks of the chain.
    pub reordered: u64,
    /// Epochs with more than one Commit.
    pub double_commits: u64,
    /// One-time KeyPackages that more than one got.
    pub double_claims: u64,
    /// Groups that do not go on after the faults.
    pub bricked_groups: u64,
    /// All members of every group have the same state.
    pub members_agree: bool,
}

/// What the checker found.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// The figures.
    pub counts: Counts,
    /// Each fault in words.
    pub findings: Vec<String>,
}

/// Which figure a finding counts in; some count in none, and are findings all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum In {
    Lost,
    Duplicated,
    Reordered,
    DoubleCommits,
    DoubleClaims,
    Bricked,
    None,
}

impl Verdict {
    fn add(&mut self, counted: In, finding: String) {
        let counts = &mut self.counts;
        match counted {
            In::Lost => counts.lost += 1,
            In::Duplicated => counts.duplicated += 1,
            In::Reordered => counts.reordered += 1,
            In::DoubleCommits => counts.double_commits += 1,
            In::DoubleClaims => counts.double_claims += 1,
            In::Bricked => counts.bricked_groups += 1,
            In::None => {}
        }
        self.findings.push(finding);
    }
}

/// Reads a run's folder and decides.
///
/// # Errors
/// A file is missing or damaged.
pub fn check(folder: &Path) -> anyhow::Result<Verdict> {
    let history = history::read(folder)?;
    let rows: Vec<Row> = history::lines(&folder.join(LOG))?;
    let states: Vec<State> = history::lines(&folder.join(STATES))?;
    let reused: Vec<String> = history::lines(&folder.join(REUSED))?;
    let mut verdict = Verdict::default();
    let logs = Logs::of(&rows);
    let story = Story::of(&history);
    check_logs(&logs, &mut verdict)?;
    check_acknowledged(&story, &logs, &mut verdict);
    check_order(&story, &mut verdict);
    check_heard(&story, &logs, &mut verdict);
    check_streams(&history, &logs, &mut verdict);
    check_claims(&story, &reused, &mut verdict);
    check_states(&states, &story, &mut verdict)?;
    check_rest(&history, &story, &mut verdict);
    Ok(verdict)
}

/// The server's log, by groups.
struct Logs<'a> {
    groups: BTreeMap<&'a str, Vec<&'a Row>>,
    places: HashSet<(&'a str, u64, &'a str)>,
}

impl<'a> Logs<'a> {
    fn of(rows: &'a [Row]) -> Self {
        let mut groups: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        for row in rows {
            groups.entry(&row.group).or_default().push(row);
        }
        let place = |row: &'a Row| (row.group.as_str(), row.seq, row.message_id.as_str());
        Self {
            groups,
            places: rows.iter().map(place).collect(),
        }
    }

    fn stands(&self, group: &str, seq: u64, message_id: &str) -> bool {
        self.places.contains(&(group, seq, message_id))
    }
}

/// Each log in itself: dense, every id once, one Commit for an epoch, a chain that fits.
fn check_logs(logs: &Logs<'_>, verdict: &mut Verdict) -> anyhow::Result<()> {
    for (name, rows) in &logs.groups {
        let group: GroupName = name.parse().map_err(anyhow::Error::msg)?;
        let (mut ids, mut epochs) = (HashSet::new(), HashSet::new());
        let (mut last, mut value) = (0, chain::start());
        for row in rows {
            if row.seq != last + 1 {
                let finding = format!("{name}: seq {} stands after {last}", row.seq);
                verdict.add(In::Reordered, finding);
            }
            last = row.seq;
            if !ids.insert(&row.message_id) {
                let finding = format!("{name}: {} stands twice, again at {last}", row.message_id);
                verdict.add(In::Duplicated, finding);
            }
            if is_commit(row.kind) && !epochs.insert(row.epoch) {
                let finding = format!("{name}: a second Commit of epoch {}, at {last}", row.epoch);
                verdict.add(In::DoubleCommits, finding);
            }
            if row.kind == EntryKind::Void as u32 {
                // Nobody is malicious here, so nothing is ever to be taken back.
                verdict.add(In::None, format!("{name}: a VOID at {last}"));
            }
            value = chained(&group, &value, row)?;
            if hex::encode(value) != row.chain {
                verdict.add(In::Reordered, format!("{name}: the chain breaks at {last}"));
                value = array(&row.chain)?;
            }
        }
    }
    Ok(())
}

fn is_commit(kind: u32) -> bool {
    kind == EntryKind::Commit as u32 || kind == EntryKind::ExternalCommit as u32
}

fn array(text: &str) -> anyhow::Result<[u8; 32]> {
    let bytes = hex::decode(text)?;
    bytes.try_into().map_err(|_| anyhow::anyhow!("32 bytes"))
}

fn chained(group: &GroupName, before: &[u8; 32], row: &Row) -> anyhow::Result<[u8; 32]> {
    let message_id: Uuid = row.message_id.parse()?;
    let input = ChainInput {
        group: &group.id,
        seq: row.seq,
        epoch_seq: row.epoch_seq,
        kind: row.kind,
        message_id: message_id.as_bytes(),
        accepted_at_micros: row.accepted_at_micros,
        payload_sha256: &array(&row.payload_sha256)?,
    };
    Ok(chain::next(before, &input))
}

/// What was acknowledged stands where it was said to stand; a repeat got the first answer; no two were told that they began the same epoch.
fn check_acknowledged(story: &Story<'_>, logs: &Logs<'_>, verdict: &mut Verdict) {
    let mut first: HashMap<(&str, &str), u64> = HashMap::new();
    let mut begun: HashMap<(&str, u64), &str> = HashMap::new();
    for write in &story.writes {
        let (group, id, seq) = (write.group, write.message_id.as_str(), write.seq);
        let before = *first.entry((group, id)).or_insert_with(|| {
            verdict.counts.acknowledged += 1;
            seq
        });
        if before != seq {
            let finding = format!("{group}: {id} was acknowledged at {before} and at {seq}");
            verdict.add(In::Duplicated, finding);
        }
        if !logs.stands(group, seq, id) {
            let finding = format!("{group}: {id} was acknowledged at {seq} and is not there");
            verdict.add(In::Lost, finding);
        }
        if let Some(epoch) = write.epoch
            && *begun.entry((group, epoch)).or_insert(id) != id
        {
            let finding = format!("{group}: a second Commit was told that it began epoch {epoch}");
            verdict.add(In::DoubleCommits, finding);
        }
    }
    check_refused(story, logs, verdict);
}

/// "No" means that it did not happen.
fn check_refused(story: &Story<'_>, logs: &Logs<'_>, verdict: &mut Verdict) {
    for operation in story.operations.values() {
        let (Asked::Send { group, messages }, Some(last)) =
            (operation.asked, operation.attempts.last())
        else {
            continue;
        };
        // Of several, those before the refused one were accepted.
        let Some(End { code: 5, error, .. }) = &last.end else {
            continue;
        };
        let rows = logs
            .groups
            .get(group.as_str())
            .map_or(&[][..], Vec::as_slice);
        let ids: HashSet<&str> = rows.iter().map(|row| row.message_id.as_str()).collect();
        if messages.iter().all(|m| ids.contains(m.message_id.as_str())) {
            let finding = format!("{group}: refused, and it stands in the log: {error}");
            verdict.add(In::None, finding);
        }
    }
}

/// What was answered before something else was asked for stands before it.
fn check_order(story: &Story<'_>, verdict: &mut Verdict) {
    let mut groups: BTreeMap<&str, Vec<&Write<'_>>> = BTreeMap::new();
    for write in &story.writes {
        groups.entry(write.group).or_default().push(write);
    }
    for (group, writes) in groups {
        let mut by_answer = writes.clone();
        by_answer.sort_by_key(|write| write.answered_at);
        let mut by_question = writes;
        by_question.sort_by_key(|write| write.asked_at);
        let (mut answered, mut highest) = (by_answer.iter().peekable(), 0);
        for write in by_question {
            while let Some(before) = answered.next_if(|b| b.answered_at < write.asked_at) {
                highest = highest.max(before.seq);
            }
            if write.seq < highest {
                let id = &write.message_id;
                let finding = format!(
                    "{group}: {id} stands at {} although {highest} was answered before it was asked for",
                    write.seq
                );
                verdict.add(In::Reordered, finding);
            }
        }
    }
}

/// Followers hear each entry once, in order, and nothing that does not stand.
fn check_heard(story: &Story<'_>, logs: &Logs<'_>, verdict: &mut Verdict) {
    let mut last: HashMap<(u64, &str), u64> = HashMap::new();
    for (op, line) in &story.heard {
        if line["event"] == "history_changed" {
            verdict.add(
                In::Lost,
                format!("a follower saw that the history changed: {line}"),
            );
        }
        let (Some(group), Some(seq)) = (line["group"].as_str(), line["seq"].as_u64()) else {
            continue;
        };
        if line["event"] != "entry" {
            continue;
        }
        let id = line["message_id"].as_str().unwrap_or_default();
        let before = last.insert((*op, group), seq).unwrap_or(0);
        if seq <= before {
            let finding = format!("{group}: a follower heard {seq} after {before}");
            verdict.add(In::Reordered, finding);
        }
        if !logs.stands(group, seq, id) {
            verdict.add(
                In::Lost,
                format!("{group}: {id} was heard at {seq} and is not there"),
            );
        }
    }
}

/// Raw subscriptions are dense from their cursor on and give what the log holds; whoever catches up sees all that was answered before.
fn check_streams(history: &[Record], logs: &Logs<'_>, verdict: &mut Verdict) {
    let mut streams: HashMap<u64, (&str, u64)> = HashMap::new();
    for Record { event, .. } in history {
        match event {
            Event::Opened {
                stream,
                group,
                after,
            } => {
                streams.insert(*stream, (group, *after));
            }
            Event::Frame { stream, entries } => {
                let Some((group, last)) = streams.get_mut(stream) else {
                    continue;
                };
                for seen in entries {
                    // Where it begins is where its member joined.
                    if *last != 0 && seen.seq != *last + 1 {
                        let finding = format!("{group}: a stream gave {} after {last}", seen.seq);
                        let counted = match seen.seq > *last {
                            true => In::Lost,
                            false => In::Reordered,
                        };
                        verdict.add(counted, finding);
                    }
                    *last = seen.seq;
                    if !logs.stands(group, seen.seq, &seen.message_id) {
                        let finding = format!("{group}: a stream gave {seen:?}, not in the log");
                        verdict.add(In::Lost, finding);
                    }
                }
            }
            _ => {}
        }
    }
}

/// A one-time KeyPackage leaves once.
fn check_claims(story: &Story<'_>, reused: &[String], verdict: &mut Verdict) {
    let mut sold: HashMap<&str, BTreeSet<&str>> = HashMap::new();
    for operation in story.operations.values() {
        let Asked::Claim { claim_id, .. } = operation.asked else {
            continue;
        };
        for End { answer, .. } in operation.attempts.iter().filter_map(|a| a.end.as_ref()) {
            let one_time = answer["outcome"] == "key_package" && answer["last_resort"] == false;
            if let (true, Some(hash)) = (one_time, answer["key_package_sha256"].as_str()) {
                sold.entry(hash).or_default().insert(claim_id);
            }
        }
    }
    for (hash, claims) in sold.iter().filter(|(_, claims)| claims.len() > 1) {
        let finding = format!("KeyPackage {hash} was given to the claims {claims:?}");
        verdict.add(In::DoubleClaims, finding);
    }
    for reference in reused {
        let finding = format!("KeyPackage {reference} stands in more than one Welcome");
        verdict.add(In::DoubleClaims, finding);
    }
}

/// The members' own journals and states.
fn check_states(states: &[State], story: &Story<'_>, verdict: &mut Verdict) -> anyhow::Result<()> {
    let mut groups: BTreeMap<&str, Vec<&State>> = BTreeMap::new();
    for state in states.iter().filter(|state| state.steady) {
        groups.entry(&state.group).or_default().push(state);
    }
    let mut agree = true;
    for (group, states) in groups {
        let acknowledged: Vec<Acknowledged> = story
            .writes
            .iter()
            .filter(|write| write.group == group)
            .filter_map(|write| {
                Some(Acknowledged {
                    seq: write.seq,
                    message_id: write.message_id.clone(),
                    text: write.text?.to_owned(),
                })
            })
            .collect();
        let journals = states
            .iter()
            .map(|state| Journal::parse(&state.device, &state.read))
            .collect::<anyhow::Result<Vec<_>>>();
        let Ok(journals) = journals else {
            agree = false;
            verdict.add(In::None, format!("{group}: a member has no journal"));
            continue;
        };
        let found = journals::compare(&journals, &acknowledged);
        for (counted, count, what) in [
            (In::Lost, found.lost, "not read by a member"),
            (In::Duplicated, found.duplicated, "read twice by a member"),
            (
                In::Reordered,
                found.reordered,
                "read by a member at another place",
            ),
        ] {
            for _ in 0..count {
                verdict.add(counted, format!("{group}: {what}"));
            }
        }
        for field in [
            "epoch",
            "epoch_authenticator",
            "members",
            "head_seq",
            "chain",
            "state",
        ] {
            let differ = states
                .iter()
                .any(|s| s.show[field] != states[0].show[field]);
            if differ || states[0].show[field].is_null() {
                agree = false;
                let seen: BTreeSet<String> =
                    states.iter().map(|s| s.show[field].to_string()).collect();
                verdict.add(
                    In::None,
                    format!("{group}: members differ in {field}: {seen:?}"),
                );
            }
        }
    }
    verdict.counts.members_agree = agree && !states.is_empty();
    Ok(())
}

/// Groups that do not go on, processes that died by themselves, answers that no server gives, devices that were stopped by what they saw.
fn check_rest(history: &[Record], story: &Story<'_>, verdict: &mut Verdict) {
    let mut last_fault = String::new();
    for Record { event, .. } in history {
        match event {
            Event::Fault { kind, .. } => last_fault.clone_from(kind),
            Event::Probe {
                group,
                ailing: Some(ailing),
            } => verdict.add(In::Bricked, format!("{group}: {ailing}")),
            Event::Died { process, status } => {
                let finding = format!("{process} ended by itself after {last_fault}: {status}");
                verdict.add(In::None, finding);
            }
            _ => {}
        }
    }
    for (op, operation) in &story.operations {
        let ends = operation.attempts.iter().filter_map(|a| a.end.as_ref());
        for End { code, error, .. } in ends {
            let inner = &error["error"];
            let internal = inner["code"] == "INTERNAL";
            // 1: a defect of the client; 8: it saw that the server broke its word; 9: its store; 10: unusable; 12: its keys cannot go on.
            if internal || matches!(code, 1 | 8 | 9 | 10 | 12 | 101) {
                let device = operation.device;
                let finding = format!("{device}, operation {op}: {code} {error}");
                verdict.add(In::None, finding);
            }
        }
    }
}
