//! Rules 1, 2, 9 and 10: one Commit for an epoch, what an old epoch may still say, repetition, settling.

use anyhow::{Context as _, ensure};
use chancery_proto::{common::v1::Reason, delivery::v1::Outcome};

use super::{
    Check,
    expect::refused,
    party::{Parties, Plan, fresh_id},
};
use crate::contract::aad;

pub(super) const CHECKS: &[Check] = &[
    Check {
        rule: "1",
        name: "of two Commits for an epoch the first wins and the refusal names it",
        run: |p| Box::pin(first_wins(p)),
    },
    Check {
        rule: "1",
        name: "a Commit for an epoch that never was changes nothing",
        run: |p| Box::pin(no_such_epoch(p)),
    },
    Check {
        rule: "2",
        name: "a message of the epoch before is taken within the window",
        run: |p| Box::pin(within_window(p)),
    },
    Check {
        rule: "2",
        name: "a message from before the window is refused",
        run: |p| Box::pin(before_window(p)),
    },
    Check {
        rule: "2",
        name: "a message from before a removal is refused",
        run: |p| Box::pin(before_removal(p)),
    },
    Check {
        rule: "2",
        name: "a proposal of the epoch before is refused",
        run: |p| Box::pin(late_proposal(p)),
    },
    Check {
        rule: "9",
        name: "the same message again gets the first answer",
        run: |p| Box::pin(same_message(p)),
    },
    Check {
        rule: "9",
        name: "an id with other content is refused",
        run: |p| Box::pin(other_content(p)),
    },
    Check {
        rule: "9",
        name: "the same Commit again gets the first answer, epochs later too",
        run: |p| Box::pin(same_commit(p)),
    },
    Check {
        rule: "10",
        name: "an epoch is provisional until another user speaks in it",
        run: |p| Box::pin(settles(p)),
    },
];

async fn first_wins(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let first = p.anna.stage(&group, &Plan::default()).await?;
    let second = p.ben.stage(&group, &Plan::default()).await?;
    let commit = first.bundles[0].commit.to_vec();
    let won = p.anna.submit(first).await?;
    let refusal = refused(p.ben.submit(second).await, &[Reason::StaleEpoch])?;
    let said = |key: &str| {
        refusal
            .metadata
            .get(key)
            .and_then(|v| v.parse::<u64>().ok())
    };
    ensure!(
        said("winner_seq") == Some(won.seq),
        "winner_seq is {:?}",
        said("winner_seq")
    );
    ensure!(
        said("epoch_seq") == Some(won.epoch_seq),
        "epoch_seq is {:?}",
        said("epoch_seq")
    );
    ensure!(
        said("current_epoch") == Some(won.epoch),
        "current_epoch is {:?}",
        said("current_epoch")
    );
    p.anna.engine.apply_pending(&group)?;
    p.ben.engine.clear_pending(&group)?;
    p.ben.engine.process(&group, &commit)?;
    p.ben
        .commit(&group, &Plan::default(), &mut [&mut p.anna])
        .await?;
    Ok(())
}

async fn no_such_epoch(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let head = p.anna.head(&group).await?;
    let mut request = p.anna.stage(&group, &Plan::default()).await?;
    request.epoch_seq += 1000;
    refused(
        p.anna.submit(request).await,
        &[Reason::StaleEpoch, Reason::EpochInFuture, Reason::Malformed],
    )?;
    ensure!(p.anna.head(&group).await? == head, "the log grew");
    Ok(())
}

async fn within_window(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let late = p.ben.frame(&group, "late").await?;
    p.anna
        .commit(&group, &Plan::default(), &mut [&mut p.ben])
        .await?;
    p.ben.device.send(late).await.context("one epoch late")?;
    Ok(())
}

async fn before_window(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let late = p.ben.frame(&group, "too late").await?;
    for _ in 0..2 {
        p.anna
            .commit(&group, &Plan::default(), &mut [&mut p.ben])
            .await?;
    }
    refused(p.ben.device.send(late).await, &[Reason::EpochTooOld])?;
    Ok(())
}

async fn before_removal(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.three().await?;
    let late = p.ben.frame(&group, "late").await?;
    let plan = Plan {
        remove: vec![p.cleo.person()],
        ..Plan::default()
    };
    p.anna.commit(&group, &plan, &mut [&mut p.ben]).await?;
    refused(p.ben.device.send(late).await, &[Reason::EpochTooOld])?;
    Ok(())
}

async fn late_proposal(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.three().await?;
    let late = p.ben.propose(&group, p.cleo.person()).await?;
    p.anna
        .commit(&group, &Plan::default(), &mut [&mut p.ben])
        .await?;
    refused(
        p.ben.device.send(late).await,
        &[Reason::EpochTooOld, Reason::StaleEpoch],
    )?;
    Ok(())
}

async fn same_message(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let request = p.anna.frame(&group, "once").await?;
    let first = p.anna.device.send(request.clone()).await?;
    ensure!(!first.replayed, "replayed at the first time");
    let again = p.anna.device.send(request).await?;
    ensure!(again.replayed, "not marked as replayed");
    ensure!(
        (again.seq, &again.chain, again.accepted_at_micros)
            == (first.seq, &first.chain, first.accepted_at_micros),
        "another answer"
    );
    ensure!(
        p.anna.head(&group).await? == first.seq,
        "the log grew twice"
    );
    Ok(())
}

async fn other_content(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let id = fresh_id();
    let first = p.anna.engine.send(&group, b"one", &aad(id, None))?;
    let other = p.anna.engine.send(&group, b"two", &aad(id, None))?;
    let first = p.anna.request(&group, id, first).await?;
    let other = p.anna.request(&group, id, other).await?;
    p.anna.device.send(first).await?;
    refused(p.anna.device.send(other).await, &[Reason::MessageIdReused])?;
    Ok(())
}

async fn same_commit(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let request = p.anna.stage(&group, &Plan::default()).await?;
    let commit = request.bundles[0].commit.to_vec();
    let first = p.anna.submit(request.clone()).await?;
    p.anna.engine.apply_pending(&group)?;
    p.ben.engine.process(&group, &commit)?;
    p.ben
        .commit(&group, &Plan::default(), &mut [&mut p.anna])
        .await?;
    let again = p.anna.submit(request).await?;
    ensure!(again.replayed, "not marked as replayed");
    ensure!(
        (again.seq, again.epoch_seq, &again.chain) == (first.seq, first.epoch_seq, &first.chain),
        "another answer"
    );
    Ok(())
}

async fn settles(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    p.anna
        .commit(&group, &Plan::default(), &mut [&mut p.ben])
        .await?;
    let own = p.anna.frame(&group, "by the committer").await?;
    let own = p.anna.device.send(own).await?;
    ensure!(
        own.outcome() == Outcome::Provisional,
        "at first {:?}",
        own.outcome()
    );
    let other = p.ben.frame(&group, "by another user").await?;
    p.ben.device.send(other).await?;
    let own = p.anna.frame(&group, "by the committer again").await?;
    let own = p.anna.device.send(own).await?;
    ensure!(
        own.outcome() == Outcome::Standing,
        "then {:?}",
        own.outcome()
    );
    Ok(())
}
