//! Rules 3 to 6 and CommitInfo: what messages and Commits have to be.

use anyhow::{Context as _, ensure};
use chancery_proto::{
    commit_info::CommitInfo, common::v1::Reason, delivery::v1::SubmitCommitRequest, welcome,
    wire::Write as _,
};

use super::{
    Check,
    expect::refused,
    party::{Parties, Plan, fresh_id},
};
use crate::contract::{aad, bundle};

pub(super) const CHECKS: &[Check] = &[
    Check {
        rule: "3",
        name: "a message framed for another group is refused",
        run: |p| Box::pin(other_group(p)),
    },
    Check {
        rule: "3",
        name: "a Commit is no message and a message is no Commit",
        run: |p| Box::pin(other_type(p)),
    },
    Check {
        rule: "4",
        name: "a member's PublicMessage is refused",
        run: |p| Box::pin(public_message(p)),
    },
    Check {
        rule: "4",
        name: "garbage and cut messages are refused and leave no trace",
        run: |p| Box::pin(garbage(p)),
    },
    Check {
        rule: "4",
        name: "a member comes back by an external Commit",
        run: |p| Box::pin(resync(p)),
    },
    Check {
        rule: "5",
        name: "an added device without a Welcome is refused",
        run: |p| Box::pin(welcome_missing(p)),
    },
    Check {
        rule: "5",
        name: "a Welcome for nobody is refused",
        run: |p| Box::pin(welcome_for_nobody(p)),
    },
    Check {
        rule: "5",
        name: "each joiner gets the Welcome cut to itself",
        run: |p| Box::pin(welcome_cut(p)),
    },
    Check {
        rule: "5",
        name: "a KeyPackage that was never published is refused",
        run: |p| Box::pin(unpublished(p)),
    },
    Check {
        rule: "6",
        name: "the GroupInfo of another epoch is refused",
        run: |p| Box::pin(old_group_info(p)),
    },
    Check {
        rule: "6",
        name: "a tree that does not hash to the GroupInfo's is refused",
        run: |p| Box::pin(other_tree(p)),
    },
    Check {
        rule: "6",
        name: "a GroupInfo whose signature does not verify is refused",
        run: |p| Box::pin(spoilt_group_info(p)),
    },
    Check {
        rule: "5",
        name: "a Welcome that is labelled with another cipher suite is refused",
        run: |p| Box::pin(welcome_of_another_suite(p)),
    },
    Check {
        rule: "CommitInfo",
        name: "a Commit without CommitInfo is refused",
        run: |p| Box::pin(no_commit_info(p)),
    },
    Check {
        rule: "CommitInfo",
        name: "a CommitInfo that names a device which is not added is refused",
        run: |p| Box::pin(names_another(p)),
    },
    Check {
        rule: "CommitInfo",
        name: "a CommitInfo that removes nobody's device is refused",
        run: |p| Box::pin(removes_nobody(p)),
    },
    Check {
        rule: "CommitInfo",
        name: "a CommitInfo that has seen another log is refused",
        run: |p| Box::pin(other_log(p)),
    },
    Check {
        rule: "CommitInfo",
        name: "a Commit takes in a proposal by reference",
        run: |p| Box::pin(by_reference(p)),
    },
];

/// Every way in which a Commit can be seen to be wrong.
const WRONG: &[Reason] = &[
    Reason::Malformed,
    Reason::CommitInfoInvalid,
    Reason::WelcomeMismatch,
    Reason::UnsupportedWireFormat,
];

async fn other_group(p: &mut Parties) -> anyhow::Result<()> {
    let (one, two) = (p.two().await?, p.two().await?);
    let mut request = p.anna.frame(&one, "into the other").await?;
    request.group = p.anna.group(&two);
    request.epoch_seq = p.anna.device.group_info(&two).await?.epoch_seq;
    refused(p.anna.device.send(request).await, &[Reason::Malformed])?;
    Ok(())
}

async fn other_type(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let text = p.anna.frame(&group, "a text").await?;
    let commit = p.anna.stage(&group, &Plan::default()).await?;
    let id = commit.bundles[0].message_id[..]
        .try_into()
        .context("an id")?;
    let as_message = commit.bundles[0].commit.to_vec();
    let as_message = p.anna.request(&group, id, as_message).await?;
    refused(
        p.anna.device.send(as_message).await,
        &[Reason::Malformed, Reason::UnsupportedWireFormat],
    )?;
    let mut as_commit = commit.clone();
    as_commit.bundles[0].commit = text.message;
    as_commit.bundles[0].message_id = text.message_id;
    refused(p.anna.submit(as_commit).await, WRONG)?;
    p.anna.submit(commit).await.context("the Commit itself")?;
    Ok(())
}

