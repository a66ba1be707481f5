//! Every SQL statement of the service. Each opens with its function's name, lists its columns, and a write checks how many rows it touched.

pub mod claims;
pub mod devices;
pub mod epochs;
pub mod groups;
pub mod key_packages;
pub mod log;
pub mod recovery;
pub mod retention;
pub mod revocations;
pub mod roster;
pub mod status_feeds;
pub mod tree;
pub mod welcomes;

use tokio_postgres::Row;
use uuid::Uuid;

use crate::ordering::group::DeviceKey;

/// The two columns that name a device, as arrays for `unnest`.
fn columns(devices: &[DeviceKey]) -> (Vec<i16>, Vec<Uuid>) {
    devices.iter().map(|d| (d.domain, d.device)).unzip()
}

/// The device that a row's first two columns name.
fn device_key(row: &Row) -> DeviceKey {
    DeviceKey {
        domain: row.get(0),
        device: row.get(1),
    }
}

/// Which of several queries a row answers: `n` of `WITH ORDINALITY`, which counts from 1.
fn place_of(row: &Row) -> usize {
    usize::try_from(row.get::<_, i64>("n") - 1).unwrap_or(usize::MAX)
}

/// PostgreSQL has no unsigned numbers; every seq and epoch that is stored came from a signed column or was checked at the edge.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn hash32(bytes: &[u8]) -> [u8; 32] {
    bytes.try_into().unwrap_or([0; 32])
}
