//! A race, an absence, a lost state, a repeated message.

use anyhow::ensure;
use serde_json::Value;
use uuid::Uuid;

use crate::{
    programs::{number, run, said},
    story::world::World,
};

/// Two devices have a Commit of the same epoch in hand, then both send it.
///
/// # Errors
/// A command fails.
pub fn two_commit_at_once(world: &mut World) -> anyhow::Result<()> {
    world.act("Two devices commit at the same moment");
    let group = world.group.clone();
    let words = ["group", "update", "--group", &group];
    let racers = [world.device("bruno-desk")?, world.device("hugo-desk")?];
    let mut epochs = Vec::new();
    for racer in &racers {
        racer.run(&["sync", "--group", &group])?;
        // The Commit is made and kept; the crash before sending holds it until the other's is ready.
        racer.crash("before-send", &words)?;
        let state = racer.run(&["group", "show", "--group", &group])?;
        ensure!(state["pending"].is_object(), "no pending Commit: {state}");
        epochs.push(number(&state, "epoch")?);
    }
    ensure!(
        epochs[0] == epochs[1],
        "the Commits are of different epochs"
    );
    let children: Vec<_> = racers
        .iter()
        .map(|racer| {
            let mut command = racer.command(&words);
            command.stdout(std::process::Stdio::piped());
            command.stderr(std::process::Stdio::piped());
            command.spawn()
        })
        .collect::<std::io::Result<_>>()?;
    let mut answers = Vec::new();
    for child in children {
        answers.push(said(&child.wait_with_output()?).ok("group update")?);
    }
    let lost = |answer: &Value| answer["races"].as_u64().unwrap_or(0) > 0;
    let losers: Vec<&Value> = answers.iter().filter(|a| lost(a)).collect();
    let winners: Vec<&Value> = answers.iter().filter(|a| !lost(a)).collect();
    if let ([winner], [loser]) = (winners.as_slice(), losers.as_slice()) {
        // Only a Commit of the winner's epoch can have been told that it came second.
        world.summary.commit_races += 1;
        let learned = loser["winner_seqs"].as_array();
        let learned = learned.is_some_and(|seqs| seqs.contains(&winner["seq"]));
        world.summary.race_winners += u64::from(learned);
        world.say(&format!(
            "epoch {}: seq {} won; the other learned that from the refusal, rebuilt its Commit on the new epoch and got seq {}",
            epochs[0] + 1,
            number(winner, "seq")?,
            number(loser, "seq")?,
        ));
    }
    Ok(())
}

/// A device is away while others talk and commit.
///
/// # Errors
/// A command fails.
pub fn one_was_offline(world: &mut World) -> anyhow::Result<()> {
    world.act("Felix was offline");
    let felix = world.device("felix-desk")?;
    let group = world.group.clone();
    felix.run(&["sync", "--group", &group])?;
    let before = felix.run(&["group", "show", "--group", &group])?;
    for name in ["anna-phone", "irene-desk", "jonas-phone"] {
        let device = world.device(name)?;
        for n in 1..=3 {
            world.send(&device, &format!("{name} says {n} while Felix is away"))?;
        }
        device.run(&["group", "update", "--group", &group])?;
    }
    let caught_up = felix.run(&["sync", "--group", &group])?;
    let after = felix.run(&["group", "show", "--group", &group])?;
    world.summary.caught_up = number(&caught_up, "entries")?;
    world.say(&format!(
        "he was at seq {}, epoch {}; one command later he has read {} entries and is at seq {}, epoch {}",
        number(&before, "head_seq")?,
        number(&before, "epoch")?,
        world.summary.caught_up,
        number(&after, "head_seq")?,
        number(&after, "epoch")?,
    ));
    Ok(())
}

/// A device loses its state of the group, keeps its key, and comes back by itself.
///
/// # Errors
/// A command fails.
pub fn one_lost_its_state(world: &mut World) -> anyhow::Result<()> {
    world.act("Katja's phone lost its state of the group");
    let phone = world.device("katja-phone")?;
    let group = world.group.clone();
    phone.run(&["sync", "--group", &group])?;
    phone.run(&["debug", "forget", "--group", &group])?;
    let back = phone.run(&["group", "rejoin", "--group", &group])?;
    let sent = world.send(&phone, "Back again")?;
    world.say(&format!(
        "it came back by an external Commit (seq {}, epoch {}) on what the server had stored, and speaks at seq {}",
        number(&back, "seq")?,
        number(&back, "epoch")?,
        number(&sent, "seq")?,
    ));
    Ok(())
}

/// The same message twice under one id.
///
/// # Errors
/// A command fails.
pub fn one_sends_twice(world: &mut World) -> anyhow::Result<()> {
    world.act("Greta sends the same message twice");
    let greta = world.device("greta-desk")?;
    let group = world.group.clone();
    let id = Uuid::new_v4().to_string();
    let said = world.text("Did this arrive?");
    let words = ["send", "--group", &group, "--message-id", &id, &said];
    let first = run(&mut greta.command(&words))?.ok("send")?;
    let second = run(&mut greta.command(&words))?.ok("send")?;
    world.acknowledge(&first, &said)?;
    let reader = world.device("clara-desk")?;
    let read = reader.run(&["read", "--group", &group])?;
    let entries = read["entries"].as_array().cloned().unwrap_or_default();
    let times = entries.iter().filter(|e| e["message_id"] == id.as_str());
    let times = times.count();
    world.summary.repeat_appears_once =
        times == 1 && first["seq"] == second["seq"] && second["replayed"] == true;
    world.say(&format!(
        "both were answered with seq {}; Clara reads it {times} time",
        number(&first, "seq")?
    ));
    Ok(())
}