async fn public_message(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let id = fresh_id();
    // MLSMessage, PublicMessage, sender member 0, an application message.
    let mut message = vec![0, 1, 0, 1];
    message.put_vector(&group);
    message.put(&1u64.to_be_bytes());
    message.put(&[1, 0, 0, 0, 0]);
    message.put_vector(&aad(id, None));
    message.put(&[1]);
    for field in [&b"text"[..], &[7; 64], &[7; 32]] {
        message.put_vector(field);
    }
    let request = p.anna.request(&group, id, message).await?;
    refused(
        p.anna.device.send(request).await,
        &[Reason::UnsupportedWireFormat, Reason::Malformed],
    )?;
    Ok(())
}

async fn garbage(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let head = p.anna.head(&group).await?;
    let whole = p.anna.frame(&group, "whole").await?;
    let bytes = whole.message.to_vec();
    let id = whole.message_id[..].try_into().context("an id")?;
    let mut spoiled: Vec<Vec<u8>> = vec![
        Vec::new(),
        vec![0xFF; 200],
        [bytes.clone(), vec![0]].concat(),
    ];
    for end in [1, 4, 5, bytes.len() / 2, bytes.len() - 1] {
        spoiled.push(bytes[..end].to_vec());
    }
    for message in spoiled {
        let request = p.anna.request(&group, id, message).await?;
        refused(
            p.anna.device.send(request).await,
            &[Reason::Malformed, Reason::UnsupportedWireFormat],
        )?;
    }
    ensure!(p.anna.head(&group).await? == head, "the log grew");
    p.anna
        .device
        .send(whole)
        .await
        .context("the whole message")?;
    Ok(())
}

async fn resync(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let info = p.ben.device.group_info(&group).await?;
    let tree = p.ben.device.tree(&group, info.epoch_seq).await?;
    let own = Plan {
        add: vec![(p.ben.person(), Vec::new())],
        remove: vec![p.ben.person()],
        ..Plan::default()
    };
    let id = fresh_id();
    let commit_info = p.ben.commit_info(&group, &own).await?;
    let data = aad(id, Some(commit_info));
    let made = p
        .ben
        .engine
        .external(&group, &info.group_info, &tree, &data)?;
    let commit = made.commit.clone();
    let request = SubmitCommitRequest {
        group: p.ben.group(&group),
        epoch_seq: info.epoch_seq,
        bundles: vec![bundle(id, made)?],
    };
    p.ben.submit(request).await?;
    p.anna.engine.process(&group, &commit)?;
    let text = p.ben.frame(&group, "back").await?;
    p.ben.device.send(text).await?;
    Ok(())
}

async fn with_ben(p: &mut Parties) -> anyhow::Result<(Vec<u8>, SubmitCommitRequest)> {
    let group = p.anna.create().await?;
    let plan = Plan {
        add: vec![p.ben.offer().await?],
        ..Plan::default()
    };
    let request = p.anna.stage(&group, &plan).await?;
    Ok((group, request))
}

async fn welcome_missing(p: &mut Parties) -> anyhow::Result<()> {
    let (_, mut request) = with_ben(p).await?;
    request.bundles[0].welcomes.clear();
    refused(p.anna.submit(request).await, &[Reason::WelcomeMismatch])?;
    Ok(())
}

async fn welcome_for_nobody(p: &mut Parties) -> anyhow::Result<()> {
    let (_, with_welcome) = with_ben(p).await?;
    let group = p.two().await?;
    let mut request = p.anna.stage(&group, &Plan::default()).await?;
    request.bundles[0].welcomes = with_welcome.bundles[0].welcomes.clone();
    refused(p.anna.submit(request).await, &[Reason::WelcomeMismatch])?;
    Ok(())
}

async fn welcome_cut(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.anna.create().await?;
    let plan = Plan {
        add: vec![p.ben.offer().await?, p.cleo.offer().await?],
        ..Plan::default()
    };
    p.anna.commit(&group, &plan, &mut []).await?;
    for party in [&mut p.ben, &mut p.cleo] {
        let frame = party.welcome(&group).await?;
        let cut = welcome::Welcome::parse(&frame.welcome, 1 << 20)
            .map_err(|error| anyhow::anyhow!("the Welcome: {}", error.0))?;
        ensure!(
            cut.secrets.len() == 1,
            "a Welcome for {}",
            cut.secrets.len()
        );
        ensure!(
            cut.secrets[0].0 == frame.key_package_ref,
            "a Welcome for another KeyPackage"
        );
        party.join(&group).await?;
    }
    Ok(())
}

async fn unpublished(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.anna.create().await?;
    let plan = Plan {
        add: vec![(p.ben.person(), p.ben.engine.key_package(false)?)],
        ..Plan::default()
    };
    let request = p.anna.stage(&group, &plan).await?;
    refused(p.anna.submit(request).await, &[Reason::WelcomeMismatch])?;
    Ok(())
}

