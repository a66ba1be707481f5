//! Application messages, proposals and leave requests.

use crate::ordering::group::{Group, Head, Leave, Rejection, Send, settle::settle};

impl Group {
    pub(super) fn send(&self, send: &Send) -> Result<Head, Rejection> {
        let membership = self.caller.ok_or(Rejection::NotFound)?;
        self.check_id_free()?;
        let head = &self.head;
        self.check_open()?;
        self.check_epoch_of_send(send)?;
        if !send.proposal && head.pending_removals > 0 {
            return Err(Rejection::PendingRemoval {
                count: head.pending_removals,
            });
        }
        let mut next = self.head_after_entry();
        if send.epoch_seq == head.epoch_seq {
            settle(&mut next, send.device, membership);
        }
        Ok(next)
    }

    pub(super) fn leave(&self, leave: &Leave) -> Result<Head, Rejection> {
        let membership = self.caller.ok_or(Rejection::NotFound)?;
        self.check_id_free()?;
        self.check_open()?;
        if leave.joined_seq != membership.joined_seq {
            return Err(Rejection::OtherMembership);
        }
        Ok(self.head_after_entry())
    }

    fn check_epoch_of_send(&self, send: &Send) -> Result<(), Rejection> {
        let head = &self.head;
        if send.epoch == head.epoch && send.epoch_seq == head.epoch_seq {
            return Ok(());
        }
        self.check_not_voided(send.voided_by)?;
        if send.epoch > head.epoch {
            return Err(self.in_future());
        }
        if send.proposal {
            return Err(self.stale(None));
        }
        let too_old = Rejection::EpochTooOld {
            current_epoch: head.epoch,
            epoch_seq: head.epoch_seq,
        };
        let in_window = head.epoch - send.epoch <= head.past_epochs;
        let standing = send.named_epoch == Some(send.epoch);
        // A device that the last removing Commit cut off could still read an older epoch.
        if in_window && standing && send.epoch_seq >= head.floor_seq {
            Ok(())
        } else {
            Err(too_old)
        }
    }
}
