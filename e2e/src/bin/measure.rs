//! `./dev measure revocation`: how long it takes from the operator's command until a device is out of the last of many groups, with somebody online.

use std::{
    io::Write as _,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use chancery_proto::delivery::v1::GetGroupRequest;
use clap::Parser;
use client_cli::{core::records::GroupName, member::Member};
use e2e::{
    device::Device,
    programs::{Programs, run},
    server::Server,
};

const DOMAIN: &str = "interior.example";
const PATIENCE: Duration = Duration::from_secs(300);

/// Measures what operators ask about, against a baseline of the same run.
#[derive(Debug, Parser)]
#[command(name = "measure", version)]
enum Cli {
    /// From a revocation until the device is out of its last group.
    Revocation {
        /// In how many groups it is.
        #[arg(long, default_value_t = 100)]
        groups: usize,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Cli::Revocation { groups } = Cli::parse();
    let folder = tempfile::tempdir()?;
    let mut out = std::io::stdout();
    let summary = revocation(folder.path(), groups).await?;
    writeln!(out, "{summary}")?;
    Ok(())
}

async fn revocation(folder: &Path, groups: usize) -> anyhow::Result<serde_json::Value> {
    let programs = Programs::find()?;
    let server = Server::start(&programs, &folder.join("server"), &[DOMAIN])?;
    let enroll = |name: &str| Device::enroll(&programs, &server.node, folder, 0, name, name);
    let (online, watcher, lost) = (enroll("online")?, enroll("watcher")?, enroll("lost")?);
    let mut names = Vec::new();
    for _ in 0..groups {
        let (_, name) = online.create_group([&watcher, &lost])?;
        names.push(name.parse::<GroupName>().map_err(anyhow::Error::msg)?);
    }
    // The baseline: one removal by hand, a command of its own.
    let (_, by_hand) = online.create_group([&watcher, &lost])?;
    let began = Instant::now();
    online.run(&[
        "group", "remove", "--group", &by_hand, "--device", &lost.uri,
    ])?;
    let by_hand = began.elapsed();
    let mut listening = online
        .command(&["listen"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let eye = watcher.member().await?;
    let began = Instant::now();
    run(&mut server.operator(0, &["devices", "revoke", &lost.uri]))?.ok("devices revoke")?;
    let commanded = began.elapsed();
    let mut left = names;
    let mut first = None;
    while !left.is_empty() {
        ensure!(
            began.elapsed() < PATIENCE,
            "{} groups still hold it",
            left.len()
        );
        let mut still = Vec::new();
        for name in left {
            if members(&eye, &name).await? == 2 {
                first.get_or_insert(began.elapsed());
            } else {
                still.push(name);
            }
        }
        left = still;
    }
    let last = began.elapsed();
    listening.kill()?;
    listening.wait()?;
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let first = first.context("in no group")?;
    Ok(serde_json::json!({
        "groups": groups,
        "command_ms": millis(commanded),
        "removed_in_first_group_ms": millis(first),
        "removed_in_last_group_ms": millis(last),
        "baseline_one_removal_by_hand_ms": millis(by_hand),
        "ratio_to_as_many_by_hand": (last.as_secs_f64() / (by_hand.as_secs_f64() * groups as f64) * 100.0).round() / 100.0,
    }))
}

/// How many are in a group, as the service says.
async fn members(eye: &Member, name: &GroupName) -> anyhow::Result<usize> {
    let request = GetGroupRequest {
        group: Some(name.to_ref()),
        at_seq: 0,
    };
    let answer = eye
        .delivery(request, async |mut client, request| {
            let mut parts = client.get_group(request).await?.into_inner();
            let mut members = 0;
            while let Some(part) = parts.message().await? {
                members += part.members.len();
            }
            Ok(members)
        })
        .await?;
    Ok(answer.value)
}
