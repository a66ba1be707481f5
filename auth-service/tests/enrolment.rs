//! Invitations, enrolment, tokens: every rule and refusal, against the real service and a real PostgreSQL.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::{
    auth::v1::*,
    certificate::read_device,
    common::v1::Reason,
    signed,
    token::{self, thumbprint},
};
use ring::signature::KeyPair as _;
use support::{AS, DOMAIN, DS, Device, Key, World, now, reason, with_token};

async fn enroll(world: &World, request: EnrollRequest) -> Result<EnrollResponse, Reason> {
    match world.client().enroll(request).await {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => Err(reason(&status)),
    }
}

async fn token(world: &World, assertion: String, audience: &str) -> Result<String, Reason> {
    let request = IssueTokenRequest {
        client_assertion: assertion,
        audience: audience.into(),
    };
    match world.client().issue_token(request).await {
        Ok(answer) => Ok(answer.into_inner().access_token),
        Err(status) => Err(reason(&status)),
    }
}

#[tokio::test]
async fn an_invitation_becomes_a_device_whose_certificate_verifies() {
    let world = World::start(1, &[]).await;
    let device = Device::enroll(&world, "alice@interior.example").await;
    let seen = world
        .anchors()
        .await
        .verify_device(&device.certificate, now())
        .unwrap();
    assert_eq!(seen.domain, DOMAIN);
    assert_eq!(seen.user.as_bytes(), device.user.id.as_ref());
    assert_eq!(seen.device.as_bytes(), device.device.id.as_ref());
    assert_eq!(seen.public_key, device.key.pair.public_key().as_ref());
}

fn p256_credential(code: &str, time: i64) -> Credential {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    let content = signed::enroll(DOMAIN, code, csr.der(), time);
    let proof = signed::to_be_signed(signed::ENROLL, &content);
    Credential {
        scheme: 0x0403,
        csr: csr.der().to_vec().into(),
        proof: rcgen::SigningKey::sign(&key, &proof).unwrap().into(),
        proof_time: time,
    }
}

#[tokio::test]
async fn a_device_has_a_certificate_for_each_scheme_and_is_one_device() {
    let world = World::start(1, &[]).await;
    let code = world.invite("alice").await;
    let key = Key::new();
    let mut request = key.request(&code, now());
    request.credentials.push(p256_credential(&code, now()));
    let first = enroll(&world, request.clone()).await.unwrap();
    let again = enroll(&world, request.clone()).await.unwrap();
    assert!(again.replayed);
    assert_eq!(first.certificates, again.certificates);
    let anchors = world.anchors().await;
    let seen: Vec<_> = first
        .certificates
        .iter()
        .map(|der| anchors.verify_device(der, now()).unwrap())
        .collect();
    assert_eq!(seen[0].public_key, key.pair.public_key().as_ref());
    assert_eq!(seen[1].public_key.len(), 65);
    assert_eq!(
        (seen[0].user, seen[0].device),
        (seen[1].user, seen[1].device)
    );
}

#[tokio::test]
async fn the_device_key_comes_first_and_each_key_proves_itself() {
    let world = World::start(1, &[]).await;
    let code = world.invite("alice").await;
    let whole = {
        let mut request = Key::new().request(&code, now());
        request.credentials.push(p256_credential(&code, now()));
        request
    };
    let spoil = |change: fn(&mut Vec<Credential>)| {
        let mut request = whole.clone();
        change(&mut request.credentials);
        request
    };
    for (request, reason) in [
        (spoil(|c| c.swap(0, 1)), Reason::Malformed),
        (spoil(|c| drop(c.remove(0))), Reason::Malformed),
        (spoil(Vec::clear), Reason::Malformed),
        (spoil(|c| c.push(c[1].clone())), Reason::Malformed),
        (spoil(|c| c[1] = c[0].clone()), Reason::Malformed),
        (spoil(|c| c[1].scheme = 0x0807), Reason::Malformed),
        (spoil(|c| c[1].scheme = 0x0503), Reason::UnknownValue),
        (
            spoil(|c| c[1].proof = c[0].proof.clone()),
            Reason::ProofInvalid,
        ),
        (spoil(|c| c[1].proof_time -= 1), Reason::ProofInvalid),
    ] {
        assert_eq!(enroll(&world, request).await.unwrap_err(), reason);
    }
    // Nothing of that used the invitation up.
    enroll(&world, whole).await.unwrap();
}

