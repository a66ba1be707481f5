//! Reading a log: what a device may see, in frames of a bounded size.

use std::iter::Peekable;

use chancery_proto::{
    common::v1::{GroupRef, Reason},
    delivery::v1::{
        Entries, Entry, PayloadRef, Pruned, ReadLogRequest, ReadLogResponse, entry, frame,
    },
};
use service_kit::db::{DbError, GenericClient};
use sha2::{Digest as _, Sha256};

use crate::{
    access::caller::Caller,
    error::Error,
    node::Node,
    ordering::group::Head,
    store::{self, log::Page, roster::Interval},
    wire,
};

/// Entries' payloads in one frame.
pub const FRAME_BYTES: usize = 256 * 1024;

/// Payloads above this travel by `FetchPayload`.
pub const INLINE_PAYLOAD_BYTES: u32 = 64 * 1024;

/// Chunks of payloads and trees.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// Seqs that may be read at once: after the first, up to and with the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Exclusive.
    pub after: u64,
    /// Inclusive.
    pub until: u64,
}

/// The next seqs after `after` that lie in one of the intervals.
pub fn next_span(intervals: &[Interval], after: u64, head: u64) -> Option<Span> {
    intervals
        .iter()
        .map(|interval| Span {
            after: after.max(interval.joined_seq.saturating_sub(1)),
            until: interval.removed_seq.unwrap_or(head).min(head),
        })
        .find(|span| span.after < span.until)
}

/// Does the log still hold what the client saw?
///
/// # Errors
/// `HISTORY_CHANGED`: never silence. `CURSOR_TOO_OLD` where nothing is left to compare with.
pub async fn check_cursor<C: GenericClient>(
    client: &C,
    group: &[u8],
    seq: u64,
    chain: Option<[u8; 32]>,
    head: &Head,
) -> Result<(), Error> {
    // A stream follows many groups: the client must learn which one to stop.
    let changed = || Error::Refused {
        reason: Reason::HistoryChanged,
        text: "this is not the log that the client saw".into(),
        metadata: vec![("group", hex(group))],
    };
    if seq > head.seq {
        return Err(changed());
    }
    let (Some(chain), 1..) = (chain, seq) else {
        return Ok(());
    };
    let ours = if seq == head.seq {
        Some(head.chain)
    } else {
        store::log::chain_at(client, group, seq)
            .await
            .map_err(DbError::from)?
    };
    match ours {
        Some(ours) if ours == chain => Ok(()),
        Some(_) => Err(changed()),
        None => {
            let oldest = store::retention::pruned_to(client, group)
                .await
                .map_err(DbError::from)?;
            Err(if seq < oldest {
                too_old(group, oldest)
            } else {
                changed()
            })
        }
    }
}

/// A group's text form.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What comes next in a log.
#[derive(Debug)]
pub enum Next {
    /// Entries, in order.
    Entries(Entries),
    /// Entries past retention.
    Pruned(Pruned),
}

impl From<Next> for frame::Frame {
    fn from(next: Next) -> Self {
        match next {
            Next::Entries(entries) => Self::Entries(entries),
            Next::Pruned(pruned) => Self::Pruned(pruned),
        }
    }
}

impl Next {
    /// The last seq that it covers.
    pub fn last(&self) -> Option<u64> {
        match self {
            Self::Entries(entries) => entries.entries.last().map(|entry| entry.seq),
            Self::Pruned(pruned) => Some(pruned.to_seq),
        }
    }
}

/// The next frame of a span: entries, or a run of pruned ones.
///
/// # Errors
/// `CURSOR_TOO_OLD` with the oldest cursor that can still be read from, or the database.
pub async fn next(
    node: &Node,
    group: &[u8],
    span: Span,
    frame_bytes: usize,
    head_seq: u64,
) -> Result<Next, Error> {
    let page = Page {
        after: span.after,
        until: span.until,
        entries: 256,
        inline_payload_bytes: INLINE_PAYLOAD_BYTES,
    };
    let client = node.db.client().await?;
    let rows = store::log::read_after(&client, group, page)
        .await
        .map_err(DbError::from)?;
    let first = rows.first().ok_or(Error::Corrupt("a hole in the log"))?;
    if first.seq != span.after + 1 {
        return Err(past_retention(&client, group).await?);
    }
    let mut rows = rows.into_iter().peekable();
    page_of(node, &client, group, &mut rows, frame_bytes, head_seq).await
}

