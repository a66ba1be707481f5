//! The binaries under test, beside this one, and their answers.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

/// What a command said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// The JSON object on stdout; null when there is none.
    pub answer: Value,
    /// The JSON error on stderr; null when there is none.
    pub error: Value,
}

/// Where the binaries are.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Beside the running program (or beside its `deps` folder, for tests).
    ///
    /// # Errors
    /// One is missing: build the workspace first.
    pub fn find() -> anyhow::Result<Self> {
        Self::find_these(&[
            "single-node",
            "auth-service",
            "delivery-service",
            "client-cli",
        ])
    }

    /// The same for some of them.
    ///
    /// # Errors
    /// One is missing.
    pub fn find_these(names: &[&str]) -> anyhow::Result<Self> {
        let own = std::env::current_exe()?;
        let mut folder = own.parent().context("no folder")?.to_owned();
        if folder.ends_with("deps") {
            folder.pop();
        }
        for name in names {
            let path = folder.join(name);
            if !path.exists() {
                bail!("{} is missing: cargo build --workspace", path.display());
            }
        }
        Ok(Self { folder })
    }

    /// One of them.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A command that reads nothing.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.path(name));
        command.stdin(Stdio::null());
        command
    }
}

/// Runs a command to its end.
///
/// # Errors
/// It cannot be started.
pub fn run(command: &mut Command) -> anyhow::Result<Said> {
    let output = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("{command:?}"))?;
    Ok(said(&output))
}

/// Reads a finished command's answer.
pub fn said(output: &Output) -> Said {
    let json = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let line = text.lines().rev().find(|line| line.starts_with('{'));
        line.and_then(|line| serde_json::from_str(line).ok())
            .unwrap_or(Value::Null)
    };
    Said {
        code: output.status.code().unwrap_or(-1),
        answer: json(&output.stdout),
        error: json(&output.stderr),
    }
}

impl Said {
    /// The answer of a command that must succeed.
    ///
    /// # Errors
    /// What it said instead.
    pub fn ok(self, what: &str) -> anyhow::Result<Value> {
        if self.code != 0 {
            bail!("{what} ended with {}: {}", self.code, self.error);
        }
        Ok(self.answer)
    }
}

/// A text of an answer.
///
/// # Errors
/// It is not there.
pub fn text<'a>(value: &'a Value, field: &str) -> anyhow::Result<&'a str> {
    value[field]
        .as_str()
        .with_context(|| format!("no {field} in {value}"))
}

/// A number of an answer.
///
/// # Errors
/// It is not there.
pub fn number(value: &Value, field: &str) -> anyhow::Result<u64> {
    value[field]
        .as_u64()
        .with_context(|| format!("no {field} in {value}"))
}

/// A path as an argument.
pub fn arg(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
