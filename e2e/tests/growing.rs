//! How a group becomes large.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{
    collections::BTreeSet,
    ops::ControlFlow,
    process::{Child, Stdio},
    time::Duration,
};

use client_cli::{
    core::{group, records::GroupName},
    member::{
        Member,
        listen::{Event, Following, Stop},
    },
};
use e2e::{device::Device, programs::text};
use support::{Fixture, assert_agree, read, show};

/// A command that makes a large group takes minutes; a machine may not last so long.
#[test]
fn a_creation_that_was_killed_goes_on_with_the_same_group() {
    let fixture = Fixture::start();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| fixture.device(name));
    let list = fixture.folder.path().join("people");
    std::fs::write(
        &list,
        [&b.uri, "", &c.uri, &d.uri].map(|s| s as &str).join("\n"),
    )
    .unwrap();
    let id = "00112233445566778899aabbccddeeff";
    let file = list.to_string_lossy();
    let words = [
        "group",
        "create",
        "--id",
        id,
        "--past-epochs",
        "0",
        "--from",
        &file,
    ];
    for point in ["before-send", "after-claim", "after-send", "before-merge"] {
        a.crash(point, &words).unwrap();
    }
    let made = a.run(&words).unwrap();
    let group = text(&made, "group").unwrap();
    assert_eq!(group, format!("interior.example/{id}"));
    assert_eq!(show(&a, group)["members"].as_array().unwrap().len(), 4);
    // Once more there is nothing to do.
    let again = a.run(&words).unwrap();
    assert_eq!(again["group"], made["group"]);
    assert_eq!(show(&a, group)["epoch"], 1);
    let groups = a.run(&["group", "list"]).unwrap();
    assert_eq!(groups["groups"].as_array().unwrap().len(), 1);
    assert_agree(&[&a, &b, &c, &d], group);
}

/// The upper nodes of the tree that have somebody on both sides, and whether they are filled.
fn tree(member: &Member, name: &GroupName) -> (BTreeSet<u32>, BTreeSet<u32>) {
    let look = member.step(|step, _| {
        group::look(step, name, |mls_group| {
            let tree = group::tree_of(&mls_group.export_ratchet_tree())?;
            Ok((
                tree.width(),
                tree.nodes().map(|(i, _)| i).collect::<BTreeSet<u32>>(),
            ))
        })
    });
    let (width, nodes) = look.unwrap();
    let parents = (1..2 * width - 1).step_by(2);
    let useful = parents.filter(|parent| {
        let below = (1 << parent.trailing_ones()) - 1;
        let leaves = |mut range: std::ops::RangeInclusive<u32>| {
            range.any(|i| i % 2 == 0 && nodes.contains(&i))
        };
        leaves(parent - below..=parent - 1) && leaves(parent + 1..=parent + below)
    });
    let useful: BTreeSet<u32> = useful.collect();
    let filled = useful.intersection(&nodes).copied().collect();
    (useful, filled)
}

/// A process that ends with it.
struct Listening(Child);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_asks_who_is_online_to_fill_the_tree_and_then_nobody() {
    // So small that every node counts.
    let fixture = Fixture::start_with(&[("CHANCERY_DS_WARM_COMMIT_BYTES", "1")]);
    let (devices, group) =
        tokio::task::block_in_place(|| fixture.group(&["a", "b", "c", "d", "e", "f"]));
    let name: GroupName = group.parse().unwrap();
    let creator = fixture.member(&devices[0]).await;
    let (useful, filled) = tree(&creator, &name);
    // Adding fills nothing.
    assert_eq!((useful.len(), filled.len()), (5, 0));
    let listen = |device: &Device| {
        let mut command = device.command(&["listen"]);
        Listening(command.stdout(Stdio::null()).spawn().unwrap())
    };
    let online: Vec<Listening> = devices[1..].iter().map(listen).collect();
    let mut look = |event| match event {
        Event::Entry(..) | Event::CaughtUp => {
            let (useful, filled) = tree(&creator, &name);
            match useful == filled {
                true => ControlFlow::Break(Stop::Seen),
                false => ControlFlow::Continue(()),
            }
        }
        _ => ControlFlow::Continue(()),
    };
    let everything = Following::default();
    let warmed = creator.listen(&everything, &mut look);
    let in_time = tokio::time::timeout(Duration::from_secs(120), warmed).await;
    in_time.expect("it is not warm after two minutes").unwrap();
    drop(online);
    let entries = tokio::task::block_in_place(|| read(&devices[0], &group));
    let commits = entries.iter().filter(|entry| entry["kind"] == "commit");
    let by: Vec<&str> = commits
        .filter(|entry| entry["added"].as_array().is_some_and(Vec::is_empty))
        .filter_map(|entry| entry["sender"].as_str())
        .collect();
    let different: BTreeSet<&str> = by.iter().copied().collect();
    assert_eq!(
        different.len(),
        by.len(),
        "a device was asked twice: {by:?}"
    );
    assert!((2..=6).contains(&by.len()), "{by:?}");
    let all: Vec<_> = devices.iter().collect();
    tokio::task::block_in_place(|| assert_agree(&all, &group));
}
