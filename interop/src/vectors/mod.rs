//! `./dev vectors`: the MLS working group's test vectors, from a folder that a person fetched, through our readers and our client's stack.
//!
//! | file | what is held against it |
//! |---|---|
//! | `deserialization` | lengths of vectors, by `proto`'s reader |
//! | `tree-math` | the tree that `proto` hashes: its size, its root, and each node's children |
//! | `crypto-basics` | RefHash and signatures by `proto`, key derivation and HPKE by openmls' provider |
//! | `messages` | Welcomes, KeyPackages, GroupInfos, trees and private messages by `proto`, every framed message by openmls |
//! | `tree-validation` | tree hashes and leaf signatures by `proto` (resolutions and parent hashes are openmls' own) |
//! | `tree-operations` | tree hashes, whole and from what changed, by `proto` |
//! | `welcome` | the Welcome and its cut by `proto`, its secrets by openmls' provider, the GroupInfo in it by `proto` |
//! | `passive-client-*` and recorded runs (`application`, `branch`, `commit`, `external_join`, `external_proposals`, `reinit`, `welcome_join`) | a group followed by openmls on our client's store |
//!
//! A case of another suite than 1 to 3, or of something that openmls does not have, is counted as unsupported with its reason.

mod crypto;
mod passive;
mod trees;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What one case came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is as the vector says.
    Passed,
    /// Nothing here can play it.
    Unsupported(String),
    /// Something is not as the vector says.
    Failed(String),
}

/// What the cases of one file came to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// As the vectors say.
    pub passed: usize,
    /// Not as the vectors say.
    pub failed: usize,
    /// Cases that nothing here can play, by reason.
    pub unsupported: BTreeMap<String, usize>,
    /// Cases that failed, by their place in the file, and how.
    pub failures: Vec<String>,
}

/// What a folder came to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Summary {
    /// By file, relative to the folder.
    pub files: BTreeMap<String, Counts>,
    /// JSON files that nothing here plays.
    pub unknown: Vec<String>,
    /// Cases of all files.
    pub passed: usize,
    /// Cases of all files.
    pub failed: usize,
    /// Cases of all files.
    pub unsupported: usize,
}

/// A reason why a case is not played, apart from why it fails.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unsupported(pub(crate) String);

pub(crate) fn unsupported<T>(why: impl Into<String>) -> anyhow::Result<T> {
    Err(Unsupported(why.into()).into())
}

/// Bytes that stand in hex.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Hex(pub(crate) Vec<u8>);

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        hex::decode(&text)
            .map(Self)
            .map_err(serde::de::Error::custom)
    }
}

type Play = fn(&serde_json::Value) -> anyhow::Result<()>;

fn typed<T: DeserializeOwned>(
    case: &serde_json::Value,
    play: fn(T) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    play(serde_json::from_value(case.clone()).context("not of the file's format")?)
}

/// Who plays a file of this name.
fn player(name: &str) -> Option<Play> {
    Some(match name {
        "deserialization" => |case| typed(case, crypto::deserialization),
        "crypto-basics" => |case| typed(case, crypto::basics),
        "messages" => crypto::messages,
        "welcome" => |case| typed(case, crypto::welcome),
        "tree-math" => |case| typed(case, trees::math),
        "tree-validation" => |case| typed(case, trees::validation),
        "tree-operations" => |case| typed(case, trees::operations),
        "application" | "branch" | "commit" | "external_join" | "external_proposals" | "reinit"
        | "welcome_join" => |case| typed(case, passive::play),
        _ if name.starts_with("passive-client-") => |case| typed(case, passive::play),
        _ => return None,
    })
}

/// Plays one case; a panic of a library is a failure of that case.
fn outcome(play: Play, case: &serde_json::Value) -> Outcome {
    match std::panic::catch_unwind(|| play(case)) {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(error)) => match error.downcast_ref::<Unsupported>() {
            Some(why) => Outcome::Unsupported(why.0.clone()),
            None => Outcome::Failed(format!("{error:#}")),
        },
        Err(_) => Outcome::Failed("a panic".to_owned()),
    }
}

fn json_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "json") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Plays every file below a folder; `tell` hears of each.
///
/// # Errors
/// The folder cannot be read, or holds nothing that is played.
pub fn play(folder: &Path, tell: &mut dyn FnMut(&str, &Counts)) -> anyhow::Result<Summary> {
    let mut summary = Summary::default();
    for path in json_files(folder)? {
        let name = path
            .strip_prefix(folder)
            .unwrap_or(&path)
            .display()
            .to_string();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let Some(player) = player(&stem) else {
            summary.unknown.push(name);
            continue;
        };
        let counts = play_file(&path, player);
        summary.passed += counts.passed;
        summary.failed += counts.failed;
        summary.unsupported += counts.unsupported.values().sum::<usize>();
        tell(&name, &counts);
        summary.files.insert(name, counts);
    }
    if summary.files.is_empty() {
        bail!("no test vectors in {}", folder.display());
    }
    Ok(summary)
}

/// A file that cannot be read is one failure, and the others are played.
fn play_file(path: &Path, player: Play) -> Counts {
    let mut counts = Counts::default();
    let read = || -> anyhow::Result<Vec<serde_json::Value>> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    };
    let cases = match read() {
        Ok(cases) if cases.is_empty() => Err("no cases".to_owned()),
        Ok(cases) => Ok(cases),
        Err(error) => Err(format!("{error:#}")),
    };
    let cases = cases.unwrap_or_else(|error| {
        counts.failed += 1;
        counts.failures.push(error);
        Vec::new()
    });
    for (number, case) in cases.iter().enumerate() {
        match outcome(player, case) {
            Outcome::Passed => counts.passed += 1,
            Outcome::Unsupported(why) => *counts.unsupported.entry(why).or_default() += 1,
            Outcome::Failed(how) => {
                counts.failed += 1;
                counts.failures.push(format!("case {number}: {how}"));
            }
        }
    }
    counts
}
