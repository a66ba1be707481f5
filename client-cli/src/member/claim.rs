//! KeyPackages of others: one for each device, asked for under an id that is kept first.

use chancery_proto::{
    common::v1::DeviceRef,
    delivery::v1::{Claim, ClaimKeyPackagesRequest, ClaimOutcome, RequiredCapabilities},
    mutants::{self, Mutant},
    policy::POLICY_EXTENSION,
};
use openmls::prelude::CredentialType;

use super::{Member, directory::Name};
use crate::{
    core::{
        group, leaves,
        left_out::{self, LeftOut},
        records::{self, ClaimRecord, GroupName, Person},
    },
    failure::Failure,
    fault,
};

/// A claim's answers: usable KeyPackages, devices without one, and why.
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
        let why = match outcome {
            ClaimOutcome::KeyPackage => match check(&claim) {
                Ok(()) => {
                    self.key_packages.push(claim.key_package.to_vec());
                    return;
                }
                Err(why) => why,
            },
            other => {
                let name = other.as_str_name();
                name.trim_start_matches("CLAIM_OUTCOME_").to_lowercase()
            }
        };
        let Some(device) = claim.device else { return };
        let Ok(id) = <[u8; 16]>::try_from(device.id.as_ref()) else {
            return;
        };
        let name = (device.domain, id);
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

/// Checks that a claimed KeyPackage keeps the rules and says that it is of the device that it was claimed of. Here the
/// device is known whatever the KeyPackage says, so that a bad one is left out by name.
fn check(claim: &Claim) -> Result<(), String> {
    if mutants::is_on(Mutant::ClaimedKeyPackagesUnchecked) {
        return Ok(());
    }
    let package = leaves::check_key_package(&claim.key_package)?;
    let named = leaves::claims_to_be(&package.leaf);
    let asked_for = claim.device.as_ref().zip(named).is_some_and(|(of, named)| {
        of.domain == named.domain && of.id.as_ref() == named.device.as_slice()
    });
    if asked_for {
        Ok(())
    } else {
        Err("its KeyPackage is another device's".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_answered_for_a_device_is_named_by_that_device() {
        let device = DeviceRef {
            domain: "interior.example".into(),
            id: vec![7; 16].into(),
        };
        let uri = "mimi://interior.example/d/07070707-0707-0707-0707-070707070707";
        let answers = [
            (ClaimOutcome::Suspended, vec![], "suspended"),
            (ClaimOutcome::Unsupported, vec![], "unsupported"),
            (ClaimOutcome::KeyPackage, vec![], "malformed"),
            (ClaimOutcome::KeyPackage, vec![0; 40], "malformed"),
        ];
        for (outcome, key_package, expected) in answers {
            let mut claimed = Claimed::default();
            let claim = Claim {
                device: Some(device.clone()),
                outcome: outcome.into(),
                key_package: key_package.into(),
                ..Claim::default()
            };
            claimed.take(claim, 0);
            assert!(claimed.key_packages.is_empty());
            let [(named, why)] = claimed.reasons.as_slice() else {
                panic!("{:?}", claimed.reasons);
            };
            assert_eq!(named, uri);
            assert!(why.starts_with(expected), "{why}");
        }
    }
}