#[tokio::test]
async fn an_invitation_works_once_and_a_repeat_gets_the_first_answer() {
    let world = World::start(1, &[]).await;
    let code = world.invite("alice").await;
    let request = Key::new().request(&code, now());
    let first = enroll(&world, request.clone()).await.unwrap();
    let again = enroll(&world, request.clone()).await.unwrap();
    assert!(!first.replayed && again.replayed);
    assert_eq!(
        (&first.device, &first.certificates),
        (&again.device, &again.certificates)
    );
    assert_eq!(
        enroll(&world, Key::new().request(&code, now())).await,
        Err(Reason::InvitationUsed)
    );
    // A repeat stays a repeat when its time is long over.
    world
        .sql("UPDATE invitations SET expires_at = now() - interval '30 days'")
        .await;
    assert!(enroll(&world, request).await.unwrap().replayed);
}

#[tokio::test]
async fn of_many_that_use_one_invitation_at_once_one_gets_the_device() {
    let world = World::start(2, &[]).await;
    let code = world.invite("alice").await;
    let mut tries = tokio::task::JoinSet::new();
    for n in 0..8 {
        let mut client = world.nodes[n % 2].client.clone();
        let request = Key::new().request(&code, now());
        tries.spawn(async move { client.enroll(request).await.map_err(|s| reason(&s)) });
    }
    let outcomes = tries.join_all().await;
    assert_eq!(outcomes.iter().filter(|o| o.is_ok()).count(), 1);
    let lost = outcomes.into_iter().filter_map(Result::err);
    assert!(lost.into_iter().all(|r| r == Reason::InvitationUsed));
}

