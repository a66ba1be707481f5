//! Rules 7 and 8 and the log itself: who reads what, and what the log gives away.

use anyhow::{Context as _, ensure};
use chancery_proto::{
    chain,
    common::v1::Reason,
    delivery::v1::{Cursor, EndedWhy, Frame, SendMessageRequest, SubscribeRequest, frame},
    policy::Policy,
};
use prost::Message as _;
use tonic::Streaming;

use super::{
    Check,
    expect::refused,
    party::{Parties, Plan, SUITE, fresh_id},
};
use crate::contract::{aad, chain_after};

pub(super) const CHECKS: &[Check] = &[
    Check {
        rule: "7",
        name: "an unknown group and a foreign one are refused alike",
        run: |p| Box::pin(foreign_is_unknown(p)),
    },
    Check {
        rule: "7",
        name: "a removed device reads to its removal and not further",
        run: |p| Box::pin(removed_reads_to_its_end(p)),
    },
    Check {
        rule: "7",
        name: "a joiner does not read what came before it",
        run: |p| Box::pin(joiner_reads_from_its_start(p)),
    },
    Check {
        rule: "8",
        name: "the log does not say which device sent an entry",
        run: |p| Box::pin(nobody_is_named(p)),
    },
    Check {
        rule: "Names",
        name: "seqs are dense from 1 over all kinds of entries and the chain holds",
        run: |p| Box::pin(dense_and_chained(p)),
    },
    Check {
        rule: "Names",
        name: "a cursor with another chain value is told so",
        run: |p| Box::pin(other_chain(p)),
    },
    Check {
        rule: "Subscribe",
        name: "a subscription brings old entries and new ones in order",
        run: |p| Box::pin(subscription(p)),
    },
    Check {
        rule: "7",
        name: "a group that a server does not know ends alone on a subscription",
        run: |p| Box::pin(unknown_among_others(p)),
    },
];

async fn foreign_is_unknown(p: &mut Parties) -> anyhow::Result<()> {
    let foreign = p.two().await?;
    let unknown = [fresh_id(), fresh_id()].concat();
    for group in [&foreign, &unknown] {
        // A message that is framed for the group, by somebody who only has its id.
        let policy = Policy::for_domain(&p.dora.device.domain).encode();
        p.dora.engine.create(group, &policy)?;
        let id = fresh_id();
        let send = SendMessageRequest {
            group: p.dora.group(group),
            message_id: id.to_vec().into(),
            message: p
                .dora
                .engine
                .send(group, b"let me in", &aad(id, None))?
                .into(),
            ..SendMessageRequest::default()
        };
        refused(p.dora.device.send(send).await, &[Reason::Group])?;
        refused(p.dora.device.read(group, 0).await, &[Reason::Group])?;
        refused(p.dora.device.tree(group, 0).await, &[Reason::Group])?;
    }
    let one = refused(p.dora.device.group_info(&foreign).await, &[Reason::Group])?;
    let other = refused(p.dora.device.group_info(&unknown).await, &[Reason::Group])?;
    ensure!(
        (one.text, one.metadata) == (other.text, other.metadata),
        "the two refusals differ"
    );
    Ok(())
}

async fn say(p: &mut super::party::Party, group: &[u8], text: &str) -> anyhow::Result<u64> {
    let text = p.frame(group, text).await?;
    Ok(p.device.send(text).await?.seq)
}

async fn removed_reads_to_its_end(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.three().await?;
    say(&mut p.ben, &group, "for all").await?;
    let plan = Plan {
        remove: vec![p.cleo.person()],
        ..Plan::default()
    };
    let removal = p.anna.commit(&group, &plan, &mut [&mut p.ben]).await?;
    say(&mut p.ben, &group, "for two").await?;
    let read = p
        .cleo
        .device
        .read(&group, 0)
        .await
        .context("the removed device reads")?;
    let last = read.last().map(|(entry, _)| entry.seq);
    ensure!(
        last == Some(removal.seq),
        "it reads to {last:?}, and was removed at {}",
        removal.seq
    );
    let text = p.ben.frame(&group, "by another's hand").await?;
    refused(p.cleo.device.send(text).await, &[Reason::Group])?;
    Ok(())
}

async fn joiner_reads_from_its_start(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let before = say(&mut p.anna, &group, "before").await?;
    let plan = Plan {
        add: vec![p.cleo.offer().await?],
        ..Plan::default()
    };
    let joined = p.anna.commit(&group, &plan, &mut [&mut p.ben]).await?;
    p.cleo.join(&group).await?;
    say(&mut p.ben, &group, "after").await?;
    let read = p.cleo.device.read(&group, before - 1).await?;
    let first = read.first().map(|(entry, _)| entry.seq);
    ensure!(
        first.is_some_and(|seq| seq >= joined.seq),
        "it reads from {first:?}, and joined at {}",
        joined.seq
    );
    Ok(())
}

