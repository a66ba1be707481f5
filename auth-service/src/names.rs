//! Which names are equal, and which are names at all: the PRECIS profiles (RFC 8264) of RFC 8265 and RFC 8266.

use precis_core::profile::PrecisFastInvocation as _;
use precis_profiles::{Nickname, UsernameCaseMapped};

use crate::error::Error;

/// The form of a handle in which all its spellings are equal: one width, lower case, NFC (RFC 8265 section 3.3,
/// UsernameCaseMapped).
///
/// # Errors
/// `MALFORMED`: empty, or with characters that are not allowed in a user name, such as spaces, controls and symbols.
pub fn handle_key(handle: &str) -> Result<String, Error> {
    let enforce = |text: &str| UsernameCaseMapped::enforce(text).map(std::borrow::Cow::into_owned);
    let refuse = |error: precis_core::Error| {
        Error::malformed("handle", format!("no user name by RFC 8265: {error}"))
    };
    // A key is its own key, whatever the rules make of unusual characters.
    let key = enforce(handle.trim()).map_err(refuse)?;
    match enforce(&key).map_err(refuse)? {
        again if again == key => Ok(key),
        _ => Err(Error::malformed("handle", "no stable form by RFC 8265")),
    }
}

/// A name that is shown to others: NFKC, single spaces, no controls and nothing that changes the direction of writing
/// (RFC 8266, Nickname). Empty
/// stays empty.
///
/// # Errors
/// `MALFORMED`: with characters that are not allowed.
pub fn shown(field: &'static str, name: &str) -> Result<String, Error> {
    let name = name.trim();
    if name.is_empty() {
        return Ok(String::new());
    }
    let name = Nickname::enforce(name);
    name.map(std::borrow::Cow::into_owned)
        .map_err(|error| Error::malformed(field, format!("no nickname by RFC 8266: {error}")))
}

/// A text as it is searched for: the same form for all spellings where it has one.
pub fn searched(text: &str) -> String {
    match Nickname::enforce(text) {
        Ok(text) => text.to_lowercase(),
        Err(_) => text.to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_handle_have_one_key_and_no_two_handles_share_one() {
        let people: &[&[&str]] = &[
            &[
                "élodie@a.example",
                "ÉLODIE@a.example",
                "e\u{301}lodie@A.EXAMPLE",
                "E\u{301}lodie@a.example",
            ],
            &["elodie@a.example"],
            &["alice", "ALICE", " alice ", "\u{ff41}lice"],
            &["ångström", "a\u{30a}ngstro\u{308}m", "ÅNGSTRÖM"],
            &["σοφία", "ΣΟΦΊΑ"],
            &["иван", "ИВАН"],
            &["strasse"],
            &["straße"],
        ];
        let mut keys = std::collections::BTreeMap::new();
        for (person, spellings) in people.iter().enumerate() {
            for spelling in *spellings {
                let key = handle_key(spelling).expect(spelling);
                assert_eq!(handle_key(&key).expect("a key is a handle"), key);
                assert_eq!(*keys.entry(key).or_insert(person), person, "{spelling}");
            }
        }
        assert_eq!(keys.len(), people.len());
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for handle in [
            "",
            " ",
            "a b",
            "a\u{a0}b",
            "a\tb",
            "a\u{202e}b",
            "a\u{200b}b",
            "a\u{7}",
            "\u{feff}a",
            // A unit's sign with a letter's look: no user name holds compatibility characters.
            "\u{212b}ngström",
            "★",
            "🦀",
        ] {
            assert!(handle_key(handle).is_err(), "{handle:?}");
        }
        for name in [
            "a\u{202e}nosduh",
            "a\u{2066}b",
            "a\u{9b}2J",
            "a\u{1b}[2J",
            "a\nb",
            "\u{200f}a",
            "a\u{feff}b",
        ] {
            assert!(shown("display_name", name).is_err(), "{name:?}");
        }
        for (name, form) in [
            ("", ""),
            ("Ada  Lovelace ", "Ada Lovelace"),
            ("E\u{301}lodie", "Élodie"),
            ("Dr. Ång/Ström & Co.", "Dr. Ång/Ström & Co."),
        ] {
            assert_eq!(shown("display_name", name).expect(name), form);
        }
    }
}
