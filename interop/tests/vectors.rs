//! `./dev vectors` on vectors that are made here: each kind passes, and fails when a byte of it is another one. The working group's own ones are not in this
//! repository.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{collections::BTreeMap, fs, path::Path};

use chancery_proto::{suite::Suite, tree::Tree};
use interop::vectors::{self, Summary};
use openmls::prelude::{tls_codec::Serialize as _, *};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;
use serde_json::{Value, json};

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

struct Person {
    provider: OpenMlsRustCrypto,
    signer: SignatureKeyPair,
    credential: CredentialWithKey,
}

impl Person {
    fn new(name: &str) -> Self {
        let signer = SignatureKeyPair::new(SUITE.signature_algorithm()).unwrap();
        let credential = CredentialWithKey {
            credential: BasicCredential::new(name.as_bytes().to_vec()).into(),
            signature_key: signer.public().into(),
        };
        Self {
            provider: OpenMlsRustCrypto::default(),
            signer,
            credential,
        }
    }

    fn key_package(&self) -> KeyPackageBundle {
        KeyPackage::builder()
            .build(SUITE, &self.provider, &self.signer, self.credential.clone())
            .unwrap()
    }
}

fn tls(value: &impl tls_codec::Serialize) -> String {
    hex::encode(value.tls_serialize_detached().unwrap())
}

/// A private key as it is stored.
fn private(value: &Value) -> String {
    let bytes: Vec<u8> = serde_json::from_value(value["vec"].clone()).unwrap();
    hex::encode(bytes)
}

fn tree_of(group: &MlsGroup) -> Vec<u8> {
    group
        .export_ratchet_tree()
        .tls_serialize_detached()
        .unwrap()
}

/// One good case of every kind, from a group of two that a third one joins and follows.
fn cases() -> BTreeMap<&'static str, Value> {
    let (alice, bob, carol) = (
        Person::new("alice"),
        Person::new("bob"),
        Person::new("carol"),
    );
    let mut group = MlsGroup::builder()
        .ciphersuite(SUITE)
        // Vectors are older than whoever plays them: the maker's leaf has ended.
        .lifetime(Lifetime::init(1, 2))
        .with_wire_format_policy(PURE_CIPHERTEXT_WIRE_FORMAT_POLICY)
        .build(&alice.provider, &alice.signer, alice.credential.clone())
        .unwrap();
    let bobs = bob.key_package();
    group
        .add_members(
            &alice.provider,
            &alice.signer,
            &[bobs.key_package().clone()],
        )
        .unwrap();
    group.merge_pending_commit(&alice.provider).unwrap();
    let before = tree_of(&group);
    let bundle = carol.key_package();
    let (_, welcome, _) = group
        .add_members(
            &alice.provider,
            &alice.signer,
            &[bundle.key_package().clone()],
        )
        .unwrap();
    group.merge_pending_commit(&alice.provider).unwrap();
    let after = tree_of(&group);
    let joined = hex::encode(group.epoch_authenticator().as_slice());
    let commit = group
        .self_update(
            &alice.provider,
            &alice.signer,
            LeafNodeParameters::default(),
        )
        .unwrap()
        .into_commit();
    group.merge_pending_commit(&alice.provider).unwrap();
    let stored = serde_json::to_value(&bundle).unwrap();
    let key_package = tls(&MlsMessageOut::from(bundle.key_package().clone()));
    let (welcome, group_id) = (tls(&welcome), hex::encode(group.group_id().as_slice()));
    let hash = |tree: &[u8]| {
        let tree = Tree::from_ratchet_tree(tree).unwrap();
        hex::encode(tree.hash(Suite::X25519Aes128))
    };
    let hashes = Tree::from_ratchet_tree(&after)
        .unwrap()
        .hashes(Suite::X25519Aes128);
    let hashes: Vec<String> = hashes.values().map(hex::encode).collect();
    let said = group
        .create_message(&alice.provider, &alice.signer, b"said")
        .unwrap();
    let info = group
        .export_group_info(alice.provider.crypto(), &alice.signer, false)
        .unwrap();
    BTreeMap::from([
        (
            "deserialization",
            json!({"vlbytes_header": "4040", "length": 64}),
        ),
        (
            "tree-math",
            json!({
                "n_leaves": 2, "n_nodes": 3, "root": 1, "left": [null, 0, null], "right": [null, 2, null],
                "parent": [1, null, 1], "sibling": [2, null, 0],
            }),
        ),
        (
            "messages",
            json!({
                "mls_welcome": welcome, "mls_group_info": tls(&info), "mls_key_package": key_package,
                "ratchet_tree": hex::encode(&after), "private_message": tls(&said), "public_message_application": tls(&said),
                "public_message_proposal": tls(&said), "public_message_commit": tls(&said),
            }),
        ),
        (
            "tree-validation",
            json!({"cipher_suite": 1, "tree": hex::encode(&after), "group_id": group_id, "tree_hashes": hashes}),
        ),
        (
            "tree-operations",
            json!({
                "cipher_suite": 1, "tree_before": hex::encode(&before), "tree_after": hex::encode(&after),
                "tree_hash_before": hash(&before), "tree_hash_after": hash(&after),
            }),
        ),
        (
            "welcome",
            json!({
                "cipher_suite": 1, "init_priv": private(&stored["private_init_key"]),
                "signer_pub": hex::encode(alice.signer.public()), "key_package": key_package, "welcome": welcome,
            }),
        ),
        (
            "passive-client-welcome",
            json!({
                "cipher_suite": 1, "external_psks": [], "key_package": key_package,
                "init_priv": private(&stored["private_init_key"]),
                "encryption_priv": private(&stored["private_encryption_key"]["key"]), "welcome": welcome,
                "ratchet_tree": hex::encode(&after), "initial_epoch_authenticator": joined,
                "epochs": [{
                    "proposals": [], "commit": tls(&commit),
                    "epoch_authenticator": hex::encode(group.epoch_authenticator().as_slice()),
                }],
            }),
        ),
    ])
}

