//! The Authentication Services whose devices may call: their token keys and certificates, refreshed in the background.
//!
//! Tokens and certificates are verified offline from what was last fetched; it is remembered in the database, so that this service starts and works
//! while an Authentication Service is down.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chancery_proto::{
    auth::v1::{
        GetServiceInfoRequest, GetServiceInfoResponse, auth_service_client::AuthServiceClient,
    },
    certificate::Anchors,
};
use prost::Message as _;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use service_kit::{
    db::{Db, DbError},
    lifecycle::Shutdown,
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::{config::AuthServiceConfig, domains::Domains, store};

/// What is known of one Authentication Service.
#[derive(Debug, Clone)]
pub struct Issuer {
    /// Raw Ed25519 token keys by `kid`.
    pub token_keys: HashMap<String, Vec<u8>>,
    /// The pinned root with the intermediates that verified against it.
    pub anchors: Anchors,
}

/// All of them by domain.
#[derive(Debug, Clone, Default)]
pub struct Issuers {
    by_domain: Arc<RwLock<HashMap<String, Arc<Issuer>>>>,
}

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
    /// The issuer for a domain, once it was heard.
    pub fn get(&self, domain: &str) -> Option<Arc<Issuer>> {
        self.by_domain
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(domain)
            .cloned()
    }

    /// Takes over what an Authentication Service says of itself, as far as the pinned root vouches for it.
    ///
    /// # Errors
    /// It speaks for another domain, or its keys cannot be read.
    pub fn learn(
        &self,
        domain: &str,
        root_der: &[u8],
        info: &GetServiceInfoResponse,
        now: i64,
    ) -> anyhow::Result<()> {
        anyhow::ensure!(
            info.domain == domain,
            "the service at this address speaks for {:?}",
            info.domain
        );
        let keys: JwkSet =
            serde_json::from_str(&info.token_keys_jwks).context("token_keys_jwks")?;
        let token_keys: HashMap<String, Vec<u8>> = keys
            .keys
            .into_iter()
            .filter(|key| key.kty == "OKP" && key.crv == "Ed25519")
            .filter_map(|key| Some((key.kid, URL_SAFE_NO_PAD.decode(key.x).ok()?)))
            .filter(|(_, key)| key.len() == 32)
            .collect();
        anyhow::ensure!(!token_keys.is_empty(), "no Ed25519 token key");
        let intermediates: Vec<Vec<u8>> =
            info.intermediates.iter().map(|c| c.der.to_vec()).collect();
        let anchors = Anchors::pinned(root_der, &intermediates, now)
            .map_err(|error| anyhow::anyhow!("certificates: {error}"))?;
        let issuer = Arc::new(Issuer {
            token_keys,
            anchors,
        });
        self.by_domain
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(domain.to_owned(), issuer);
        Ok(())
    }
}

/// One Authentication Service being followed.
pub struct Follower {
    config: AuthServiceConfig,
    domain_id: i16,
    root_der: Vec<u8>,
    channel: Channel,
    /// Without a deadline for the whole call.
    stream_channel: Channel,
}

impl Follower {
    /// Prepares the connection; nothing is sent yet.
    ///
    /// # Errors
    /// A file that cannot be read, an address that cannot be parsed.
    pub fn new(config: &AuthServiceConfig, domains: &Domains) -> anyhow::Result<Self> {
        let mut endpoint = Endpoint::from_shared(config.url.clone())
            .with_context(|| format!("--auth-service {config}"))?
            .connect_timeout(Duration::from_secs(5));
        if let Some(ca) = &config.ca {
            let pem = std::fs::read(ca).with_context(|| format!("{}", ca.display()))?;
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            endpoint = endpoint.tls_config(tls)?;
        }
        Ok(Self {
            root_der: CertificateDer::from_pem_file(&config.root)
                .map_err(|error| anyhow::anyhow!("{}: {error}", config.root.display()))?
                .to_vec(),
            domain_id: domains.id(&config.domain).context("unknown domain")?,
            channel: endpoint
                .clone()
                .timeout(Duration::from_secs(10))
                .connect_lazy(),
            stream_channel: endpoint.connect_lazy(),
            config: config.clone(),
        })
    }

    /// A channel to it.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A channel to it, for streams.
    pub fn stream_channel(&self) -> Channel {
        self.stream_channel.clone()
    }

    /// Its domain.
    pub fn domain(&self) -> &str {
        &self.config.domain
    }

    /// Its domain's number.
    pub fn domain_id(&self) -> i16 {
        self.domain_id
    }

    /// Takes over what was last remembered of it.
    ///
    /// # Errors
    /// The database.
    pub async fn recall(&self, db: &Db, issuers: &Issuers) -> anyhow::Result<()> {
        let client = db.client().await?;
        let now = store::groups::now(&client).await.map_err(DbError::from)? / 1_000_000;
        let remembered = store::devices::auth_service(&client, self.domain_id).await;
        let Some(remembered) = remembered.map_err(DbError::from)? else {
            return Ok(());
        };
        let info = GetServiceInfoResponse::decode(remembered.service_info.as_slice())
            .context("remembered service info")?;
        if let Err(error) = issuers.learn(self.domain(), &self.root_der, &info, now) {
            tracing::warn!(domain = self.domain(), %error, "remembered keys are not used");
        }
        Ok(())
    }

    /// Asks it now, and remembers the answer.
    ///
    /// # Errors
    /// It does not answer, or what it says does not hold up.
    pub async fn refresh(&self, db: &Db, issuers: &Issuers) -> anyhow::Result<()> {
        let mut client = AuthServiceClient::new(self.channel());
        let info = client
            .get_service_info(GetServiceInfoRequest {})
            .await?
            .into_inner();
        let client = db.client().await?;
        let now = store::groups::now(&client).await? / 1_000_000;
        issuers.learn(self.domain(), &self.root_der, &info, now)?;
        store::devices::remember_auth_service(&client, self.domain_id, &info.encode_to_vec())
            .await?;
        Ok(())
    }

    /// Refreshes until shutdown; while it was never heard, sooner at first and then ever more slowly, up to the same interval.
    pub async fn run(
        self: Arc<Self>,
        db: Db,
        issuers: Issuers,
        every: Duration,
        shutdown: Shutdown,
    ) {
        let stop = shutdown.soft();
        let mut retry = Duration::from_secs(1);
        loop {
            if let Err(error) = self.refresh(&db, &issuers).await {
                tracing::warn!(
                    domain = self.domain(),
                    error = format!("{error:#}"),
                    "cannot refresh keys of the Authentication Service"
                );
            }
            let pause = match issuers.get(self.domain()) {
                Some(_) => every,
                None => retry.min(every),
            };
            retry = retry.saturating_mul(2);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}
