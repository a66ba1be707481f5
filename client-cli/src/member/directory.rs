//! People and their devices, as the own domain's Authentication Service knows them.

use chancery_proto::{
    auth::v1::{
        Device, DeviceState, GetDevicesRequest, RevokeDeviceRequest, SearchDirectoryRequest, User,
    },
    common::v1::{DeviceRef, UserRef},
    signed,
};
use uuid::Uuid;

use super::Member;
use crate::failure::Failure;

/// How long a signed revocation may be under way, seconds.
const REVOCATION_SECONDS: i64 = 300;

/// A user or device as it is written: domain and id.
pub type Name = (String, [u8; 16]);

fn parse(text: &str, kind: &str) -> Result<Name, Failure> {
    let bad = || {
        Failure::Usage(format!(
            "{text:?} is not written mimi://<domain>/{kind}/<uuid>"
        ))
    };
    let (domain, id) = text
        .strip_prefix("mimi://")
        .and_then(|rest| rest.split_once(&format!("/{kind}/")))
        .ok_or_else(bad)?;
    let id = Uuid::try_parse(id).map_err(|_| bad())?;
    if domain.is_empty() || domain.contains('/') {
        return Err(bad());
    }
    Ok((domain.to_owned(), *id.as_bytes()))
}

/// Reads `mimi://<domain>/u/<uuid>`.
///
/// # Errors
/// [`Failure::Usage`].
pub fn user(text: &str) -> Result<Name, Failure> {
    parse(text, "u")
}

/// Reads `mimi://<domain>/d/<uuid>`.
///
/// # Errors
/// [`Failure::Usage`].
pub fn device(text: &str) -> Result<Name, Failure> {
    parse(text, "d")
}

impl Member {
    /// People whose names begin like this.
    ///
    /// # Errors
    /// The refusal, or no answer.
    pub async fn search(&self, query: &str) -> Result<Vec<User>, Failure> {
        let (mut users, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = SearchDirectoryRequest {
                query: query.to_owned(),
                page_token,
                ..SearchDirectoryRequest::default()
            };
            let page = self
                .auth(request, async |mut client, request| {
                    Ok(client.search_directory(request).await?.into_inner())
                })
                .await?
                .value;
            users.extend(page.users);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(users);
            }
        }
    }

    /// Devices of people of the own domain.
    ///
    /// # Errors
    /// The refusal, or no answer.
    pub async fn devices(&self, users: &[Name]) -> Result<Vec<Device>, Failure> {
        let request = GetDevicesRequest {
            users: users
                .iter()
                .map(|(domain, id)| UserRef {
                    domain: domain.clone(),
                    id: id.to_vec().into(),
                })
                .collect(),
        };
        let answer = self
            .auth(request, async |mut client, request| {
                let mut parts = client.get_devices(request).await?.into_inner();
                let mut devices = Vec::new();
                while let Some(part) = parts.message().await? {
                    devices.extend(part.devices);
                }
                Ok(devices)
            })
            .await?;
        Ok(answer.value)
    }

    /// The active devices of people, as names.
    ///
    /// # Errors
    /// The refusal, or no answer.
    pub async fn active_devices(&self, users: &[Name]) -> Result<Vec<Name>, Failure> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let devices = self.devices(users).await?;
        Ok(devices
            .into_iter()
            .filter(|device| device.state() == DeviceState::Active)
            .filter_map(|device| {
                let device = device.device?;
                Some((device.domain, device.id.as_ref().try_into().ok()?))
            })
            .collect())
    }

    /// Revokes one of the own user's devices, for ever; its position in the status feed.
    ///
    /// # Errors
    /// The refusal, or no answer.
    pub async fn revoke(&self, device: &Name) -> Result<u64, Failure> {
        let expires_at = self.now() + REVOCATION_SECONDS;
        let content = signed::revoke((&device.0, &device.1), expires_at);
        let signature = self
            .identity
            .sign(&signed::to_be_signed(signed::REVOKE, &content))
            .map_err(|_| Failure::Profile("the device key cannot sign".into()))?;
        let request = RevokeDeviceRequest {
            device: Some(DeviceRef {
                domain: device.0.clone(),
                id: device.1.to_vec().into(),
            }),
            expires_at,
            signature: signature.into(),
        };
        let answer = self
            .auth(request, async |mut client, request| {
                Ok(client.revoke_device(request).await?.into_inner())
            })
            .await?;
        Ok(answer.value.seq)
    }
}
