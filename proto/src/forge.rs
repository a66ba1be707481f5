//! Leaves and KeyPackages put together from parsed parts and signed again: for tests, and for checks of servers, that
//! spoil one part of a good object. Only with the feature `forge`.

use crate::{
    framing::{self, WireFormat},
    key_package::KeyPackage,
    leaf::{Credential, LeafNode, Source},
    wire::Write as _,
};

/// Signs bytes with the leaf's key.
pub type Sign<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;

fn sign_with_label(sign: Sign<'_>, label: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_vector(format!("MLS 1.0 {label}").as_bytes());
    bytes.put_vector(content);
    sign(&bytes)
}

fn put_extensions(bytes: &mut Vec<u8>, extensions: &[(u16, Vec<u8>)]) {
    let mut list = Vec::new();
    for (kind, data) in extensions {
        list.put(&kind.to_be_bytes());
        list.put_vector(data);
    }
    bytes.put_vector(&list);
}

fn put_credential(bytes: &mut Vec<u8>, credential: &Credential) {
    match credential {
        Credential::Basic(identity) => {
            bytes.put(&[0, 1]);
            bytes.put_vector(identity);
        }
        Credential::X509(certificates) => {
            let mut chain = Vec::new();
            for certificate in certificates {
                chain.put_vector(certificate);
            }
            bytes.put(&[0, 2]);
            bytes.put_vector(&chain);
        }
    }
}

/// The bytes of a LeafNode. `place` is the group id and the leaf index that an Update's or a Commit's leaf is bound to.
pub fn leaf(leaf: &LeafNode, place: Option<(&[u8], u32)>, sign: Sign<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_vector(&leaf.encryption_key);
    bytes.put_vector(&leaf.signature_key);
    put_credential(&mut bytes, &leaf.credential);
    let can = &leaf.capabilities;
    for list in [
        &can.versions,
        &can.suites,
        &can.extensions,
        &can.proposals,
        &can.credentials,
    ] {
        let list: Vec<u8> = list.iter().flat_map(|value| value.to_be_bytes()).collect();
        bytes.put_vector(&list);
    }
    match &leaf.source {
        Source::KeyPackage {
            not_before,
            not_after,
        } => {
            bytes.put(&[1]);
            bytes.put(&not_before.to_be_bytes());
            bytes.put(&not_after.to_be_bytes());
        }
        Source::Update => bytes.put(&[2]),
        Source::Commit(parent_hash) => {
            bytes.put(&[3]);
            bytes.put_vector(parent_hash);
        }
    }
    put_extensions(&mut bytes, &leaf.extensions);
    let mut signed = bytes.clone();
    if let Some((group, index)) = place {
        signed.put_vector(group);
        signed.put(&index.to_be_bytes());
    }
    bytes.put_vector(&sign_with_label(sign, "LeafNodeTBS", &signed));
    bytes
}

/// An `MLSMessage(KeyPackage)`, its leaf signed again too.
pub fn key_package(package: &KeyPackage, sign: Sign<'_>) -> Vec<u8> {
    let mut body = vec![0, 1];
    body.put(&package.suite.to_be_bytes());
    body.put_vector(&package.init_key);
    body.put(&leaf(&package.leaf, None, sign));
    put_extensions(&mut body, &package.extensions);
    let signature = sign_with_label(sign, "KeyPackageTBS", &body);
    body.put_vector(&signature);
    framing::message(WireFormat::KeyPackage, &body)
}
