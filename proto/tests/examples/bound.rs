//! What is bound to messages and groups.

use chancery_proto::{
    commit_info::{CommitInfo, Member, MessageData},
    policy::Policy,
};

use crate::{
    model::{Chapter, Fields},
    people::{DEVICE, DOMAIN, MESSAGE, OTHER_DEVICE, USER},
};

fn member(domain: &str, device: [u8; 16]) -> Member {
    Member {
        domain: domain.into(),
        user: USER,
        device,
    }
}

fn member_fields(devices: &[[u8; 16]]) -> Fields {
    let members = devices.iter().fold(Fields::new(), |fields, device| {
        fields
            .fixed("user", "opaque[16]", "the user's UUID", &USER)
            .fixed("device", "opaque[16]", "the device's UUID", device)
    });
    Fields::new()
        .text("domain", DOMAIN)
        .vector_of("members", members)
}

fn message_id_item() -> Fields {
    Fields::new()
        .uint16("component", 0x8C02)
        .vector("data", "the message id", &MESSAGE)
}

pub(crate) fn authenticated_data() -> Chapter {
    let message = MessageData {
        message_id: Some(MESSAGE),
        commit_info: None,
    };
    let speaks = Fields::new().vector_of("items", message_id_item()).checked(
        "A message",
        "One item, the message id.",
        &message.encode(),
    );
    let info = CommitInfo {
        added: vec![member(DOMAIN, DEVICE)],
        removed: vec![member(DOMAIN, OTHER_DEVICE)],
        proposals: vec![7],
        seen_seq: 9,
        seen_chain: [0x66; 32],
        ..CommitInfo::default()
    };
    let info_fields = Fields::new()
        .uint8("version", 1)
        .vector_of("added", member_fields(&[DEVICE]))
        .vector_of("removed", member_fields(&[OTHER_DEVICE]))
        .vector_of("left_out", Fields::new())
        .vector_of("proposals", Fields::new().uint64("seq", 7))
        .uint64("seen_seq", 9)
        .fixed(
            "seen_chain",
            "opaque[32]",
            "the chain value at seen_seq",
            &[0x66; 32],
        )
        .vector_of("extensions", Fields::new());
    let commit = MessageData {
        message_id: Some(MESSAGE),
        commit_info: Some(info),
    };
    let commits = Fields::new()
        .vector_of(
            "items",
            Fields::new()
                .uint16("component", 0x8C01)
                .vector_of("CommitInfo", info_fields)
                .append(message_id_item()),
        )
        .checked(
            "A Commit",
            "Two items, sorted by component: the Commit adds one device, removes another, takes in the proposal at seq 7, and was made by somebody who saw the log up to seq 9.",
            &commit.encode(),
        );
    Chapter {
        file: "authenticated_data.json",
        title: "Authenticated data".into(),
        about: "What every member message says of itself in clear, as MLS `authenticated_data`"
            .into(),
        vectors: vec![speaks, commits],
    }
}

pub(crate) fn policy() -> Chapter {
    let default = Fields::new()
        .uint8("version", 1)
        .text("home_domain", DOMAIN)
        .uint8("past_epochs", 1)
        .uint8("external_join", 1)
        .vector_of("items", Fields::new())
        .checked(
            "A new group's policy",
            "One past epoch, external join by resync, no items.",
            &Policy::for_domain(DOMAIN).encode(),
        );
    let policy = Policy {
        past_epochs: 0,
        items: vec![(99, vec![1, 2])],
        ..Policy::for_domain(DOMAIN)
    };
    let item = Fields::new()
        .uint16("type", 99)
        .vector("data", "bytes", &[1, 2]);
    let with_item = Fields::new()
        .uint8("version", 1)
        .text("home_domain", DOMAIN)
        .uint8("past_epochs", 0)
        .uint8("external_join", 1)
        .vector_of("items", item)
        .checked(
            "A policy with an item of a later version",
            "Whoever does not know an item keeps it.",
            &policy.encode(),
        );
    Chapter {
        file: "policy.json",
        title: "The policy".into(),
        about: "Data of GroupContext extension `0xF1C0`".into(),
        vectors: vec![default, with_item],
    }
}
