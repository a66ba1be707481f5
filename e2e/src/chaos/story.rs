//! A history by operations: what was asked, every attempt at it, and what was acknowledged in the end.

use std::collections::BTreeMap;

use serde_json::Value;

use super::history::{Asked, Event, Record};

/// What was acknowledged: first where and when it was asked for, then when the first answer came.
#[derive(Debug)]
pub(super) struct Write<'a> {
    pub(super) group: &'a str,
    pub(super) message_id: String,
    pub(super) seq: u64,
    pub(super) asked_at: u64,
    pub(super) answered_at: u64,
    /// Of a message.
    pub(super) text: Option<&'a str>,
    /// Of a Commit: the epoch that it began.
    pub(super) epoch: Option<u64>,
}

/// One operation: what was asked, and every attempt at it.
#[derive(Debug)]
pub(super) struct Operation<'a> {
    pub(super) device: &'a str,
    pub(super) asked: &'a Asked,
    pub(super) attempts: Vec<Attempt<'a>>,
}

#[derive(Debug)]
pub(super) struct Attempt<'a> {
    pub(super) from: u64,
    /// Absent where the run ended first.
    pub(super) end: Option<End<'a>>,
}

#[derive(Debug)]
pub(super) struct End<'a> {
    pub(super) at: u64,
    pub(super) code: i32,
    pub(super) answer: &'a Value,
    pub(super) error: &'a Value,
}

/// The history by operations.
pub(super) struct Story<'a> {
    pub(super) operations: BTreeMap<u64, Operation<'a>>,
    pub(super) writes: Vec<Write<'a>>,
    pub(super) heard: Vec<(u64, &'a Value)>,
}

impl<'a> Story<'a> {
    pub(super) fn of(history: &'a [Record]) -> Self {
        let mut operations: BTreeMap<u64, Operation<'a>> = BTreeMap::new();
        let mut heard = Vec::new();
        for Record { at, event } in history {
            match event {
                Event::Begin { op, device, asked } => {
                    let operation = operations.entry(*op).or_insert_with(|| Operation {
                        device,
                        asked,
                        attempts: Vec::new(),
                    });
                    operation.attempts.push(Attempt {
                        from: *at,
                        end: None,
                    });
                }
                Event::End {
                    op,
                    code,
                    answer,
                    error,
                } => {
                    let attempts = operations.get_mut(op).map(|o| &mut o.attempts);
                    if let Some(attempt) = attempts.and_then(|a| a.last_mut()) {
                        attempt.end = Some(End {
                            at: *at,
                            code: *code,
                            answer,
                            error,
                        });
                    }
                }
                Event::Heard { op, line } => heard.push((*op, line)),
                _ => {}
            }
        }
        let mut story = Self {
            operations,
            writes: Vec::new(),
            heard,
        };
        story.writes = story
            .operations
            .values()
            .flat_map(Operation::writes)
            .collect();
        story
    }
}

impl<'a> Operation<'a> {
    fn writes(&self) -> Vec<Write<'a>> {
        let asked_at = self.attempts.first().map_or(0, |attempt| attempt.from);
        let answers = self.attempts.iter().filter_map(|a| a.end.as_ref());
        let mut writes = Vec::new();
        for End { at, answer, .. } in answers.filter(|end| end.code == 0) {
            match self.asked {
                Asked::Send { group, messages } => {
                    let one = std::slice::from_ref(*answer);
                    let sent = answer["sent"].as_array().map_or(one, Vec::as_slice);
                    for line in sent {
                        let id = line["message_id"].as_str().unwrap_or_default();
                        let wanted = messages.iter().find(|m| m.message_id == id);
                        writes.push(Write {
                            group,
                            message_id: id.to_owned(),
                            seq: line["seq"].as_u64().unwrap_or(0),
                            asked_at,
                            answered_at: *at,
                            text: wanted.map(|m| m.text.as_str()),
                            epoch: None,
                        });
                    }
                }
                Asked::Commit { group, .. } => writes.push(Write {
                    group,
                    message_id: answer["message_id"].as_str().unwrap_or_default().to_owned(),
                    seq: answer["seq"].as_u64().unwrap_or(0),
                    asked_at,
                    answered_at: *at,
                    text: None,
                    epoch: answer["epoch"].as_u64(),
                }),
                // What an earlier command had left open, and this one has settled.
                Asked::Sync => {
                    let resolved = answer["resolved"].as_array().map_or(&[][..], Vec::as_slice);
                    writes.extend(resolved.iter().filter_map(|line| {
                        Some(Write {
                            group: line["group"].as_str()?,
                            message_id: line["message_id"].as_str()?.to_owned(),
                            seq: line["seq"].as_u64()?,
                            asked_at: 0,
                            answered_at: *at,
                            text: None,
                            epoch: None,
                        })
                    }));
                }
                _ => {}
            }
        }
        writes
    }
}
