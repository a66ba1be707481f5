//! Pages of `docs/` whose commands are run: a shell plays each `sh` block as the page writes it, and what it prints is compared with the `text` or `json`
//! block that follows.
//!
//! | on the page | what it means |
//! |---|---|
//! | a fenced block `sh` | commands, in one bash session for the whole page, with `set -eu` and `pipefail` |
//! | a fenced block `text` or `json` right after it | what the block prints on stdout |
//! | `…` in `text` | anything within the line; alone on a line: any number of lines |
//! | `"…"` in `json` | any value; as a key: any further keys; as the last item of an array: any further items |
//! | `sh not-played="why"` | commands that are shown and not run |
//! | an HTML comment that begins with `sh` | commands that are run and not shown |
//!
//! The page runs in a folder of its own that holds links to the project's `dev`, `target`, `docs`, `proto` and `examples`. Nothing else is put in the place of
//! what the page says; what the shell finds in its environment is printed first.

pub mod expect;
pub mod page;
pub mod session;

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, bail};
use serde::Serialize;

use crate::programs::Programs;
use page::Page;
use session::Session;

/// What one page came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The page's name in `docs/`, without its ending.
    pub page: String,
    /// Commands that were run.
    pub commands: usize,
    /// Blocks that failed; the first one ends its page.
    pub failed: usize,
}

/// The project's folder.
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// Reads a page of `docs/` by its name, without its ending.
///
/// # Errors
/// There is no such page, or its blocks cannot be read.
pub fn read(name: &str) -> anyhow::Result<Page> {
    let path = root().join("docs").join(format!("{name}.md"));
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    page::parse(&text).with_context(|| path.display().to_string())
}

/// Names of all pages right in `docs/`.
///
/// # Errors
/// The folder cannot be read.
pub fn pages() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root().join("docs"))? {
        let name = entry?.file_name();
        if let Some(page) = name.to_string_lossy().strip_suffix(".md") {
            names.push(page.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Plays a page; says what happens on `out`.
///
/// # Errors
/// The page cannot be read, or no session can be started. A block that fails is counted in the summary.
pub fn play(name: &str, programs: &Programs, out: &mut impl Write) -> anyhow::Result<Summary> {
    let page = read(name)?;
    if page.blocks.is_empty() {
        bail!("docs/{name}.md has no commands");
    }
    for (line, why) in &page.not_played {
        writeln!(out, "docs/{name}.md:{line} not played: {why}")?;
    }
    let mut session = Session::start(programs, out)?;
    let mut summary = Summary {
        page: name.to_owned(),
        commands: 0,
        failed: 0,
    };
    for block in &page.blocks {
        let began = Instant::now();
        let outcome = session.play(block);
        let place = format!("docs/{name}.md:{}", block.line);
        if let Err(error) = outcome {
            summary.failed += 1;
            writeln!(out, "{place} FAILED: {error:#}\n{}", block.commands)?;
            break;
        }
        summary.commands += page::count(&block.commands);
        writeln!(out, "{place} ok, {:.1} s", began.elapsed().as_secs_f32())?;
    }
    session.end()?;
    Ok(summary)
}