#[tokio::test]
async fn what_does_not_hold_up_enrols_nobody_and_uses_nothing() {
    let world = World::start(1, &["--user-devices-items", "1"]).await;
    let code = world.invite("alice").await;
    let key = Key::new();
    let good = key.request(&code, now());
    let with = |change: &dyn Fn(&mut EnrollRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    let refused = [
        (key.request("unknown-code", now()), Reason::ProofInvalid),
        (key.request(&code, now() - 3_600), Reason::ProofInvalid),
        (key.request(&code, now() + 3_600), Reason::ProofInvalid),
        (
            with(&|r| r.credentials[0].proof_time += 1),
            Reason::ProofInvalid,
        ),
        (
            with(&|r| r.credentials[0].csr = Key::new().csr.into()),
            Reason::ProofInvalid,
        ),
        (
            with(&|r| r.credentials[0].scheme = 0x0503),
            Reason::UnknownValue,
        ),
        (
            with(&|r| r.by = Some(enroll_request::By::OidcIdToken("x".into()))),
            Reason::UnknownValue,
        ),
        (with(&|r| r.by = None), Reason::Malformed),
        (with(&|r| r.credentials.clear()), Reason::Malformed),
        (
            with(&|r| r.credentials[0].csr = vec![0x30; 64].into()),
            Reason::Malformed,
        ),
        (
            with(&|r| r.credentials[0].csr = vec![0; 100_000].into()),
            Reason::LimitExceeded,
        ),
        (
            with(&|r| r.device_name = "x".repeat(10_000)),
            Reason::LimitExceeded,
        ),
    ];
    for (index, (request, expected)) in refused.into_iter().enumerate() {
        assert_eq!(enroll(&world, request).await, Err(expected), "case {index}");
    }
    enroll(&world, good).await.unwrap();
    // One more device than the user may have, and a key that is somebody's.
    let second = world.invite("alice").await;
    assert_eq!(
        enroll(&world, Key::new().request(&second, now())).await,
        Err(Reason::LimitExceeded)
    );
    let other = world.invite("bob").await;
    assert_eq!(
        enroll(&world, key.request(&other, now())).await,
        Err(Reason::KeyInUse)
    );
    world
        .sql(
            "UPDATE invitations SET expires_at = now() - interval '1 second' WHERE used_at IS NULL",
        )
        .await;
    assert_eq!(
        enroll(&world, Key::new().request(&other, now())).await,
        Err(Reason::ProofInvalid)
    );
}

#[tokio::test]
async fn a_code_survives_a_command_line_and_is_stored_nowhere() {
    let world = World::start(1, &[]).await;
    let code = world.invite("alice").await;
    // It once was base64: one in 64 began with a dash, and was taken for an option.
    assert!(
        code.len() == 32 && code.chars().all(|c| c.is_ascii_hexdigit()),
        "{code}"
    );
    let db = service_kit::db::Db::connect(&world.db.url(), &Default::default()).unwrap();
    let client = db.client().await.unwrap();
    let found: i64 = client
        .query_one(
            "SELECT count(*) FROM invitations i WHERE i::text LIKE '%' || $1 || '%' \
             OR i.code_hash = convert_to($1, 'UTF8')",
            &[&code],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(found, 0);
}

#[tokio::test]
async fn an_assertion_becomes_a_token_that_verifies_offline_once() {
    let world = World::start(2, &[]).await;
    let device = Device::enroll(&world, "alice").await;
    let assertion = device.assertion(&device.claims());
    let access = token(&world, assertion.clone(), DS).await.unwrap();
    let info = world
        .client()
        .get_service_info(GetServiceInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    let kid = token::key_id(&access).unwrap();
    assert!(info.token_keys_jwks.contains(&kid));
    let claims: token::AccessClaims = token::unverified(&access).unwrap();
    assert_eq!((claims.iss.as_str(), claims.aud.as_str()), (DOMAIN, DS));
    assert!(claims.exp - claims.iat <= 600);
    assert_eq!(
        claims.cnf.jkt,
        thumbprint(device.key.pair.public_key().as_ref())
    );
    // The other node shares the database, so it knows as well.
    let mut other = world.nodes[1].client.clone();
    let replayed = other
        .issue_token(IssueTokenRequest {
            client_assertion: assertion,
            audience: DS.into(),
        })
        .await
        .unwrap_err();
    assert_eq!(reason(&replayed), Reason::ProofInvalid);
}

#[tokio::test]
async fn assertions_that_do_not_hold_up_get_nothing() {
    let world = World::start(1, &[]).await;
    let device = Device::enroll(&world, "alice").await;
    let other = Device::enroll(&world, "bob").await;
    let good = device.claims();
    let change = |change: &dyn Fn(&mut token::AssertionClaims)| {
        let mut claims = good.clone();
        change(&mut claims);
        device.assertion(&claims)
    };
    let refused = [
        change(&|c| c.aud = DS.into()),
        change(&|c| c.iss = other.uri()),
        change(&|c| c.sub = other.uri()),
        change(&|c| c.sub = "mimi://elsewhere.example/d/x".into()),
        change(&|c| c.exp = c.iat + 61),
        change(&|c| {
            c.iat -= 1_000;
            c.exp -= 1_000;
        }),
        change(&|c| {
            c.iat += 1_000;
            c.exp += 1_000;
        }),
        change(&|c| c.iat = i64::MAX),
        change(&|c| c.exp = i64::MIN),
        change(&|c| c.jti = String::new()),
        change(&|c| c.jti = "x".repeat(65)),
        other.assertion(&good),
        token::sign("at+jwt", None, &good, &device.key.pkcs8).unwrap(),
        String::new(),
        "a.b.c".into(),
        "x".repeat(100_000),
    ];
    for (index, assertion) in refused.into_iter().enumerate() {
        assert_eq!(
            token(&world, assertion, DS).await,
            Err(Reason::ProofInvalid),
            "case {index}"
        );
    }
    let fresh = device.assertion(&device.claims());
    assert_eq!(
        token(&world, fresh, "ds:elsewhere.example").await,
        Err(Reason::UnknownValue)
    );
    token(&world, device.assertion(&good), DS).await.unwrap();
}

#[tokio::test]
async fn calls_need_a_token_for_this_service() {
    let world = World::start(1, &[]).await;
    let device = Device::enroll(&world, "alice").await;
    let search = || SearchDirectoryRequest {
        query: "alice".into(),
        ..SearchDirectoryRequest::default()
    };
    let bare = world.client().search_directory(search()).await;
    assert_eq!(reason(&bare.unwrap_err()), Reason::TokenMissing);
    let for_ds = device.token(&world, DS).await.unwrap();
    let wrong = world
        .client()
        .search_directory(with_token(search(), &for_ds))
        .await;
    assert_eq!(reason(&wrong.unwrap_err()), Reason::TokenInvalid);
    let forged = token::sign(
        "at+jwt",
        Some("k"),
        &token::unverified::<token::AccessClaims>(&device.token(&world, AS).await.unwrap())
            .unwrap(),
        &device.key.pkcs8,
    )
    .unwrap();
    let forged = world
        .client()
        .search_directory(with_token(search(), &forged))
        .await;
    assert_eq!(reason(&forged.unwrap_err()), Reason::TokenInvalid);
    let found = world
        .client()
        .search_directory(device.by(&world, search()).await)
        .await
        .unwrap();
    assert_eq!(found.into_inner().users.len(), 1);
}

#[tokio::test]
async fn two_devices_of_a_user_have_subjects_of_their_own() {
    let world = World::start(1, &[]).await;
    let one = Device::enroll(&world, "alice").await;
    let two = Device::enroll(&world, "ALICE").await;
    assert_eq!(one.user, two.user);
    let (a, b) = (
        read_device(&one.certificate).unwrap(),
        read_device(&two.certificate).unwrap(),
    );
    assert_eq!(a.user, b.user);
    assert_ne!(a.device, b.device);
}
