//! The server side as one process with its PostgreSQL: started, killed with everything, started again.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use single_node::NodeFile;

use crate::programs::{Programs, arg, run, text};

const PATIENCE: Duration = Duration::from_secs(60);

/// A running server side; killed with the value.
#[derive(Debug)]
pub struct Server {
    programs: Programs,
    dir: PathBuf,
    domains: Vec<String>,
    options: Vec<(String, String)>,
    child: Child,
    /// Where it can be reached.
    pub node: NodeFile,
}

impl Server {
    /// Starts it on a folder and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready; its log says why.
    pub fn start(programs: &Programs, dir: &Path, domains: &[&str]) -> anyhow::Result<Self> {
        Self::start_with(programs, dir, domains, &[])
    }

    /// The same with options of the services, as environment variables.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_with(
        programs: &Programs,
        dir: &Path,
        domains: &[&str],
        options: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let domains: Vec<String> = domains.iter().map(|d| (*d).to_owned()).collect();
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let options: Vec<_> = options.iter().map(owned).collect();
        let (child, node) = launch(programs, dir, &domains, &options)?;
        Ok(Self {
            programs: programs.clone(),
            dir: dir.to_owned(),
            domains,
            options,
            child,
            node,
        })
    }

    /// The folder that holds everything of it: tables, WAL, keys, logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Kills the services and PostgreSQL with SIGKILL, at once.
    ///
    /// # Errors
    /// They cannot be waited for.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        signal(Signal::KILL, self.child.id());
        signal(Signal::KILL, self.node.postgres_pid);
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again on the same folder.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        (self.child, self.node) = launch(&self.programs, &self.dir, &self.domains, &self.options)?;
        Ok(())
    }

    /// Stops it as an operator would.
    ///
    /// # Errors
    /// It ends with a failure, or not at all.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        signal(Signal::TERM, self.child.id());
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "the node ended with {status}");
                return Ok(());
            }
            ensure!(Instant::now() < until, "the node does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// An invitation's code, as the operator gets it.
    ///
    /// # Errors
    /// The operator's command fails.
    pub fn invite(&self, place: usize, handle: &str, name: &str) -> anyhow::Result<String> {
        invite(&self.programs, &self.node, place, handle, name)
    }

    /// An operator's command on a domain's Authentication Service.
    pub fn operator(&self, place: usize, words: &[&str]) -> Command {
        let mut command = self.programs.command("auth-service");
        command.args(words);
        if let Some(auth) = self.node.auth.get(place) {
            command.arg("--admin");
            command.arg(format!("unix:{}", auth.admin_socket.display()));
        }
        command
    }
}

/// An invitation's code, as the operator of a domain gets it.
///
/// # Errors
/// No such domain, or the operator's command fails.
pub fn invite(
    programs: &Programs,
    node: &NodeFile,
    place: usize,
    handle: &str,
    name: &str,
) -> anyhow::Result<String> {
    let auth = node.auth.get(place).context("no such domain")?;
    let mut command = programs.command("auth-service");
    command.args(["invite", "create", "--admin"]);
    command.arg(format!("unix:{}", auth.admin_socket.display()));
    command.args(["--handle", handle, "--name", name]);
    let answer = run(&mut command)?.ok("invite create")?;
    Ok(text(&answer, "code")?.to_owned())
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // Nobody is left to tell.
            let _killed = self.kill();
        }
    }
}

fn launch(
    programs: &Programs,
    dir: &Path,
    domains: &[String],
    options: &[(String, String)],
) -> anyhow::Result<(Child, NodeFile)> {
    std::fs::create_dir_all(dir)?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("node.log"))?;
    let mut command = programs.command("single-node");
    command.args(["up", "--data", &arg(dir)]);
    // Compressed page images would hide a text from the search.
    command.args(["--postgres-setting", "wal_compression=off"]);
    for domain in domains {
        command.args(["--domain", domain]);
    }
    command.envs(options.iter().map(|(name, value)| (name, value)));
    let mut child = command.stdout(Stdio::null()).stderr(log).spawn()?;
    let until = Instant::now() + PATIENCE;
    loop {
        if let Ok(node) = NodeFile::read(dir)
            && node.pid == child.id()
        {
            return Ok((child, node));
        }
        if let Some(status) = child.try_wait()? {
            let log = std::fs::read_to_string(dir.join("node.log")).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(10).collect();
            anyhow::bail!("the node ended with {status}: {}", tail.join("\n"));
        }
        ensure!(Instant::now() < until, "the node does not become ready");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(signal: Signal, pid: u32) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        // A process that is gone already is what was wanted.
        let _gone = kill_process(pid, signal);
    }
}
