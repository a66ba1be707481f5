//! A removal and a revocation: whoever is out tries everything that it still can.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::{
    device::Device,
    programs::{number, run, text},
    story::world::{DOMAINS, World},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A device is removed and tries everything that it still can.
///
/// # Errors
/// A command fails.
pub fn one_is_removed(world: &mut World) -> anyhow::Result<()> {
    world.act("Lucas is removed");
    let lucas = world.device("lucas-desk")?;
    let anna = world.device("anna-desk")?;
    let group = world.group.clone();
    lucas.run(&["sync", "--group", &group])?;
    let removed = anna.run(&["group", "remove", "--group", &group, "--device", &lucas.uri])?;
    let (seq, epoch) = (number(&removed, "seq")?, number(&removed, "epoch")?);
    ensure!(removed["removed"][0] == lucas.uri.as_str(), "{removed}");
    world.removed.push(lucas.name.clone());
    let secret = world.send(&anna, "Not for Lucas")?;
    let later = number(&secret, "seq")?;
    world.say(&format!(
        "seq {seq}, epoch {epoch}. Anna speaks at seq {later}; Lucas' token is still good, and he tries"
    ));
    let mut got = tries(&lucas, &group, seq, later)?;
    got.push(own_client(&lucas, &group, seq)?);
    world.summary.removed_device_read_after_removal += tell(world, &got);
    Ok(())
}

/// A device is lost, its ministry revokes it, and whoever holds it tries everything that it still can. Nobody in the group was asked to do anything.
///
/// # Errors
/// A command fails.
pub fn one_is_revoked(world: &mut World) -> anyhow::Result<()> {
    world.act("Jonas lost his phone; his ministry revokes it");
    let phone = world.device("jonas-phone")?;
    let anna = world.device("anna-desk")?;
    let group = world.group.clone();
    phone.run(&["sync", "--group", &group])?;
    // Nothing is said until the revocation is known: what comes after this is from after it.
    let state = phone.run(&["group", "show", "--group", &group])?;
    let known = number(&state, "head_seq")?;
    let place = DOMAINS.iter().position(|domain| phone.uri.contains(domain));
    let place = place.context("a device of neither ministry")?;
    let mut revoke = world
        .server
        .operator(place, &["devices", "revoke", &phone.uri]);
    run(&mut revoke)?.ok("devices revoke")?;
    // From here on the Delivery Service knows.
    let until = Instant::now() + PATIENCE;
    while phone.run(&["debug", "read-log", "--group", &group])?["reason"] != "DEVICE_REVOKED" {
        ensure!(Instant::now() < until, "the revocation does not arrive");
    }
    world.removed.push(phone.name.clone());
    let secret = world.send(&anna, "Not for whoever found the phone")?;
    let later = number(&secret, "seq")?;
    let state = anna.run(&["group", "show", "--group", &group])?;
    let members = state["members"].as_array().cloned().unwrap_or_default();
    ensure!(
        members.iter().all(|m| m["device"] != phone.uri.as_str()),
        "Anna spoke before the phone was removed: {state}"
    );
    world.say(&format!(
        "Anna speaks at seq {later}; before that her client removed the phone by itself, on the ministry's signature. The phone tries"
    ));
    let mut got = tries(&phone, &group, known, later)?;
    for words in [
        vec!["sync"],
        vec!["send", "--group", &group, "hello?"],
        vec!["group", "rejoin", "--group", &group],
    ] {
        let said = phone.attempt(&words)?;
        ensure!(said.code == 6, "{}: {said:?}", words.join(" "));
    }
    let own = phone.run(&["read", "--group", &group, "--no-sync"])?;
    let entries = own["entries"].as_array().cloned().unwrap_or_default();
    let after = entries.iter().filter(|e| e["seq"].as_u64() > Some(known));
    got.push((
        "its own client",
        serde_json::json!({ "reason": "DEVICE_REVOKED" }),
        after.count() as u64,
    ));
    world.summary.revoked_device_read_after_revocation += tell(world, &got);
    Ok(())
}

/// Says what came of each attempt; how much was read that must not be.
fn tell(world: &World, got: &[Tried]) -> u64 {
    for (what, answer, _) in got {
        let answer = if answer["ok"] == true {
            "only what is from before"
        } else {
            answer["reason"].as_str().unwrap_or("nothing")
        };
        world.say(&format!("  {what}: {answer}"));
    }
    got.iter().map(|(_, _, read)| read).sum()
}

/// What was asked, the answer, and how much of it is from after the removal.
type Tried = (&'static str, Value, u64);

fn tries(lucas: &Device, group: &str, removed_at: u64, later: u64) -> anyhow::Result<Vec<Tried>> {
    let later_seq = later.to_string();
    let removed_seq = removed_at.to_string();
    let seqs_after = |answer: &Value| {
        let seqs = answer["seqs"].as_array().cloned().unwrap_or_default();
        let after = seqs.iter().filter(|s| s.as_u64() > Some(removed_at));
        after.count() as u64
    };
    let any = |answer: &Value| u64::from(answer["ok"] == true);
    let mut tried = Vec::new();
    for (what, words, count) in [
        (
            "ReadLog",
            vec!["debug", "read-log", "--group", group],
            &seqs_after as &dyn Fn(&Value) -> u64,
        ),
        (
            "ReadLog after the removal",
            vec![
                "debug",
                "read-log",
                "--group",
                group,
                "--after",
                &removed_seq,
            ],
            &seqs_after,
        ),
        (
            "Subscribe",
            vec!["debug", "subscribe", "--group", group],
            &seqs_after,
        ),
        (
            "FetchPayload",
            vec![
                "debug",
                "fetch-payload",
                "--group",
                group,
                "--seq",
                &later_seq,
            ],
            &any,
        ),
        (
            "FetchTree of the new epoch",
            vec![
                "debug",
                "fetch-tree",
                "--group",
                group,
                "--epoch-seq",
                &removed_seq,
            ],
            &any,
        ),
        (
            "FetchTree",
            vec!["debug", "fetch-tree", "--group", group],
            &any,
        ),
        (
            "GetGroupInfo",
            vec!["debug", "group-info", "--group", group],
            &any,
        ),
        (
            "its old Welcome",
            vec!["debug", "old-welcome", "--group", group],
            &|answer| u64::from(answer["opened"] == true),
        ),
    ] {
        let answer = lucas.run(&words)?;
        let read = count(&answer);
        tried.push((what, answer, read));
    }
    Ok(tried)
}

/// His own client, which follows the rules: it learns that it was removed.
fn own_client(lucas: &Device, group: &str, removed_at: u64) -> anyhow::Result<Tried> {
    lucas.run(&["sync", "--group", group])?;
    let own = lucas.run(&["read", "--group", group, "--no-sync"])?;
    let entries = own["entries"].as_array().cloned().unwrap_or_default();
    let after = entries
        .iter()
        .filter(|entry| entry["seq"].as_u64() > Some(removed_at))
        .count();
    let state = lucas.run(&["group", "show", "--group", group])?;
    ensure!(text(&state, "state")? == "removed", "{state}");
    Ok((
        "its own client",
        serde_json::json!({ "ok": true }),
        after as u64,
    ))
}