/// What a cursor gets whose next entry is gone.
///
/// # Errors
/// The database.
pub async fn past_retention<C: GenericClient>(client: &C, group: &[u8]) -> Result<Error, DbError> {
    let oldest = store::retention::pruned_to(client, group).await?;
    Ok(too_old(group, oldest))
}

/// Takes the next frame off rows that follow on one another: entries, or a run of pruned ones. Of no rows it makes no entries.
///
/// # Errors
/// The database.
pub async fn page_of<C: GenericClient>(
    node: &Node,
    client: &C,
    group: &[u8],
    rows: &mut Peekable<impl Iterator<Item = store::log::Entry>>,
    frame_bytes: usize,
    head_seq: u64,
) -> Result<Next, Error> {
    let mut run: Option<Pruned> = None;
    while let Some(row) = rows.next_if(|row| row.pruned) {
        let gap = run.get_or_insert_with(|| Pruned {
            group: Some(wire::group_ref(node, group)),
            from_seq: row.seq,
            ..Pruned::default()
        });
        gap.to_seq = row.seq;
        gap.chain = row.chain.to_vec().into();
    }
    if let Some(run) = run {
        return Ok(Next::Pruned(run));
    }
    let mut size = 0;
    let mut entries = Vec::new();
    while let Some(row) = rows.next_if(|row| {
        size += row.payload.len() + 160;
        !row.pruned && (size <= frame_bytes || entries.is_empty())
    }) {
        entries.push(entry_of(client, group, row).await?);
    }
    Ok(Next::Entries(Entries {
        group: Some(wire::group_ref(node, group)),
        entries,
        head_seq,
    }))
}

fn too_old(group: &[u8], oldest: u64) -> Error {
    Error::Refused {
        reason: Reason::CursorTooOld,
        text: format!("the log before seq {oldest} is past retention"),
        metadata: vec![("group", hex(group)), ("oldest", oldest.to_string())],
    }
}

async fn entry_of<C: GenericClient>(
    client: &C,
    group: &[u8],
    row: store::log::Entry,
) -> Result<Entry, Error> {
    let body = if row.payload_bytes > u64::from(INLINE_PAYLOAD_BYTES) {
        let payload = store::log::payload(client, group, row.seq)
            .await
            .map_err(DbError::from)?
            .unwrap_or_default();
        entry::Body::PayloadRef(PayloadRef {
            bytes: row.payload_bytes,
            sha256: Sha256::digest(&payload).to_vec().into(),
        })
    } else {
        entry::Body::Payload(row.payload.into())
    };
    Ok(Entry {
        seq: row.seq,
        epoch: row.epoch,
        epoch_seq: row.epoch_seq,
        kind: u32::from(row.kind.unsigned_abs()),
        message_id: row.message_id.as_bytes().to_vec().into(),
        accepted_at_micros: row.accepted_at,
        body: Some(body),
        group_state_hash: row.group_state_hash.unwrap_or_default().into(),
        origin_domain: String::new(),
        chain: row.chain.to_vec().into(),
    })
}

/// What a device may see of a group.
#[derive(Debug, Clone)]
pub struct View {
    /// The group's id.
    pub group: Vec<u8>,
    /// Its head.
    pub head: Head,
    /// Never empty, oldest first.
    pub intervals: Vec<Interval>,
}

impl View {
    /// May it read this seq?
    pub fn holds(&self, seq: u64) -> bool {
        self.intervals
            .iter()
            .any(|i| i.joined_seq <= seq && i.removed_seq.is_none_or(|end| seq <= end))
    }

    /// Was it a member of the epoch that this seq began? Unlike the entry of its removal, that epoch is not its own any more.
    pub fn holds_epoch(&self, epoch_seq: u64) -> bool {
        self.intervals
            .iter()
            .any(|i| i.joined_seq <= epoch_seq && i.removed_seq.is_none_or(|end| epoch_seq < end))
    }

    /// Is it a member now?
    pub fn member(&self) -> bool {
        self.intervals.iter().any(|i| i.removed_seq.is_none())
    }
}

