//! Domain names and their small numbers in the database. Only configured Authentication Services have one.

use std::collections::HashMap;

use chancery_proto::common::v1::{DeviceRef, UserRef};
use uuid::Uuid;

use crate::{error::Error, ordering::group::DeviceKey};
use chancery_proto::common::v1::Reason;

/// The two-way map, fixed at start.
#[derive(Debug, Clone, Default)]
pub struct Domains {
    by_name: HashMap<String, i16>,
    by_id: HashMap<i16, String>,
}

impl Domains {
    /// From `(name, number)` pairs.
    pub fn new(pairs: impl IntoIterator<Item = (String, i16)>) -> Self {
        let by_name: HashMap<String, i16> = pairs.into_iter().collect();
        let by_id = by_name.iter().map(|(n, id)| (*id, n.clone())).collect();
        Self { by_name, by_id }
    }

    /// The number of a configured domain.
    pub fn id(&self, name: &str) -> Option<i16> {
        self.by_name.get(name).copied()
    }

    /// All names.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.by_name.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// On the wire.
    pub fn device_ref(&self, key: DeviceKey) -> DeviceRef {
        DeviceRef {
            domain: self.name(key.domain),
            id: key.device.as_bytes().to_vec().into(),
        }
    }

    /// On the wire.
    pub fn user_ref(&self, domain: i16, user: Uuid) -> UserRef {
        UserRef {
            domain: self.name(domain),
            id: user.as_bytes().to_vec().into(),
        }
    }

    /// `mimi://<domain>/d/<uuid>`.
    pub fn device_uri(&self, key: DeviceKey) -> String {
        chancery_proto::certificate::device_uri(&self.name(key.domain), key.device)
    }

    fn name(&self, id: i16) -> String {
        self.by_id.get(&id).cloned().unwrap_or_default()
    }

    /// Reads a device from a request.
    ///
    /// # Errors
    /// Malformed, or a domain that no configured Authentication Service vouches for.
    pub fn device(&self, field: &'static str, device: &DeviceRef) -> Result<DeviceKey, Error> {
        let id =
            Uuid::from_slice(&device.id).map_err(|_| Error::malformed(field, "id: 16 bytes"))?;
        let domain = self.id(&device.domain).ok_or_else(|| {
            Error::refused(Reason::UnknownValue, format!("{field}: unknown domain"))
        })?;
        Ok(DeviceKey { domain, device: id })
    }
}
