//! The device's inbox of Welcomes, each cut for its joiner.

use chancery_proto::{delivery::v1::Welcome, welcome};
use service_kit::db::DbError;

use crate::{access::caller::Caller, error::Error, node::Node, store, wire};

/// Welcomes in one answer.
const PAGE: u32 = 100;

/// Unread Welcomes, oldest first.
///
/// # Errors
/// The database.
pub async fn unread(node: &Node, caller: &Caller) -> Result<Vec<Welcome>, Error> {
    let client = node.db.client().await?;
    let rows = store::welcomes::unread(&client, caller.key, PAGE)
        .await
        .map_err(DbError::from)?;
    Ok(rows
        .into_iter()
        .map(|row| Welcome {
            group: Some(wire::group_ref(node, &row.group)),
            seq: row.seq,
            epoch_seq: row.seq,
            welcome: welcome::assemble(row.suite, &row.secrets, &row.encrypted_group_info).into(),
            key_package_ref: row.key_package_ref.into(),
            expires_at: row.expires_at,
            chain: row.chain.to_vec().into(),
        })
        .collect())
}
