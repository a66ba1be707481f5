//! What a stream reads for itself: many groups in a few queries, in turn with other streams. Where that fails, group by
//! group, so that only the group that cannot be read ends.

use std::{fmt, panic::AssertUnwindSafe};

use chancery_proto::delivery::v1::EndedWhy;
use futures_util::FutureExt as _;
use service_kit::{
    db::{DbError, GenericClient},
    items::{ItemError, Items},
};

use crate::{
    error::Error,
    hub::GroupId,
    ordering::group::Stage,
    reading::{
        log::{self, FRAME_BYTES, INLINE_PAYLOAD_BYTES, Next, Span, hex},
        subscribe::{Stream, revoked},
    },
    store::{
        self,
        groups::Place,
        log::Entry,
        roster::{Interval, Reading},
    },
};

/// Entries of one group in a part, where it is alone; many groups share them.
const PART_ENTRIES: usize = 256;

/// What the device may see of a group now.
pub(super) struct View {
    pub(super) place: Place,
    /// Never empty, oldest first.
    pub(super) intervals: Vec<Interval>,
}

/// A group that is caught up with, and what was read of it.
pub(super) struct Read {
    pub(super) group: GroupId,
    pub(super) view: View,
    pub(super) span: Option<Span>,
    /// The next frame, where there is a span.
    pub(super) next: Option<Next>,
}

/// What was read of some groups.
#[derive(Default)]
pub(super) struct ReadPart {
    /// Of those that the device may read.
    pub(super) reads: Vec<Read>,
    /// There is no such group, or the device was never in it.
    pub(super) unknown: Vec<GroupId>,
    /// Those that cannot be read.
    pub(super) failed: Vec<GroupId>,
}

/// Why a group could not be read. A refusal is this stream's answer and ends it, as the contract says.
struct Unread(Error);

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ItemError for Unread {
    fn is_shared(&self) -> bool {
        matches!(self.0, Error::Refused { .. }) || self.0.is_shared()
    }
}

/// Why a group ended for a device, if it did, and with which entry.
pub(super) fn end_of(view: &View) -> Option<(u64, EndedWhy)> {
    let last = view.intervals.last()?;
    let head = &view.place.head;
    match (last.removed_seq, head.stage) {
        (Some(at), _) if last.voided => Some((at, EndedWhy::Voided)),
        (Some(at), _) => Some((at, EndedWhy::Removed)),
        (None, Stage::Open) => None,
        (None, Stage::Replaced) => Some((head.seq, EndedWhy::Replaced)),
        (None, Stage::Empty) => Some((head.seq, EndedWhy::Left)),
        (None, Stage::Deleted) => Some((head.seq, EndedWhy::Deleted)),
    }
}

impl Stream {
    /// Reads what comes next in each of some groups.
    pub(super) async fn read(&self, part: Vec<GroupId>) -> Result<ReadPart, Error> {
        let _turn = self.turn().await;
        let together = self
            .read_together(part.clone())
            .map(|done| done.map_err(Unread));
        match AssertUnwindSafe(together).catch_unwind().await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) if error.is_shared() => Err(error.0),
            Ok(Err(_)) | Err(_) => self.read_one_by_one(part).await,
        }
    }

    async fn read_one_by_one(&self, part: Vec<GroupId>) -> Result<ReadPart, Error> {
        let mut done = ReadPart::default();
        let mut items = Items::of("streams");
        for group in part {
            let alone = self.read_together(vec![group.clone()]);
            let alone = alone.map(|read| read.map_err(Unread));
            match items.one(hex(&group), alone).await.map_err(|e| e.0)? {
                Some(read) => {
                    done.reads.extend(read.reads);
                    done.unknown.extend(read.unknown);
                }
                None => done.failed.push(group),
            }
        }
        Ok(done)
    }

    async fn read_together(&self, part: Vec<GroupId>) -> Result<ReadPart, Error> {
        let client = self.node.db.client().await?;
        let ids: Vec<&[u8]> = part.iter().map(|group| &**group).collect();
        // The heads first, as in `log::view`.
        let found = store::groups::places(&client, &ids)
            .await
            .map_err(DbError::from)?;
        let mut places: Vec<Option<Place>> = vec![None; part.len()];
        for (index, place) in found {
            if let Some(slot) = places.get_mut(index) {
                *slot = Some(place);
            }
        }
        let readings = store::roster::readings(&client, &ids, self.caller.key)
            .await
            .map_err(DbError::from)?;
        let mut done = ReadPart::default();
        for ((group, place), reading) in part.into_iter().zip(places).zip(readings) {
            match self.begin_read(&client, &group, place, reading).await? {
                Some(read) => done.reads.push(read),
                None => done.unknown.push(group),
            }
        }
        self.read_entries(&client, &mut done.reads).await?;
        Ok(done)
    }

    /// What the device may see of a group, and from where it reads on; `None` where it may see nothing of it.
    async fn begin_read<C: GenericClient>(
        &self,
        client: &C,
        group: &GroupId,
        place: Option<Place>,
        reading: Reading,
    ) -> Result<Option<Read>, Error> {
        if reading.revoked {
            return Err(revoked());
        }
        let reader = self.readers.get(group);
        let (Some(place), Some(reader), false) = (place, reader, reading.intervals.is_empty())
        else {
            return Ok(None);
        };
        log::check_cursor(client, group, reader.after, reader.chain, &place.head).await?;
        let span = log::next_span(&reading.intervals, reader.after, place.head.seq);
        Ok(Some(Read {
            group: group.clone(),
            view: View {
                place,
                intervals: reading.intervals,
            },
            span,
            next: None,
        }))
    }

    async fn read_entries<C: GenericClient>(
        &self,
        client: &C,
        reads: &mut [Read],
    ) -> Result<(), Error> {
        let wanting: Vec<&mut Read> = reads.iter_mut().filter(|r| r.span.is_some()).collect();
        if wanting.is_empty() {
            return Ok(());
        }
        let asked: Vec<(&[u8], u64)> = wanting
            .iter()
            .filter_map(|read| Some((&*read.group, read.span?.after)))
            .collect();
        let each = u32::try_from(PART_ENTRIES.div_ceil(asked.len())).unwrap_or(1);
        let entries = store::log::read_many(client, &asked, each, INLINE_PAYLOAD_BYTES)
            .await
            .map_err(DbError::from)?;
        let mut pages: Vec<Vec<Entry>> = vec![Vec::new(); wanting.len()];
        for (index, entry) in entries {
            if let (Some(read), Some(page)) = (wanting.get(index), pages.get_mut(index))
                && read.span.is_some_and(|span| entry.seq <= span.until)
            {
                page.push(entry);
            }
        }
        for (read, page) in wanting.into_iter().zip(pages) {
            let first = page.first().map(|entry| entry.seq);
            match (first, read.span) {
                (Some(first), Some(span)) if first == span.after + 1 => {}
                (Some(_), _) => return Err(log::past_retention(client, &read.group).await?),
                (None, _) => return Err(Error::Corrupt("a hole in the log")),
            }
            let (group, head_seq) = (&read.group, read.view.place.head.seq);
            let mut rows = page.into_iter().peekable();
            let frame = log::page_of(&self.node, client, group, &mut rows, FRAME_BYTES, head_seq);
            read.next = Some(frame.await?);
        }
        Ok(())
    }
}
