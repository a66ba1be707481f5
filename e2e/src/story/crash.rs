//! The whole server side, PostgreSQL included, killed with SIGKILL in the middle of traffic.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::Context as _;
use serde_json::Value;

use crate::{
    device::Device,
    programs::{Said, number, said},
    story::world::World,
};

const SENDERS: [&str; 6] = [
    "anna-phone",
    "bruno-phone",
    "clara-phone",
    "hugo-phone",
    "irene-phone",
    "jonas-desk",
];
const COMMITTER: &str = "david-desk";
const OBSERVER: &str = "elena-desk";
const LINES: usize = 50;
/// The server is killed each time that the observer has seen so many more messages.
const KILL_AFTER: [usize; 2] = [20, 80];
/// Rounds until a kill has hit a request in flight.
const ROUNDS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(90);

/// Six devices send, one commits, one watches; everything behind them dies and comes back.
///
/// # Errors
/// A command fails that must not.
pub fn killed_in_the_middle_of_traffic(world: &mut World) -> anyhow::Result<()> {
    world.act("The whole server side is killed in the middle of traffic");
    for round in 0..ROUNDS {
        play_round(world, round)?;
        if world.summary.outcome_unknown_then_resolved > 0 {
            return Ok(());
        }
        world.say("no request was in flight at that moment; once more");
    }
    Ok(())
}

fn play_round(world: &mut World, round: usize) -> anyhow::Result<()> {
    let group = world.group.clone();
    let mut observer = Observer::start(&world.device(OBSERVER)?, &group)?;
    observer.wait_for(|line| line["event"] == "caught_up", 1)?;
    let mut senders = Vec::new();
    for name in SENDERS {
        senders.push(Sender::start(world, name, round)?);
    }
    let committer = world.device(COMMITTER)?;
    let commits = std::thread::spawn({
        let group = group.clone();
        move || {
            let words = ["group", "update", "--group", &group];
            (0..4)
                .map(|_| committer.attempt(&words))
                .collect::<anyhow::Result<Vec<Said>>>()
        }
    });
    for wanted in KILL_AFTER {
        observer.wait_for(|line| line["kind"] == "application", wanted)?;
        world.server.kill()?;
        world.summary.kills += 1;
        world.server.start_again()?;
        world.say(&format!(
            "killed after {wanted} more messages, started again on the same data"
        ));
    }
    let mut unknown = 0;
    for sender in senders {
        let texts = sender.texts.clone();
        let answer = sender.end()?;
        let sent = answer["sent"].as_array().cloned().unwrap_or_default();
        anyhow::ensure!(
            sent.len() == texts.len(),
            "{} of {} were sent",
            sent.len(),
            texts.len()
        );
        for (sent, text) in sent.iter().zip(&texts) {
            unknown += number(sent, "unknown_outcomes")?;
            world.acknowledge(sent, text)?;
        }
    }
    let commits = commits
        .join()
        .map_err(|_| anyhow::anyhow!("the committer's thread panicked"))??;
    for said in commits {
        let answer = said.ok("group update")?;
        unknown += number(&answer, "unknown_outcomes")?;
        world.summary.outcome_unknown_then_resolved += number(&answer, "unknown_outcomes")?;
    }
    observer.end()?;
    world.say(&format!(
        "{} messages were acknowledged all the same; {unknown} requests had been in flight without an answer, were sent again under the same id, and count once",
        SENDERS.len() * LINES
    ));
    Ok(())
}

/// A `send --lines` under way.
struct Sender {
    name: String,
    child: Child,
    texts: Vec<String>,
}

impl Sender {
    fn start(world: &World, name: &str, round: usize) -> anyhow::Result<Self> {
        let device = world.device(name)?;
        let texts: Vec<String> = (0..LINES)
            .map(|n| world.text(&format!("{name} line {n} of round {round}")))
            .collect();
        let file = world.profiles.join(format!("{name}-{round}.lines"));
        std::fs::write(&file, texts.join("\n"))?;
        let mut command = device.command(&["send", "--group", &world.group, "--lines"]);
        command.arg(&file);
        command.args(["--id-seed", &format!("{name} {round} {}", world.canary)]);
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self {
            name: name.to_owned(),
            child,
            texts,
        })
    }

    fn end(self) -> anyhow::Result<Value> {
        said(&self.child.wait_with_output()?).ok(&format!("{}: send", self.name))
    }
}

/// A `listen` under way, line by line.
struct Observer {
    child: Child,
    lines: mpsc::Receiver<Value>,
}

impl Observer {
    fn start(device: &Device, group: &str) -> anyhow::Result<Self> {
        let mut child = device
            .command(&["listen", "--group", group])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().context("no stdout")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or_default();
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    fn wait_for(&mut self, wanted: impl Fn(&Value) -> bool, count: usize) -> anyhow::Result<()> {
        let mut seen = 0;
        while seen < count {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.context("the observer sees nothing more")?;
            seen += usize::from(wanted(&line));
        }
        Ok(())
    }

    /// Ends it as a crash would: its store must bear that.
    fn end(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}
