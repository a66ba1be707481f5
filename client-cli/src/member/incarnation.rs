//! A Delivery Service whose database was restored gives KeyPackages away that it had given away before. Its incarnation
//! says so, and this device publishes others in their place. The private parts of the old ones are kept for a while,
//! for Welcomes that are under way, and then dropped.

use chancery_proto::{
    delivery::v1::{GetServiceInfoRequest, PublishKeyPackagesRequest},
    mutants::{self, Mutant},
    signed,
};
use openmls::prelude::Ciphersuite;
use openmls_traits::signatures::Signer as _;
use serde::{Deserialize, Serialize};

use super::{Delivery, META, Member, stock::KEY_PACKAGES};
use crate::{core::group, failure::Failure};

const INCARNATION: &[u8] = b"incarnation";
const RETIRED: &[u8] = b"key_packages.retired";
/// How long the private parts of replaced KeyPackages are kept, seconds: a claim may be answered again for a day, and
/// its Commit comes after it.
const RETIRED_SECONDS: i64 = 2 * 86_400;
/// How long a signed replacement may be under way, seconds.
const REPLACE_SECONDS: i64 = 300;

/// KeyPackages that the server gives away no more, by their keys in the store.
#[derive(Serialize, Deserialize)]
struct Retired {
    keys: Vec<Vec<u8>>,
    since: i64,
}

impl Member {
    /// Compares the server's incarnation with the one that is remembered. After a restore KeyPackages are published
    /// anew; whether that was so.
    ///
    /// # Errors
    /// The refusal, no answer, or the store.
    pub(super) async fn compare_incarnation(&self) -> Result<bool, Failure> {
        self.drop_retired()?;
        if mutants::is_on(Mutant::IncarnationIgnored) {
            return Ok(false);
        }
        let info = self
            .transport
            .repeat(async || {
                let mut client = Delivery::new(self.transport.delivery.clone());
                let request = GetServiceInfoRequest {};
                Ok(client.get_service_info(request).await?.into_inner())
            })
            .await?
            .value;
        let seen = info.incarnation.to_vec();
        let known: Option<Vec<u8>> = self.step(|step, _| Ok(step.get(META, INCARNATION)?))?;
        let restored = known.as_ref().is_some_and(|known| *known != seen);
        if seen.is_empty() || known.as_ref() == Some(&seen) {
            return Ok(false);
        }
        if restored {
            self.replace_key_packages().await?;
        }
        // Last: what a crash left half done is done again.
        self.step(|step, _| Ok(step.put(META, INCARNATION, &seen)?))?;
        Ok(restored)
    }

    /// Publishes other KeyPackages in the place of those that the server has, suite by suite.
    async fn replace_key_packages(&self) -> Result<(), Failure> {
        self.step(|step, context| {
            let mut keys = step.key_packages()?;
            let before: Option<Retired> = step.get(META, RETIRED)?;
            keys.extend(before.into_iter().flat_map(|retired| retired.keys));
            keys.sort();
            keys.dedup();
            let since = context.now;
            Ok(step.put(META, RETIRED, &Retired { keys, since })?)
        })?;
        for stock in self.key_package_stock().await? {
            let code = u16::try_from(stock.suite).ok();
            let suite = code.and_then(|code| Ciphersuite::try_from(code).ok());
            let Some(suite) = suite.filter(|suite| group::SUITES.contains(suite)) else {
                continue;
            };
            let usual = match suite == group::SUITES[0] {
                true => KEY_PACKAGES,
                false => stock.one_time.min(KEY_PACKAGES),
            };
            let made = self.make_key_packages(suite, usual, true)?;
            let expires_at = self.now() + REPLACE_SECONDS;
            let domain = &self.profile.delivery_domain;
            let content = signed::replace(domain, &[suite.into()], &made, expires_at);
            let key = self.step(|_, context| context.identity.leaf_key(suite))?;
            let signature = key
                .sign(&signed::to_be_signed(signed::REPLACE, &content))
                .map_err(|_| Failure::Profile("the device key cannot sign".into()))?;
            let request = PublishKeyPackagesRequest {
                key_packages: made.into_iter().map(Into::into).collect(),
                replace_suites: vec![stock.suite],
                replace_signature: signature.into(),
                replace_expires_at: expires_at,
            };
            self.delivery(request, async |mut client, request| {
                client.publish_key_packages(request).await
            })
            .await?;
        }
        Ok(())
    }

    /// Drops the private parts of KeyPackages that were replaced long enough ago.
    fn drop_retired(&self) -> Result<(), Failure> {
        self.step(|step, context| {
            let retired: Option<Retired> = step.get(META, RETIRED)?;
            let Some(retired) = retired.filter(|r| context.now - r.since > RETIRED_SECONDS) else {
                return Ok(());
            };
            for key in &retired.keys {
                step.delete_key_package(key)?;
            }
            Ok(step.delete(META, RETIRED)?)
        })
    }
}
