//! A program of `interop/ts/` in a Node process: one JSON line there, one back.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

/// A running program; it ends with this value.
pub struct NodeProcess {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("ts")
}

/// Why nothing runs on Node here.
pub fn missing() -> Option<String> {
    let node = Command::new("node").arg("--version").output();
    if !node.is_ok_and(|output| output.status.success()) {
        return Some("Node is not installed".to_owned());
    }
    let installed = ["ts-mls", "@grpc/grpc-js"]
        .iter()
        .all(|module| folder().join("node_modules").join(module).exists());
    let why = format!("run `npm ci` in {}", folder().display());
    (!installed).then_some(why)
}

impl NodeProcess {
    /// Starts a program.
    ///
    /// # Errors
    /// Node does not start.
    pub fn start(program: &str) -> anyhow::Result<Self> {
        let mut child = Command::new("node")
            .arg(program)
            .current_dir(folder())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("node")?;
        Ok(Self {
            stdin: child.stdin.take().context("no stdin")?,
            stdout: BufReader::new(child.stdout.take().context("no stdout")?),
            child,
        })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The program says no, or ended.
    pub fn ask(&mut self, request: &Value) -> anyhow::Result<Value> {
        writeln!(self.stdin, "{request}")?;
        self.stdin.flush()?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let mut answer: Value = serde_json::from_str(&line).context("the Node process ended")?;
        if let Some(error) = answer["error"].as_str() {
            bail!("ts-mls: {error}");
        }
        Ok(answer["ok"].take())
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
