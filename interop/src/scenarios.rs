//! The scenarios. Each is played by every assignment of stacks to its roles.

use std::{future::Future, pin::Pin};

use anyhow::Context as _;

use crate::{
    scenario::{Cast, Stop, hold},
    stack::{Change, Race, Stack},
};

type Played<'a> = Pin<Box<dyn Future<Output = Result<(), Stop>> + 'a>>;

/// A scenario: its name, what its roles are called, and how it goes.
pub struct Scenario {
    /// Short, unique.
    pub name: &'static str,
    /// Roles, the creator first.
    pub roles: &'static [&'static str],
    /// Plays it.
    pub play: for<'a> fn(Vec<&'a mut Box<dyn Stack>>) -> Played<'a>,
}

/// Roles whose stack cannot do what they ask for, with the reason: checked both ways.
pub const UNSUPPORTED: &[(&str, usize, &str, &str)] = &[
    (
        "proposal by reference",
        1,
        "openmls",
        "our client commits a removal and does not propose it",
    ),
    (
        "messages out of order",
        0,
        "openmls",
        "our client sends its messages in their order",
    ),
];

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "add one",
        roles: &["creator", "added"],
        play: |m| Box::pin(add_one(m)),
    },
    Scenario {
        name: "add many",
        roles: &["creator", "added", "added", "added"],
        play: |m| Box::pin(add_many(m)),
    },
    Scenario {
        name: "added by an added member",
        roles: &["creator", "adder", "added"],
        play: |m| Box::pin(added_by_added(m)),
    },
    Scenario {
        name: "updates in turn",
        roles: &["creator", "member"],
        play: |m| Box::pin(updates(m)),
    },
    Scenario {
        name: "remove",
        roles: &["creator", "remover", "removed"],
        play: |m| Box::pin(remove(m)),
    },
    Scenario {
        name: "race",
        roles: &["winner", "loser"],
        play: |m| Box::pin(race(m)),
    },
    Scenario {
        name: "resync from outside",
        roles: &["creator", "lost", "member"],
        play: |m| Box::pin(resync(m)),
    },
    Scenario {
        name: "resync while others commit",
        roles: &["creator", "lost", "committer"],
        play: |m| Box::pin(resync_after_commits(m)),
    },
    Scenario {
        name: "messages interleaved",
        roles: &["creator", "speaker", "speaker"],
        play: |m| Box::pin(interleaved(m)),
    },
    Scenario {
        name: "message of the epoch before",
        roles: &["late speaker", "committer", "reader"],
        play: |m| Box::pin(window(m)),
    },
    Scenario {
        name: "messages out of order",
        roles: &["speaker", "reader", "reader"],
        play: |m| Box::pin(out_of_order(m)),
    },
    Scenario {
        name: "message sent twice",
        roles: &["speaker", "reader"],
        play: |m| Box::pin(twice(m)),
    },
    Scenario {
        name: "leave",
        roles: &["committer", "leaver", "member"],
        play: |m| Box::pin(leave(m)),
    },
    Scenario {
        name: "proposal by reference",
        roles: &["committer", "proposer", "removed"],
        play: |m| Box::pin(proposal(m)),
    },
    Scenario {
        name: "restarted from the store",
        roles: &["creator", "member"],
        play: |m| Box::pin(restart(m)),
    },
    Scenario {
        name: "last resort KeyPackage",
        roles: &["adder", "exhausted"],
        play: |m| Box::pin(last_resort(m)),
    },
    Scenario {
        name: "leaves and comes back",
        roles: &["creator", "returning"],
        play: |m| Box::pin(comes_back(m)),
    },
];

async fn add_one(members: Vec<&mut Box<dyn Stack>>) -> Result<(), Stop> {
    let mut cast = Cast::new(members).await?;
    cast.add(0, &[1]).await?;
    cast.agree(&[0, 1]).await?;
    cast.say(0).await?;
    cast.say(1).await?;
    cast.agree(&[0, 1]).await?;
    cast.heard(&[0, 1], 0)
}

async fn add_many(members: Vec<&mut Box<dyn Stack>>) -> Result<(), Stop> {
    let mut cast = Cast::new(members).await?;
    cast.add(0, &[1, 2, 3]).await?;
    cast.agree(&[0, 1, 2, 3]).await?;
    for role in 0..4 {
        cast.say(role).await?;
    }
    cast.agree(&[0, 1, 2, 3]).await?;
    cast.heard(&[0, 1, 2, 3], 0)
}

async fn added_by_added(members: Vec<&mut Box<dyn Stack>>) -> Result<(), Stop> {
    let mut cast = Cast::new(members).await?;
    cast.add(0, &[1]).await?;
    cast.agree(&[0, 1]).await?;
    cast.add(1, &[2]).await?;
    cast.agree(&[0, 1, 2]).await?;
    cast.say(2).await?;
    cast.agree(&[0, 1, 2]).await?;
    cast.heard(&[0, 1, 2], 0)
}