/// RFC 9420's functions on made-up secrets; HPKE by sealing to a key of our own.
fn basics() -> Value {
    use openmls_traits::{crypto::OpenMlsCrypto as _, signatures::Signer as _};

    fn vector(bytes: &[u8]) -> Vec<u8> {
        [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }
    let provider = OpenMlsRustCrypto::default();
    let crypto = provider.crypto();
    let secret = [7; 32];
    let expand = |label: &str, context: &[u8], length: u8| {
        let label = vector(format!("MLS 1.0 {label}").as_bytes());
        let info = [&[0, length][..], &label, &vector(context)].concat();
        let expanded = crypto.hkdf_expand(SUITE.hash_algorithm(), &secret, &info, length.into());
        hex::encode(expanded.unwrap().as_slice())
    };
    let signer = SignatureKeyPair::new(SUITE.signature_algorithm()).unwrap();
    let content = [vector(b"MLS 1.0 say"), vector(b"content")].concat();
    let keys = crypto
        .derive_hpke_keypair(SUITE.hpke_config(), &secret)
        .unwrap();
    let info = [vector(b"MLS 1.0 hide"), vector(b"context")].concat();
    let sealed = crypto
        .hpke_seal(SUITE.hpke_config(), &keys.public, &info, &[], b"plain")
        .unwrap();
    let reference = [vector(b"refer"), vector(b"value")].concat();
    let reference = crypto.hash(SUITE.hash_algorithm(), &reference).unwrap();
    let hidden = hex::encode(secret);
    json!({
        "cipher_suite": 1,
        "ref_hash": {"label": "refer", "value": hex::encode("value"), "out": hex::encode(reference)},
        "expand_with_label": {
            "secret": hidden, "label": "more", "context": hex::encode("context"), "length": 16, "out": expand("more", b"context", 16),
        },
        "derive_secret": {"secret": hidden, "label": "own", "out": expand("own", b"", 32)},
        "derive_tree_secret": {
            "secret": hidden, "label": "tree", "generation": 5, "length": 16, "out": expand("tree", &5u32.to_be_bytes(), 16),
        },
        "sign_with_label": {
            "pub": hex::encode(signer.public()), "content": hex::encode("content"), "label": "say",
            "signature": hex::encode(signer.sign(&content).unwrap()),
        },
        "encrypt_with_label": {
            "priv": hex::encode(&*keys.private), "label": "hide", "context": hex::encode("context"), "plaintext": hex::encode("plain"),
            "kem_output": hex::encode(sealed.kem_output.as_slice()), "ciphertext": hex::encode(sealed.ciphertext.as_slice()),
        },
    })
}

fn write(folder: &Path, name: &str, cases: &[Value]) {
    fs::write(
        folder.join(format!("{name}.json")),
        serde_json::to_vec(cases).unwrap(),
    )
    .unwrap();
}

fn play(folder: &Path) -> Summary {
    vectors::play(folder, &mut |_, _| {}).unwrap()
}

/// Every text of hex in a case and every number, each once changed a little.
fn spoilt(case: &Value) -> Vec<(String, Value)> {
    fn walk(value: &Value, path: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    walk(value, &format!("{path}/{name}"), found);
                }
            }
            Value::Array(items) => {
                for (place, value) in items.iter().enumerate() {
                    walk(value, &format!("{path}/{place}"), found);
                }
            }
            Value::String(_) => found.push(path.to_owned()),
            _ => {}
        }
    }
    let mut paths = Vec::new();
    walk(case, "", &mut paths);
    let spoil = |path: String| {
        let mut case = case.clone();
        let value = case.pointer_mut(&path).unwrap();
        let text = value.as_str().unwrap();
        let (rest, last) = text.split_at(text.len() - 1);
        *value = format!("{rest}{}", if last == "0" { "1" } else { "0" }).into();
        (path, case)
    };
    paths.into_iter().map(spoil).collect()
}

