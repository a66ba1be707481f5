//! The workload: devices that talk, change their groups, claim KeyPackages and listen, each command a process that may be killed.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use fastrand::Rng;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde_json::Value;
use uuid::Uuid;

use super::{
    history::{Asked, Event, KILLED, Recorder, Wanted},
    servers::held,
};
use crate::{
    device::Device,
    programs::{Said, arg, said},
};

/// How long one command goes on without an answer.
const PATIENCE: Duration = Duration::from_secs(12);
/// An operation whose outcome is unknown is repeated so often.
const TRIES: usize = 40;
const LONGEST_SEND: usize = 6;

/// A running process of a device.
#[derive(Debug, Default)]
pub struct Hand {
    /// Not waited for yet, so the number is still its own.
    pid: Mutex<Option<Pid>>,
}

impl Hand {
    /// Sends a signal to whatever runs; false when nothing does.
    pub fn signal(&self, signal: Signal) -> bool {
        let pid = held(&self.pid);
        pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
    }

    fn spawn(&self, command: &mut Command) -> anyhow::Result<Child> {
        let mut pid = held(&self.pid);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        *pid = Pid::from_raw(child.id().cast_signed());
        Ok(child)
    }

    /// Waits for the end; only then is the number given back, and nobody signals it any more.
    fn wait(&self, mut child: Child) -> anyhow::Result<std::process::ExitStatus> {
        if let Some(pid) = Pid::from_raw(child.id().cast_signed()) {
            let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            rustix::io::retry_on_intr(|| waitid(WaitId::Pid(pid), ended))?;
        }
        let mut pid = held(&self.pid);
        *pid = None;
        Ok(child.wait()?)
    }

    fn run(&self, command: &mut Command) -> anyhow::Result<Said> {
        let mut child = self.spawn(command)?;
        let mut complaints = child.stderr.take().context("no stderr")?;
        let reading = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let read = complaints.read_to_end(&mut bytes);
            read.map(|_| bytes)
        });
        let mut stdout = Vec::new();
        child
            .stdout
            .take()
            .context("no stdout")?
            .read_to_end(&mut stdout)?;
        let stderr = reading
            .join()
            .map_err(|_| anyhow::anyhow!("a reader panicked"))??;
        Ok(said(&std::process::Output {
            status: self.wait(child)?,
            stdout,
            stderr,
        }))
    }
}

/// A group, and who is meant to stay in it.
#[derive(Debug, Clone)]
pub struct Ground {
    /// `<domain>/<hex>`.
    pub name: String,
    /// Never removed.
    pub members: Vec<usize>,
    /// Comes and goes.
    pub guest: usize,
}

/// A device and its processes.
#[derive(Debug)]
pub struct Person {
    /// The profile.
    pub device: Device,
    /// The command under way.
    pub hand: Hand,
    /// Its `listen`.
    pub ear: Hand,
    /// How wrong its clock is, in seconds.
    pub skew: AtomicI64,
}

impl Person {
    /// A device.
    pub fn new(device: Device) -> Self {
        Self {
            device: device.with_patience(PATIENCE),
            hand: Hand::default(),
            ear: Hand::default(),
            skew: AtomicI64::new(0),
        }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.device.command(words);
        let skew = self.skew.load(Ordering::Relaxed);
        if skew != 0 {
            command.env("CHANCERY_CLOCK_SKEW_SECONDS", skew.to_string());
        }
        command
    }
}

/// Everybody, and what they do it in.
#[derive(Debug)]
pub struct Crowd {
    /// Devices.
    pub people: Vec<Person>,
    /// Groups.
    pub grounds: Vec<Ground>,
    /// What happens.
    pub recorder: Arc<Recorder>,
    /// For files of lines.
    pub folder: PathBuf,
    /// Nothing new begins.
    pub over: AtomicBool,
}

impl Crowd {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Runs a command of somebody and writes down what was asked and answered.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn attempt(
        &self,
        op: u64,
        who: &Person,
        asked: Asked,
        words: &[&str],
    ) -> anyhow::Result<Said> {
        self.recorder.note(Event::Begin {
            op,
            device: who.device.uri.clone(),
            asked,
        });
        let said = who.hand.run(&mut who.command(words))?;
        self.recorder.note(Event::End {
            op,
            code: said.code,
            answer: said.answer.clone(),
            error: said.error.clone(),
        });
        Ok(said)
    }

    /// The same until the outcome is known.
    fn settle(&self, who: &Person, asked: &Asked, words: &[&str]) -> anyhow::Result<()> {
        let op = self.recorder.number();
        for _ in 0..TRIES {
            let said = self.attempt(op, who, asked.clone(), words)?;
            // Killed, not sent, or sent without an answer: the same again is the same request.
            if !matches!(said.code, KILLED | 3 | 4) || !self.goes_on() {
                break;
            }
        }
        Ok(())
    }

