//! A device: a profile, and the commands that it runs, each a process.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::Context as _;
use client_cli::{member::Member, profile::Profile};
use serde_json::Value;
use single_node::NodeFile;

use crate::{
    programs::{Programs, Said, arg, run, text},
    server,
};

/// How long a command goes on without an answer, unless somebody says otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// One person's device.
#[derive(Debug, Clone)]
pub struct Device {
    programs: Programs,
    profile: PathBuf,
    patience: Duration,
    /// For people who watch.
    pub name: String,
    /// `mimi://<domain>/d/<uuid>`.
    pub uri: String,
}

impl Device {
    /// Invites a person and enrolls a device with the code.
    ///
    /// # Errors
    /// One of the two commands fails.
    pub fn enroll(
        programs: &Programs,
        node: &NodeFile,
        folder: &std::path::Path,
        place: usize,
        person: &str,
        name: &str,
    ) -> anyhow::Result<Self> {
        let code = server::invite(programs, node, place, &person.to_lowercase(), person)?;
        let mut device = Self {
            programs: programs.clone(),
            profile: folder.join(name),
            patience: PATIENCE,
            name: name.to_owned(),
            uri: String::new(),
        };
        let own = node.auth.get(place).context("no such domain")?;
        let mut command = device.command(&["enroll", "--invitation", &code]);
        command.args(["--auth-url", &own.url]);
        command.args(["--delivery-url", &node.delivery_url]);
        command.args(["--root", &arg(&own.root_pem), "--device-name", name]);
        for other in node.auth.iter().filter(|a| a.domain != own.domain) {
            let root = arg(&other.root_pem);
            let trust = format!("domain={},url={},root={root}", other.domain, other.url);
            command.args(["--trust", &trust]);
        }
        let answer = run(&mut command)?.ok(&format!("{name}: enroll"))?;
        device.uri = text(&answer, "device")?.to_owned();
        Ok(device)
    }

    /// Creates a group with these devices; what the command answers, and the group's name.
    ///
    /// # Errors
    /// The command fails.
    pub fn create_group<'a>(
        &self,
        with: impl IntoIterator<Item = &'a Self>,
    ) -> anyhow::Result<(Value, String)> {
        let mut words = vec!["group", "create"];
        for device in with {
            words.extend(["--device", &device.uri]);
        }
        let created = self.run(&words)?;
        let name = text(&created, "group")?.to_owned();
        Ok((created, name))
    }

    /// This device in this process, with whatever patience a busy machine needs.
    ///
    /// # Errors
    /// The profile cannot be read, or its store is held by somebody else.
    pub async fn member(&self) -> anyhow::Result<Member> {
        let profile = Profile::read(&self.profile)?;
        Ok(Member::open(&self.profile, profile, self.patience).await?)
    }

    /// The same device with another copy of its profile.
    #[must_use]
    pub fn with_profile(&self, profile: &std::path::Path) -> Self {
        Self {
            profile: profile.to_owned(),
            ..self.clone()
        }
    }

    /// The same device with commands that go on without an answer for another time.
    #[must_use]
    pub fn with_patience(&self, patience: Duration) -> Self {
        Self {
            patience,
            ..self.clone()
        }
    }

    /// `client-cli --profile … WORDS`
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.programs.command("client-cli");
        command.args(["--profile", &arg(&self.profile)]);
        command.args(["--timeout-seconds", &self.patience.as_secs().to_string()]);
        command.args(words);
        command
    }

    /// Runs a command that must succeed; its answer.
    ///
    /// # Errors
    /// What it said instead.
    pub fn run(&self, words: &[&str]) -> anyhow::Result<Value> {
        self.attempt(words)?
            .ok(&format!("{}: {}", self.name, words.join(" ")))
    }

    /// Runs a command; whatever it said.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn attempt(&self, words: &[&str]) -> anyhow::Result<Said> {
        run(&mut self.command(words))
    }

    /// Runs a command that ends itself at a point, as a crash would.
    ///
    /// # Errors
    /// It ended in another way.
    pub fn crash(&self, point: &str, words: &[&str]) -> anyhow::Result<()> {
        let mut command = self.command(words);
        command.env("CHANCERY_FAULT", point);
        let said = run(&mut command)?;
        anyhow::ensure!(
            said.code == 86,
            "{}: {} ended with {} instead of crashing at {point}",
            self.name,
            words.join(" "),
            said.code
        );
        Ok(())
    }
}