async fn updates(members: Vec<&mut Box<dyn Stack>>) -> Result<(), Stop> {
    let mut cast = Cast::new(members).await?;
    cast.add(0, &[1]).await?;
    cast.agree(&[0, 1]).await?;
    for role in [1, 0, 0, 1] {
        cast.update(role).await?;
        cast.agree(&[0, 1]).await?;
        cast.say(role).await?;
    }
    cast.agree(&[0, 1]).await?;
    cast.heard(&[0, 1], 0)
}

async fn remove(members: Vec<&mut Box<dyn Stack>>) -> Result<(), Stop> {
    let mut cast = Cast::new(members).await?;
    cast.add(0, &[1, 2]).await?;
    cast.agree(&[0, 1, 2]).await?;
    cast.remove(1, 2).await?;
    cast.agree(&[0, 1]).await?;
    cast.say(0).await?;
    cast.agree(&[0, 1]).await?;
    cast.heard(&[0, 1], 0)?;
    // The removed one reads its removal, and nothing after it.
    let (removed, group) = cast.act(2)?;
    removed
        .sync(&group)
        .await
        .context("the removed one reads")?;
    hold!(
        removed.texts(&group)?.is_empty(),
        "it has read what came after"
    );
    Ok(())
}

async fn race(members: Vec<&mut Box<dyn Stack>>) -> Result<(), Stop> {
    let mut cast = Cast::new(members).await?;
    cast.add(0, &[1]).await?;
    cast.agree(&[0, 1]).await?;
    for role in [0, 1] {
        let (member, group) = cast.act(role)?;
        member.prepare(&group).await.context("prepare")?;
    }
    let (winner, group) = cast.act(0)?;
    let won = winner.submit_prepared(&group).await?;
    let (loser, group) = cast.act(1)?;
    let lost = loser.submit_prepared(&group).await?;
    let Race::Won { seq } = won else {
        return Err(anyhow::anyhow!("the first one lost: {won:?}").into());
    };
    hold!(
        lost == Race::Lost { winner_seq: seq },
        "{lost:?} instead of a loss against {seq}"
    );
    let again = loser.commit(&group, &Change::default()).await?;
    hold!(again > seq, "the second try stands at {again}");
    cast.agree(&[0, 1]).await?;
    cast.say(1).await?;
    cast.agree(&[0, 1]).await?;
    cast.heard(&[0, 1], 0)
}

async fn resync(members: Vec<&mut Box<dyn Stack>>) -> Result<(), Stop> {
    let mut cast = Cast::new(members).await?;
    cast.add(0, &[1, 2]).await?;
    cast.agree(&[0, 1, 2]).await?;
    let (lost, group) = cast.act(1)?;
    lost.resync(&group).await.context("resync")?;
    cast.agree(&[0, 1, 2]).await?;
    for role in [1, 0, 2] {
        cast.say(role).await?;
    }
    cast.agree(&[0, 1, 2]).await?;
    cast.heard(&[0, 1, 2], 0)?;
    cast.update(1).await?;
    cast.agree(&[0, 1, 2]).await
}

async fn resync_after_commits(members: Vec<&mut Box<dyn Stack>>) -> Result<(), Stop> {
    let mut cast = Cast::new(members).await?;
    cast.add(0, &[1, 2]).await?;
    cast.agree(&[0, 1, 2]).await?;
    for _ in 0..3 {
        cast.update(2).await?;
        cast.say(2).await?;
    }
    let (lost, group) = cast.act(1)?;
    lost.resync(&group).await.context("resync")?;
    cast.agree(&[0, 1, 2]).await?;
    cast.say(0).await?;
    cast.agree(&[0, 1, 2]).await?;
    cast.heard(&[0, 2], 0)?;
    // What was said in between, it did not hear.
    cast.heard(&[1], 3)
}

async fn interleaved(members: Vec<&mut Box<dyn Stack>>) -> Result<(), Stop> {
    let mut cast = Cast::new(members).await?;
    cast.add(0, &[1, 2]).await?;
    cast.agree(&[0, 1, 2]).await?;
    for role in [0, 1, 2, 2, 1, 0, 0, 0, 1] {
        cast.say(role).await?;
    }
    cast.agree(&[0, 1, 2]).await?;
    cast.heard(&[0, 1, 2], 0)
}

