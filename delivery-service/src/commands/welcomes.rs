//! Welcomes that a device has stored are hidden.

use chancery_proto::delivery::v1::WelcomeRef;

use crate::{access::caller::Caller, error::Error, node::Node, store, wire};

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
        .map(|w| Ok((wire::group_id(node, w.group.as_ref())?, w.seq)))
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
        .map_err(Error::from)
}
