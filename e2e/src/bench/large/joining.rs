//! Members with a folder join a group that is large and warm; then they talk, and agree.

use std::{io::Write as _, process::Command};

use anyhow::{Context as _, ensure};
use chancery_proto::delivery::v1::FetchTreeRequest;
use client_cli::{
    core::{group, records},
    member::{Member, welcomes::Entered},
};
use prost::Message as _;

use super::{Story, node_bytes, of, ran, say, timed};
use crate::bench::table::{Table, Target};

impl Story<'_> {
    /// Members with a folder join a group that is large and warm.
    pub(super) async fn join(&self, table: &mut Table<'_>) -> anyhow::Result<Vec<Member>> {
        let mut devices = Vec::new();
        for n in 2..self.options.full {
            devices.push(self.full(&format!("full-{n}"))?);
        }
        self.enter(&devices.iter().collect::<Vec<_>>()).await?;
        let mut full = Vec::new();
        let (mut cpu, mut took) = (Vec::new(), Vec::new());
        for (n, device) in devices.iter().enumerate() {
            let member = device.member().await?;
            let welcomes = member.welcomes().await?;
            let welcome = welcomes.first().context("no Welcome")?;
            if n == 0 {
                self.downloads(&member, welcome.epoch_seq, welcome.encoded_len(), table)
                    .await?;
            }
            let (joined, used, time) = ran::own(async || Ok(member.join(welcome).await?)).await?;
            ensure!(
                joined == Entered::Joined,
                "{} did not join: {joined:?}",
                device.name
            );
            cpu.push(used.as_secs_f64());
            took.push(time.as_secs_f64());
            full.push(member);
        }
        table.aim(
            "joining, CPU, p50, by 3 s",
            of(&mut cpu, 50),
            "s",
            3.0,
            Target::AtMost(1.0),
        );
        table.report("joining, until it was done, p50", of(&mut took, 50), "s");
        Ok(full)
    }

    /// What a joiner downloads.
    async fn downloads(
        &self,
        member: &Member,
        epoch_seq: u64,
        welcome_bytes: usize,
        table: &mut Table<'_>,
    ) -> anyhow::Result<()> {
        table.aim(
            "a joiner's Welcome, by 2 kB",
            welcome_bytes as f64 / 1e3,
            "kB",
            2.0,
            Target::AtMost(1.0),
        );
        let request = FetchTreeRequest {
            group: Some(self.name.to_ref()),
            epoch_seq,
            current: false,
        };
        let answer = member.delivery(request, async |mut client, request| {
            let mut parts = client.fetch_tree(request).await?.into_inner();
            let (mut fetched, mut nodes) = (Vec::new(), 0);
            while let Some(part) = parts.message().await? {
                nodes += node_bytes(&part);
                fetched.extend(part.encode_to_vec());
            }
            Ok((fetched, nodes))
        });
        let (fetched, nodes) = answer.await?.value;
        table.aim(
            "a joiner's tree, by its nodes",
            fetched.len() as f64 / 1e6,
            "MB",
            nodes as f64 / 1e6,
            Target::AtMost(1.1),
        );
        table.report(
            "the same, packed with gzip",
            gzipped(&fetched)? as f64 / 1e6,
            "MB",
        );
        Ok(())
    }

    /// One member speaks, another listens; then everybody reads.
    pub(super) async fn talk(
        &self,
        deputy: &Member,
        full: &[Member],
        table: &mut Table<'_>,
    ) -> anyhow::Result<()> {
        // The first one settles what the Commits before it left open.
        let first = [(deputy.new_id(), b"hear, hear".to_vec())];
        deputy.send(&self.name, &first).await?;
        let (before, disk) = (deputy.traffic(), ran::disk_bytes()?);
        let mut sent = Vec::with_capacity(self.options.messages);
        for n in 0..self.options.messages {
            let message = [(deputy.new_id(), format!("message {n}").into_bytes())];
            sent.push(timed(deputy.send(&self.name, &message)).await?);
        }
        let count = self.options.messages.max(1) as f64;
        let written = (deputy.traffic().written_bytes - before.written_bytes) as f64 / count;
        let on_disk = (ran::disk_bytes()? - disk) as f64 / count;
        let tenth = (sent.len() / 10).max(1);
        let (mut first, mut last) = (sent[..tenth].to_vec(), sent[sent.len() - tenth..].to_vec());
        table.aim(
            "a message sent writes, by 4 KiB",
            written / 1024.0,
            "KiB",
            4.0,
            Target::AtMost(1.0),
        );
        table.report("the same, pages given to the disk", on_disk / 1024.0, "KiB");
        table.aim(
            "sending, p99 of the last tenth by the first",
            of(&mut last, 99),
            "ms",
            of(&mut first, 99),
            Target::AtMost(1.5),
        );
        table.report("sending, p50", of(&mut sent, 50), "ms");
        let (mut cpu, mut written) = (Vec::new(), Vec::new());
        for member in full {
            let before = member.traffic().written_bytes;
            let (entries, used, _) =
                ran::own(async || Ok(member.read_up(&self.name).await?)).await?;
            let read = entries.iter().filter(|entry| entry.text.is_some()).count();
            ensure!(read == self.options.messages + 1, "{read} messages read");
            cpu.push(used.as_secs_f64() * 1e3 / count);
            written.push((member.traffic().written_bytes - before) as f64 / count / 1024.0);
        }
        table.report("catching up, CPU for each message", of(&mut cpu, 50), "ms");
        table.aim(
            "a message received writes, at most, by 4 KiB",
            of(&mut written, 100),
            "KiB",
            4.0,
            Target::AtMost(1.0),
        );
        Ok(())
    }

    /// All of them are in the same epoch, with the same secrets and the same log.
    pub(super) async fn agree(&self, deputy: &Member, full: &[Member]) -> anyhow::Result<()> {
        let creator = self.creator.member().await?;
        creator.sync(None).await?;
        deputy.read_up(&self.name).await?;
        let state = |member: &Member| {
            member.step(|step, _| {
                let record = records::known(step, &self.name)?;
                group::look(step, &self.name, |mls_group| {
                    let secret = mls_group.epoch_authenticator().as_slice().to_vec();
                    let members = mls_group.members().count();
                    Ok((record.head_seq, record.chain, secret, members))
                })
            })
        };
        let theirs = state(&creator)?;
        ensure!(theirs.3 == self.options.members, "{} members", theirs.3);
        for member in full.iter().chain([deputy]) {
            ensure!(state(member)? == theirs, "a member disagrees");
        }
        say(&format!("{} members agree", full.len() + 2));
        Ok(())
    }
}

fn gzipped(bytes: &[u8]) -> anyhow::Result<usize> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(bytes)?;
    let output = Command::new("gzip").arg("-c").arg(file.path()).output()?;
    ensure!(output.status.success(), "gzip failed");
    Ok(output.stdout.len())
}