async fn window(members: Vec<&mut Box<dyn Stack>>) -> Result<(), Stop> {
    let mut cast = Cast::new(members).await?;
    cast.add(0, &[1, 2]).await?;
    cast.agree(&[0, 1, 2]).await?;
    cast.update(1).await?;
    let (reader, group) = cast.act(2)?;
    reader.sync(&group).await?;
    // Role 0 has not read that Commit: its message is of the epoch before, and comes after.
    cast.say(0).await?;
    cast.agree(&[0, 1, 2]).await?;
    cast.heard(&[0, 1, 2], 0)
}

async fn out_of_order(members: Vec<&mut Box<dyn Stack>>) -> Result<(), Stop> {
    let mut cast = Cast::new(members).await?;
    cast.add(0, &[1, 2]).await?;
    cast.agree(&[0, 1, 2]).await?;
    cast.say_backwards(0).await?;
    cast.say(1).await?;
    cast.agree(&[0, 1, 2]).await?;
    cast.heard(&[0, 1, 2], 0)
}

async fn twice(members: Vec<&mut Box<dyn Stack>>) -> Result<(), Stop> {
    let mut cast = Cast::new(members).await?;
    cast.add(0, &[1]).await?;
    cast.agree(&[0, 1]).await?;
    for role in [0, 1, 0] {
        cast.say_twice(role).await?;
    }
    cast.agree(&[0, 1]).await?;
    cast.heard(&[0, 1], 0)?;
    // Nothing else is in the log: neither has read more than the three.
    for role in [0, 1] {
        let (member, group) = cast.act(role)?;
        hold!(member.texts(&group)?.len() == 3, "a text was read twice");
    }
    Ok(())
}

async fn leave(members: Vec<&mut Box<dyn Stack>>) -> Result<(), Stop> {
    let mut cast = Cast::new(members).await?;
    cast.add(0, &[1, 2]).await?;
    cast.agree(&[0, 1, 2]).await?;
    let (leaver, group) = cast.act(1)?;
    leaver.leave(&group).await.context("leave")?;
    // Whoever has read that commits it.
    let (committer, group) = cast.act(0)?;
    committer.sync(&group).await?;
    let nobody = Change::default();
    committer.commit(&group, &nobody).await.context("commit")?;
    cast.agree(&[0, 2]).await?;
    cast.say(2).await?;
    cast.agree(&[0, 2]).await?;
    cast.heard(&[0, 2], 0)
}

async fn proposal(members: Vec<&mut Box<dyn Stack>>) -> Result<(), Stop> {
    let mut cast = Cast::new(members).await?;
    cast.add(0, &[1, 2]).await?;
    cast.agree(&[0, 1, 2]).await?;
    let whom = cast.person(2)?;
    let (proposer, group) = cast.act(1)?;
    let library = proposer.library();
    let proposed = proposer.propose_remove(&group, whom).await?;
    if proposed.is_none() {
        return Err(Stop::Unsupported(library.to_owned()));
    }
    let (committer, group) = cast.act(0)?;
    committer.sync(&group).await?;
    // Who has seen a proposal commits before speaking.
    cast.say(0).await?;
    cast.agree(&[0, 1]).await?;
    cast.heard(&[0, 1], 0)
}

async fn restart(members: Vec<&mut Box<dyn Stack>>) -> Result<(), Stop> {
    let mut cast = Cast::new(members).await?;
    cast.add(0, &[1]).await?;
    cast.agree(&[0, 1]).await?;
    for role in [0, 1] {
        cast.say(role).await?;
        let (member, _) = cast.act(role)?;
        member.restart().await.context("restart")?;
        cast.update(role).await?;
        cast.agree(&[0, 1]).await?;
    }
    cast.heard(&[0, 1], 0)
}

/// More groups than the second role has one-time KeyPackages: the last ones are joined by the same KeyPackage.
async fn last_resort(mut members: Vec<&mut Box<dyn Stack>>) -> Result<(), Stop> {
    for _ in 0..12 {
        let again = members.iter_mut().map(|member| &mut **member).collect();
        let mut cast = Cast::new(again).await?;
        cast.add(0, &[1]).await?;
        cast.agree(&[0, 1]).await?;
        cast.say(1).await?;
        cast.agree(&[0, 1]).await?;
        cast.heard(&[0, 1], 0)?;
    }
    Ok(())
}

async fn comes_back(members: Vec<&mut Box<dyn Stack>>) -> Result<(), Stop> {
    let mut cast = Cast::new(members).await?;
    cast.add(0, &[1]).await?;
    cast.agree(&[0, 1]).await?;
    cast.remove(0, 1).await?;
    let (gone, group) = cast.act(1)?;
    gone.sync(&group).await?;
    cast.add(0, &[1]).await?;
    cast.agree(&[0, 1]).await?;
    cast.say(1).await?;
    cast.agree(&[0, 1]).await?;
    cast.heard(&[0, 1], 0)
}
