//! The newest entries of a group, encoded once for all who follow it.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use crate::ordering::group::DeviceKey;

/// Bytes of frames that one group keeps for followers that are a little late; later ones read for themselves.
const KEPT_BYTES: usize = 256 * 1024;

/// A piece of the log as it goes to every member who has all that is before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// For who has read up to and with this seq.
    pub after: u64,
    /// Who has taken it has read up to and with this one.
    pub last: u64,
    /// gRPC messages, ready to be sent.
    pub bytes: Bytes,
    /// Devices whose membership ended in it: they read for themselves what is theirs.
    pub leavers: Arc<[DeviceKey]>,
}

/// What a follower does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It has everything.
    Nothing,
    /// It sends this.
    Piece(Piece),
    /// It reads for itself: it is too far behind, or the group is no longer one that is followed like this.
    Look,
}

/// Where the common reader of a group is.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// Last seq of the newest piece, once somebody follows.
    at: Option<Position>,
    pieces: VecDeque<Piece>,
    bytes: usize,
}

/// A place in a log, and what is known of the roster there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Everything up to and with this seq.
    pub seq: u64,
    /// The last Commit up to there: memberships change by Commits only.
    pub roster_seq: u64,
}

impl Tail {
    /// The place from which the common reader goes on.
    pub(super) fn position(&self) -> Option<Position> {
        self.at
    }

    /// A follower is here with everything read: the common reader may begin here. False if it has begun.
    pub(super) fn begin(&mut self, position: Position) -> bool {
        let begins = self.at.is_none();
        self.at.get_or_insert(position);
        begins
    }

    /// Nothing can be shared from here on, until somebody [`Tail::begin`]s again.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Adds pieces that follow on one another. False, and nothing happens, if they do not follow on what is there.
    pub(super) fn push(&mut self, pieces: Vec<Piece>, position: Position) -> bool {
        let Some(at) = self.at else { return false };
        let fits = pieces.first().is_none_or(|first| first.after == at.seq);
        if !fits || position.seq < at.seq {
            return false;
        }
        for piece in pieces {
            self.bytes += piece.bytes.len();
            self.pieces.push_back(piece);
        }
        while self.bytes > KEPT_BYTES && self.pieces.len() > 1 {
            self.drop_oldest();
        }
        self.at = Some(position);
        true
    }

    /// Followers had their time to take what is there.
    pub(super) fn forget_pieces(&mut self) {
        while !self.pieces.is_empty() {
            self.drop_oldest();
        }
        self.pieces.shrink_to_fit();
    }

    fn drop_oldest(&mut self) {
        if let Some(piece) = self.pieces.pop_front() {
            self.bytes -= piece.bytes.len();
        }
    }

    /// What comes for a follower that has read up to `after`.
    pub(super) fn next(&self, after: u64) -> Next {
        match self.at {
            None => Next::Look,
            Some(at) if after >= at.seq => Next::Nothing,
            Some(_) => self
                .pieces
                .iter()
                .find(|piece| piece.after == after)
                .map_or(Next::Look, |piece| Next::Piece(piece.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(after: u64, last: u64, bytes: usize) -> Piece {
        Piece {
            after,
            last,
            bytes: vec![0; bytes].into(),
            leavers: Arc::default(),
        }
    }

    fn at(seq: u64) -> Position {
        Position { seq, roster_seq: 0 }
    }

    fn tail_at(seq: u64) -> Tail {
        let mut tail = Tail::default();
        assert!(tail.begin(at(seq)) && !tail.begin(at(seq + 1)));
        tail
    }

    #[test]
    fn a_follower_gets_exactly_the_piece_behind_its_place() {
        let mut tail = tail_at(4);
        assert_eq!(tail.next(4), Next::Nothing);
        assert!(tail.push(vec![piece(4, 6, 1), piece(6, 7, 1)], at(7)));
        assert_eq!(tail.next(4), Next::Piece(piece(4, 6, 1)));
        assert_eq!(tail.next(6), Next::Piece(piece(6, 7, 1)));
        assert_eq!(tail.next(7), Next::Nothing);
        assert_eq!(tail.next(8), Next::Nothing);
        // In the middle of a piece, or before everything.
        assert_eq!(tail.next(5), Next::Look);
        assert_eq!(tail.next(3), Next::Look);
    }

    #[test]
    fn pieces_that_do_not_follow_are_refused() {
        let mut tail = tail_at(4);
        assert!(!tail.push(vec![piece(3, 5, 1)], at(5)));
        assert!(tail.push(vec![piece(4, 5, 1)], at(5)));
        assert!(!tail.push(vec![piece(4, 5, 1)], at(5)));
        assert!(!tail.push(Vec::new(), at(4)));
        assert!(!Tail::default().push(vec![piece(0, 1, 1)], at(1)));
        assert_eq!(tail.next(4), Next::Piece(piece(4, 5, 1)));
    }

    #[test]
    fn the_late_read_for_themselves() {
        let mut tail = tail_at(0);
        for after in 0..8 {
            assert!(tail.push(vec![piece(after, after + 1, KEPT_BYTES / 4)], at(after + 1)));
        }
        assert_eq!(tail.next(3), Next::Look);
        assert!(matches!(tail.next(4), Next::Piece(_)));
        tail.forget_pieces();
        assert_eq!((tail.next(4), tail.next(8)), (Next::Look, Next::Nothing));
        tail.reset();
        assert_eq!(tail.next(8), Next::Look);
    }
}
