//! Groups that stay in memory from one step to the next: reading the state of a group of thousands costs more than most of what is done with it.
//!
//! Whoever loads a group takes it out, and gives it back when what the store holds is what the group says. A group is gone from here after a step that failed,
//! after an attempt that was undone, and when another process has written to the store.

use std::{cell::RefCell, collections::VecDeque};

use openmls::prelude::MlsGroup;

/// How many groups stay, the least used go first.
const GROUPS: usize = 8;

/// Groups by their ids, the last used at the end.
#[derive(Default)]
pub(super) struct Loaded {
    /// What SQLite counts when others write.
    version: i64,
    groups: RefCell<VecDeque<(Vec<u8>, MlsGroup)>>,
}

impl Loaded {
    /// What is still good when the store is at this version.
    pub(super) fn at(self, version: i64) -> Self {
        if self.version == version {
            return self;
        }
        Self {
            version,
            groups: RefCell::default(),
        }
    }

    pub(super) fn take(&self, id: &[u8]) -> Option<MlsGroup> {
        let mut groups = self.groups.borrow_mut();
        let place = groups.iter().position(|(known, _)| known == id)?;
        groups.remove(place).map(|(_, group)| group)
    }

    pub(super) fn keep(&self, group: MlsGroup) {
        let id = group.group_id().to_vec();
        drop(self.take(&id));
        let mut groups = self.groups.borrow_mut();
        groups.push_back((id, group));
        let over = groups.len().saturating_sub(GROUPS);
        groups.drain(..over);
    }

    pub(super) fn clear(&self) {
        self.groups.borrow_mut().clear();
    }
}
