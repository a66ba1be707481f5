//! Notifications: how processes that share a database wake each other. They are sent after COMMIT, in a statement of their own: inside a transaction they
//! would make all commits wait for one lock.

use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client, NoTls};

use super::{Db, DbError};
use crate::lifecycle::spawn_short;

/// Notifications that wait to be looked at; more are dropped: a wake-up may be lost.
const WAITING: usize = 256;
/// PostgreSQL takes less than 8,000 bytes.
pub const NOTIFICATION_BYTES: usize = 7_900;

/// Hears what others say on a channel.
#[derive(Debug)]
pub struct Listener {
    heard: mpsc::Receiver<String>,
    /// The connection lives as long as it.
    _client: Client,
}

impl Listener {
    /// The next notification; none when the connection ended.
    pub async fn next(&mut self) -> Option<String> {
        self.heard.recv().await
    }
}

impl Db {
    /// Listens on a channel, with a connection of its own that is named like it.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn listen(&self, channel: &'static str) -> Result<Listener, DbError> {
        let mut config = self.config.clone();
        config.application_name(channel);
        let (client, mut connection) = config.connect(NoTls).await?;
        let (sink, heard) = mpsc::channel(WAITING);
        spawn_short(async move {
            let mut next = std::pin::pin!(futures_util::stream::poll_fn(move |cx| {
                connection.poll_message(cx)
            }));
            use futures_util::StreamExt as _;
            while let Some(Ok(message)) = next.next().await {
                if let AsyncMessage::Notification(notification) = message {
                    // Nobody may hold up the connection.
                    let _lost = sink.try_send(notification.payload().to_owned());
                }
            }
        });
        client.batch_execute(&format!("LISTEN {channel}")).await?;
        Ok(Listener {
            heard,
            _client: client,
        })
    }

    /// Says something on a channel, at most [`NOTIFICATION_BYTES`].
    ///
    /// # Errors
    /// The database.
    pub async fn notify(&self, channel: &'static str, text: &str) -> Result<(), DbError> {
        let client = self.client().await?;
        let sql = "/* db::notify */ SELECT pg_notify($1, $2)";
        client
            .query(&client.prepare_cached(sql).await?, &[&channel, &text])
            .await?;
        Ok(())
    }

    /// How many processes listen on a channel.
    ///
    /// # Errors
    /// The database.
    pub async fn listeners(&self, channel: &'static str) -> Result<i64, DbError> {
        let client = self.client().await?;
        let sql = "/* db::listeners */ SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()";
        let row = client
            .query_one(&client.prepare_cached(sql).await?, &[&channel])
            .await?;
        Ok(row.get(0))
    }
}
