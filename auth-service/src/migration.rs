//! The schema brought up to date, and what SQL cannot do in it: the keys of handles.

use std::collections::BTreeSet;

use anyhow::Context as _;
use postgres::{Client, NoTls, Row, Transaction};
use service_kit::migrate;
use uuid::Uuid;

use crate::{MIGRATIONS, names, store::users::found_by};

/// Why a person has another handle than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// This older person has it, in another spelling.
    HeldBy(Uuid),
    /// It is no handle by the rules.
    NotAllowed,
}

/// A person who got another handle. The id, devices and groups are as they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renamed {
    /// Who.
    pub user: Uuid,
    /// The handle before.
    pub former_handle: String,
    /// The handle by which the operator reaches this person.
    pub handle: String,
    /// What was wrong with the one before.
    pub why: Why,
}

/// Applies what is missing, as the owner role, and gives every handle its key. Everybody who has another handle since
/// then is listed each time.
///
/// # Errors
/// As [`migrate::run`]; nothing is half done, and the next call goes on.
pub fn run(url: &str, app_role: Option<&str>) -> anyhow::Result<Vec<Renamed>> {
    migrate::run(url, &MIGRATIONS, app_role)?;
    let mut client = Client::connect(url, NoTls).context("cannot reach the database")?;
    let mut tx = client.transaction()?;
    fill_keys(&mut tx).context("the handles cannot get their keys")?;
    let renamed = renamed(&mut tx)?;
    tx.commit()?;
    Ok(renamed)
}

/// The oldest person keeps a handle that several have; the others get it with a number, and who has none that is
/// allowed gets one made of the id.
fn fill_keys(tx: &mut Transaction<'_>) -> anyhow::Result<()> {
    tx.batch_execute("/* migration::fill_keys */ LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE")?;
    let sql =
        "/* migration::fill_keys */ SELECT handle_key FROM users WHERE handle_key IS NOT NULL";
    let taken = tx.query(sql, &[])?;
    let mut taken: BTreeSet<String> = taken.iter().map(|row| row.get(0)).collect();
    let sql = "/* migration::fill_keys */ SELECT user_id, handle, display_name, deleted_at IS NOT NULL FROM users WHERE handle_key IS NULL \
               ORDER BY created_at, user_id";
    // First whoever keeps a handle, so that nobody gets it in place of another one.
    let (mut kept, mut renamed) = (Vec::new(), Vec::new());
    for row in tx.query(sql, &[])? {
        let handle: String = row.get(1);
        match names::handle_key(&handle) {
            Ok(key) if taken.insert(key.clone()) => kept.push((row, handle, key)),
            Ok(key) => renamed.push((row, handle, key)),
            Err(_) => {
                let stem = format!("user-{}", row.get::<_, Uuid>(0));
                renamed.push((row, handle, stem));
            }
        }
    }
    for (row, handle, key) in &kept {
        write_key(tx, row, key, handle, None)?;
    }
    for (row, handle, stem) in &renamed {
        let key = free_key(stem, &taken);
        write_key(tx, row, &key, &key, Some(handle))?;
        taken.insert(key);
    }
    Ok(())
}

fn write_key(
    tx: &mut Transaction<'_>,
    row: &Row,
    key: &str,
    handle: &str,
    former: Option<&str>,
) -> anyhow::Result<()> {
    let (user, name, deleted): (Uuid, String, bool) = (row.get(0), row.get(2), row.get(3));
    let sql = "/* migration::write_key */ UPDATE users SET handle_key = $2, handle = $3, former_handle = $4 WHERE user_id = $1";
    tx.execute(sql, &[&user, &key, &handle, &former])?;
    if !deleted {
        let words = found_by(&name, key);
        let sql = "/* migration::write_key */ INSERT INTO user_words (word, user_id) SELECT DISTINCT w, $2::uuid FROM unnest($1::text[]) AS w \
                   ON CONFLICT DO NOTHING";
        tx.execute(sql, &[&words, &user])?;
    }
    Ok(())
}

/// The stem where nobody has it, else the stem with the first number that nobody has.
fn free_key(stem: &str, taken: &BTreeSet<String>) -> String {
    let numbered = (2_u64..).map(|n| format!("{stem}~{n}"));
    std::iter::once(stem.to_owned())
        .chain(numbered)
        .find(|key| !taken.contains(key))
        .unwrap_or_default()
}

fn renamed(tx: &mut Transaction<'_>) -> anyhow::Result<Vec<Renamed>> {
    let sql = "/* migration::renamed */ SELECT user_id, former_handle, handle FROM users WHERE former_handle IS NOT NULL ORDER BY created_at, user_id";
    let mut renamed = Vec::new();
    for row in tx.query(sql, &[])? {
        let former_handle: String = row.get(1);
        let held_by = match names::handle_key(&former_handle) {
            Ok(key) => {
                let sql =
                    "/* migration::renamed */ SELECT user_id FROM users WHERE handle_key = $1";
                tx.query_opt(sql, &[&key])?
            }
            Err(_) => None,
        };
        renamed.push(Renamed {
            user: row.get(0),
            former_handle,
            handle: row.get(2),
            why: held_by.map_or(Why::NotAllowed, |row| Why::HeldBy(row.get(0))),
        });
    }
    Ok(renamed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_taken_gets_the_next_number() {
        let taken: BTreeSet<String> = ["a", "a~2", "b"].map(str::to_owned).into();
        assert_eq!(free_key("c", &taken), "c");
        assert_eq!(free_key("b", &taken), "b~2");
        assert_eq!(free_key("a", &taken), "a~3");
    }
}