async fn old_group_info(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let old = p.anna.device.group_info(&group).await?;
    let mut request = p.anna.stage(&group, &Plan::default()).await?;
    request.bundles[0].group_info = old.group_info;
    refused(p.anna.submit(request).await, &[Reason::GroupInfoMismatch])?;
    Ok(())
}

async fn spoilt_group_info(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let mut request = p.anna.stage(&group, &Plan::default()).await?;
    let mut info = request.bundles[0].group_info.to_vec();
    *info.last_mut().context("an empty GroupInfo")? ^= 1;
    request.bundles[0].group_info = info.into();
    refused(p.anna.submit(request).await, &[Reason::GroupInfoMismatch])?;
    Ok(())
}

async fn welcome_of_another_suite(p: &mut Parties) -> anyhow::Result<()> {
    let (_, mut request) = with_ben(p).await?;
    let mut relabelled = request.bundles[0].welcomes[0].to_vec();
    // version, wire format, then the suite.
    relabelled[5] ^= 2;
    request.bundles[0].welcomes[0] = relabelled.into();
    refused(p.anna.submit(request).await, &[Reason::WelcomeMismatch])?;
    Ok(())
}

async fn other_tree(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let stored = p.anna.device.group_info(&group).await?;
    let old = p.anna.device.tree(&group, stored.epoch_seq).await?;
    let mut request = p.anna.stage(&group, &Plan::default()).await?;
    request.bundles[0].tree = Some(crate::wire::full_tree(&old)?);
    refused(p.anna.submit(request).await, &[Reason::TreeMismatch])?;
    Ok(())
}

async fn no_commit_info(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let request = p.anna.build(&group, &Plan::default(), None).await?;
    refused(p.anna.submit(request).await, &[Reason::CommitInfoInvalid])?;
    Ok(())
}

/// A Commit that adds ben, with a CommitInfo that was changed.
async fn with_info(
    p: &mut Parties,
    change: impl FnOnce(&mut CommitInfo, &Parties),
) -> anyhow::Result<SubmitCommitRequest> {
    let group = p.anna.create().await?;
    let plan = Plan {
        add: vec![p.ben.offer().await?],
        ..Plan::default()
    };
    let mut info = p.anna.commit_info(&group, &plan).await?;
    change(&mut info, p);
    p.anna.build(&group, &plan, Some(info)).await
}

async fn names_another(p: &mut Parties) -> anyhow::Result<()> {
    let request = with_info(p, |info, p| {
        info.added[0].device = *p.cleo.person().device.as_bytes();
        info.added[0].user = *p.cleo.person().user.as_bytes();
    })
    .await?;
    refused(
        p.anna.submit(request).await,
        &[Reason::WelcomeMismatch, Reason::CommitInfoInvalid],
    )?;
    Ok(())
}

async fn removes_nobody(p: &mut Parties) -> anyhow::Result<()> {
    let request = with_info(p, |info, p| {
        let mut stranger = info.added[0].clone();
        stranger.device = *p.dora.person().device.as_bytes();
        stranger.user = *p.dora.person().user.as_bytes();
        info.removed.push(stranger);
    })
    .await?;
    refused(
        p.anna.submit(request).await,
        &[Reason::CommitInfoInvalid, Reason::Device],
    )?;
    Ok(())
}

async fn other_log(p: &mut Parties) -> anyhow::Result<()> {
    let request = with_info(p, |info, _| info.seen_chain[0] ^= 1).await?;
    refused(
        p.anna.submit(request).await,
        &[Reason::CommitInfoInvalid, Reason::HistoryChanged],
    )?;
    let request = with_info(p, |info, _| info.seen_seq += 1000).await?;
    refused(
        p.anna.submit(request).await,
        &[Reason::CommitInfoInvalid, Reason::HistoryChanged],
    )?;
    Ok(())
}

async fn by_reference(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.three().await?;
    let whom = p.cleo.person();
    let proposal = p.ben.propose(&group, whom).await?;
    let bytes = proposal.message.to_vec();
    let sent = p.ben.device.send(proposal).await?;
    p.anna.engine.process(&group, &bytes)?;
    let plan = Plan {
        proposals: vec![sent.seq],
        proposed: vec![whom],
        ..Plan::default()
    };
    p.anna.commit(&group, &plan, &mut [&mut p.ben]).await?;
    let text = p
        .cleo
        .engine
        .send(&group, b"still here", &aad(fresh_id(), None))?;
    ensure!(!text.is_empty(), "no message");
    let read = p.cleo.device.group_info(&group).await;
    refused(read, &[Reason::Group])?;
    Ok(())
}
