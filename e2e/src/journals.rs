//! What the devices' own journals say. The server is not asked.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use serde_json::Value;

use crate::programs::{number, text};

/// A message that the server acknowledged to its sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    /// Where the server said that it stands.
    pub seq: u64,
    /// By its sender.
    pub message_id: String,
    /// As it was sent.
    pub text: String,
}

/// One line of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its place.
    pub seq: u64,
    /// `application`, `commit`, …
    pub kind: String,
    /// By its maker.
    pub message_id: String,
    /// Of an application message that could be read.
    pub text: Option<String>,
}

/// What a device has read.
#[derive(Debug, Clone)]
pub struct Journal {
    /// Whose.
    pub device: String,
    /// The seq that it joined at: it reads what comes after.
    pub joined_seq: u64,
    /// In order.
    pub lines: Vec<Line>,
}

/// Counted over all journals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Findings {
    /// Acknowledged messages that a member's journal lacks, or has with another text.
    pub lost: u64,
    /// Messages that a journal holds twice.
    pub duplicated: u64,
    /// Lines that stand at another place than in another journal, or than the server had said.
    pub reordered: u64,
    /// Acknowledged messages that every one of these journals holds.
    pub read_by_all: u64,
}

impl Journal {
    /// Reads the answer of `client-cli read`.
    ///
    /// # Errors
    /// Not such an answer.
    pub fn parse(device: &str, answer: &Value) -> anyhow::Result<Self> {
        let entries = answer["entries"].as_array().context("no entries")?;
        let line = |entry: &Value| {
            Ok(Line {
                seq: number(entry, "seq")?,
                kind: text(entry, "kind")?.to_owned(),
                message_id: text(entry, "message_id")?.to_owned(),
                text: entry["text"].as_str().map(str::to_owned),
            })
        };
        Ok(Self {
            device: device.to_owned(),
            joined_seq: number(answer, "joined_seq")?,
            lines: entries
                .iter()
                .map(line)
                .collect::<anyhow::Result<Vec<_>>>()?,
        })
    }
}

/// Compares all journals with each other and with what was acknowledged.
pub fn compare(journals: &[Journal], acknowledged: &[Acknowledged]) -> Findings {
    let mut findings = Findings::default();
    let mut missed: BTreeSet<&str> = BTreeSet::new();
    let mut places: BTreeMap<&str, u64> = BTreeMap::new();
    for message in acknowledged {
        places.insert(&message.message_id, message.seq);
    }
    for journal in journals {
        let mut seen: BTreeMap<&str, &Line> = BTreeMap::new();
        let mut last = 0;
        for line in &journal.lines {
            findings.reordered += u64::from(line.seq <= last);
            last = line.seq;
            findings.duplicated += u64::from(seen.insert(&line.message_id, line).is_some());
            let place = *places.entry(&line.message_id).or_insert(line.seq);
            findings.reordered += u64::from(place != line.seq);
        }
        for message in acknowledged {
            if message.seq <= journal.joined_seq {
                continue;
            }
            let read = seen
                .get(message.message_id.as_str())
                .is_some_and(|line| line.text.as_ref() == Some(&message.text));
            if !read {
                findings.lost += 1;
                missed.insert(&message.message_id);
            }
        }
    }
    let read = acknowledged
        .iter()
        .filter(|m| !missed.contains(m.message_id.as_str()));
    findings.read_by_all = read.count() as u64;
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(lines: &[(u64, &str)]) -> Journal {
        Journal {
            device: "d".into(),
            joined_seq: 1,
            lines: lines
                .iter()
                .map(|(seq, id)| Line {
                    seq: *seq,
                    kind: "application".into(),
                    message_id: (*id).into(),
                    text: Some(format!("text {id}")),
                })
                .collect(),
        }
    }

    fn acknowledged() -> Vec<Acknowledged> {
        [(2, "a"), (3, "b")]
            .map(|(seq, id)| Acknowledged {
                seq,
                message_id: id.into(),
                text: format!("text {id}"),
            })
            .to_vec()
    }

    #[test]
    fn equal_journals_have_no_findings() {
        let good = journal(&[(2, "a"), (3, "b")]);
        let findings = compare(&[good.clone(), good], &acknowledged());
        assert_eq!(
            findings,
            Findings {
                read_by_all: 2,
                ..Findings::default()
            }
        );
    }

    #[test]
    fn every_kind_of_fault_is_found() {
        let good = journal(&[(2, "a"), (3, "b")]);
        let check = |bad: Journal| compare(&[good.clone(), bad], &acknowledged());
        let lost = check(journal(&[(2, "a")]));
        assert_eq!((lost.lost, lost.read_by_all), (1, 1));
        assert_eq!(
            check(journal(&[(2, "a"), (3, "b"), (4, "a")])).duplicated,
            1
        );
        assert!(check(journal(&[(2, "b"), (3, "a")])).reordered > 0);
        assert!(check(journal(&[(3, "b"), (2, "a")])).reordered > 0);
        let mut other = journal(&[(2, "a"), (3, "b")]);
        other.lines[0].text = Some("something else".into());
        assert_eq!(check(other).lost, 1);
    }
}