/// The view of one device.
///
/// # Errors
/// An unknown group and one that the device was never in get the same answer.
pub async fn view(node: &Node, caller: &Caller, group: Vec<u8>) -> Result<View, Error> {
    let client = node.db.client().await?;
    // The head first: a removal or a revocation that comes between the two then bounds what is read, instead of being overtaken by it.
    let head = store::groups::head(&client, &group)
        .await
        .map_err(DbError::from)?;
    let reading = store::roster::reading(&client, &group, caller.key)
        .await
        .map_err(DbError::from)?;
    if reading.revoked {
        return Err(Error::refused(
            Reason::DeviceRevoked,
            "this device was revoked",
        ));
    }
    match head {
        Some(head) if !reading.intervals.is_empty() => Ok(View {
            group,
            head,
            intervals: reading.intervals,
        }),
        _ => Err(Error::no_group()),
    }
}

/// One page of a log in frames.
///
/// # Errors
/// `GROUP`, `HISTORY_CHANGED`, `CURSOR_TOO_OLD`, `LIMIT_EXCEEDED`, the database.
pub async fn read_log(
    node: &Node,
    caller: &Caller,
    request: &ReadLogRequest,
) -> Result<Vec<ReadLogResponse>, Error> {
    let group = wire::group_id(node, request.group.as_ref())?;
    node.within(
        "page_items",
        node.config.limits.page_items,
        request.page_entries as usize,
    )?;
    let view = view(node, caller, group).await?;
    let after_chain = wire::chain(&request.after_chain)?;
    let client = node.db.client().await?;
    let (group, after) = (&view.group, request.after_seq);
    check_cursor(&client, group, after, after_chain, &view.head).await?;
    drop(client);
    let mut left = match request.page_entries {
        0 => node.config.limits.page_items as usize,
        n => n as usize,
    };
    let mut after = request.after_seq;
    let mut parts = Vec::new();
    while left > 0 {
        let Some(span) = next_span(&view.intervals, after, view.head.seq) else {
            break;
        };
        let until = span.until.min(span.after.saturating_add(left as u64));
        let span = Span { until, ..span };
        let part = next(node, &view.group, span, FRAME_BYTES, view.head.seq).await?;
        let last = part.last().ok_or(Error::Corrupt("a hole in the log"))?;
        left = left.saturating_sub(usize::try_from(last - span.after).unwrap_or(usize::MAX));
        after = last;
        parts.push(match part {
            Next::Entries(entries) => ReadLogResponse {
                entries: Some(entries),
                pruned: None,
            },
            Next::Pruned(pruned) => ReadLogResponse {
                entries: None,
                pruned: Some(pruned),
            },
        });
    }
    if !parts.iter().any(|part| part.entries.is_some()) {
        // Where the head is, is always said.
        parts.push(ReadLogResponse {
            entries: Some(Entries {
                group: Some(wire::group_ref(node, &view.group)),
                entries: Vec::new(),
                head_seq: view.head.seq,
            }),
            pruned: None,
        });
    }
    Ok(parts)
}

/// One entry's payload.
///
/// # Errors
/// `GROUP` for a seq outside the device's intervals too.
pub async fn payload(
    node: &Node,
    caller: &Caller,
    group: Option<&GroupRef>,
    seq: u64,
) -> Result<Vec<u8>, Error> {
    let view = view(node, caller, wire::group_id(node, group)?).await?;
    if !view.holds(seq) {
        return Err(Error::no_group());
    }
    let client = node.db.client().await?;
    store::log::payload(&client, &view.group, seq)
        .await
        .map_err(DbError::from)?
        .ok_or_else(|| {
            Error::refused(
                Reason::CursorTooOld,
                "the entry was pruned, or does not exist",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(joined_seq: u64, removed_seq: Option<u64>) -> Interval {
        Interval {
            joined_seq,
            removed_seq,
            voided: false,
        }
    }

    #[test]
    fn spans_walk_through_the_union_of_the_intervals() {
        let intervals = [interval(3, Some(5)), interval(8, None)];
        let next = |after| next_span(&intervals, after, 9).map(|s| (s.after, s.until));
        assert_eq!(next(0), Some((2, 5)));
        assert_eq!(next(4), Some((4, 5)));
        assert_eq!(next(5), Some((7, 9)));
        assert_eq!(next(8), Some((8, 9)));
        assert_eq!(next(9), None);
    }

    #[test]
    fn a_resync_closes_and_opens_at_one_seq_without_a_gap_or_a_repeat() {
        let intervals = [interval(0, Some(4)), interval(4, None)];
        let next = |after| next_span(&intervals, after, 6).map(|s| (s.after, s.until));
        assert_eq!(next(0), Some((0, 4)));
        assert_eq!(next(4), Some((4, 6)));
    }
}
