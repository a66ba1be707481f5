//! The group is made, and warmed by those who are online; then members come and go.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use chancery_proto::delivery::v1::Cursor;
use client_cli::member::{Member, directory::Name};

use super::{
    EACH_TURN, Story, TURNS, cast,
    cast::Extra,
    crowd::{self, Crowd},
    of, ran, say, timed,
};
use crate::{
    bench::table::{Table, Target},
    programs::{arg, number},
};

/// The server asks nobody any more: it waits for 10 s for one that does not answer, or whose Commit came too late.
const QUIET: Duration = Duration::from_secs(13);

impl Story<'_> {
    /// The creator makes the group as anybody would, with a command.
    pub(super) fn create(&mut self, table: &mut Table<'_>) -> anyhow::Result<()> {
        let list = self.folder.path().join("officials");
        let uris: Vec<String> = self
            .inside
            .iter()
            .map(|extra| extra.identity.person.device_uri())
            .collect();
        std::fs::write(&list, uris.join("\n"))?;
        let id = hex::encode(&self.name.id);
        let file = arg(&list);
        let words = [
            "group",
            "create",
            "--past-epochs",
            "0",
            "--id",
            &id,
            "--from",
            &file,
        ];
        let ran = tokio::task::block_in_place(|| ran::run(&mut self.creator.command(&words)))?;
        let added = ran.answer["added"].as_array().map_or(0, Vec::len);
        ensure!(
            added == self.inside.len(),
            "{added} were added: {}",
            ran.answer["left_out"]
        );
        table.report("creation, creator's CPU", ran.cpu.as_secs_f64(), "s");
        table.report("creation, until it was done", ran.took.as_secs_f64(), "s");
        table.report(
            "creation, Commits",
            number(&ran.answer, "epoch")? as f64,
            "",
        );
        self.memory(table, "after the creation")?;
        Ok(())
    }

    /// Some devices are online, the creator among them, and the server asks them one after the other.
    pub(super) async fn warm(&self, deputy: &Member, table: &mut Table<'_>) -> anyhow::Result<()> {
        let cold = self.commit_bytes(deputy, self.inside.len() / 3 + 1)?;
        table.report("a Commit in a fresh tree", cold as f64 / 1e3, "kB");
        let online: Vec<Extra> = self
            .inside
            .iter()
            .step_by(self.options.online_one_of)
            .cloned()
            .collect();
        say(&format!("{} devices come online", online.len()));
        let record = deputy.record(&self.name)?;
        let at = Cursor {
            group: Some(self.name.to_ref()),
            seq: record.head_seq,
            chain: record.chain.to_vec().into(),
        };
        let mut crowd = crowd::follow(&online, &at).await?;
        let mut listening: Command = self.creator.command(&["listen"]);
        let mut creator = listening.stdout(Stdio::null()).spawn()?;
        let began = Instant::now();
        let mut commits = Vec::new();
        while let Some((device, epoch_seq)) = next(&mut crowd).await {
            deputy.read_up(&self.name).await?;
            if deputy.record(&self.name)?.epoch_seq != epoch_seq {
                continue;
            }
            let device = online.get(device).context("nobody of the crowd")?;
            let request =
                tokio::task::block_in_place(|| crowd::update_of(deputy, &self.name, device))?;
            let (auth, delivery) = cast::channels(device)?;
            let member = device.member(&auth, &delivery)?;
            commits.extend(crowd::submit_as(&member, request).await?);
            if commits.len() % 50 == 0 {
                say(&format!(
                    "{} warmed, {:?} bytes",
                    commits.len(),
                    commits.last()
                ));
            }
        }
        let took = began.elapsed().saturating_sub(QUIET);
        // What the creator has not read yet it reads now.
        deputy.read_up(&self.name).await?;
        let cpu = ran::end(&mut creator)?;
        let rest = tokio::task::block_in_place(|| ran::run(&mut self.creator.command(&["sync"])))?;
        let warming = cpu + rest.cpu;
        table.report("warming, Commits", commits.len() as f64, "");
        table.report("warming, until nobody was asked", took.as_secs_f64(), "s");
        let uploaded: usize = commits.iter().sum();
        table.report("warming, Commits in all", uploaded as f64 / 1e6, "MB");
        table.report("warming, creator's CPU", warming.as_secs_f64(), "s");
        let created = table
            .value("creation, creator's CPU")
            .context("not created")?;
        table.aim(
            "creation and warming, creator's CPU, by 60 s",
            created + warming.as_secs_f64(),
            "s",
            60.0,
            Target::AtMost(1.0),
        );
        self.memory(table, "after the warming")?;
        Ok(())
    }

    /// What a Commit of somebody is long who was not asked for one.
    fn commit_bytes(&self, deputy: &Member, place: usize) -> anyhow::Result<usize> {
        let device = self.inside.get(place).context("nobody")?;
        let request = tokio::task::block_in_place(|| crowd::update_of(deputy, &self.name, device))?;
        Ok(request.bundles.first().context("no Commit")?.commit.len())
    }

    /// Some are removed and others added, in turns.
    pub(super) async fn come_and_go(
        &mut self,
        deputy: &Member,
        table: &mut Table<'_>,
    ) -> anyhow::Result<()> {
        let mut sizes = Vec::new();
        for part in [7, 5, 3, 2] {
            sizes.push(self.commit_bytes(deputy, self.inside.len() / part)?);
        }
        let largest = sizes.iter().max().copied().unwrap_or(0);
        table.aim(
            "a Commit after warming, the largest of four, by 3 kB",
            largest as f64 / 1e3,
            "kB",
            3.0,
            Target::AtMost(1.0),
        );
        let (mut removed, mut added, mut written) = (Vec::new(), Vec::new(), Vec::new());
        for turn in 0..TURNS {
            let out = self.inside.len() / TURNS * turn;
            let gone: Vec<Extra> = self.inside.drain(out..out + EACH_TURN).collect();
            let names: Vec<Name> = gone.iter().map(device_name).collect();
            removed.push(timed(deputy.remove(&self.name, &names)).await?);
            let came: Vec<Extra> = self.outside.drain(..EACH_TURN).collect();
            let names: Vec<Name> = came.iter().map(device_name).collect();
            added.push(timed(deputy.add(&self.name, &names)).await?);
            self.inside.extend(came);
            // Another member's Commit is processed.
            let before = self.creator.member().await?;
            let traffic = before.traffic();
            let entries = before.read_up(&self.name).await?.len().max(1) as u64;
            written.push((before.traffic().written_bytes - traffic.written_bytes) / entries);
        }
        table.report("a Commit of 10 removals, p50", of(&mut removed, 50), "ms");
        table.report("a Commit of 10 adds, p50", of(&mut added, 50), "ms");
        written.sort_unstable();
        let most = written.last().copied().unwrap_or(0) as f64 / 1024.0;
        table.aim(
            "a processed Commit writes, at most, by 64 KiB",
            most,
            "KiB",
            64.0,
            Target::AtMost(1.0),
        );
        Ok(())
    }
}

fn device_name(extra: &Extra) -> Name {
    let person = &extra.identity.person;
    (person.domain.clone(), person.device)
}

/// What is asked next; `None` when nothing comes for a while.
async fn next(crowd: &mut Crowd) -> Option<crowd::Asked> {
    tokio::time::timeout(QUIET, crowd.asked.recv()).await.ok()?
}
