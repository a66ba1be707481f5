//! One large group of all stacks: grown in batches, spoken in by each stack, updated and shrunk by different ones, compared after every step.

use std::time::Instant;

use crate::{
    matrix,
    report::{Outcome, Part, Run},
    scenario::{Cast, Stop},
    stack::Stack,
    world::World,
};

/// Its name in reports.
pub const NAME: &str = "large mixed group";
/// Devices that one Commit adds.
const BATCH: usize = 50;
/// Of so many members one is a ts-mls one: each has a Node process of its own.
const NODE_SHARE: usize = 20;
const SUITE: u16 = 1;

/// Who sits where: the creator is our client, all stacks that take part are mixed.
fn stack_of(role: usize, taking: &[&'static str]) -> &'static str {
    if role % NODE_SHARE == 1 && taking.contains(&"ts-mls") {
        "ts-mls"
    } else if role.is_multiple_of(2) {
        "openmls"
    } else {
        "mls-rs"
    }
}

/// Plays it with so many members.
///
/// # Errors
/// The services do not start, or nobody can enroll.
pub async fn play(members: usize) -> anyhow::Result<Run> {
    let taking = matrix::taking_part();
    let world = World::start().await?;
    let began = Instant::now();
    let stacks: Vec<&'static str> = (0..members).map(|role| stack_of(role, &taking)).collect();
    let mut enrolled: Vec<Box<dyn Stack>> = Vec::new();
    for (role, stack) in stacks.iter().enumerate() {
        let handle = format!("{stack}-{role}");
        enrolled.push(matrix::enroll(&world, stack, &handle, SUITE).await?);
    }
    let played = converse(&mut enrolled, &stacks).await;
    let outcome = match played {
        Ok(()) => Outcome::Passed,
        Err(Stop::Unsupported(who)) => Outcome::Unexpected(format!("{who} cannot")),
        Err(Stop::Failed(error)) => Outcome::Failed(format!("{error:#}")),
    };
    drop(enrolled);
    world.stop().await?;
    let count = |stack: &str| stacks.iter().filter(|s| **s == stack).count().to_string();
    let roles = taking
        .iter()
        .map(|stack| (count(stack), (*stack).to_owned()));
    Ok(Run {
        part: Part::Live,
        scenario: NAME.to_owned(),
        suite: SUITE,
        variant: format!("{members} members"),
        roles: roles.collect(),
        outcome,
        elapsed: began.elapsed(),
    })
}

async fn converse(enrolled: &mut [Box<dyn Stack>], stacks: &[&str]) -> Result<(), Stop> {
    let mut cast = Cast::new(enrolled.iter_mut().collect()).await?;
    let everybody: Vec<usize> = (0..stacks.len()).collect();
    for batch in everybody[1..].chunks(BATCH) {
        cast.add(0, batch).await?;
        let last = batch.last().copied().unwrap_or_default();
        cast.agree(&everybody[..=last]).await?;
    }
    // The last of each stack, so that whoever acts was added late.
    let mut actors: Vec<usize> = Vec::new();
    for stack in ["openmls", "mls-rs", "ts-mls"] {
        actors.extend(stacks.iter().rposition(|s| *s == stack));
    }
    for actor in &actors {
        // Two Commits late is out of the window.
        let (member, group) = cast.act(*actor)?;
        member.sync(&group).await?;
        cast.say(*actor).await?;
        cast.update(*actor).await?;
    }
    cast.agree(&everybody).await?;
    cast.heard(&everybody, 0)?;
    let remover = *actors.last().unwrap_or(&0);
    let gone: Vec<usize> = everybody
        .iter()
        .copied()
        .filter(|role| role % 10 == 5 && !actors.contains(role))
        .collect();
    let staying: Vec<usize> = everybody
        .iter()
        .copied()
        .filter(|role| !gone.contains(role))
        .collect();
    cast.remove_all(remover, &gone).await?;
    for actor in &actors {
        let (member, group) = cast.act(*actor)?;
        member.sync(&group).await?;
        cast.say(*actor).await?;
    }
    cast.agree(&staying).await?;
    cast.heard(&staying, 0)
}
