//! Commands for one group, with facts that no store would give: `Group::decide` may refuse, and what it accepts fits the log.

use delivery_service::ordering::group::{
    Added, Command, Commit, CommitKind, Decision, DeviceKey, ExternalJoin, Group, Head, Leave,
    Membership, Prior, Rejection, Removed, Send, Stage, settle::Reported,
};
use uuid::Uuid;

/// Reads facts from the input; past its end all of them are zero.
struct Facts<'a>(&'a [u8]);

impl Facts<'_> {
    fn octet(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn yes(&mut self) -> bool {
        self.octet() & 1 == 1
    }

    fn some<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.yes().then(|| value(self))
    }

    /// Near a number that matters, or at the ends of the range.
    fn number(&mut self, near: u64) -> u64 {
        match self.octet() {
            255 => u64::MAX,
            254 => u64::MAX - 1,
            253 => 0,
            n => near.saturating_add(u64::from(n % 8)).saturating_sub(4),
        }
    }

    fn device(&mut self) -> DeviceKey {
        DeviceKey {
            domain: 1,
            device: self.id(),
        }
    }

    fn id(&mut self) -> Uuid {
        Uuid::from_u128(u128::from(self.octet() % 4))
    }

    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.octet() % 4).map(|_| item(self)).collect()
    }

    fn hash(&mut self) -> [u8; 32] {
        [self.octet() % 4; 32]
    }

    fn group(&mut self, head: &Head) -> Group {
        Group {
            head: head.clone(),
            caller: self.some(|f| Membership {
                user: f.id(),
                joined_seq: f.number(head.seq),
                barred_seq: f.some(|f| f.number(head.seq)),
            }),
            caller_revoked: self.octet() % 8 == 7,
            prior: self.some(|f| Prior {
                seq: f.number(head.seq),
                epoch: f.number(head.epoch),
                epoch_seq: f.number(head.epoch_seq),
                kind: i16::from(f.octet() % 10),
                content_hash: f.hash(),
                chain: [0; 32],
                accepted_at: 0,
                readable: f.yes(),
                voided_by: f.some(|f| f.number(head.seq)),
            }),
        }
    }

    fn command(&mut self, head: &Head) -> Command {
        match self.octet() % 3 {
            0 => Command::Send(Send {
                device: self.device(),
                content_hash: self.hash(),
                proposal: self.yes(),
                epoch: self.number(head.epoch),
                epoch_seq: self.number(head.epoch_seq),
                named_epoch: self.some(|f| f.number(head.epoch)),
                voided_by: self.some(|f| f.number(head.seq)),
            }),
            1 => Command::Leave(Leave {
                content_hash: self.hash(),
                joined_seq: self.number(head.seq),
            }),
            _ => Command::Commit(self.commit(head)),
        }
    }

    fn commit(&mut self, head: &Head) -> Commit {
        Commit {
            device: self.device(),
            user: self.id(),
            content_hash: self.hash(),
            kind: if self.yes() {
                CommitKind::External {
                    introduced: self.yes(),
                }
            } else {
                CommitKind::Member
            },
            epoch: self.number(head.epoch),
            epoch_seq: self.number(head.epoch_seq),
            voided_by: self.some(|f| f.number(head.seq)),
            winner_seq: self.some(|f| f.number(head.seq)),
            added: self.list(|f| Added {
                key: f.device(),
                user: f.id(),
                known_user: f.some(Self::id),
                revoked: f.yes(),
                member: f.yes(),
            }),
            removed: self.list(|f| Removed {
                key: f.device(),
                user: f.id(),
                member_user: f.some(Self::id),
            }),
            // Mostly right, or hardly any Commit would come through.
            proposals_known: self.octet() % 8 != 7,
            seen_seq: self.number(head.seq),
            seen_chain_fits: self.octet() % 8 != 7,
            revoked_members: self.list(Self::device),
            welcomed: self.list(|f| f.some(Self::device)),
            leaves_fit: self.octet() % 8 != 7,
            fault: (self.octet() % 8 == 7).then_some(Rejection::WelcomeMismatch),
            leaving_members: Vec::new(),
            past_epochs: head.past_epochs,
            external_join: head.external_join,
            other_users: self.yes(),
            other_devices: self.yes(),
            bar_is_over: self.octet() % 8 == 7,
        }
    }
}

