//! From an access token to a [`Caller`].

use std::time::Duration;

use chancery_proto::{common::v1::Reason, token};
use service_kit::db::Db;
use tonic::metadata::MetadataMap;

use crate::{
    access::{
        caller::{Caller, look_at_standing},
        clock::Clock,
        domains::Domains,
        issuers::Issuers,
        tokens::Tokens,
    },
    error::Error,
    ordering::group::DeviceKey,
};

/// What it takes to know a caller. One check serves unary calls and streams alike.
#[derive(Debug, Clone)]
pub struct Gate {
    /// Keys of the Authentication Services.
    pub issuers: Issuers,
    /// The numbers of their domains.
    pub domains: Domains,
    /// The audience that a token must name: `ds:<domain>`.
    pub audience: String,
    /// Seconds that clocks may differ.
    pub leeway: i64,
    /// The time of the database.
    pub clock: Clock,
    /// Tokens that were verified before.
    pub tokens: Tokens,
}

impl Gate {
    /// Reads and checks the token, and that the device was not revoked.
    ///
    /// # Errors
    /// `TOKEN_MISSING`, `TOKEN_INVALID`, `TOKEN_EXPIRED`, `DEVICE_REVOKED`, or the database.
    pub async fn admit(&self, metadata: &MetadataMap, db: &Db) -> Result<Caller, Error> {
        let caller = self.recognise(metadata, db).await?;
        look_at_standing(&caller, db).await?;
        Ok(caller)
    }

    /// Reads and checks the token only: for whoever looks at how the device stands under a lock, with [`check_standing`](super::caller::check_standing).
    ///
    /// # Errors
    /// `TOKEN_MISSING`, `TOKEN_INVALID`, `TOKEN_EXPIRED`, or the database.
    pub async fn recognise(&self, metadata: &MetadataMap, db: &Db) -> Result<Caller, Error> {
        let token = token::bearer(metadata).ok_or_else(|| {
            Error::refused(
                Reason::TokenMissing,
                "authorization: Bearer <token> is missing",
            )
        })?;
        let now = self.clock.now(db).await? / 1_000_000;
        match self.tokens.get(token, &self.issuers) {
            Some(caller) if now <= caller.expires_at.saturating_add(self.leeway) => Ok(caller),
            _ => self.verify(token, now),
        }
    }

    /// How long a stream of this caller may go on. The clock is the database's, the wait is this node's.
    ///
    /// # Errors
    /// The database.
    pub async fn time_left(&self, caller: &Caller, db: &Db) -> Result<Duration, Error> {
        let now = self.clock.now(db).await?;
        let end = caller.expires_at.saturating_add(self.leeway);
        let left = end.saturating_mul(1_000_000).saturating_sub(now);
        Ok(Duration::from_micros(u64::try_from(left).unwrap_or(0)))
    }

    fn verify(&self, token: &str, now: i64) -> Result<Caller, Error> {
        let invalid = || Error::refused(Reason::TokenInvalid, "the token is not valid");
        let kid = token::key_id(token).map_err(|_| invalid())?;
        // The issuer is named inside; try the issuers that hold this key id.
        for domain in self.domains.names() {
            let Some(issuer) = self.issuers.get(&domain) else {
                continue;
            };
            let Some(key) = issuer.token_keys.get(&kid) else {
                continue;
            };
            let claims = match token::verify_access(token, key, &self.audience, now, self.leeway) {
                Ok(claims) if claims.iss == domain => claims,
                Err(token::TokenError::Expired) => {
                    return Err(Error::refused(Reason::TokenExpired, "the token expired"));
                }
                Ok(_) | Err(token::TokenError::Invalid) => continue,
            };
            let caller = Caller {
                key: DeviceKey {
                    domain: self.domains.id(&domain).ok_or_else(invalid)?,
                    device: claims.device.parse().map_err(|_| invalid())?,
                },
                user: claims.sub.parse().map_err(|_| invalid())?,
                domain,
                expires_at: claims.exp,
                key_thumbprint: claims.cnf.jkt,
            };
            self.tokens.put(token, kid, caller.clone());
            return Ok(caller);
        }
        Err(invalid())
    }
}
