//! KeyPackages that break a rule of RFC 9420 or of the contract are refused at publish, by the rule's name.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::{
    common::v1::Reason, key_package::LAST_RESORT, policy::POLICY_EXTENSION, status::Refusal,
};
use support::{World, forge::Parts, key_packages::publish, reason};
use uuid::Uuid;

/// A type that nobody has registered (RFC 9420 section 17.3: for private use).
const PRIVATE_USE: u16 = 0xf0f0;
const GREASE: u16 = 0x2a2a;

type Spoil = fn(&mut Parts);

/// A field of a good KeyPackage spoilt in one way, and the rule that it breaks then.
const SPOILT: &[(&str, Spoil)] = &[
    ("encryption_key_form", |p| p.encryption_key = vec![]),
    ("encryption_key_form", |p| p.encryption_key = vec![1; 5]),
    ("encryption_key_form", |p| p.encryption_key = vec![9; 33]),
    ("encryption_key_form", |p| p.encryption_key = vec![0; 32]),
    ("encryption_key_form", |p| {
        // The ignored top bit makes it no other point.
        p.encryption_key = vec![0; 32];
        p.encryption_key[31] = 0x80;
    }),
    ("init_key_form", |p| p.init_key = vec![]),
    ("init_key_form", |p| p.init_key = vec![1; 5]),
    ("init_key_form", |p| p.init_key = vec![0; 32]),
    ("init_key_differs", |p| {
        p.init_key = p.encryption_key.clone();
    }),
    ("default_extension_in_capabilities", |p| {
        p.listed_extensions.push(1);
    }),
    ("default_extension_in_capabilities", |p| {
        p.listed_extensions.push(5);
    }),
    ("default_proposal_in_capabilities", |p| {
        p.listed_proposals.push(1);
    }),
    ("default_proposal_in_capabilities", |p| {
        p.listed_proposals.push(7);
    }),
    ("leaf_extension_in_capabilities", |p| {
        p.leaf_extensions.push((PRIVATE_USE, vec![]));
    }),
    ("leaf_extension_misplaced", |p| {
        p.leaf_extensions.push((2, vec![]));
    }),
    ("leaf_extension_twice", |p| {
        p.listed_extensions.push(PRIVATE_USE);
        p.leaf_extensions = vec![(PRIVATE_USE, vec![]), (PRIVATE_USE, vec![1])];
    }),
    ("extension_in_capabilities", |p| {
        p.extensions.push((PRIVATE_USE, vec![]));
    }),
    ("extension_in_capabilities", |p| {
        p.listed_extensions = vec![POLICY_EXTENSION];
        p.extensions = vec![(LAST_RESORT, vec![])];
    }),
    ("extension_misplaced", |p| p.extensions.push((3, vec![]))),
    ("extension_twice", |p| {
        p.extensions = vec![(LAST_RESORT, vec![]), (LAST_RESORT, vec![])];
    }),
    ("last_resort_empty", |p| {
        p.extensions = vec![(LAST_RESORT, vec![1])];
    }),
    ("credential_in_capabilities", |p| p.credentials = vec![1]),
    ("suite_in_capabilities", |p| p.suites = vec![3]),
    ("version_in_capabilities", |p| p.versions = vec![2]),
    ("policy_in_capabilities", |p| {
        p.listed_extensions = vec![LAST_RESORT];
    }),
    ("grease_extension", |p| {
        p.listed_extensions.push(GREASE);
        p.leaf_extensions.push((GREASE, vec![1]));
    }),
    ("grease_extension", |p| {
        p.listed_extensions.push(GREASE);
        p.extensions.push((GREASE, vec![1]));
    }),
];

#[tokio::test]
async fn each_broken_rule_is_refused_by_its_name_and_nothing_is_kept() {
    let world = World::start(1, &[]).await;
    let device = world.device(Uuid::new_v4());
    for (number, (rule, spoil)) in SPOILT.iter().enumerate() {
        let mut parts = Parts::default();
        spoil(&mut parts);
        let spoilt = device.key_package_of(&parts, 1, -60, 3_600);
        let good = device.key_package(1, -60, 3_600, false);
        let refused = publish(&world, &device, vec![good, spoilt]).await;
        let refused = refused.expect_err(&format!("case {number}, {rule}: accepted"));
        assert_eq!(reason(&refused), Reason::CredentialInvalid, "{rule}");
        let refusal = Refusal::from_status(&refused);
        let named = refusal.metadata.get("rule").map(String::as_str);
        assert_eq!(named, Some(*rule), "case {number}: {refused:?}");
    }
    assert_eq!(publish(&world, &device, vec![]).await.unwrap(), []);
}

#[tokio::test]
async fn what_the_rules_allow_is_taken() {
    let world = World::start(1, &[]).await;
    let device = world.device(Uuid::new_v4());
    let allowed: [Spoil; 4] = [
        |p| {
            p.listed_extensions.push(GREASE);
            p.listed_proposals.push(GREASE);
            p.credentials.push(GREASE);
            p.suites.push(GREASE);
        },
        |p| p.leaf_extensions.push((1, b"an application_id".to_vec())),
        |p| {
            p.listed_extensions.push(PRIVATE_USE);
            p.leaf_extensions.push((PRIVATE_USE, vec![1]));
            p.extensions.push((PRIVATE_USE, vec![2]));
        },
        |p| p.extensions.push((LAST_RESORT, vec![])),
    ];
    for change in allowed {
        let mut parts = Parts::default();
        change(&mut parts);
        let package = device.key_package_of(&parts, 1, -60, 3_600);
        publish(&world, &device, vec![package]).await.unwrap();
    }
}

#[tokio::test]
async fn grease_extensions_are_taken_where_the_operator_says_so() {
    let world = World::start(1, &["--refuse-grease-extensions", "false"]).await;
    let device = world.device(Uuid::new_v4());
    let mut parts = Parts::default();
    parts.listed_extensions.push(GREASE);
    parts.leaf_extensions.push((GREASE, vec![1]));
    let package = device.key_package_of(&parts, 1, -60, 3_600);
    publish(&world, &device, vec![package]).await.unwrap();
}

#[tokio::test]
async fn the_leaf_of_a_key_package_says_that_it_is_one() {
    let world = World::start(1, &[]).await;
    let device = world.device(Uuid::new_v4());
    for source in [vec![2], vec![3, 0]] {
        let parts = Parts {
            source: Some(source),
            ..Parts::default()
        };
        let package = device.key_package_of(&parts, 1, -60, 3_600);
        let refused = publish(&world, &device, vec![package]).await.unwrap_err();
        assert_eq!(reason(&refused), Reason::Malformed, "{refused:?}");
    }
}
