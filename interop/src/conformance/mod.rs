//! The contract's rules, one by one, against any server that claims to keep them. `docs/protocol.md` has the rules; each check names the one it belongs to.
//!
//! | module | what |
//! |---|---|
//! | [`party`] | devices on the contract with mls-rs under them, and rooms that they share |
//! | [`expect`] | what a refusal has to look like |
//! | `epochs`, `content`, `reading`, `doors`, `key_packages`, `insiders` | the checks |
//!
//! A check makes a group of its own, so that one that fails says nothing about the next.

use std::{future::Future, pin::Pin};

pub mod expect;
pub mod party;

mod content;
mod doors;
mod epochs;
mod insiders;
mod key_packages;
mod reading;

use party::Parties;

use crate::wire::Place;

/// Devices that the checks need, each with an invitation.
pub const DEVICES: usize = 4;

type Checking<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// A check of a rule.
pub struct Check {
    /// Where the contract says it: a rule's number, or a page.
    pub rule: &'static str,
    /// What must hold.
    pub name: &'static str,
    run: for<'a> fn(&'a mut Parties) -> Checking<'a>,
}

/// Every check, in the order of the rules.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    epochs::CHECKS
        .iter()
        .chain(content::CHECKS)
        .chain(reading::CHECKS)
        .chain(doors::CHECKS)
        .chain(key_packages::CHECKS)
        .chain(insiders::CHECKS)
}

/// What came of a check.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Its rule.
    pub rule: &'static str,
    /// Its name.
    pub name: &'static str,
    /// How the server breaks it.
    pub broken: Option<String>,
}

/// Runs the checks whose name holds `only`.
///
/// # Errors
/// The devices cannot be enrolled.
pub async fn run(
    place: &Place,
    invitations: Vec<String>,
    only: &str,
    mut seen: impl FnMut(&Verdict),
) -> anyhow::Result<Vec<Verdict>> {
    let mut parties = Parties::enroll(place, invitations).await?;
    let mut verdicts = Vec::new();
    for check in checks().filter(|check| check.name.contains(only)) {
        let broken = (check.run)(&mut parties).await.err();
        let verdict = Verdict {
            rule: check.rule,
            name: check.name,
            broken: broken.map(|error| format!("{error:#}")),
        };
        seen(&verdict);
        verdicts.push(verdict);
    }
    Ok(verdicts)
}
