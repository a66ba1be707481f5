//! What is only read; KeyPackages and the inbox.

use chancery_proto::{
    common::v1::{Reason, UserRef},
    delivery::v1::*,
    key_package::KeyPackage,
    status,
    welcome::assemble,
};
use delivery_service::{ordering::group::Rejection, reading::log::next_span};
use tonic::Status;
use uuid::Uuid;

use super::{
    DOMAIN, Done, MAX, Package, Service, Waiting, Who, group_id, id16, malformed, reference,
    rejected, room,
};

impl Service {
    /// See the wire.
    ///
    /// # Errors
    /// See the wire.
    pub fn read_log(&self, who: Who, request: &ReadLogRequest) -> Done<ReadLogResponse> {
        let id = group_id(request.group.as_ref())?;
        self.tables(|tables| {
            let room = room(tables, &id)?;
            let intervals = room.intervals(who.device);
            if intervals.is_empty() {
                return Err(rejected(Rejection::NotFound));
            }
            let mut entries = Vec::new();
            let span = next_span(&intervals, request.after_seq, room.head.seq);
            let seqs = span
                .into_iter()
                .flat_map(|span| span.after + 1..=span.until);
            for seq in seqs {
                let place = usize::try_from(seq - 1).unwrap_or(usize::MAX);
                let mut entry = room.log[place].entry.clone();
                entry.group_state_hash = room
                    .epoch(entry.seq)
                    .map(|epoch| epoch.state_hash.clone().into())
                    .unwrap_or_default();
                entries.push(entry);
            }
            Ok(ReadLogResponse {
                entries: Some(Entries {
                    group: Some(reference(&id)),
                    entries,
                    head_seq: room.head.seq,
                }),
                pruned: None,
            })
        })
    }

    /// See the wire.
    ///
    /// # Errors
    /// See the wire.
    pub fn group_info(
        &self,
        who: Who,
        request: &GetGroupInfoRequest,
    ) -> Done<GetGroupInfoResponse> {
        let id = group_id(request.group.as_ref())?;
        self.tables(|tables| {
            let room = room(tables, &id)?;
            if !room.is_member(who.device) {
                return Err(rejected(Rejection::NotFound));
            }
            let epoch = room
                .epoch(room.head.epoch_seq)
                .ok_or_else(|| Status::internal("no epoch"))?;
            Ok(GetGroupInfoResponse {
                group_info: epoch.group_info.clone().into(),
                epoch: epoch.number,
                epoch_seq: epoch.seq,
                head_seq: room.head.seq,
                chain: room.head.chain.to_vec().into(),
                group_state_hash: epoch.state_hash.clone().into(),
                suite: room.suite.into(),
            })
        })
    }

    /// See the wire.
    ///
    /// # Errors
    /// See the wire.
    pub fn tree(&self, who: Who, request: &FetchTreeRequest) -> Done<FetchTreeResponse> {
        let id = group_id(request.group.as_ref())?;
        self.tables(|tables| {
            if tables.treeless.contains(&id) {
                return Err(rejected(Rejection::NotFound));
            }
            let room = room(tables, &id)?;
            let seq = match request.current {
                true => room.head.epoch_seq,
                false => request.epoch_seq,
            };
            let held = room
                .intervals(who.device)
                .iter()
                .any(|i| i.joined_seq <= seq && i.removed_seq.is_none_or(|end| seq < end));
            let epoch = room.epoch(seq).filter(|_| held);
            let epoch = epoch.ok_or_else(|| rejected(Rejection::NotFound))?;
            Ok(FetchTreeResponse {
                epoch_seq: seq,
                tree_width: epoch.tree.width(),
                nodes: epoch
                    .tree
                    .nodes()
                    .map(|(index, node)| TreeNode {
                        index,
                        node: Some(node.to_vec().into()),
                    })
                    .collect(),
            })
        })
    }

    /// Unread Welcomes.
    pub fn welcomes(&self, who: Who) -> Vec<Welcome> {
        self.tables(|tables| {
            let mut welcomes = Vec::new();
            if tables.withheld_welcomes.contains(&who.device) {
                return welcomes;
            }
            for (id, room) in &tables.rooms {
                for waiting in room.welcomes.iter().filter(|w| w.to == who && !w.read) {
                    let Some(epoch) = room.epoch(waiting.seq) else {
                        continue;
                    };
                    let place = usize::try_from(waiting.seq - 1).unwrap_or(usize::MAX);
                    welcomes.push(Welcome {
                        group: Some(reference(id)),
                        seq: waiting.seq,
                        epoch_seq: waiting.seq,
                        key_package_ref: waiting.reference.clone().into(),
                        expires_at: i64::MAX,
                        welcome: assemble(room.suite, &waiting.secrets, &epoch.shared).into(),
                        chain: room.log[place].entry.chain.clone(),
                    });
                }
            }
            welcomes
        })
    }

