//! Who is who: the only place that knows names.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chancery_proto::{
    auth::v1::{
        self, DeviceState, GetDevicesRequest, GetUsersRequest, SearchDirectoryRequest,
        SearchDirectoryResponse,
    },
    common::v1::{DeviceRef, Reason, UserRef},
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    error::Error,
    names,
    node::Node,
    store::{self, devices::Device, users::User},
};

const QUERY_CHARACTERS: usize = 2;
const QUERY_WORDS: usize = 8;

/// A person as shown.
pub fn shown(domain: &str, user: User) -> v1::User {
    v1::User {
        user: Some(UserRef {
            domain: domain.to_owned(),
            id: user.id.as_bytes().to_vec().into(),
        }),
        display_name: user.display_name,
        handle: user.handle,
        organisation: user.organisation,
        suspended: user.suspended,
    }
}

/// How many items a page holds.
///
/// # Errors
/// `LIMIT_EXCEEDED`.
pub fn page_size(node: &Node, asked: u32) -> Result<i64, Error> {
    let max = node.config.limits.page_items;
    Error::within(
        "page_items",
        max,
        usize::try_from(asked).unwrap_or(usize::MAX),
    )?;
    Ok(if asked == 0 { max } else { asked }.into())
}

/// Where a page of people begins: after the key of a handle.
///
/// # Errors
/// `MALFORMED`.
pub fn read_page_token(token: &str) -> Result<String, Error> {
    let bytes = URL_SAFE_NO_PAD
        .decode(token)
        .map_err(|error| Error::malformed("page_token", error))?;
    String::from_utf8(bytes).map_err(|error| Error::malformed("page_token", error))
}

/// The token of the page after these.
pub fn next_page_token(users: &[User], size: i64) -> String {
    match users.last() {
        Some(last) if i64::try_from(users.len()) == Ok(size) => {
            URL_SAFE_NO_PAD.encode(&last.handle_key)
        }
        _ => String::new(),
    }
}

/// Searches names and handles by the beginnings of words.
///
/// # Errors
/// `MALFORMED`, `LIMIT_EXCEEDED`, or the database.
pub async fn search(
    node: &Node,
    request: &SearchDirectoryRequest,
) -> Result<SearchDirectoryResponse, Error> {
    let query = request.query.trim();
    Error::within("name_bytes", node.config.limits.name_bytes, query.len())?;
    let mut beginnings: Vec<String> = query
        .split_whitespace()
        .map(names::searched)
        .take(QUERY_WORDS + 1)
        .collect();
    if query.chars().count() < QUERY_CHARACTERS || beginnings.len() > QUERY_WORDS {
        return Err(Error::malformed("query", "2 characters to 8 words"));
    }
    // The longest finds the fewest.
    beginnings.sort_by_key(|word| std::cmp::Reverse(word.len()));
    let size = page_size(node, request.page_size)?;
    let after = read_page_token(&request.page_token)?;
    let client = node.db.client().await?;
    let users = store::users::search(&client, &beginnings, &after, size).await?;
    Ok(SearchDirectoryResponse {
        next_page_token: next_page_token(&users, size),
        users: users
            .into_iter()
            .map(|user| shown(&node.config.domain, user))
            .collect(),
    })
}

fn user_ids(node: &Node, users: &[UserRef]) -> Result<Vec<Uuid>, Error> {
    Error::within("users_items", node.config.limits.users_items, users.len())?;
    let ours = users
        .iter()
        .filter(|user| user.domain == node.config.domain);
    ours.map(|user| Uuid::from_slice(&user.id).map_err(|error| Error::malformed("users.id", error)))
        .collect()
}

/// People by id; those that this domain does not know are left out.
///
/// # Errors
/// `MALFORMED`, `LIMIT_EXCEEDED`, or the database.
pub async fn users(node: &Node, request: &GetUsersRequest) -> Result<Vec<v1::User>, Error> {
    let ids = user_ids(node, &request.users)?;
    let client = node.db.client().await?;
    let users = store::users::by_ids(&client, &ids).await?;
    Ok(users
        .into_iter()
        .map(|user| shown(&node.config.domain, user))
        .collect())
}

/// Devices of people, with state and certificates.
///
/// # Errors
/// `USER` when one is unknown, `MALFORMED`, `LIMIT_EXCEEDED`, or the database.
pub async fn devices(node: &Node, request: &GetDevicesRequest) -> Result<Vec<v1::Device>, Error> {
    let ids = user_ids(node, &request.users)?;
    let client = node.db.client().await?;
    let known = store::users::by_ids(&client, &ids).await?;
    if ids.len() < request.users.len() || ids.iter().any(|id| !known.iter().any(|u| u.id == *id)) {
        return Err(Error::refused(Reason::User, "no such user"));
    }
    let (now, _) = store::clock(&client).await?;
    let devices = store::devices::of_users(&client, &ids).await?;
    Ok(devices
        .into_iter()
        .map(|device| shown_device(&node.config.domain, device, now))
        .collect())
}

fn shown_device(domain: &str, device: Device, now: OffsetDateTime) -> v1::Device {
    let state = if device.revoked_seq.is_some() {
        DeviceState::Revoked
    } else if device.suspended {
        DeviceState::Suspended
    } else if device.not_after < now {
        DeviceState::Expired
    } else {
        DeviceState::Active
    };
    v1::Device {
        device: Some(DeviceRef {
            domain: domain.to_owned(),
            id: device.id.as_bytes().to_vec().into(),
        }),
        user: Some(UserRef {
            domain: domain.to_owned(),
            id: device.user.as_bytes().to_vec().into(),
        }),
        name: device.name,
        state: state.into(),
        certificates: [vec![device.certificate], device.other_certificates]
            .concat()
            .into_iter()
            .map(Into::into)
            .collect(),
        enrolled_at: device.enrolled_at.unix_timestamp(),
    }
}
