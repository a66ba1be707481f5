//! People, and the words that they are found by.

use service_kit::db::GenericClient;
use service_kit::db::Transaction;
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use crate::names;

/// One person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Never changes.
    pub id: Uuid,
    /// Unique in the domain, in all its spellings.
    pub handle: String,
    /// The form in which all its spellings are equal: [`crate::names::handle_key`].
    pub handle_key: String,
    /// Shown.
    pub display_name: String,
    /// Shown.
    pub organisation: String,
    /// Cut off for now.
    pub suspended: bool,
}

const COLUMNS: &str =
    "u.user_id, u.handle, u.display_name, u.organisation, u.suspended, u.handle_key";

fn user(row: &Row) -> User {
    User {
        id: row.get(0),
        handle: row.get(1),
        display_name: row.get(2),
        organisation: row.get(3),
        suspended: row.get(4),
        handle_key: row.get(5),
    }
}

/// The person whose handle has this key.
///
/// # Errors
/// The database.
pub async fn by_handle<C: GenericClient>(
    client: &C,
    handle_key: &str,
) -> Result<Option<User>, Error> {
    let sql =
        format!("/* users::by_handle */ SELECT {COLUMNS} FROM users u WHERE u.handle_key = $1");
    let row = client
        .query_opt(&client.prepare_cached(&sql).await?, &[&handle_key])
        .await?;
    Ok(row.as_ref().map(user))
}

/// People by id; unknown ids are left out.
///
/// # Errors
/// The database.
pub async fn by_ids<C: GenericClient>(client: &C, ids: &[Uuid]) -> Result<Vec<User>, Error> {
    let sql = format!(
        "/* users::by_ids */ SELECT {COLUMNS} FROM users u WHERE u.user_id = ANY($1) AND u.deleted_at IS NULL ORDER BY u.user_id"
    );
    let rows = client
        .query(&client.prepare_cached(&sql).await?, &[&ids])
        .await?;
    Ok(rows.iter().map(user).collect())
}

/// Writes a new person or a known one's new names; `true` when new. The id of a known one stays.
///
/// # Errors
/// The database.
pub async fn upsert(tx: &Transaction<'_>, user: &User) -> Result<(Uuid, bool), Error> {
    let sql = "/* users::upsert */ INSERT INTO users (user_id, handle, display_name, organisation, handle_key, created_at) \
               VALUES ($1, $2, $3, $4, $5, clock_timestamp()) \
               ON CONFLICT (handle_key) DO UPDATE \
               SET display_name = EXCLUDED.display_name, organisation = EXCLUDED.organisation RETURNING user_id";
    let columns: [&(dyn tokio_postgres::types::ToSql + Sync); 5] = [
        &user.id,
        &user.handle,
        &user.display_name,
        &user.organisation,
        &user.handle_key,
    ];
    let id: Uuid = tx
        .query_one(&tx.prepare_cached(sql).await?, &columns)
        .await?
        .get(0);
    let sql = "/* users::upsert */ DELETE FROM user_words WHERE user_id = $1";
    tx.execute(&tx.prepare_cached(sql).await?, &[&id]).await?;
    let found_by = found_by(&user.display_name, &user.handle_key);
    let sql = "/* users::upsert */ INSERT INTO user_words (word, user_id) SELECT DISTINCT w, $2::uuid FROM unnest($1::text[]) AS w";
    tx.execute(&tx.prepare_cached(sql).await?, &[&found_by, &id])
        .await?;
    Ok((id, id == user.id))
}

/// Locks a person against another change; whether they are suspended. `None` for nobody, and for who was deleted.
///
/// # Errors
/// The database.
pub async fn lock(tx: &Transaction<'_>, id: Uuid) -> Result<Option<bool>, Error> {
    let sql = "/* users::lock */ SELECT suspended FROM users WHERE user_id = $1 AND deleted_at IS NULL FOR UPDATE";
    Ok(tx
        .query_opt(&tx.prepare_cached(sql).await?, &[&id])
        .await?
        .map(|row| row.get(0)))
}

/// Cuts a person off, or lets them in again.
///
/// # Errors
/// The database.
pub async fn set_suspended(tx: &Transaction<'_>, id: Uuid, suspended: bool) -> Result<u64, Error> {
    let sql = "/* users::set_suspended */ UPDATE users SET suspended = $2 WHERE user_id = $1";
    tx.execute(&tx.prepare_cached(sql).await?, &[&id, &suspended])
        .await
}

/// Takes a person's names away; the id stays, and stays suspended. Open invitations go.
///
/// # Errors
/// The database.
pub async fn delete(tx: &Transaction<'_>, id: Uuid) -> Result<u64, Error> {
    let sql = "/* users::delete */ DELETE FROM user_words WHERE user_id = $1";
    tx.execute(&tx.prepare_cached(sql).await?, &[&id]).await?;
    let sql = "/* users::delete */ DELETE FROM invitations WHERE user_id = $1 AND used_at IS NULL";
    tx.execute(&tx.prepare_cached(sql).await?, &[&id]).await?;
    let sql = "/* users::delete */ UPDATE users SET handle = 'deleted:' || user_id, handle_key = 'deleted:' || user_id, former_handle = NULL, display_name = '', \
               organisation = '', suspended = true, deleted_at = clock_timestamp() WHERE user_id = $1";
    tx.execute(&tx.prepare_cached(sql).await?, &[&id]).await
}

/// What a person is found by.
pub fn found_by(display_name: &str, handle_key: &str) -> Vec<String> {
    let mut words = words(display_name);
    words.push(handle_key.to_owned());
    words
}

/// Lower-case words of a text.
fn words(text: &str) -> Vec<String> {
    names::searched(text)
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// People for whom each beginning begins one of their words, after the key of a handle, in order of these keys.
///
/// # Errors
/// The database.
pub async fn search<C: GenericClient>(
    client: &C,
    beginnings: &[String],
    after: &str,
    limit: i64,
) -> Result<Vec<User>, Error> {
    // U+10FFFF sorts after every other character in the "C" collation.
    let sql = format!(
        "/* users::search */ SELECT {COLUMNS} FROM users u \
         WHERE u.handle_key > $2 AND NOT EXISTS ( \
           SELECT 1 FROM unnest($1::text[]) AS q WHERE NOT EXISTS ( \
             SELECT 1 FROM user_words w WHERE w.user_id = u.user_id AND w.word >= q COLLATE \"C\" AND w.word < (q || chr(1114111)) COLLATE \"C\")) \
         AND u.user_id IN (SELECT w.user_id FROM user_words w \
           WHERE w.word >= ($1::text[])[1] COLLATE \"C\" AND w.word < (($1::text[])[1] || chr(1114111)) COLLATE \"C\") \
         ORDER BY u.handle_key LIMIT $3"
    );
    let rows = client
        .query(
            &client.prepare_cached(&sql).await?,
            &[&beginnings, &after, &limit],
        )
        .await?;
    Ok(rows.iter().map(user).collect())
}

/// Everybody after the key of a handle, in order of these keys.
///
/// # Errors
/// The database.
pub async fn list<C: GenericClient>(
    client: &C,
    after: &str,
    limit: i64,
) -> Result<Vec<User>, Error> {
    let sql = format!(
        "/* users::list */ SELECT {COLUMNS} FROM users u WHERE u.handle_key > $1 AND u.deleted_at IS NULL \
         ORDER BY u.handle_key LIMIT $2"
    );
    let rows = client
        .query(&client.prepare_cached(&sql).await?, &[&after, &limit])
        .await?;
    Ok(rows.iter().map(user).collect())
}
