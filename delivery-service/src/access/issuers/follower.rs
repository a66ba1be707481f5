//! Asks one Authentication Service what it says of itself, and remembers the answer where it is the one that was accepted.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use chancery_proto::{
    auth::v1::{
        GetServiceInfoRequest, GetServiceInfoResponse, auth_service_client::AuthServiceClient,
    },
    mutants::{self, Mutant},
};
use prost::Message as _;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use service_kit::{
    db::{Db, DbError, Object},
    lifecycle::Shutdown,
};
use sha2::{Digest as _, Sha256};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::{
    access::{
        domains::Domains,
        issuers::{
            Issuer, Issuers, fingerprint,
            identity::{self, Undeclared},
            intermediates, thumbprints,
        },
    },
    config::{AuthServiceConfig, Declared},
    store::{self, status_feeds::Root},
};

/// One Authentication Service being followed.
pub struct Follower {
    config: AuthServiceConfig,
    domain_id: i16,
    root_der: Vec<u8>,
    declared: Declared,
    channel: Channel,
    /// Without a deadline for the whole call.
    stream_channel: Channel,
}

impl Follower {
    /// Prepares the connection; nothing is sent yet.
    ///
    /// # Errors
    /// A file that cannot be read, an address that cannot be parsed.
    pub fn new(
        config: &AuthServiceConfig,
        domains: &Domains,
        declared: Declared,
    ) -> anyhow::Result<Self> {
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
            declared,
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

    /// The roots that are used for its domain, the present one first. The root that is configured becomes the present one where it is the first, or was
    /// declared; otherwise the one that was accepted stays.
    async fn roots(&self, client: &Object, issuers: &Issuers) -> anyhow::Result<Vec<Root>> {
        let roots = store::status_feeds::roots(client, self.domain_id).await;
        let mut roots = roots.map_err(DbError::from)?;
        let offered = fingerprint(&self.root_der);
        let known = roots.first().map(|root| fingerprint(&root.der));
        let checked = identity::check_root(known.as_deref(), &offered, &self.declared);
        if let Err(undeclared) = checked {
            self.alarm(issuers, "root=FILE", &undeclared);
        } else if known.as_ref() != Some(&offered) {
            if let Some(known) = known {
                let domain = self.domain();
                tracing::warn!(
                    domain,
                    root = offered,
                    before = known,
                    "a declared root is accepted"
                );
            }
            let sha256 = Sha256::digest(&self.root_der);
            store::status_feeds::accept_root(client, self.domain_id, &sha256, &self.root_der)
                .await
                .map_err(DbError::from)?;
            let again = store::status_feeds::roots(client, self.domain_id).await;
            roots = again.map_err(DbError::from)?;
        }
        roots.retain(|root| !self.declared.distrusted.contains(&fingerprint(&root.der)));
        Ok(roots)
    }

    /// Something in its name is not what was accepted: what was known stays in use.
    fn alarm(&self, issuers: &Issuers, where_from: &str, undeclared: &Undeclared) {
        let domain = self.domain();
        tracing::error!(
            domain,
            where_from,
            %undeclared,
            "this is not the Authentication Service that was accepted: what was known of it stays in use, and nothing of this is taken"
        );
        metrics::counter!("chancery_ds_auth_service_undeclared_total", "domain" => domain.to_owned())
            .increment(1);
        let name = self.identity_name();
        issuers
            .readiness()
            .warn(&name, format!("{where_from}: {undeclared}"));
    }

    /// Under this name `/readyz` says that it is not the one that was accepted.
    fn identity_name(&self) -> String {
        format!("identity of {}", self.domain())
    }

    /// Takes over what was last remembered of it.
    ///
    /// # Errors
    /// The database.
    pub async fn recall(&self, db: &Db, issuers: &Issuers) -> anyhow::Result<()> {
        let client = db.client().await?;
        let now = store::groups::now(&client).await.map_err(DbError::from)? / 1_000_000;
        let roots = self.roots(&client, issuers).await?;
        let Some(info) = self.remembered(&client).await? else {
            return Ok(());
        };
        match Issuer::read(self.domain(), &roots, &info, now) {
            Ok(issuer) => issuers.put(self.domain(), issuer),
            Err(error) => {
                tracing::warn!(domain = self.domain(), %error, "remembered keys are not used");
            }
        }
        Ok(())
    }

    async fn remembered(&self, client: &Object) -> anyhow::Result<Option<GetServiceInfoResponse>> {
        let remembered = store::devices::auth_service(client, self.domain_id).await;
        let remembered = remembered.map_err(DbError::from)?;
        let info = remembered.map(|bytes| GetServiceInfoResponse::decode(bytes.as_slice()));
        info.transpose().context("remembered service info")
    }

    /// Asks it now, and remembers the answer.
    ///
    /// # Errors
    /// It does not answer, what it says does not hold up, or it is not the one that was accepted ([`Undeclared`]).
    pub async fn refresh(&self, db: &Db, issuers: &Issuers) -> anyhow::Result<()> {
        let mut client = AuthServiceClient::new(self.channel());
        let info = client
            .get_service_info(GetServiceInfoRequest {})
            .await?
            .into_inner();
        let client = db.client().await?;
        let now = store::groups::now(&client).await? / 1_000_000;
        let roots = self.roots(&client, issuers).await?;
        let present = roots.first().context("no root is accepted")?;
        let served = info.roots.first().filter(|_| {
            let known = info.roots.iter().any(|root| root.der == present.der);
            !known && !mutants::is_on(Mutant::IssuerChangeUndeclared)
        });
        if let Some(served) = served {
            return Err(Undeclared::Root(fingerprint(&served.der)).into());
        }
        let known = self.remembered(&client).await?;
        let known = known.as_ref().map(thumbprints).transpose()?;
        let offered = thumbprints(&info)?;
        identity::check_token_keys(&known.unwrap_or_default(), &offered, &self.declared)?;
        let issuer = Issuer::read(self.domain(), &roots, &info, now)?;
        store::devices::remember_auth_service(&client, self.domain_id, &info.encode_to_vec())
            .await?;
        let sha256 = Sha256::digest(&present.der);
        let (domain, intermediates) = (self.domain_id, intermediates(&info));
        store::status_feeds::remember_intermediates(&client, domain, &sha256, &intermediates)
            .await?;
        issuers.put(self.domain(), issuer);
        if fingerprint(&self.root_der) == fingerprint(&present.der) {
            issuers.readiness().clear(&self.identity_name());
        }
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
            let refreshed = self.refresh(&db, &issuers).await;
            if let Err(error) = &refreshed
                && let Some(undeclared) = error.downcast_ref()
            {
                self.alarm(&issuers, &self.config.url, undeclared);
            } else if let Err(error) = refreshed {
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
