//! What is signed outside MLS, label by label.

use chancery_proto::{
    auth::v1::{DeviceStatus, StatusChange, StatusHeartbeat, device_status::Subject},
    common::v1::DeviceRef,
    signed,
};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::{
    model::{Chapter, Fields, Vector},
    people::{
        DEVICE, DOMAIN, GROUP, HISTORY, OTHER_DEVICE, TIME, TIME_MICROS, device_key, public_key,
    },
};

pub(crate) fn chapter() -> Chapter {
    Chapter {
        file: "signed.json",
        title: "What is signed outside MLS".into(),
        about: "Label and content, each a vector `<V>`; the signature is over exactly these bytes, by the device key unless the table says otherwise".into(),
        vectors: vec![enroll(), introduction(), replace(), revoke(), status(), heartbeat(), leave(), failure()],
    }
}

fn vector(label: &str, about: &str, content: Fields, made: &[u8]) -> Vector {
    assert_eq!(
        hex::encode(content.bytes()),
        hex::encode(made),
        "content of {label}"
    );
    let signed = signed::to_be_signed(label, made);
    let signature = device_key().sign(&signed);
    assert!(signed::verify(
        &public_key(),
        label,
        made,
        signature.as_ref()
    ));
    Fields::new()
        .text("label", label)
        .vector_of("content", content)
        .checked(label, about, &signed)
        .derived("signature", "Ed25519 over `bytes`", signature.as_ref())
}

fn hash(name: &str, of: &str, value: &[u8]) -> Fields {
    Fields::new().fixed(
        name,
        "opaque[32]",
        &format!("SHA-256 of {of}"),
        &Sha256::digest(value),
    )
}

fn device(name: &str, id: &[u8; 16]) -> Fields {
    Fields::new().text(&format!("{name} domain"), DOMAIN).fixed(
        &format!("{name} id"),
        "opaque[16]",
        "the UUID",
        id,
    )
}

fn group() -> Fields {
    Fields::new()
        .text("group domain", DOMAIN)
        .vector("group id", "the group's id", &GROUP)
}

fn enroll() -> Vector {
    let content = Fields::new()
        .text("domain", DOMAIN)
        .append(hash(
            "invitation",
            "`0123456789abcdef`",
            b"0123456789abcdef",
        ))
        .append(hash("csr", "the CSR (here the bytes `csr`)", b"csr"))
        .int64("time", TIME);
    vector(
        signed::ENROLL,
        "The proof of an enrolment, by the key that the CSR is of.",
        content,
        &signed::enroll(DOMAIN, "0123456789abcdef", b"csr", TIME),
    )
}

fn introduction() -> Vector {
    let content = device("introduced device", &OTHER_DEVICE)
        .vector(
            "introduced key",
            "the introduced device's raw public key",
            &[0x99; 32],
        )
        .append(group())
        .int64("expires_at", TIME);
    vector(
        signed::INTRODUCTION,
        "A device introduces another one of its user to a group; signed by the introducer.",
        content,
        &signed::introduction((DOMAIN, &OTHER_DEVICE), &[0x99; 32], (DOMAIN, &GROUP), TIME),
    )
}

fn replace() -> Vector {
    let suites = Fields::new().uint16("suite", 1).uint16("suite", 3);
    let packages = hash(
        "KeyPackage",
        "the first KeyPackage (here the bytes `one`)",
        b"one",
    )
    .append(hash("KeyPackage", "the second one (here `two`)", b"two"));
    let content = Fields::new()
        .text("delivery domain", DOMAIN)
        .vector_of("suites", suites)
        .vector_of("key_packages", packages)
        .int64("expires_at", TIME);
    vector(
        signed::REPLACE,
        "The published KeyPackages replace what is in stock for these suites.",
        content,
        &signed::replace(DOMAIN, &[1, 3], &[b"one", b"two"], TIME),
    )
}

fn revoke() -> Vector {
    vector(
        signed::REVOKE,
        "A device revokes another one of its user.",
        device("revoked device", &OTHER_DEVICE).int64("expires_at", TIME),
        &signed::revoke((DOMAIN, &OTHER_DEVICE), TIME),
    )
}

fn status() -> Vector {
    let status = DeviceStatus {
        seq: 3,
        subject: Some(Subject::Device(DeviceRef {
            domain: DOMAIN.into(),
            id: DEVICE.to_vec().into(),
        })),
        change: StatusChange::Revoked.into(),
        at_micros: TIME_MICROS,
        history_id: HISTORY.to_vec().into(),
        ..DeviceStatus::default()
    };
    let bytes = status.encode_to_vec();
    vector(
        signed::STATUS,
        "The content is an encoded `DeviceStatus` as it travels; by the key of the status certificate (here the device key).",
        Fields::new().fixed(
            "status",
            "DeviceStatus",
            "seq 3, the device, REVOKED, 1795625319256612, history sixteen times `88`",
            &bytes,
        ),
        &bytes,
    )
}

fn heartbeat() -> Vector {
    let heartbeat = StatusHeartbeat {
        seq: 3,
        time_micros: TIME_MICROS,
        history_id: HISTORY.to_vec().into(),
        item_sha256: Sha256::digest(b"item").to_vec().into(),
    };
    let bytes = heartbeat.encode_to_vec();
    vector(
        signed::HEARTBEAT,
        "The content is an encoded `StatusHeartbeat` as it travels; by the key of the status certificate (here the device key).",
        Fields::new().fixed(
            "heartbeat",
            "StatusHeartbeat",
            "seq 3, 1795625319256612, history sixteen times `88`, the SHA-256 of `item`",
            &bytes,
        ),
        &bytes,
    )
}

fn leave() -> Vector {
    vector(
        signed::LEAVE,
        "A device asks to be removed from this membership.",
        group()
            .append(device("device", &DEVICE))
            .uint64("joined_seq", 1)
            .int64("expires_at", TIME),
        &signed::leave((DOMAIN, &GROUP), (DOMAIN, &DEVICE), 1, TIME),
    )
}

fn failure() -> Vector {
    vector(
        signed::FAILURE,
        "A device cannot merge the Commit at this seq; by its leaf key.",
        group()
            .append(device("reporter", &DEVICE))
            .uint64("commit_seq", 9)
            .append(hash(
                "commit",
                "the Commit's payload (here the bytes `commit`)",
                b"commit",
            ))
            .uint32("reason", 1)
            .int64("expires_at", TIME),
        &signed::failure(
            (DOMAIN, &GROUP),
            (DOMAIN, &DEVICE),
            9,
            &Sha256::digest(b"commit").into(),
            1,
            TIME,
        ),
    )
}
