//! Whom the messages of a batch are about: each is looked up once, however much it sends.

use std::{collections::HashMap, hash::Hash};

use uuid::Uuid;

use crate::{
    access::caller,
    hub::head_cache,
    log::batch::Message,
    ordering::group::{DeviceKey, Membership},
    store::devices::Standing,
};

/// Groups, senders and devices of some messages.
pub(super) struct Asked<'m> {
    /// In the order of their ids.
    pub(super) groups: Vec<&'m [u8]>,
    members: Distinct<(&'m [u8], DeviceKey)>,
    devices: Distinct<(DeviceKey, Uuid)>,
}

impl<'m> Asked<'m> {
    pub(super) fn of(messages: impl Iterator<Item = &'m Message> + Clone) -> Self {
        let mut groups: Vec<&[u8]> = messages.clone().map(|m| m.send.group.as_slice()).collect();
        groups.sort_unstable();
        groups.dedup();
        let mut members = Distinct::default();
        let mut devices = Distinct::default();
        for message in messages {
            members.put((message.send.group.as_slice(), message.sender));
            devices.put((message.sender, message.user));
        }
        Self {
            groups,
            members,
            devices,
        }
    }

    /// Whose memberships are looked up.
    pub(super) fn members(&self) -> &[(&'m [u8], DeviceKey)] {
        &self.members.items
    }

    /// Devices of which it is looked up how they stand.
    pub(super) fn devices(&self) -> &[(DeviceKey, Uuid)] {
        &self.devices.items
    }

    /// By message, from the answers to both questions. There is one for every device that is asked for.
    pub(super) fn senders(
        &self,
        memberships: &[Option<Membership>],
        standings: Vec<(usize, Standing)>,
    ) -> Vec<Sender> {
        let standings: HashMap<usize, Standing> = standings.into_iter().collect();
        let places = self.members.places.iter().zip(&self.devices.places);
        let sender = |(member, device): (&usize, &usize)| {
            Some(Sender {
                membership: *memberships.get(*member)?,
                standing: *standings.get(device)?,
            })
        };
        places.filter_map(sender).collect()
    }
}

/// Who sends a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sender {
    pub(super) membership: Option<Membership>,
    pub(super) standing: Standing,
}

impl Sender {
    /// What can be remembered of it: a known device that may call, and is a member.
    pub(super) fn known<'m>(
        &self,
        message: &'m Message,
        repeats: bool,
    ) -> Option<head_cache::Sender<'m>> {
        let may_call = self.standing.user == Some(message.user)
            && caller::check_standing(&self.standing, message.user).is_ok();
        Some(head_cache::Sender {
            group: &message.send.group,
            device: message.sender,
            user: message.user,
            membership: self.membership.filter(|_| may_call)?,
            repeats,
        })
    }
}

/// A list without repetitions, and where each thing that was put stands in it.
struct Distinct<T> {
    items: Vec<T>,
    known: HashMap<T, usize>,
    places: Vec<usize>,
}

impl<T> Default for Distinct<T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            known: HashMap::new(),
            places: Vec::new(),
        }
    }
}

impl<T: Copy + Eq + Hash> Distinct<T> {
    fn put(&mut self, item: T) {
        let place = *self.known.entry(item).or_insert_with(|| {
            self.items.push(item);
            self.items.len() - 1
        });
        self.places.push(place);
    }
}