#[test]
fn every_kind_passes_and_every_spoilt_one_fails() {
    let mut cases = cases();
    cases.insert("crypto-basics", basics());
    let folder = tempfile::tempdir().unwrap();
    for (name, case) in &cases {
        write(folder.path(), name, std::slice::from_ref(case));
    }
    let summary = play(folder.path());
    assert_eq!(
        (summary.passed, summary.failed),
        (cases.len(), 0),
        "{summary:?}"
    );
    assert_eq!((summary.unsupported, &summary.unknown[..]), (0, &[][..]));

    // Objects that are only parsed may have another last byte; what is computed or verified may not.
    let only_parsed = |name: &str, path: &str| {
        name == "messages" || (name == "tree-validation" && path == "/tree_hashes")
    };
    for (name, case) in &cases {
        for (path, case) in spoilt(case) {
            if only_parsed(name, &path) {
                continue;
            }
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), name, &[case]);
            assert_eq!(play(folder.path()).failed, 1, "{name}{path} may be spoilt");
        }
    }
}

#[test]
fn what_cannot_be_played_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let mut validation = cases().remove("tree-validation").unwrap();
    validation["cipher_suite"] = 5.into();
    write(folder.path(), "tree-validation", &[validation]);
    write(folder.path(), "a-kind-of-tomorrow", &[json!({})]);
    write(folder.path(), "tree-math", &[]);
    fs::create_dir(folder.path().join("below")).unwrap();
    fs::write(folder.path().join("below/welcome.json"), "no JSON").unwrap();
    let summary = play(folder.path());
    assert_eq!(summary.unknown, ["a-kind-of-tomorrow.json"]);
    assert_eq!(
        summary.files["tree-validation.json"].unsupported["suite 5"],
        1
    );
    assert_eq!(summary.files["tree-math.json"].failed, 1);
    assert_eq!(summary.files["below/welcome.json"].failed, 1);
    assert_eq!(
        (summary.passed, summary.failed, summary.unsupported),
        (0, 2, 1)
    );
    let empty = tempfile::tempdir().unwrap();
    assert!(vectors::play(empty.path(), &mut |_, _| {}).is_err());
}
