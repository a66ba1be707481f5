//! Tokens and certificates.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chancery_proto::{
    certificate::{Anchors, DEVICE_EKU, STATUS_EKU, device_uri, read_device, user_uri},
    token::{
        ACCESS_TOKEN_TYPE, ASSERTION_TYPE, AccessClaims, AssertionClaims, Confirmation, sign,
        thumbprint, verify,
    },
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};
use uuid::Uuid;

use crate::{
    model::{Chapter, Fields, Vector},
    people::{DEVICE, DOMAIN, TIME, USER, pkcs8, public_key, seed},
};

/// The seed of the token key, of the root's and of the intermediate's.
const TOKEN_SEED: [u8; 32] = [0xa1; 32];
const ROOT_SEED: [u8; 32] = [0xa2; 32];
const INTERMEDIATE_SEED: [u8; 32] = [0xa3; 32];

fn token_vector(name: &str, about: &str, token: &str) -> Vector {
    let (signing_input, signature) = token.rsplit_once('.').unwrap();
    let (header, claims) = signing_input.split_once('.').unwrap();
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).unwrap();
    let json = |part: &str| String::from_utf8(decode(part)).unwrap();
    Fields::new()
        .fixed(
            "header",
            "base64url of JSON",
            &format!("`{}`", json(header)),
            header.as_bytes(),
        )
        .fixed("dot", "text", "`.`", b".")
        .fixed(
            "claims",
            "base64url of JSON",
            &format!("`{}`", json(claims)),
            claims.as_bytes(),
        )
        .checked(name, about, signing_input.as_bytes())
        .derived("signature", "Ed25519 over `bytes`", &decode(signature))
        .derived_text(
            "token",
            "`bytes`, a dot, and base64url of the signature, as text",
            token,
        )
}

pub(crate) fn token() -> Chapter {
    let device = device_uri(DOMAIN, Uuid::from_bytes(DEVICE));
    let assertion = AssertionClaims {
        iss: device.clone(),
        sub: device,
        aud: format!("as:{DOMAIN}"),
        iat: TIME,
        exp: TIME + 60,
        jti: "6ba7b810-9dad-41d1-80b4-00c04fd430c8".into(),
    };
    let assertion = sign(ASSERTION_TYPE, None, &assertion, &pkcs8(&seed())).unwrap();
    assert!(verify::<AssertionClaims>(&assertion, ASSERTION_TYPE, &public_key()).is_ok());
    let print = thumbprint(&public_key());
    let access = AccessClaims {
        iss: DOMAIN.into(),
        sub: Uuid::from_bytes(USER).to_string(),
        device: Uuid::from_bytes(DEVICE).to_string(),
        aud: format!("ds:{DOMAIN}"),
        iat: TIME,
        exp: TIME + 600,
        jti: "6ba7b811-9dad-41d1-80b4-00c04fd430c8".into(),
        cnf: Confirmation { jkt: print.clone() },
    };
    let access = sign(
        ACCESS_TOKEN_TYPE,
        Some("token-key-1"),
        &access,
        &pkcs8(&TOKEN_SEED),
    )
    .unwrap();
    let jwk = format!(
        r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#,
        URL_SAFE_NO_PAD.encode(public_key())
    );
    let key = Fields::new()
        .fixed("JWK", "JSON", &format!("`{jwk}`"), jwk.as_bytes())
        .checked(
            "The key in a token",
            "The device key's JWK, its members sorted, without spaces (RFC 7638).",
            jwk.as_bytes(),
        )
        .derived_text(
            "jkt",
            "base64url of SHA-256 of `bytes`, as text: the claim `cnf.jkt`",
            &print,
        );
    Chapter {
        file: "token.json",
        title: "Tokens".into(),
        about: "JWTs signed with Ed25519 (`alg` is `EdDSA`); a server reads the claims and not their order".into(),
        vectors: vec![
            token_vector("A client assertion", "By the device key, for `IssueToken`; the first half of a JWT is what is signed.", &assertion),
            token_vector("An access token", "By the token key of the Authentication Service (Ed25519 seed thirty-two times `a1`).", &access),
            key,
        ],
    }
}

fn key(seed: &[u8]) -> KeyPair {
    KeyPair::try_from(pkcs8(seed)).unwrap()
}

fn authority(level: &str, path_length: u8, serial: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{DOMAIN} Chancery {level}"));
    params.serial_number = Some(SerialNumber::from_slice(&[serial]));
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2036, 1, 1);
    params
}

pub(crate) fn certificate() -> Chapter {
    let (user, device) = (Uuid::from_bytes(USER), Uuid::from_bytes(DEVICE));
    let root = CertifiedIssuer::self_signed(authority("root", 1, 1), key(&ROOT_SEED)).unwrap();
    let mut params = authority("intermediate", 0, 2);
    params.extended_key_usages = [DEVICE_EKU, STATUS_EKU]
        .map(|usage| ExtendedKeyUsagePurpose::Other(usage.to_vec()))
        .to_vec();
    let intermediate = CertifiedIssuer::signed_by(params, key(&INTERMEDIATE_SEED), &root).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(DEVICE_EKU.to_vec())];
    params
        .distinguished_name
        .push(DnType::CommonName, device.to_string());
    params.subject_alt_names = [user_uri(DOMAIN, user), device_uri(DOMAIN, device)]
        .map(|uri| SanType::URI(uri.try_into().unwrap()))
        .to_vec();
    params.serial_number = Some(SerialNumber::from_slice(&[3]));
    params.not_before = date_time_ymd(2026, 6, 1);
    params.not_after = date_time_ymd(2027, 6, 1);
    let leaf = params.signed_by(&key(&seed()), &intermediate).unwrap();
    let anchors = Anchors::pinned(root.der(), &[intermediate.der().to_vec()], TIME).unwrap();
    let read = anchors.verify_device(leaf.der(), TIME).unwrap();
    assert_eq!(read, read_device(leaf.der()).unwrap());
    assert_eq!(
        (read.user, read.device, read.public_key),
        (user, device, public_key())
    );
    let vector = |name: &str, about: &str, der: &[u8]| {
        Fields::new()
            .fixed(name, "Certificate", "DER", der)
            .checked(name, about, der)
    };
    Chapter {
        file: "certificate.json",
        title: "Certificates".into(),
        about: "A root, an intermediate and a device's leaf below it, in DER; all signatures are Ed25519".into(),
        vectors: vec![
            vector("Root", "Pinned by clients and Delivery Services. Its key is the Ed25519 seed thirty-two times `a2`.", root.der()),
            vector("Intermediate", "Counts once it verified against the root. Its key is the seed thirty-two times `a3`.", intermediate.der()),
            vector("Leaf", "Of the device key, from 2026-06-01 to 2027-06-01.", leaf.der())
                .derived_text("user", "the first URI", &user_uri(DOMAIN, user))
                .derived_text("device", "the second URI", &device_uri(DOMAIN, device))
                .derived("key", "the raw key", &public_key()),
        ],
    }
}
