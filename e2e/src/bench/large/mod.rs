//! `./dev bench large-group`: a group of thousands from end to end. Every device is enrolled, every Commit and message is real; the members whose figures are
//! told keep everything on disk as a user's device does, and all others have a stream each and answer the server.
//!
//! | module | what |
//! |---|---|
//! | this one | the story, in the order in which it is told |
//! | [`cast`] | devices that are enrolled |
//! | [`crowd`] | devices that are online, and how one member acts for them |
//! | [`place`] | another member's place |
//! | [`ran`] | what something costs |
//! | [`synthetic`] | a hundred thousand, as far as a server sees them |

pub mod cast;
pub mod crowd;
pub mod place;
pub mod ran;
pub mod synthetic;

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use chancery_proto::delivery::v1::{Cursor, FetchTreeRequest, FetchTreeResponse};
use client_cli::{
    core::{
        group,
        records::{self, GroupName},
    },
    member::{Member, directory::Name},
};
use prost::Message as _;
use uuid::Uuid;

use super::{
    load::rank,
    table::{Table, Target},
};
use crate::{
    device::Device,
    programs::{Programs, arg, number},
    server::Server,
};
use cast::Extra;
use crowd::Crowd;

const DOMAIN: &str = "interior.example";
/// The server asks nobody any more: it waits for 10 s for one that does not answer, or whose Commit came too late.
const QUIET: Duration = Duration::from_secs(13);
/// How often Commits of removals and of adds take turns, and how many devices each has.
const TURNS: usize = 10;
const EACH_TURN: usize = 10;

/// How large, and how much.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Options {
    /// Members; 0 leaves this group out.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pub members: usize,
    /// Members with a store on disk that read everything.
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub full: usize,
    /// Messages.
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    pub messages: usize,
    /// One of so many members is online when the server asks.
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub online_one_of: usize,
    /// Members of a second group, of whom there is only what a server sees of them; 0 leaves it out.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    pub synthetic: usize,
}

/// The group as it is now, and who is needed again.
struct Story<'a> {
    programs: &'a Programs,
    options: Options,
    server: Server,
    folder: tempfile::TempDir,
    creator: Device,
    name: GroupName,
    /// Members that only have a name and a key.
    inside: Vec<Extra>,
    /// Those that are added later.
    outside: Vec<Extra>,
}

/// Both groups.
///
/// # Errors
/// Something does not start, a refusal, or members that do not agree.
pub async fn measure(
    programs: &Programs,
    options: Options,
    table: &mut Table<'_>,
) -> anyhow::Result<()> {
    if options.members > 0 {
        tell(programs, options, table).await?;
    }
    if options.synthetic > 0 {
        synthetic::measure(programs, options.synthetic, table).await?;
    }
    Ok(())
}

async fn tell(programs: &Programs, options: Options, table: &mut Table<'_>) -> anyhow::Result<()> {
    let mut story = Story::begin(programs, options, table).await?;
    story.create(table)?;
    let seen = story.full("deputy")?;
    story.enter(&[&seen]).await?;
    let deputy = seen.member().await?;
    deputy.sync(None).await?;
    story.warm(&deputy, table).await?;
    story.come_and_go(&deputy, table).await?;
    let full = story.join(table).await?;
    story.talk(&deputy, &full, table).await?;
    story.agree(&deputy, &full).await?;
    story.memory(table, "at the end")
}

fn say(text: &str) {
    // Who does not listen misses nothing.
    let _gone = writeln!(std::io::stderr(), "{text}");
}

fn device_name(extra: &Extra) -> Name {
    let person = &extra.identity.person;
    (person.domain.clone(), person.device)
}

