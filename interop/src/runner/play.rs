//! Which scripts, suites and assignments are played, and what came of them.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::{Duration, Instant},
};

use super::{
    peers::Peer,
    script::{self, Script},
    session::{Session, Stop, abandon},
    walk,
};
use crate::{
    plan,
    report::{Outcome, Part, Run},
};

/// The scripts of this repository, by file.
const FILES: [(&str, &str); 7] = [
    ("welcome", include_str!("../../scripts/welcome.json")),
    (
        "application",
        include_str!("../../scripts/application.json"),
    ),
    ("commit", include_str!("../../scripts/commit.json")),
    ("external", include_str!("../../scripts/external.json")),
    ("outside", include_str!("../../scripts/outside.json")),
    ("reinit", include_str!("../../scripts/reinit.json")),
    ("branch", include_str!("../../scripts/branch.json")),
];

/// What a stack of this repository is known not to do.
#[derive(Debug, Clone, Copy)]
pub struct Unsupported {
    /// Scripts whose name begins so.
    pub scripts: &'static str,
    /// The stack, in any role
    pub stack: &'static str,
    /// but these.
    pub except: &'static [&'static str],
    /// The reason.
    pub why: &'static str,
}

const NO_PSK: &str = "openmls 0.9.2 takes no PSK proposal from an external sender";

/// All that is known. Checked both ways: a run that works although it is here is as wrong as one that does not although it is not.
pub const UNSUPPORTED: &[Unsupported] = &[
    Unsupported {
        scripts: "reinit/",
        stack: "openmls",
        except: &[],
        why: "openmls 0.9.2 has no ReInit",
    },
    Unsupported {
        scripts: "branch/",
        stack: "openmls",
        // Stays out of the branch.
        except: &["dora"],
        why: "openmls 0.9.2 has no subgroup branching",
    },
    Unsupported {
        scripts: "branch/other_extensions",
        stack: "mls-rs",
        // Only who makes the branch chooses its extensions.
        except: &["ben", "cleo"],
        why: "mls-rs branches with the extensions of the group that it branches from",
    },
    Unsupported {
        scripts: "outside/signer_psk",
        stack: "openmls",
        except: &[],
        why: NO_PSK,
    },
    Unsupported {
        scripts: "outside/signer_resumption",
        stack: "openmls",
        except: &[],
        why: NO_PSK,
    },
    Unsupported {
        scripts: "outside/two_signers_psk",
        stack: "openmls",
        // A signer that proposes nothing.
        except: &["post"],
        why: NO_PSK,
    },
    Unsupported {
        scripts: "outside/signer_reinit",
        stack: "openmls",
        except: &[],
        why: "openmls 0.9.2 takes no ReInit proposal, from whomever",
    },
];

/// How to play.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only these suites; none: every suite that a server has.
    pub suites: Vec<u16>,
    /// Whether handshake messages are encrypted: each of these.
    pub handshakes: Vec<bool>,
    /// The most assignments for a script, suite and handshake.
    pub cap: usize,
    /// Of the drawn assignments and of all randomness.
    pub seed: u64,
    /// The longest that a step may take.
    pub wait: Duration,
    /// Hold the stacks of this repository to [`UNSUPPORTED`].
    pub expect: bool,
}

/// The scripts of this repository, and a random walk of so many steps (0: none).
///
/// # Errors
/// A script that cannot be read.
pub fn scripts(walk_steps: usize, seed: u64) -> anyhow::Result<Vec<Script>> {
    let mut scripts = Vec::new();
    for (file, json) in FILES {
        scripts.extend(script::read(file, json)?);
    }
    if walk_steps > 0 {
        scripts.push(walk::walk(walk_steps, seed));
    }
    Ok(scripts)
}

fn known(
    script: &Script,
    peers: &[Peer],
    actors: &[String],
    cast: &[usize],
) -> Option<&'static str> {
    let plays = |unsupported: &Unsupported| {
        actors.iter().zip(cast).any(|(actor, peer)| {
            peers.get(*peer).is_some_and(|peer| {
                peer.own
                    && peer.name == unsupported.stack
                    && !unsupported.except.contains(&actor.as_str())
            })
        })
    };
    UNSUPPORTED
        .iter()
        .find(|u| script.name.starts_with(u.scripts) && plays(u))
        .map(|u| u.why)
}

fn outcome(
    played: Result<(), (usize, Stop)>,
    known: Option<&str>,
    strict: bool,
) -> (Outcome, Option<usize>) {
    match (played, known) {
        (Ok(()), None) => (Outcome::Passed, None),
        (Ok(()), Some(why)) => {
            let why = format!("it works, and was known not to: {why}");
            (Outcome::Unexpected(why), None)
        }
        (Err((_, Stop::Unsupported(why))), None) if strict => {
            let why = format!("that was not known: {why}");
            (Outcome::Unexpected(why), None)
        }
        (Err((_, Stop::Unsupported(why))), _) => (Outcome::Unsupported(why), None),
        (Err((step, Stop::Failed(why))), _) => {
            (Outcome::Failed(format!("step {step}: {why}")), None)
        }
        (Err((step, Stop::Broken { peer, why })), _) => {
            (Outcome::Failed(format!("step {step}: {why}")), Some(peer))
        }
    }
}

