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
        records::{self, ClaimRecord, GroupName, Person},
    },
    failure::Failure,
    fault,
};

/// A claim's answers: KeyPackages, devices without one, and why.
#[derive(Debug, Default)]
pub(super) struct Claimed {
    pub(super) key_packages: Vec<Vec<u8>>,
    pub(super) left_out: Vec<Person>,
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
        for claim in claims {
            claimed.take(claim);
        }
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
    fn take(&mut self, claim: Claim) {
        let outcome = claim.outcome();
        if outcome == ClaimOutcome::KeyPackage {
            self.key_packages.push(claim.key_package.to_vec());
            return;
        }
        let Some(device) = claim.device else { return };
        let Ok(id) = <[u8; 16]>::try_from(device.id.as_ref()) else {
            return;
        };
        let uri =
            chancery_proto::certificate::device_uri(&device.domain, uuid::Uuid::from_bytes(id));
        let why = outcome.as_str_name().trim_start_matches("CLAIM_OUTCOME_");
        self.reasons.push((uri, why.to_lowercase()));
        if let Some(user) = claim.user
            && let Ok(user) = user.id.as_ref().try_into()
        {
            self.left_out.push(Person {
                domain: device.domain,
                user,
                device: id,
            });
        }
    }
}
