//! One bash for a whole page, and a PostgreSQL for the pages that make databases.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write},
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use service_kit::local_postgres::{Cluster, ClusterOptions, Profile, SUPERUSER, find_binaries};
use tempfile::TempDir;

use super::{expect, page::Block, root};
use crate::programs::Programs;

/// The longest that one block may take.
const BLOCK: Duration = Duration::from_secs(120);
/// The longest wait for what a page left running, after SIGTERM.
const END: Duration = Duration::from_secs(40);
const LOOK: Duration = Duration::from_millis(10);

/// A shell in a folder of its own; with the value everything ends that was started in it.
#[derive(Debug)]
pub struct Session {
    shell: Child,
    input: ChildStdin,
    folder: TempDir,
    played: usize,
    _postgres: Cluster,
}

impl Session {
    /// Starts PostgreSQL and the shell; says on `out` what the shell finds in its environment.
    ///
    /// # Errors
    /// PostgreSQL or bash cannot be started.
    pub fn start(programs: &Programs, out: &mut impl Write) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("chancery-tour-")
            .permissions(fs::Permissions::from_mode(0o711))
            .tempdir()?;
        let postgres = Cluster::start(ClusterOptions::new(
            folder.path().join(".postgres"),
            Profile::Volatile,
        ))?;
        let work = folder.path().join("work");
        fs::create_dir_all(folder.path().join("output"))?;
        // A node of the page may hand its data to an unprivileged account, which has to pass through.
        fs::create_dir(&work)?;
        fs::set_permissions(&work, fs::Permissions::from_mode(0o711))?;
        let client = programs.path("client-cli");
        let bin = client.parent().context("no folder of programs")?;
        for (name, target) in links(bin) {
            symlink(target, work.join(name))?;
        }
        let environment = environment(bin, &postgres)?;
        for (name, value) in &environment {
            writeln!(out, "{name}={value}")?;
        }
        let mut command = Command::new("bash");
        command.args(["--noprofile", "--norc"]).current_dir(&work);
        // Options of the caller would be options of every program on the page.
        for name in std::env::vars_os().map(|(name, _)| name) {
            let kept = name == "CHANCERY_PG_BIN" || name == "CHANCERY_NO_INSTALL";
            if name.to_string_lossy().starts_with("CHANCERY_") && !kept {
                command.env_remove(name);
            }
        }
        command.envs(environment);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let mut shell = command.spawn().context("bash")?;
        let mut input = shell.stdin.take().context("no stdin")?;
        input.write_all(b"set -euo pipefail\n")?;
        Ok(Self {
            shell,
            input,
            folder,
            played: 0,
            _postgres: postgres,
        })
    }

    /// Runs a block in the shell and compares what it printed.
    ///
    /// # Errors
    /// A command failed, the block did not end, or it printed something else.
    pub fn play(&mut self, block: &Block) -> anyhow::Result<()> {
        self.played += 1;
        let file = |kind: &str| {
            self.folder
                .path()
                .join("output")
                .join(format!("{}.{kind}", self.played))
        };
        let (script, out, err, done) = (file("sh"), file("out"), file("err"), file("done"));
        fs::write(&script, format!("{}\n", block.commands))?;
        // The shell reads its own input: a command of the page must not.
        let line = format!(
            ". {} </dev/null >{} 2>{}; : >{}\n",
            script.display(),
            out.display(),
            err.display(),
            done.display()
        );
        let broken = self.input.write_all(line.as_bytes()).is_err();
        let until = Instant::now() + BLOCK;
        while !done.exists() {
            if let Some(status) = self.shell.try_wait()? {
                bail!("{status}; stdout:\n{}\nstderr:\n{}", tail(&out), tail(&err));
            }
            ensure!(!broken, "the shell is gone");
            ensure!(
                Instant::now() < until,
                "no end after {} s; stdout:\n{}\nstderr:\n{}",
                BLOCK.as_secs(),
                tail(&out),
                tail(&err)
            );
            std::thread::sleep(LOOK);
        }
        match &block.expected {
            None => Ok(()),
            Some(expected) => expect::check(expected, &fs::read_to_string(&out)?)
                .with_context(|| format!("stderr:\n{}", tail(&err))),
        }
    }

    /// Ends everything that the page left running.
    ///
    /// # Errors
    /// Something did not end by itself after SIGTERM; it was killed.
    pub fn end(mut self) -> anyhow::Result<()> {
        ensure!(
            self.terminate(),
            "what the page started did not stop within {} s",
            END.as_secs()
        );
        Ok(())
    }

    fn terminate(&mut self) -> bool {
        let Some(group) = Pid::from_raw(self.shell.id().cast_signed()) else {
            return true;
        };
        // A group that is gone already is what is wanted; the shell itself is collected so that it does not stay in it.
        let _gone = kill_process_group(group, Signal::TERM);
        let _killed = self.shell.kill();
        let _collected = self.shell.wait();
        let until = Instant::now() + END;
        while test_kill_process_group(group).is_ok() {
            if Instant::now() > until {
                let _gone = kill_process_group(group, Signal::KILL);
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.terminate();
    }
}

/// What the page's folder holds of the project.
fn links(bin: &Path) -> Vec<(&'static str, PathBuf)> {
    let root = root();
    let target = bin.parent().unwrap_or(bin).to_owned();
    let mut links: Vec<_> = ["dev", "docs", "proto", "examples"]
        .map(|name| (name, root.join(name)))
        .into();
    links.push(("target", target));
    links
}

fn environment(bin: &Path, postgres: &Cluster) -> anyhow::Result<Vec<(&'static str, String)>> {
    let socket = postgres.socket_dir().display().to_string();
    let path = std::env::var("PATH").unwrap_or_default();
    let postgres_bin = find_binaries(None)?.postgres;
    let postgres_bin = postgres_bin.parent().unwrap_or(Path::new("/"));
    let ours = [
        bin.display().to_string(),
        root().join(".grpcurl").display().to_string(),
        path,
        postgres_bin.display().to_string(),
    ];
    Ok(vec![
        ("PATH", ours.join(":")),
        ("PGHOST", socket),
        ("PGUSER", SUPERUSER.to_owned()),
        ("PGDATABASE", "postgres".to_owned()),
        ("CHANCERY_PROGRAMS", bin.display().to_string()),
    ])
}

/// The last lines of what was written; empty where there is nothing.
fn tail(path: &Path) -> String {
    const BYTES: i64 = 4_000;
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(path)?;
        if file.metadata()?.len() > BYTES.unsigned_abs() {
            file.seek(SeekFrom::End(-BYTES))?;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}