    /// What one device does until it is over.
    ///
    /// # Errors
    /// A command cannot be started at all.
    pub fn live(&self, index: usize, mut rng: Rng) -> anyhow::Result<()> {
        let who = &self.people[index];
        let own: Vec<&Ground> = self
            .grounds
            .iter()
            .filter(|ground| ground.members.contains(&index))
            .collect();
        while self.goes_on() {
            match (rng.choice(&own), rng.u32(0..100)) {
                (Some(ground), 0..50) => self.send(who, ground, &mut rng)?,
                (Some(ground), 50..58) => self.commit(who, ground, &["group", "update"])?,
                (Some(ground), 58..64) => self.invite(who, ground, &mut rng)?,
                (Some(ground), 64..70) => self.catch_up(who, ground)?,
                (_, 70..84) => self.claim(who, &mut rng)?,
                _ => {
                    let op = self.recorder.number();
                    self.attempt(op, who, Asked::Sync, &["sync"])?;
                }
            }
            std::thread::sleep(Duration::from_millis(rng.u64(50..500)));
        }
        Ok(())
    }

    fn send(&self, who: &Person, ground: &Ground, rng: &mut Rng) -> anyhow::Result<()> {
        let seed = Uuid::from_u128(rng.u128(..)).to_string();
        let texts: Vec<String> = (0..rng.usize(1..=LONGEST_SEND))
            .map(|n| format!("{} {seed} {n}", who.device.name))
            .collect();
        let wanted = texts.iter().enumerate().map(|(n, text)| Wanted {
            message_id: Uuid::from_bytes(client_cli::cli::messages::seeded_id(&seed, n))
                .to_string(),
            text: text.clone(),
        });
        let asked = Asked::Send {
            group: ground.name.clone(),
            messages: wanted.collect(),
        };
        let file = self.folder.join(format!("{}.lines", who.device.name));
        std::fs::write(&file, texts.join("\n"))?;
        let file = arg(&file);
        let words = ["send", "--group", &ground.name, "--lines", &file];
        let words = [&words[..], &["--id-seed", &seed]].concat();
        self.settle(who, &asked, &words)
    }

    /// A Commit is no request that can be repeated from outside: the device's own `sync` settles what was left open.
    fn commit(&self, who: &Person, ground: &Ground, words: &[&str]) -> anyhow::Result<()> {
        let op = self.recorder.number();
        let asked = Asked::Commit {
            group: ground.name.clone(),
            operation: words.join(" "),
        };
        let words = [words, &["--group", &ground.name]].concat();
        self.attempt(op, who, asked, &words)?;
        Ok(())
    }

    /// The guest comes, or goes.
    fn invite(&self, who: &Person, ground: &Ground, rng: &mut Rng) -> anyhow::Result<()> {
        let guest = &self.people[ground.guest].device.uri;
        let verb = if rng.bool() { "add" } else { "remove" };
        self.commit(who, ground, &["group", verb, "--device", guest])
    }

    fn claim(&self, who: &Person, rng: &mut Rng) -> anyhow::Result<()> {
        let target = &rng.choice(&self.people).context("nobody")?.device.uri;
        let claim_id = Uuid::from_u128(rng.u128(..)).to_string();
        let asked = Asked::Claim {
            claim_id: claim_id.clone(),
            target: target.clone(),
        };
        let words = ["debug", "claim", target, "--claim-id", &claim_id];
        self.settle(who, &asked, &words)
    }

    fn catch_up(&self, who: &Person, ground: &Ground) -> anyhow::Result<()> {
        let op = self.recorder.number();
        let asked = Asked::CatchUp {
            group: ground.name.clone(),
        };
        let words = ["debug", "subscribe", "--group", &ground.name];
        self.attempt(op, who, asked, &words)?;
        Ok(())
    }

    /// One device listens until it is over; whoever is killed begins again.
    ///
    /// # Errors
    /// It cannot be started at all.
    pub fn listen(&self, index: usize) -> anyhow::Result<()> {
        let who = &self.people[index];
        while self.goes_on() {
            let op = self.recorder.number();
            self.recorder.note(Event::Begin {
                op,
                device: who.device.uri.clone(),
                asked: Asked::Listen,
            });
            let mut child = who.ear.spawn(&mut who.command(&["listen"]))?;
            let stderr = child.stderr.take().context("no stderr")?;
            let complaints = std::thread::spawn(move || last_json(stderr));
            let stdout = child.stdout.take().context("no stdout")?;
            for line in BufReader::new(stdout).lines() {
                // A line that a kill cut off was never said.
                if let Ok(line) = serde_json::from_str(&line?) {
                    self.recorder.note(Event::Heard { op, line });
                }
            }
            let error = complaints.join().unwrap_or_default();
            let status = who.ear.wait(child)?;
            self.recorder.note(Event::End {
                op,
                code: status.code().unwrap_or(KILLED),
                answer: Value::Null,
                error,
            });
            if status.code().is_some() {
                std::thread::sleep(Duration::from_millis(300));
            }
        }
        Ok(())
    }
}

fn last_json(stderr: std::process::ChildStderr) -> Value {
    let lines = BufReader::new(stderr).lines().map_while(Result::ok);
    let last = lines.filter(|line| line.starts_with('{')).last();
    last.and_then(|line| serde_json::from_str(&line).ok())
        .unwrap_or_default()
}