impl<'a> Story<'a> {
    async fn begin(
        programs: &'a Programs,
        options: Options,
        table: &mut Table<'_>,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let dir = folder.path().join("node");
        let server = tokio::task::block_in_place(|| Server::start(programs, &dir, &[DOMAIN]))?;
        let creator = Device::enroll(
            programs,
            &server.node,
            folder.path(),
            0,
            "Creator",
            "creator",
        )?;
        say("enrolling");
        let began = Instant::now();
        let all = options.members + TURNS * EACH_TURN;
        let told = |n: usize| {
            if n % 1_000 == 999 {
                say(&format!("{} enrolled", n + 1));
            }
        };
        let mut inside = cast::enroll_all(&server.node, all - options.full, told).await?;
        table.report(
            "enrolments, each with KeyPackages",
            inside.len() as f64 / began.elapsed().as_secs_f64(),
            "devices/s",
        );
        let outside = inside.split_off(inside.len() - TURNS * EACH_TURN);
        let story = Self {
            programs,
            options,
            server,
            folder,
            creator,
            name: GroupName {
                domain: DOMAIN.into(),
                id: [Uuid::new_v4(), Uuid::new_v4()]
                    .map(Uuid::into_bytes)
                    .concat(),
            },
            inside,
            outside,
        };
        story.memory(table, "after the enrolments")?;
        Ok(story)
    }

    fn memory(&self, table: &mut Table<'_>, when: &str) -> anyhow::Result<()> {
        let memory = ran::memory_kib(self.server.node.pid)? / 1024.0;
        table.report(&format!("server memory {when}"), memory, "MiB");
        Ok(())
    }

    /// A device with a folder of its own.
    fn full(&self, name: &str) -> anyhow::Result<Device> {
        let folder = self.folder.path();
        Device::enroll(self.programs, &self.server.node, folder, 0, name, name)
    }

    /// The creator makes the group as anybody would, with a command.
    fn create(&mut self, table: &mut Table<'_>) -> anyhow::Result<()> {
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

    /// Devices with a folder come in, all by one Commit of the creator.
    async fn enter(&self, devices: &[&Device]) -> anyhow::Result<()> {
        let mut words = vec!["group", "add", "--group"];
        let name = self.name.to_string();
        words.push(&name);
        for device in devices {
            words.extend(["--device", device.uri.as_str()]);
        }
        tokio::task::block_in_place(|| self.creator.run(&words))?;
        Ok(())
    }

    /// Some devices are online, the creator among them, and the server asks them one after the other.
    async fn warm(&self, deputy: &Member, table: &mut Table<'_>) -> anyhow::Result<()> {
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
    async fn come_and_go(&mut self, deputy: &Member, table: &mut Table<'_>) -> anyhow::Result<()> {
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

    /// Members with a folder join a group that is large and warm.
    async fn join(&self, table: &mut Table<'_>) -> anyhow::Result<Vec<Member>> {
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
                joined.as_ref() == Some(&self.name),
                "{} did not join",
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
    async fn talk(
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
    async fn agree(&self, deputy: &Member, full: &[Member]) -> anyhow::Result<()> {
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

/// What is asked next; `None` when nothing comes for a while.
async fn next(crowd: &mut Crowd) -> Option<crowd::Asked> {
    tokio::time::timeout(QUIET, crowd.asked.recv()).await.ok()?
}

/// Milliseconds.
async fn timed<T>(
    work: impl Future<Output = Result<T, client_cli::failure::Failure>>,
) -> anyhow::Result<f64> {
    let began = Instant::now();
    work.await?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// A value by its rank in a hundred.
fn of(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    rank(values, percent)
}

/// What a part of a tree is about.
fn node_bytes(part: &FetchTreeResponse) -> usize {
    let nodes = part.nodes.iter().filter_map(|node| node.node.as_ref());
    nodes.map(|node| node.len()).sum()
}

fn gzipped(bytes: &[u8]) -> anyhow::Result<usize> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(bytes)?;
    let output = Command::new("gzip").arg("-c").arg(file.path()).output()?;
    ensure!(output.status.success(), "gzip failed");
    Ok(output.stdout.len())
}