fn seed_of(options: &Options, script: &Script, suite: u16, encrypt: bool) -> u64 {
    // The same draw for the same script on every machine and in any company.
    let mut hasher = DefaultHasher::new();
    (options.seed, &script.name, suite, encrypt).hash(&mut hasher);
    hasher.finish()
}

/// What came of all runs.
#[derive(Debug, Default)]
pub struct Played {
    /// In order.
    pub runs: Vec<Run>,
    /// What servers do not tell and so was not compared.
    pub unchecked: BTreeSet<String>,
    /// Scripts that have more assignments than the cap: how many were played, and of how many.
    pub capped: Vec<(String, usize, u128)>,
}

/// Plays every script in every suite, handshake and assignment; `seen` hears of each run.
///
/// # Errors
/// A broken server cannot be replaced.
pub async fn play(
    peers: &mut [Peer],
    scripts: &[Script],
    options: &Options,
    mut seen: impl FnMut(&Run),
) -> anyhow::Result<Played> {
    let mut played = Played::default();
    let mut suites: BTreeSet<u16> = peers
        .iter()
        .flat_map(|p| p.suites.iter().copied())
        .collect();
    suites.retain(|suite| options.suites.is_empty() || options.suites.contains(suite));
    for script in scripts {
        let actors = script.actors();
        for suite in &suites {
            let able = |(place, peer): (usize, &Peer)| peer.suites.contains(suite).then_some(place);
            let able: Vec<usize> = peers.iter().enumerate().filter_map(able).collect();
            for encrypt in &options.handshakes {
                let seed = seed_of(options, script, *suite, *encrypt);
                let (chosen, total) = plan::sample(able.len(), actors.len(), options.cap, seed);
                if total > chosen.len() as u128 {
                    let capped = (script.name.clone(), chosen.len(), total);
                    if !played.capped.contains(&capped) {
                        played.capped.push(capped);
                    }
                }
                for assignment in chosen {
                    let cast: Vec<usize> = assignment.iter().map(|place| able[*place]).collect();
                    let run = (*suite, *encrypt, cast.as_slice());
                    let (run, broken) =
                        one(peers, script, &actors, run, options, seed, &mut played).await;
                    seen(&run);
                    played.runs.push(run);
                    if let Some(peer) = broken.and_then(|peer| peers.get_mut(peer)) {
                        peer.again(options.wait).await?;
                    }
                }
            }
        }
    }
    Ok(played)
}

async fn one(
    peers: &[Peer],
    script: &Script,
    actors: &[String],
    (suite, encrypt, cast): (u16, bool, &[usize]),
    options: &Options,
    seed: u64,
    all: &mut Played,
) -> (Run, Option<usize>) {
    let began = Instant::now();
    let mut session = Session::new(peers, actors, cast, suite, encrypt, seed, options.wait);
    let played = session.play(script).await;
    if matches!(&played, Err((_, Stop::Failed(_) | Stop::Unsupported(_)))) {
        abandon(&mut session).await;
    }
    all.unchecked.append(&mut session.unchecked);
    let known = known(script, peers, actors, cast).filter(|_| options.expect);
    let strict = options.expect && cast.iter().all(|p| peers.get(*p).is_some_and(|p| p.own));
    let (outcome, broken) = outcome(played, known, strict);
    let name = |place: &usize| {
        peers
            .get(*place)
            .map(|p| p.name.clone())
            .unwrap_or_default()
    };
    let handshake = if encrypt { "private" } else { "public" };
    let run = Run {
        part: Part::Scripts,
        scenario: script.name.clone(),
        suite,
        variant: format!("{handshake} handshake"),
        roles: actors.iter().cloned().zip(cast.iter().map(name)).collect(),
        outcome,
        elapsed: began.elapsed(),
    };
    (run, broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_are_read_and_every_expectation_belongs_to_one() {
        let scripts = scripts(10, 1).unwrap();
        for unsupported in UNSUPPORTED {
            let prefix = unsupported.scripts;
            let of = |s: &&Script| s.name.starts_with(prefix);
            assert!(scripts.iter().any(|s| of(&s)), "{prefix}");
        }
    }

    #[test]
    fn expectations_are_checked_both_ways() {
        let unsupported = || Err((1, Stop::Unsupported("no".into())));
        assert!(matches!(outcome(Ok(()), None, true).0, Outcome::Passed));
        assert!(matches!(
            outcome(Ok(()), Some("x"), true).0,
            Outcome::Unexpected(_)
        ));
        assert!(matches!(
            outcome(unsupported(), Some("x"), true).0,
            Outcome::Unsupported(_)
        ));
        assert!(matches!(
            outcome(unsupported(), None, true).0,
            Outcome::Unexpected(_)
        ));
        assert!(matches!(
            outcome(unsupported(), None, false).0,
            Outcome::Unsupported(_)
        ));
        let broken = Err((
            0,
            Stop::Broken {
                peer: 3,
                why: "gone".into(),
            },
        ));
        assert!(matches!(
            outcome(broken, None, true),
            (Outcome::Failed(_), Some(3))
        ));
    }
}
