//! Devices that had no KeyPackage when they were to be added: known, shown, and brought in as soon as they can be.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use e2e::{device::Device, programs::text};
use serde_json::{Value, json};
use support::{Fixture, assert_agree, show};

fn left_out(device: &Device, group: &str) -> Vec<String> {
    let shown = show(device, group);
    let devices = shown["left_out"].as_array().unwrap().iter();
    devices
        .map(|l| l["device"].as_str().unwrap().to_owned())
        .collect()
}

fn members(device: &Device, group: &str) -> usize {
    device.run(&["sync"]).unwrap();
    show(device, group)["members"].as_array().unwrap().len()
}

#[test]
fn a_device_without_a_key_package_comes_in_as_soon_as_it_has_one() {
    let fixture = Fixture::start();
    let (a, b) = (fixture.device("a"), fixture.device("b"));
    let c = fixture.device("c");
    fixture.drop_key_packages(&c);
    let (created, group) = a.create_group([&b, &c]).unwrap();
    assert_eq!(created["left_out"][0]["device"], c.uri.as_str());
    assert_eq!(left_out(&a, &group), [c.uri.as_str()]);
    // Nothing to be done yet, and nothing is.
    let head = show(&a, &group)["head_seq"].clone();
    a.run(&["sync"]).unwrap();
    assert_eq!(show(&a, &group)["head_seq"], head);
    c.run(&["sync"]).unwrap();
    assert_eq!(members(&a, &group), 3);
    c.run(&["sync"]).unwrap();
    b.run(&["sync"]).unwrap();
    assert_agree(&[&a, &b, &c], &group);
    assert!(left_out(&a, &group).is_empty() && left_out(&b, &group).is_empty());
}

#[test]
fn whoever_is_online_brings_in_what_somebody_else_left_out() {
    let fixture = Fixture::start();
    let (a, b) = (fixture.device("a"), fixture.device("b"));
    let (c1, c2) = (fixture.device_of("c", "c1"), fixture.device_of("c", "c2"));
    fixture.drop_key_packages(&c2);
    let (_, group) = a.create_group([&b, &c1, &c2]).unwrap();
    for device in [&b, &c1] {
        device.run(&["sync"]).unwrap();
    }
    // They came in by the Commit that left it out, which they cannot read; the next one says it again.
    a.run(&["group", "update", "--group", &group]).unwrap();
    for device in [&b, &c1] {
        device.run(&["sync"]).unwrap();
        assert_eq!(
            left_out(device, &group),
            [c2.uri.as_str()],
            "told by the Commit"
        );
    }
    c2.run(&["sync"]).unwrap();
    // Others leave it to whoever tried first, for a while.
    let head = show(&b, &group)["head_seq"].clone();
    b.run(&["sync"]).unwrap();
    assert_eq!(show(&b, &group)["head_seq"], head);
    // The first one is not there, and the while is over.
    let waited = b.run(&["--left-out-wait-seconds", "0", "sync"]).unwrap();
    assert_eq!(waited["failed"], json!([]));
    c2.run(&["sync"]).unwrap();
    assert_agree(&[&a, &b, &c1, &c2], &group);
}

#[test]
fn nobody_of_a_user_who_was_removed_is_brought_in() {
    let fixture = Fixture::start();
    let (a, b) = (fixture.device("a"), fixture.device("b"));
    let (c1, c2) = (fixture.device_of("c", "c1"), fixture.device_of("c", "c2"));
    fixture.drop_key_packages(&c2);
    let (_, group) = a.create_group([&b, &c1, &c2]).unwrap();
    b.run(&["sync"]).unwrap();
    b.run(&["group", "remove", "--group", &group, "--device", &c1.uri])
        .unwrap();
    c2.run(&["sync"]).unwrap();
    assert_eq!(members(&a, &group), 2);
    assert!(left_out(&a, &group).is_empty() && left_out(&b, &group).is_empty());
    // Nor one that a person took back before it ever was in.
    let d = fixture.device("d");
    fixture.drop_key_packages(&d);
    let add = ["group", "add", "--group", &group, "--device", &d.uri];
    assert_eq!(a.attempt(&add).unwrap().code, 5);
    assert_eq!(left_out(&a, &group), [d.uri.as_str()]);
    a.attempt(&["group", "remove", "--group", &group, "--device", &d.uri])
        .unwrap();
    d.run(&["sync"]).unwrap();
    assert_eq!(members(&a, &group), 2);
}

#[test]
fn a_replaced_group_takes_along_who_was_away() {
    let fixture = Fixture::start();
    let (devices, old) = fixture.group(&["a", "b", "c"]);
    let [a, b, c] = &devices[..] else { panic!() };
    fixture.drop_key_packages(c);
    let replaced = a.run(&["group", "replace", "--group", &old]).unwrap();
    let new = text(&replaced, "group").unwrap().to_owned();
    assert_eq!(
        replaced["left_out"][0]["device"],
        c.uri.as_str(),
        "{replaced}"
    );
    b.run(&["sync"]).unwrap();
    c.run(&["sync"]).unwrap();
    assert_eq!(members(a, &new), 3);
    c.run(&["sync"]).unwrap();
    assert_agree(&[a, b, c], &new);
    // Where nobody has one, the new group is there all the same.
    for device in [b, c] {
        fixture.drop_key_packages(device);
    }
    let replaced = a.run(&["group", "replace", "--group", &new]).unwrap();
    let last = text(&replaced, "group").unwrap().to_owned();
    assert_eq!(left_out(a, &last).len(), 2);
    for device in [b, c] {
        device.run(&["sync"]).unwrap();
    }
    assert_eq!(members(a, &last), 3);
}

#[test]
fn a_creators_other_devices_are_in_from_the_start() {
    let fixture = Fixture::start();
    let (a1, a2) = (fixture.device_of("a", "a1"), fixture.device_of("a", "a2"));
    let b = fixture.device("b");
    let (created, group) = a1.create_group([&b]).unwrap();
    assert_eq!(created["added"].as_array().unwrap().len(), 2, "{created}");
    for device in [&a2, &b] {
        device.run(&["sync"]).unwrap();
    }
    assert_agree(&[&a1, &a2, &b], &group);
    let words = ["group", "create", "--no-own-devices", "--device", &b.uri];
    let alone = a1.run(&words).unwrap();
    assert_eq!(alone["added"], json!([b.uri]));
    // One that has none now is no reason to make no group.
    fixture.drop_key_packages(&a2);
    let created = a1.run(&["group", "create"]).unwrap();
    let group = text(&created, "group").unwrap();
    assert_eq!(created["left_out"][0]["device"], a2.uri.as_str());
    a2.run(&["sync"]).unwrap();
    assert_eq!(members(&a1, group), 2);
    assert_eq!(Value::from(left_out(&a1, group)), json!([]));
}
