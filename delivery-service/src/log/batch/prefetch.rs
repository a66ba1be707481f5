//! Reads what is not remembered of the groups and senders of a batch: without a lock, in one round trip. Whether it is still so is seen when the batch is
//! written.

use futures_util::future::try_join3;
use service_kit::db::{Db, DbError};

use crate::{
    hub::head_cache::{Found, Remembered},
    log::batch::{Message, lookups::Asked},
    store::{devices::Standings, groups::Places, roster::Memberships},
};

/// Looks up what a look may help to foresee.
///
/// # Errors
/// The database; then nothing more is remembered.
pub(super) async fn look(
    db: &Db,
    remembered: &Remembered,
    messages: impl Iterator<Item = &Message>,
) -> Result<(), DbError> {
    let unknown: Vec<&Message> = {
        let memory = remembered.open();
        let lacks = |m: &&Message| memory.lacks(&m.send.group, m.sender, m.user);
        messages.filter(lacks).collect()
    };
    if unknown.is_empty() {
        return Ok(());
    }
    let asked = Asked::of(unknown.iter().copied());
    let client = db.client().await?;
    // Prepared first: from here each is sent when it is first polled, in this order. What is read of members must not be older than the head.
    let (places, memberships, standings) = try_join3(
        Places::prepare(&client),
        Memberships::prepare(&client),
        Standings::prepare(&client),
    )
    .await?;
    let (places, (memberships, _), (standings, feeds)) = try_join3(
        places.run(&client, &asked.groups),
        memberships.run(&client, asked.members()),
        standings.run(&client, asked.devices()),
    )
    .await?;
    drop(client);
    let senders = asked.senders(&memberships, standings);
    let found = places.iter().filter_map(|(place, found)| {
        Some(Found {
            group: asked.groups.get(*place)?,
            before: &found.head,
            after: &found.head,
        })
    });
    let known = unknown.iter().zip(&senders);
    let known = known.filter_map(|(message, sender)| sender.known(message, false));
    remembered.learn(&feeds, found, known);
    Ok(())
}
