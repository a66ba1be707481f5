//! Whether what is said in the name of an Authentication Service is still said by the one that was accepted. Pure.
//!
//! The first root and the first token keys of a domain are remembered. Another root, or a token key that was not there, is taken only where the operator
//! has declared it (decision on declared issuer changes): whoever can answer at the service's address, or write the file that pins its root, would
//! otherwise become the Authentication Service.

use std::collections::BTreeSet;

use crate::config::Declared;

use chancery_proto::mutants::{self, Mutant};

/// A change that nobody declared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Undeclared {
    /// Another root.
    #[error("the root is another one: if that is meant, start with --accept-root {0}")]
    Root(String),
    /// Other token keys.
    #[error("token keys are new: if that is meant, start with --accept-token-key {0}")]
    TokenKeys(String),
}

/// Whether a root may be used. `known` is the one in use, if there is one.
///
/// # Errors
/// [`Undeclared::Root`].
pub fn check_root(
    known: Option<&str>,
    offered: &str,
    declared: &Declared,
) -> Result<(), Undeclared> {
    let may = known.is_none_or(|known| known == offered) || declared.roots.contains(offered);
    if (may && !declared.distrusted.contains(offered))
        || mutants::is_on(Mutant::IssuerChangeUndeclared)
    {
        return Ok(());
    }
    Err(Undeclared::Root(offered.to_owned()))
}

/// Whether token keys may be used. `known` are those that were remembered; none where the service was never heard.
///
/// # Errors
/// [`Undeclared::TokenKeys`] with those that are new.
pub fn check_token_keys(
    known: &BTreeSet<String>,
    offered: &BTreeSet<String>,
    declared: &Declared,
) -> Result<(), Undeclared> {
    let new: Vec<&str> = offered
        .iter()
        .filter(|key| !known.contains(*key) && !declared.token_keys.contains(*key))
        .map(String::as_str)
        .collect();
    if known.is_empty() || new.is_empty() || mutants::is_on(Mutant::IssuerChangeUndeclared) {
        return Ok(());
    }
    Err(Undeclared::TokenKeys(new.join(" --accept-token-key ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &str) -> BTreeSet<String> {
        names.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn only_the_known_and_the_declared_root_is_used() {
        let declared = Declared {
            roots: set("new worse"),
            distrusted: set("worse bad"),
            token_keys: BTreeSet::new(),
        };
        for (known, offered, may) in [
            (None, "old", true),
            (Some("old"), "old", true),
            (Some("old"), "other", false),
            (Some("old"), "new", true),
            (Some("new"), "old", false),
            (None, "bad", false),
            (Some("bad"), "bad", false),
            (Some("old"), "worse", false),
        ] {
            let checked = check_root(known, offered, &declared);
            let expected = match may {
                true => Ok(()),
                false => Err(Undeclared::Root(offered.into())),
            };
            assert_eq!(checked, expected, "{known:?} {offered}");
        }
    }

    #[test]
    fn every_new_token_key_is_declared() {
        let declared = Declared {
            token_keys: set("new"),
            ..Declared::default()
        };
        for (known, offered, undeclared) in [
            ("", "a b", None),
            ("a", "a", None),
            ("a b", "a", None),
            ("a", "a new", None),
            ("a", "new", None),
            ("a", "a b", Some("b")),
            ("a", "b c new", Some("b --accept-token-key c")),
        ] {
            let checked = check_token_keys(&set(known), &set(offered), &declared);
            let expected =
                undeclared.map_or(Ok(()), |keys| Err(Undeclared::TokenKeys(keys.into())));
            assert_eq!(checked, expected, "{known:?} {offered:?}");
        }
    }
}
