//! Every way in which a Welcome can be of no use: it is put aside with its reason, and the next one is used. And which
//! Welcomes are for a device that waits for a return.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{sync::Arc, time::Duration};

use chancery_proto::{
    delivery::v1::{TreeNode, Welcome as Frame},
    welcome::{Welcome, assemble},
};
use client_cli::{
    core::{
        CoreError, group, join,
        records::{self, GroupName, GroupState},
    },
    failure::Failure,
    member::{Member as Device, welcomes::Entered},
    profile::Profile,
    surroundings::System,
    transport::Transport,
};
use openmls::prelude::RatchetTreeIn;
use support::{Member, *};

/// The same member as the commands use, that nobody answers.
fn device(member: Member) -> Device {
    let profile = Profile::new("http://nobody.invalid", "http://nobody.invalid");
    let transport = Transport::new(&profile, Duration::from_millis(1), Arc::new(System)).unwrap();
    let (store, identity, trust) = (member.store, member.identity, member.trust);
    Device::over(profile, store, identity, transport, Arc::new(System)).with_trust(trust)
}

/// An invitation of a new member into a group of two, and the tree as nodes.
struct Invitation {
    joiner: Member,
    frame: Frame,
    width: u32,
    nodes: Vec<TreeNode>,
    name: GroupName,
}

impl Invitation {
    fn new(authority: &Authority) -> Self {
        let (mut a, _, mut log) = pair(authority);
        let mut joiner = authority.member();
        let frame = log.invite(&mut a, joiner.key_package());
        let name = log.name.clone();
        let tree = a.step(|step, _| {
            group::look(step, &name, |g| {
                Ok(group::tree_of(&g.export_ratchet_tree())?.to_update())
            })
        });
        let tree = tree.unwrap();
        let nodes = tree.nodes.into_iter();
        Self {
            joiner,
            frame,
            width: tree.tree_width,
            nodes: nodes
                .map(|change| TreeNode {
                    index: change.index,
                    node: change.node,
                })
                .collect(),
            name,
        }
    }

    fn tree(&self) -> Result<RatchetTreeIn, CoreError> {
        group::ratchet_tree(self.width, &self.nodes)
    }

    /// Another Welcome of the same parts.
    fn welcome(&mut self, change: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>)) {
        let mut parts = Welcome::parse(&self.frame.welcome, group::MAX_BYTES).unwrap();
        let mut secrets = parts.secrets.remove(0).1;
        change(&mut secrets, &mut parts.encrypted_group_info);
        self.frame.welcome = assemble(parts.suite, &secrets, &parts.encrypted_group_info).into();
    }
}

