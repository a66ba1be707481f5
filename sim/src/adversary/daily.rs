//! What honest devices do every day: while the hostile ones are there, it succeeds within a few attempts.

use std::time::Duration;

use super::{
    fault::Class,
    world::{Daily, HONEST_ONES, NEWCOMER, World},
};

/// Attempts in which what an honest device does must succeed.
const ATTEMPTS: u32 = 6;
/// Between two of them, seconds: a Commit that nobody can use is taken back after ten.
const PAUSE: u64 = 13;

impl World {
    /// Does it until it succeeds; where it does not, that is a fault. A device that is out has nothing to do.
    pub(super) async fn must(&mut self, n: usize, what: Daily) -> bool {
        let mut last = String::new();
        for attempt in 1..=ATTEMPTS {
            if !self.in_roster(n) {
                return false;
            }
            match self.tries(n, what).await {
                Ok(done) => {
                    self.tell(format!("{n}: {what:?}: {done} (attempt {attempt})"));
                    return true;
                }
                Err(why) => last = why,
            }
            self.tell(format!("{n}: {what:?} ended with {last}"));
            tokio::time::sleep(Duration::from_secs(PAUSE)).await;
            // A Commit is taken back on the word of two people: the others are online too.
            for honest in HONEST_ONES {
                self.syncs(honest, false).await;
            }
        }
        let text = format!("{n} tried {what:?} {ATTEMPTS} times: {last}");
        self.wrong(Class::Stuck, text);
        false
    }

    /// Does it once; what came of it.
    pub(super) async fn tries(&mut self, n: usize, what: Daily) -> Result<String, String> {
        let member = self.members[n].clone();
        match what {
            Daily::Say => {
                let text = self.next_text(n);
                let message = [(member.new_id(), text.clone().into_bytes())];
                let sent = member.send(&self.group, &message).await;
                let sent = sent.map_err(|failure| failure.to_string())?;
                let seqs: Vec<u64> = sent.iter().map(|sent| sent.accepted.seq).collect();
                Ok(format!("{text:?} at {seqs:?}"))
            }
            Daily::Update => {
                let done = member.update(&self.group).await;
                done.map(|done| format!("at {}", done.accepted.seq))
                    .map_err(|failure| failure.to_string())
            }
            Daily::Add(who) if self.in_roster(who) => Ok("is in".into()),
            Daily::Add(who) => {
                let done = member.add(&self.group, &[self.name(who)]).await;
                let left_out = match done {
                    Ok(done) => done.left_out,
                    // The hostile person's KeyPackage may be of no use.
                    Err(failure) if who != NEWCOMER => return Ok(failure.to_string()),
                    Err(failure) => return Err(failure.to_string()),
                };
                match left_out.iter().any(|_| who == NEWCOMER) {
                    true => Err(format!("left out: {left_out:?}")),
                    false => Ok("added".into()),
                }
            }
        }
    }
}
