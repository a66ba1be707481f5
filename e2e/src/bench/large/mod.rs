//! `./dev bench large-group`: a group of thousands from end to end. Every device is enrolled, every Commit and message is real; the members whose figures are
//! told keep everything on disk as a user's device does, and all others have a stream each and answer the server.
//!
//! | module | what |
//! |---|---|
//! | this one | the story, and who is in it |
//! | [`cast`] | devices that are enrolled |
//! | [`crowd`] | devices that are online, and how one member acts for them |
//! | [`joining`] | full members join, all talk and agree |
//! | [`making`] | the group is made and warmed, members come and go |
//! | [`place`] | another member's place |
//! | [`ran`] | what something costs |
//! | [`synthetic`] | a hundred thousand, as far as a server sees them |

pub mod cast;
pub mod crowd;
pub mod joining;
pub mod making;
pub mod place;
pub mod ran;
pub mod synthetic;

use std::{io::Write as _, time::Instant};

use chancery_proto::delivery::v1::FetchTreeResponse;
use client_cli::core::records::GroupName;
use uuid::Uuid;

use super::{load::rank, table::Table};
use crate::{device::Device, programs::Programs, server::Server};
use cast::Extra;

const DOMAIN: &str = "interior.example";
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
