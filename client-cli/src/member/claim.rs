//! KeyPackages of others: one for each device, asked for under an id that is kept first.

use chancery_proto::{
    common::v1::DeviceRef,
    delivery::v1::{Claim, ClaimKeyPackagesRequest, ClaimOutcome, RequiredCapabilities},
    policy::POLICY_EXTENSION,
};
use openmls::prelude::CredentialType;

use super::{Member, directory::Name};
use crate::{
    core::{
        group,
        left_out::{self, LeftOut},
        records::{self, ClaimRecord, GroupName, Person},
    },
    failure::Failure,
    fault,
};

/// A claim's answers.
#[derive(Debug, Default)]
pub(super) struct Claimed {
    pub(super) key_packages: Vec<Vec<u8>>,
    /// Devices that have none now, and may have one later.
    pub(super) missing: Vec<LeftOut>,
    /// Devices that will never have one.
    pub(super) gone: Vec<Name>,
    /// Of both, with the reason.
    pub(super) reasons: Vec<(String, String)>,
}

impl Member {
    /// Asks for one KeyPackage of each device. The claim's id is kept first: repeated after a crash it gets the same packages.
    pub(super) async fn claim(
        &self,
        name: &GroupName,
        devices: Vec<Name>,
    ) -> Result<Claimed, Failure> {
        let (claim_id, suite) = self.step(|step, _| {
            let suite = group::look(step, name, |group| Ok(group.ciphersuite()))?;
            let mut record = records::known(step, name)?;
            let claim = match record.claim.take().filter(|c| c.devices == devices) {
                Some(claim) => claim,
                None => ClaimRecord {
                    claim_id: self.new_id(),
                    devices: devices.clone(),
                },
            };
            let id = claim.claim_id;
            record.claim = Some(claim);
            records::put_group(step, &record)?;
            Ok((id, suite))
        })?;
        let request = ClaimKeyPackagesRequest {
            claim_id: claim_id.to_vec().into(),
            devices: devices
                .iter()
                .map(|(domain, id)| DeviceRef {
                    domain: domain.clone(),
                    id: id.to_vec().into(),
                })
                .collect(),
            suites: vec![u16::from(suite).into()],
            required: Some(RequiredCapabilities {
                extensions: vec![POLICY_EXTENSION.into()],
                proposals: vec![],
                credentials: vec![u16::from(CredentialType::X509).into()],
            }),
            for_group: Some(name.to_ref()),
        };
        let claims = self.ask_for_key_packages(request).await?;
        fault::point("after-claim");
        let mut claimed = Claimed::default();
        let now = self.now();
        for claim in claims {
            claimed.take(claim, now);
        }
        self.step(|step, _| {
            left_out::note(step, name, claimed.missing.clone())?;
            left_out::forget(step, name, &claimed.gone)?;
            if claimed.key_packages.is_empty() {
                // Nothing was given out by it, and the next one is to be answered anew.
                records::change(step, name, |record| record.claim = None)?;
            }
            Ok(())
        })?;
        Ok(claimed)
    }

    /// What the server answers to one claim, device by device.
    ///
    /// # Errors
    /// The refusal, or no answer.
    pub async fn ask_for_key_packages(
        &self,
        request: ClaimKeyPackagesRequest,
    ) -> Result<Vec<Claim>, Failure> {
        let answer = self
            .delivery(request, async |mut client, request| {
                let mut parts = client.claim_key_packages(request).await?.into_inner();
                let mut claims = Vec::new();
                while let Some(part) = parts.message().await? {
                    claims.extend(part.claims);
                }
                Ok(claims)
            })
            .await?;
        Ok(answer.value)
    }
}

impl Claimed {
    /// Those of the devices without a KeyPackage whose users are known: what a Commit says of them.
    pub(super) fn left_out(&self) -> Vec<Person> {
        self.missing.iter().filter_map(LeftOut::person).collect()
    }

    fn take(&mut self, claim: Claim, now: i64) {
        let outcome = claim.outcome();
        if outcome == ClaimOutcome::KeyPackage {
            self.key_packages.push(claim.key_package.to_vec());
            return;
        }
        let Some(device) = claim.device else { return };
        let Ok(id) = <[u8; 16]>::try_from(device.id.as_ref()) else {
            return;
        };
        let name = (device.domain, id);
        let why = outcome.as_str_name().trim_start_matches("CLAIM_OUTCOME_");
        let why = why.to_lowercase();
        let uri = chancery_proto::certificate::device_uri(&name.0, uuid::Uuid::from_bytes(id));
        if outcome == ClaimOutcome::Revoked {
            self.gone.push(name);
        } else {
            let user = claim.user.and_then(|user| user.id.as_ref().try_into().ok());
            self.missing.push(LeftOut::own(&name, user, &why, now));
        }
        self.reasons.push((uri, why));
    }
}
