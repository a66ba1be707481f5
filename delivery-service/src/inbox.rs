//! The device's inbox of Welcomes, each cut for its joiner.

use chancery_proto::{
    delivery::v1::{Welcome, WelcomeRef},
    welcome,
};
use service_kit::db::DbError;

use crate::{caller::Caller, error::Error, node::Node, read, store, submit::flatten};

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
            group: Some(read::group_ref(node, &row.group)),
            seq: row.seq,
            epoch_seq: row.seq,
            welcome: welcome::assemble(row.suite, &row.secrets, &row.encrypted_group_info).into(),
            key_package_ref: row.key_package_ref.into(),
            expires_at: row.expires_at,
            chain: row.chain.to_vec().into(),
        })
        .collect())
}

/// Hides Welcomes that the device has stored. Unknown ones are passed over: a repeat is no error.
///
/// # Errors
/// Malformed, or the database.
pub async fn acknowledge(
    node: &Node,
    caller: &Caller,
    welcomes: &[WelcomeRef],
) -> Result<(), Error> {
    let refs: Vec<(Vec<u8>, u64)> = welcomes
        .iter()
        .map(|w| Ok((read::group_id(node, w.group.as_ref())?, w.seq)))
        .collect::<Result<_, Error>>()?;
    let key = caller.key;
    node.db
        .run_tx("acknowledge_welcomes", move |tx| {
            let refs = refs.clone();
            Box::pin(async move {
                for (group, seq) in &refs {
                    store::welcomes::acknowledge(tx, group, *seq, key).await?;
                }
                Ok(())
            })
        })
        .await
        .map_err(flatten)
}
