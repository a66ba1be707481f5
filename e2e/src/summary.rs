//! What was counted, and which promises it breaks.

use serde::Serialize;

/// The summary object of the demo. Every figure is counted.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    /// Devices that enrolled.
    pub devices: u64,
    /// Users that they belong to.
    pub users: u64,
    /// Messages that the server acknowledged to their senders.
    pub messages_acknowledged: u64,
    /// Of these, those that every member's journal holds.
    pub messages_read_by_all: u64,
    /// Acknowledged messages that a member's journal lacks.
    pub lost: u64,
    /// Messages that a journal holds twice.
    pub duplicated: u64,
    /// Lines at different places in different journals.
    pub reordered: u64,
    /// Commits in the log.
    pub commits: u64,
    /// Pairs of Commits that reached the server for the same epoch.
    pub commit_races: u64,
    /// Of these, those in which exactly one won and the loser learned the winner's seq.
    pub race_winners: u64,
    /// All members have the same epoch, roster and epoch authenticator.
    pub members_agree: bool,
    /// All members have the same head and the same chain.
    pub chains_agree: bool,
    /// How often the whole server side was killed.
    pub kills: u64,
    /// Requests whose outcome was unknown and that were resolved by a repeat.
    pub outcome_unknown_then_resolved: u64,
    /// The search finds a text that was planted in the clear.
    pub control_string_found_on_server: bool,
    /// The search finds a message's text.
    pub canary_found_on_server: bool,
    /// Entries, payloads, trees or GroupInfos of after its removal that a removed device got.
    pub removed_device_read_after_removal: u64,
    /// Entries, payloads, trees or GroupInfos of after its revocation that a revoked device got.
    pub revoked_device_read_after_revocation: u64,
    /// Entries that the device that was offline caught up with.
    pub caught_up: u64,
    /// A repeated message was answered as the first time and appears once.
    pub repeat_appears_once: bool,
    /// Seconds.
    pub elapsed_s: f64,
}

impl Summary {
    /// Promises that did not hold.
    pub fn broken(&self) -> Vec<&'static str> {
        let promises = [
            (
                self.users >= 12 && self.devices >= 20,
                "12 users with 20 devices",
            ),
            (self.messages_acknowledged > 0, "messages are sent"),
            (
                self.messages_read_by_all == self.messages_acknowledged,
                "everybody reads every acknowledged message",
            ),
            (self.lost == 0, "nothing is lost"),
            (self.duplicated == 0, "nothing appears twice"),
            (self.reordered == 0, "one order for all"),
            (self.commit_races > 0, "a race happened"),
            (
                self.race_winners == self.commit_races,
                "each race has one winner, and the loser learns its seq",
            ),
            (self.members_agree, "members agree"),
            (self.chains_agree, "chains agree"),
            (self.kills > 0, "the server side was killed"),
            (
                self.outcome_unknown_then_resolved > 0,
                "a kill hit a request in flight, and its outcome was resolved",
            ),
            (
                self.control_string_found_on_server,
                "the search finds what lies in the clear",
            ),
            (!self.canary_found_on_server, "the server holds no text"),
            (
                self.removed_device_read_after_removal == 0,
                "a removed device reads nothing more",
            ),
            (
                self.revoked_device_read_after_revocation == 0,
                "a revoked device reads nothing more",
            ),
            (self.caught_up > 0, "a device that was offline catches up"),
            (self.repeat_appears_once, "a repeat appears once"),
        ];
        promises
            .into_iter()
            .filter_map(|(held, promise)| (!held).then_some(promise))
            .collect()
    }
}