/// The head of a new group, or of one whose numbers are as high as they go.
fn head(facts: &mut Facts<'_>) -> Head {
    let base = if facts.octet() == 255 {
        // PostgreSQL's bigint is the end of every number in the store.
        i64::MAX as u64 - 1_000
    } else {
        0
    };
    Head {
        stage: Stage::Open,
        seq: base,
        epoch: base,
        epoch_seq: base,
        floor_seq: 0,
        settled_seq: base,
        pending_removals: u32::from(facts.octet() % 2),
        committer: None,
        past_epochs: u64::from(facts.octet() % 4),
        external_join: match facts.octet() % 3 {
            0 => ExternalJoin::None,
            1 => ExternalJoin::Resync,
            _ => ExternalJoin::SameUser,
        },
        chain: [0; 32],
        last_at: i64::from(facts.octet()),
    }
}

/// What holds between a head and the one after it, whatever was asked.
fn follows(before: &Head, after: &Head) {
    assert_eq!(after.seq, before.seq + 1, "dense");
    assert!(after.epoch == before.epoch || after.epoch == before.epoch + 1);
    assert_eq!(
        after.epoch != before.epoch,
        after.epoch_seq != before.epoch_seq
    );
    assert!(after.floor_seq >= before.floor_seq, "a floor never sinks");
    assert!(
        after.settled_seq >= before.settled_seq,
        "settled stays settled"
    );
    assert!(after.settled_seq <= after.epoch_seq && after.epoch_seq <= after.seq);
    assert_eq!(
        after.committer.is_none(),
        after.settled_seq == after.epoch_seq
    );
}

/// The one way in for somebody who is no member.
fn introduced(command: &Command) -> bool {
    let introduced = CommitKind::External { introduced: true };
    matches!(command, Command::Commit(commit) if commit.kind == introduced)
}

/// A member reports that it is in the newest epoch, or in one before it.
fn report(facts: &mut Facts<'_>, group: &Group, head: &mut Head) {
    let epoch = Reported {
        epoch_seq: facts.number(head.epoch_seq).min(head.epoch_seq),
        committer: head.committer,
    };
    let _counts = group.failure_counts(epoch);
    if let Ok(Some(settled)) = group.confirm(facts.device(), epoch) {
        assert_eq!(settled.settled_seq, epoch.epoch_seq);
        assert!(
            settled.settled_seq > head.settled_seq,
            "settled stays settled"
        );
        assert_eq!(
            settled.committer.is_none(),
            settled.settled_seq == settled.epoch_seq
        );
        *head = settled;
    }
}

/// A sequence of commands and reports for one group.
pub fn decide(data: &[u8]) {
    let mut facts = Facts(data);
    let mut head = head(&mut facts);
    // A group that takes nothing is not worth the rest of the input.
    while !facts.0.is_empty() && head.stage == Stage::Open {
        let group = facts.group(&head);
        if facts.octet() % 8 == 7 {
            report(&mut facts, &group, &mut head);
            continue;
        }
        let command = facts.command(&head);
        let now = i64::from(facts.octet()) - 64;
        match group.decide(&command, now) {
            Ok(Decision::Append(append)) => {
                assert!(!group.caller_revoked, "nothing of a revoked device");
                assert!(group.caller.is_some() || introduced(&command));
                assert_eq!(append.seq, append.head.seq);
                assert!(append.accepted_at >= head.last_at, "time never runs back");
                follows(&head, &append.head);
                head = Head {
                    last_at: append.accepted_at,
                    ..append.head
                };
            }
            Ok(Decision::Replay(prior)) => {
                assert!(prior.readable && group.prior.as_ref() == Some(&prior));
            }
            Err(_) => {}
        }
    }
}