async fn nobody_is_named(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let seq = say(&mut p.ben, &group, "who?").await?;
    let read = p.anna.device.read(&group, seq - 1).await?;
    let (entry, _) = read.first().context("no entry")?;
    let bytes = entry.encode_to_vec();
    let person = p.ben.person();
    let names = [
        person.device.as_bytes().to_vec(),
        person.user.as_bytes().to_vec(),
        person.device.to_string().into_bytes(),
        person.user.to_string().into_bytes(),
        p.ben.device.leaf_key(SUITE)?.public_key.clone(),
    ];
    for name in names {
        ensure!(
            !bytes.windows(name.len()).any(|window| window == name),
            "an entry holds its sender's id or key"
        );
    }
    Ok(())
}

async fn dense_and_chained(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.three().await?;
    say(&mut p.ben, &group, "a text").await?;
    let proposal = p.ben.propose(&group, p.cleo.person()).await?;
    let bytes = proposal.message.to_vec();
    let sent = p.ben.device.send(proposal).await?;
    p.anna.engine.process(&group, &bytes)?;
    let plan = Plan {
        proposals: vec![sent.seq],
        proposed: vec![p.cleo.person()],
        ..Plan::default()
    };
    let commit = p.anna.commit(&group, &plan, &mut [&mut p.ben]).await?;
    let mut value = chain::start();
    let read = p.anna.device.read(&group, 0).await?;
    for (place, (entry, payload)) in (1..).zip(&read) {
        ensure!(entry.seq == place, "seq {} stands at {place}", entry.seq);
        value = chain_after(&value, &group, entry, payload);
        ensure!(
            entry.chain == value[..],
            "the chain breaks at {}",
            entry.seq
        );
    }
    ensure!(
        read.len() as u64 == commit.seq,
        "{} entries, and the head is {}",
        read.len(),
        commit.seq
    );
    ensure!(
        commit.chain == value[..],
        "the Commit's answer has another chain value"
    );
    Ok(())
}

async fn other_chain(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let head = say(&mut p.anna, &group, "one").await?;
    let request = chancery_proto::delivery::v1::ReadLogRequest {
        group: p.anna.group(&group),
        after_seq: head,
        after_chain: vec![7; 32].into(),
        ..Default::default()
    };
    let mut delivery = p.anna.device.delivery();
    let answer = async {
        let mut parts = delivery
            .read_log(p.anna.device.by(request)?)
            .await?
            .into_inner();
        while parts.message().await?.is_some() {}
        Ok(())
    };
    refused(answer.await, &[Reason::HistoryChanged])?;
    Ok(())
}

/// A subscription of anna's to these groups, from their beginning.
async fn subscribe(p: &Parties, groups: &[&[u8]]) -> anyhow::Result<Streaming<Frame>> {
    let cursor = |group: &&[u8]| Cursor {
        group: p.anna.group(group),
        ..Cursor::default()
    };
    let request = SubscribeRequest {
        cursors: groups.iter().map(cursor).collect(),
        ..SubscribeRequest::default()
    };
    let mut delivery = p.anna.device.delivery();
    let answer = delivery.subscribe(p.anna.device.by(request)?).await?;
    Ok(answer.into_inner())
}

async fn next(frames: &mut Streaming<Frame>) -> anyhow::Result<Option<frame::Frame>> {
    let next = tokio::time::timeout(std::time::Duration::from_secs(30), frames.message());
    let frame = next.await.context("no frame in 30 s")??;
    Ok(frame.context("the stream ended")?.frame)
}

async fn unknown_among_others(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let foreign = p.dora.create().await?;
    let unknown = [fresh_id(), fresh_id()].concat();
    let mut frames = subscribe(p, &[&foreign, &group, &unknown]).await?;
    let (mut ended, mut read) = (Vec::new(), 0);
    loop {
        match next(&mut frames).await? {
            Some(frame::Frame::Ended(end)) => {
                let why = (end.why(), end.at_seq);
                ensure!(why == (EndedWhy::Unknown, 0), "it ended with {why:?}");
                ended.push(end.group.context("which one ended?")?.id.to_vec());
            }
            Some(frame::Frame::Entries(entries)) => read += entries.entries.len(),
            Some(frame::Frame::CaughtUp(_)) => break,
            _ => {}
        }
    }
    let mut expected = [foreign, unknown];
    expected.sort();
    ended.sort();
    ensure!(ended == expected, "{} groups ended", ended.len());
    ensure!(read > 0, "nothing came of the group that there is");
    let said = say(&mut p.ben, &group, "still here").await?;
    loop {
        if let Some(frame::Frame::Entries(entries)) = next(&mut frames).await? {
            let last = entries.entries.last().map(|entry| entry.seq);
            ensure!(last == Some(said), "{last:?} came, and {said} was said");
            return Ok(());
        }
    }
}

async fn subscription(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let old = say(&mut p.ben, &group, "old").await?;
    let mut frames = subscribe(p, &[&group]).await?;
    let mut seqs: Vec<u64> = Vec::new();
    let mut said = false;
    while seqs.last() != Some(&(old + 1)) {
        match next(&mut frames).await? {
            Some(frame::Frame::Entries(entries)) => {
                seqs.extend(entries.entries.iter().map(|entry| entry.seq));
            }
            Some(frame::Frame::CaughtUp(_)) if !said => {
                said = true;
                say(&mut p.ben, &group, "new").await?;
            }
            _ => {}
        }
    }
    let expected: Vec<u64> = (1..=old + 1).collect();
    ensure!(seqs == expected, "it brought {seqs:?}, not {expected:?}");
    Ok(())
}