    /// Hides read Welcomes.
    pub fn acknowledge(&self, who: Who, request: &AckWelcomesRequest) {
        self.tables(|tables| {
            for read in &request.welcomes {
                let id = group_id(read.group.as_ref()).unwrap_or_default();
                let Some(room) = tables.rooms.get_mut(&id) else {
                    continue;
                };
                let mine = |w: &&mut Waiting| w.to == who && w.seq == read.seq;
                room.welcomes
                    .iter_mut()
                    .filter(mine)
                    .for_each(|w| w.read = true);
            }
        });
    }

    /// See the wire.
    ///
    /// # Errors
    /// See the wire.
    pub fn publish(&self, who: Who, request: &PublishKeyPackagesRequest) -> Done<Vec<Stock>> {
        let replaced = |p: &Package| {
            let suite = u32::from(p.suite);
            p.owner == who && p.claimed.is_none() && request.replace_suites.contains(&suite)
        };
        let mut new = Vec::new();
        for body in &request.key_packages {
            let package = KeyPackage::parse(body, MAX).map_err(malformed)?;
            let checked = package.check().and_then(|()| package.check_grease());
            checked.map_err(|fault| {
                let rule = [("rule", fault.rule().to_owned())];
                status::refusal(Reason::CredentialInvalid, &fault.to_string(), rule)
            })?;
            let reference = package.reference().unwrap_or_default();
            let stored = Package {
                owner: who,
                suite: package.suite,
                last_resort: package.last_resort,
                claimed: None,
                given: 0,
                body: body.to_vec(),
                reference,
            };
            new.push(stored);
        }
        self.tables(|tables| {
            tables.packages.retain(|p| !replaced(p));
            for stored in new {
                let known = |p: &Package| p.reference == stored.reference;
                if !tables.packages.iter().any(known) {
                    tables.packages.push(stored);
                }
            }
        });
        Ok(self.stock(who))
    }

    /// What is in stock of a device.
    pub fn stock(&self, who: Who) -> Vec<Stock> {
        self.tables(|tables| {
            let own = |p: &&Package| p.owner == who && p.suite == 1;
            let own: Vec<&Package> = tables.packages.iter().filter(own).collect();
            let one_time = own.iter().filter(|p| !p.last_resort && p.claimed.is_none());
            let last_resort = own.iter().rfind(|p| p.last_resort);
            vec![Stock {
                suite: 1,
                one_time: u32::try_from(one_time.count()).unwrap_or(0),
                last_resort: last_resort.is_some(),
                last_resort_claims: last_resort.map_or(0, |p| p.given),
            }]
        })
    }

    /// See the wire.
    ///
    /// # Errors
    /// See the wire.
    pub fn claim(&self, request: &ClaimKeyPackagesRequest) -> Done<ClaimKeyPackagesResponse> {
        let claim_id = id16(&request.claim_id)?;
        self.tables(|tables| {
            let mut claims = Vec::new();
            for device in &request.devices {
                let id = Uuid::from_slice(&device.id)
                    .map_err(|_| status::malformed("devices", "16 bytes"))?;
                let revoked = tables.revoked.contains_key(&id);
                let of = |p: &Package| p.owner.device == id && p.suite == 1;
                let again = |p: &Package| of(p) && p.claimed == Some(claim_id);
                let free = |p: &Package| of(p) && !p.last_resort && p.claimed.is_none();
                let last = |p: &Package| of(p) && p.last_resort;
                let packages = &mut tables.packages;
                let found = packages
                    .iter()
                    .position(again)
                    .or_else(|| packages.iter().position(free))
                    .or_else(|| packages.iter().rposition(last));
                let found = found.filter(|_| !tables.withheld_packages.contains(&id));
                let outcome = match found {
                    _ if revoked => ClaimOutcome::Revoked,
                    Some(_) => ClaimOutcome::KeyPackage,
                    None if tables.devices.contains_key(&id) => ClaimOutcome::Exhausted,
                    None => ClaimOutcome::Unknown,
                };
                let package = found.filter(|_| !revoked).map(|place| {
                    if !packages[place].last_resort {
                        packages[place].claimed = Some(claim_id);
                    }
                    packages[place].given += 1;
                    let swapped = tables.swapped_packages.get(&id);
                    let mut package = packages[place].clone();
                    package.body = swapped.cloned().unwrap_or(package.body);
                    package
                });
                claims.push(Claim {
                    device: Some(device.clone()),
                    outcome: outcome.into(),
                    last_resort: package.as_ref().is_some_and(|p| p.last_resort),
                    user: tables.devices.get(&id).map(|user| UserRef {
                        domain: DOMAIN.into(),
                        id: user.as_bytes().to_vec().into(),
                    }),
                    key_package: package.map(|p| p.body).unwrap_or_default().into(),
                });
            }
            Ok(ClaimKeyPackagesResponse { claims })
        })
    }

    /// The groups of a device.
    pub fn groups(&self, who: Who) -> ListGroupsResponse {
        self.tables(|tables| {
            let rooms = tables.rooms.iter();
            let mine = rooms.filter(|(_, room)| room.is_member(who.device));
            ListGroupsResponse {
                groups: mine
                    .map(|(id, room)| GroupSummary {
                        group: Some(reference(id)),
                        state: Some(room.state(id)),
                        ..GroupSummary::default()
                    })
                    .collect(),
            }
        })
    }
}
