//! What something costs: time, the CPU of a process, bytes that it gave to a disk.

use std::{
    io::Read as _,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde_json::Value;

use crate::bench::ground::cpu_of;

/// A command that ended.
#[derive(Debug)]
pub struct Ran {
    /// What it answered.
    pub answer: Value,
    /// User and system time.
    pub cpu: Duration,
    /// From start to end.
    pub took: Duration,
}

/// Runs a command that must succeed; what it says on stderr is shown.
///
/// # Errors
/// It fails, or answers with something else than JSON.
pub fn run(command: &mut Command) -> anyhow::Result<Ran> {
    let began = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut answer = String::new();
    let mut out = child.stdout.take().context("no output")?;
    out.read_to_string(&mut answer)?;
    let cpu = wait(&mut child)?;
    let status = child.wait()?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(Ran {
        answer: serde_json::from_str(answer.trim())?,
        cpu,
        took: began.elapsed(),
    })
}

/// Waits until a process has ended, and reads what it used before it is gone.
fn wait(child: &mut Child) -> anyhow::Result<Duration> {
    let pid = Pid::from_child(child);
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(pid), options)?;
    cpu_of(&child.id().to_string())
}

/// Ends a process; what it used.
///
/// # Errors
/// `/proc` does not say.
pub fn end(child: &mut Child) -> anyhow::Result<Duration> {
    let cpu = cpu_of(&child.id().to_string())?;
    child.kill()?;
    child.wait()?;
    Ok(cpu)
}

/// What this process used while something was done, and how long it took.
///
/// # Errors
/// What `work` says, or `/proc` does not say.
pub async fn own<T>(
    work: impl AsyncFnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(T, Duration, Duration)> {
    let (before, began) = (cpu_of("self")?, Instant::now());
    let done = work().await?;
    Ok((
        done,
        cpu_of("self")?.saturating_sub(before),
        began.elapsed(),
    ))
}

/// Bytes that this process gave to the disk so far.
///
/// # Errors
/// `/proc` does not say.
pub fn disk_bytes() -> anyhow::Result<u64> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let line = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line.context("no write_bytes")?.trim().parse()?)
}

/// Memory of a process that is not shared or swapped out, in KiB.
///
/// # Errors
/// `/proc` does not say.
pub fn memory_kib(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(number.context("no RssAnon")?.trim().parse()?)
}