/// What spoils an invitation, by name.
type Spoiler = (&'static str, fn(&mut Invitation));

const SPOILERS: &[Spoiler] = &[
    ("no bytes", |i| i.frame.welcome = Vec::new().into()),
    ("bytes that are no MLS message", |i| {
        i.frame.welcome = vec![9; 40].into()
    }),
    ("a message of another kind", |i| {
        i.frame.welcome = vec![0, 1, 0, 4, 0, 0].into()
    }),
    ("a byte too many", |i| {
        let mut bytes = i.frame.welcome.to_vec();
        bytes.push(0);
        i.frame.welcome = bytes.into();
    }),
    ("secrets that do not open", |i| {
        i.welcome(|secrets, _| *secrets.last_mut().unwrap() ^= 1);
    }),
    ("a GroupInfo that does not open", |i| {
        i.welcome(|_, info| *info.last_mut().unwrap() ^= 1);
    }),
    ("secrets for a KeyPackage that is not here", |i| {
        i.welcome(|secrets, _| secrets[1] ^= 1);
    }),
    ("another group", |i| {
        i.frame.group.as_mut().unwrap().id = vec![7; 32].into()
    }),
    ("another domain", |i| {
        i.frame.group.as_mut().unwrap().domain = "other.example".into()
    }),
    ("a chain value of another length", |i| {
        i.frame.chain = vec![1; 31].into()
    }),
    ("a tree of another epoch", |i| {
        i.nodes.truncate(i.nodes.len() - 1)
    }),
    ("a tree with a leaf of nobody", |i| {
        let leaf = i.nodes.iter_mut().find(|node| node.index == 0).unwrap();
        let mut bytes = leaf.node.clone().unwrap().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        leaf.node = Some(bytes.into());
    }),
    ("an empty tree", |i| i.nodes.clear()),
];

#[tokio::test]
async fn whatever_is_wrong_with_a_welcome_it_is_put_aside_and_the_next_one_is_used() {
    let authority = Authority::new();
    for (what, spoil) in SPOILERS {
        let mut invitation = Invitation::new(&authority);
        let (good, good_tree) = (invitation.frame.clone(), invitation.tree().unwrap());
        spoil(&mut invitation);
        let tree = invitation.tree();
        let Invitation {
            joiner,
            frame,
            name,
            ..
        } = invitation;
        let of = GroupName::from_ref(frame.group.as_ref().unwrap());
        let device = device(joiner);
        if let Ok(tree) = tree {
            let entered = device.enter(&frame, &of, tree).unwrap();
            assert!(
                matches!(entered, Entered::PutAside(_)),
                "{what}: {entered:?}"
            );
            // Without a chain value there is no place in the log to go on from.
            match device.record(&of) {
                Ok(record) => {
                    assert!(matches!(record.state, GroupState::NeedsRejoin(_)), "{what}");
                    let entries = device.step(|s, _| Ok(records::entries(s, &of, 0, 9)?));
                    let why = entries.unwrap()[0].skipped.clone().unwrap();
                    assert!(why.contains("Welcome cannot be used"), "{what}: {why}");
                }
                Err(Failure::Core(CoreError::Unknown)) => assert_eq!(frame.chain.len(), 31),
                Err(other) => panic!("{what}: {other}"),
            }
        }
        // The KeyPackage is not used up by it: added again, which is a later Welcome.
        if of == name {
            device
                .step(|step, _| Ok(records::delete_group(step, &name)?))
                .unwrap();
        }
        let entered = device.enter(&good, &name, good_tree).unwrap();
        assert_eq!(entered, Entered::Joined, "{what}");
    }
}

#[test]
fn a_welcome_is_for_whoever_has_no_live_state_and_is_no_member_by_a_later_one() {
    let authority = Authority::new();
    let mut member = authority.member();
    let name = GroupName {
        domain: DOMAIN.into(),
        id: vec![5; 32],
    };
    let waits = || GroupState::NeedsRejoin("x".into());
    // State; joined, rejoined, head; the Welcome's seq; whether it was used or is of no use.
    let cases = [
        (GroupState::Active, 3, 0, 8, 7, true),
        (GroupState::Active, 3, 0, 8, 9, false),
        (GroupState::Removed, 3, 0, 8, 7, false),
        (GroupState::Removed, 3, 0, 8, 3, true),
        (waits(), 3, 0, 8, 7, false),
        (waits(), 3, 0, 8, 9, false),
        (waits(), 3, 0, 8, 3, true),
        (waits(), 3, 7, 8, 7, true),
        (waits(), 3, 6, 8, 7, false),
        (GroupState::HistoryChanged, 3, 0, 8, 7, true),
    ];
    for (state, joined, rejoined, head, seq, known) in cases {
        let seen = member.step(|step, _| {
            let mut record = records::GroupRecord::new(name.clone(), state.clone(), head, [0; 32]);
            record.joined_seq = joined;
            record.rejoined_seq = rejoined;
            records::put_group(step, &record)?;
            join::known(step, &name, seq)
        });
        assert_eq!(
            seen.unwrap(),
            known,
            "{state:?} {joined} {rejoined} {head} {seq}"
        );
    }
}

#[tokio::test]
async fn a_welcome_that_is_no_welcome_takes_nothing_from_a_group_that_goes_on() {
    let authority = Authority::new();
    let (mut a, b, log) = pair(&authority);
    let name = log.name.clone();
    let tree = a.tree(&name);
    let before = b.identity.person.clone();
    let device = device(b);
    let record = device.record(&name).unwrap();
    let frame = Frame {
        group: Some(name.to_ref()),
        seq: record.head_seq + 5,
        epoch_seq: record.epoch_seq,
        welcome: vec![1, 2, 3].into(),
        chain: vec![1; 32].into(),
        ..Frame::default()
    };
    let entered = device.enter(&frame, &name, tree).unwrap();
    assert!(matches!(entered, Entered::PutAside(_)));
    assert_eq!(device.record(&name).unwrap(), record);
    assert_eq!(device.identity().person, before);
}
