//! The Authentication Services whose devices may call: their token keys and certificates, refreshed in the background.
//!
//! Tokens and certificates are verified offline from what was last fetched; it is remembered in the database, so that this service starts and works
//! while an Authentication Service is down.

mod follower;
pub mod identity;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chancery_proto::{
    auth::v1::GetServiceInfoResponse,
    certificate::Anchors,
    common::v1::Reason,
    mutants::{self, Mutant},
    token,
};
use service_kit::ops::Readiness;
use sha2::{Digest as _, Sha256};

use crate::{
    access::freshness::Freshness, config::Config, error::Error, store::status_feeds::Root,
};
pub use follower::Follower;

/// What is known of one Authentication Service.
#[derive(Debug, Clone)]
pub struct Issuer {
    /// Raw Ed25519 token keys by `kid`.
    pub token_keys: HashMap<String, Vec<u8>>,
    /// The pinned root with the intermediates that verified against it.
    pub anchors: Anchors,
}

/// All of them by domain, and how fresh their status feeds are; cheap to clone.
#[derive(Debug, Clone)]
pub struct Issuers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    by_domain: RwLock<HashMap<String, Arc<Issuer>>>,
    freshness: HashMap<String, Freshness>,
    feed_max_age: Duration,
    readiness: Readiness,
}

/// Under this name `/readyz` says that no Authentication Service is known.
const NOBODY: &str = "authentication services";
/// How often the age of a status feed is looked at.
const LOOK: Duration = Duration::from_secs(1);

#[derive(serde::Deserialize)]
struct JwkSet {
    keys: Vec<Jwk>,
}

#[derive(serde::Deserialize)]
struct Jwk {
    kty: String,
    #[serde(default)]
    crv: String,
    #[serde(default)]
    kid: String,
    #[serde(default)]
    x: String,
}

impl Issuers {
    /// For the Authentication Services of a configuration. Until one of them is known the service could serve nobody, and is not ready.
    pub fn new(config: &Config, readiness: Readiness) -> Self {
        let domains = config.auth_services.iter().map(|auth| &auth.domain);
        let freshness = domains.map(|domain| (domain.clone(), Freshness::default()));
        readiness.unready(
            NOBODY,
            "none was ever heard: nobody's token can be verified",
        );
        Self(Arc::new(Shared {
            by_domain: RwLock::default(),
            freshness: freshness.collect(),
            feed_max_age: Duration::from_secs(config.trust.feed_max_age_seconds),
            readiness,
        }))
    }

    /// The issuer for a domain, once it was heard.
    pub fn get(&self, domain: &str) -> Option<Arc<Issuer>> {
        self.0
            .by_domain
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(domain)
            .cloned()
    }

    /// What this node says of itself on `/readyz`.
    pub fn readiness(&self) -> &Readiness {
        &self.0.readiness
    }

    /// How fresh the status feed of a domain is.
    pub fn freshness(&self, domain: &str) -> Freshness {
        self.0.freshness.get(domain).cloned().unwrap_or_default()
    }

    /// Whether devices of a domain may write: not where its status feed was not heard for too long, because a revocation may be missing.
    ///
    /// # Errors
    /// `STATUS_FEED_STALE`.
    pub fn may_write(&self, domain: &str) -> Result<(), Error> {
        let age = self.0.freshness.get(domain).map(Freshness::age);
        match age {
            Some(age) if age > self.0.feed_max_age && !mutants::is_on(Mutant::FeedAgeUnbounded) => {
                Err(Error::Refused {
                    reason: Reason::StatusFeedStale,
                    text: "the status feed of the device's domain was not heard for too long"
                        .into(),
                    metadata: vec![("age_seconds", age.as_secs().to_string())],
                })
            }
            _ => Ok(()),
        }
    }

    /// Shows the age of a domain's status feed, and says so where it is above `bound`; until it is dropped.
    pub async fn watch_age(self, domain: String, bound: Duration) {
        let freshness = self.freshness(&domain);
        let name = format!("status feed of {domain}");
        let mut above = false;
        loop {
            let age = freshness.age();
            metrics::gauge!("chancery_ds_status_feed_age_seconds", "domain" => domain.clone())
                .set(age.as_secs_f64());
            if age > bound {
                let seconds = age.as_secs();
                let refused = age > self.0.feed_max_age;
                if !above {
                    tracing::error!(
                        domain,
                        seconds,
                        "the status feed is not heard: revocations may be missing, and --feed-max-age-seconds after it was heard last what the \
                         devices of this domain write is refused"
                    );
                }
                let then = if refused {
                    "; what its devices write is refused"
                } else {
                    ""
                };
                let text = format!("not heard for {seconds} s{then}");
                self.0.readiness.warn(&name, text);
            } else if above {
                tracing::info!(domain, "the status feed is heard again");
                self.0.readiness.clear(&name);
            }
            above = age > bound;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Takes over what is known of an Authentication Service.
    pub fn put(&self, domain: &str, issuer: Issuer) {
        self.0
            .by_domain
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(domain.to_owned(), Arc::new(issuer));
        self.0.readiness.clear(NOBODY);
    }
}

impl Issuer {
    /// Reads what the Authentication Service of a domain says of itself, as far as a root that was accepted vouches for it: the first of `roots`, for
    /// what is issued today; those behind it, for what was issued under them. `now` is Unix seconds.
    ///
    /// # Errors
    /// It speaks for another domain, or its keys cannot be read.
    pub fn read(
        domain: &str,
        roots: &[Root],
        info: &GetServiceInfoResponse,
        now: i64,
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(
            info.domain == domain,
            "the service at this address speaks for {:?}",
            info.domain
        );
        let token_keys = token_keys(info)?;
        anyhow::ensure!(!token_keys.is_empty(), "no Ed25519 token key");
        let (root, former) = roots.split_first().context("no root is accepted")?;
        // One that ended vouches for nothing any more.
        let former = former
            .iter()
            .filter_map(|root| Anchors::pinned(&root.der, &root.intermediates, now).ok());
        let anchors = Anchors::pinned(&root.der, &intermediates(info), now)
            .map_err(|error| anyhow::anyhow!("certificates: {error}"))?
            .after(former.collect());
        Ok(Self {
            token_keys,
            anchors,
        })
    }
}

fn intermediates(info: &GetServiceInfoResponse) -> Vec<Vec<u8>> {
    info.intermediates.iter().map(|c| c.der.to_vec()).collect()
}

/// Raw Ed25519 token keys by `kid`.
fn token_keys(info: &GetServiceInfoResponse) -> anyhow::Result<HashMap<String, Vec<u8>>> {
    let keys: JwkSet = serde_json::from_str(&info.token_keys_jwks).context("token_keys_jwks")?;
    Ok(keys
        .keys
        .into_iter()
        .filter(|key| key.kty == "OKP" && key.crv == "Ed25519")
        .filter_map(|key| Some((key.kid, URL_SAFE_NO_PAD.decode(key.x).ok()?)))
        .filter(|(_, key)| key.len() == 32)
        .collect())
}

/// Thumbprints (RFC 7638) of its token keys, whatever it calls them.
fn thumbprints(info: &GetServiceInfoResponse) -> anyhow::Result<BTreeSet<String>> {
    let keys = token_keys(info)?;
    Ok(keys.values().map(|key| token::thumbprint(key)).collect())
}

/// SHA-256 of a certificate, in hex.
fn fingerprint(der: &[u8]) -> String {
    let digest = Sha256::digest(der);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
