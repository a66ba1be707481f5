//! The demo: two ministries, their officials' devices, one group, and everything that may happen to it.
//!
//! | module | acts |
//! |---|---|
//! | this one | the order of the acts, and the end where everything is compared |
//! | [`world`] | the server, the devices, what was acknowledged |
//! | [`people`] | enrolment, the group, a first round of messages |
//! | [`trouble`] | a race, an absence, a lost state, a repeated message |
//! | [`outcasts`] | a removal, a revocation |
//! | [`crash`] | the server side killed in the middle of traffic |

pub mod crash;
pub mod outcasts;
pub mod people;
pub mod trouble;
pub mod world;

use anyhow::ensure;
use serde_json::Value;

use crate::{
    journals::{self, Journal},
    programs::{number, text},
    search,
    summary::Summary,
};
use world::World;

/// Plays the whole story in a fresh folder; what was counted.
///
/// # Errors
/// A command failed that must not. A broken promise is no error: it is in the summary.
pub fn play(folder: &std::path::Path) -> anyhow::Result<Summary> {
    let mut world = World::start(folder)?;
    people::enroll(&mut world)?;
    people::create_group(&mut world)?;
    people::everybody_speaks(&mut world)?;
    trouble::two_commit_at_once(&mut world)?;
    trouble::one_was_offline(&mut world)?;
    trouble::one_lost_its_state(&mut world)?;
    outcasts::one_is_removed(&mut world)?;
    outcasts::one_is_revoked(&mut world)?;
    trouble::one_sends_twice(&mut world)?;
    crash::killed_in_the_middle_of_traffic(&mut world)?;
    compare(&mut world)?;
    look_into_the_server(&mut world)?;
    world.server.stop()?;
    let elapsed = world.began.elapsed().as_secs_f64();
    let mut summary = world.summary;
    summary.messages_acknowledged = world.acknowledged.len() as u64;
    summary.elapsed_s = (elapsed * 10.0).round() / 10.0;
    Ok(summary)
}

/// Every member reads to the end; then their journals and states are laid side by side.
fn compare(world: &mut World) -> anyhow::Result<()> {
    world.act("At the end everybody reads, and all journals are compared");
    let group = world.group.clone();
    let members = world.members();
    let read = world::each(&members, |device| {
        let answer = device.run(&["read", "--group", &group])?;
        let state = device.run(&["group", "show", "--group", &group])?;
        Ok((Journal::parse(&device.name, &answer)?, state))
    })?;
    let (journals, states): (Vec<Journal>, Vec<Value>) = read.into_iter().unzip();
    let findings = journals::compare(&journals, &world.acknowledged);
    let summary = &mut world.summary;
    summary.lost = findings.lost;
    summary.duplicated = findings.duplicated;
    summary.reordered = findings.reordered;
    summary.messages_read_by_all = findings.read_by_all;
    let lines = journals.first().map_or(&[][..], |j| j.lines.as_slice());
    summary.commits = lines.iter().filter(|l| l.kind.contains("commit")).count() as u64;
    summary.members_agree = same(
        &states,
        &["epoch", "epoch_seq", "epoch_authenticator", "members"],
    );
    summary.chains_agree = same(&states, &["head_seq", "chain"]);
    let first = states.first().cloned().unwrap_or_default();
    ensure!(
        first["epoch_authenticator"].is_string(),
        "a member without an epoch authenticator: {first}"
    );
    let (epoch, head) = (number(&first, "epoch")?, number(&first, "head_seq")?);
    let chain = text(&first, "chain")?[..16].to_owned();
    world.say(&format!(
        "{} members at epoch {epoch}, seq {head}, chain {chain}…: lost {}, twice {}, out of order {}",
        members.len(),
        findings.lost,
        findings.duplicated,
        findings.reordered
    ));
    Ok(())
}

fn same(states: &[Value], fields: &[&str]) -> bool {
    let Some((first, rest)) = states.split_first() else {
        return false;
    };
    rest.iter()
        .all(|state| fields.iter().all(|field| state[field] == first[field]))
}

/// The server's folder is searched: tables, WAL, keys, logs.
fn look_into_the_server(world: &mut World) -> anyhow::Result<()> {
    world.act("The server's whole folder is searched for what was said");
    let folder = world.server.dir().to_owned();
    let control = search::find(&folder, &world.control)?;
    let canary = search::find(&folder, &world.canary)?;
    world.summary.control_string_found_on_server = !control.is_empty();
    world.summary.canary_found_on_server = !canary.is_empty();
    world.say(&format!(
        "a name that lies in the directory in the clear was found {} times; the texts of the messages {} times",
        control.len(),
        canary.len()
    ));
    for (file, form) in canary {
        world.say(&format!("  {form} in {file}"));
    }
    Ok(())
}
