//! Thousands of devices that are enrolled like any other, and afterwards only keep their names and keys.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use auth_service::operator::connect;
use chancery_proto::auth::v1::CreateInvitationRequest;
use client_cli::{
    core::identity::Identity,
    member::{
        Member,
        enroll::{Enrolment, enroll},
    },
    profile::Profile,
    store::Store,
    surroundings::System,
    transport::{Transport, channel},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use service_kit::listen::ListenAddr;
use single_node::NodeFile;
use tonic::transport::Channel;

/// Enrolments under way at once.
const AT_ONCE: usize = 8;
const PATIENCE: Duration = Duration::from_secs(120);

/// A device without a folder.
#[derive(Debug, Clone)]
pub struct Extra {
    /// Who it is, with its key.
    pub identity: Identity,
    /// Where the services are.
    pub profile: Profile,
}

impl Extra {
    /// As a member over connections that are shared, with a store that ends with it.
    ///
    /// # Errors
    /// The store cannot be made.
    pub fn member(&self, auth: &Channel, delivery: &Channel) -> anyhow::Result<Member> {
        let system = Arc::new(System);
        let transport = Transport::over(auth.clone(), delivery.clone(), PATIENCE, system.clone());
        let store = Store::in_memory()?;
        Ok(Member::over(
            self.profile.clone(),
            store,
            self.identity.clone(),
            transport,
            system,
        ))
    }
}

/// Invites and enrolls so many people, each with one device and one KeyPackage.
///
/// # Errors
/// A refusal, or no answer.
pub async fn enroll_all(
    node: &NodeFile,
    count: usize,
    told: impl Fn(usize) + Copy,
) -> anyhow::Result<Vec<Extra>> {
    let auth = node.auth.first().context("no Authentication Service")?;
    let operator = connect(&ListenAddr::Unix(auth.admin_socket.clone())).await?;
    // Profiles that live for a moment need no disk.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        tempfile::tempdir_in(memory)?
    } else {
        tempfile::tempdir()?
    };
    let one = |n: usize| {
        let (mut operator, folder) = (operator.clone(), folder.path().join(n.to_string()));
        async move {
            let request = CreateInvitationRequest {
                handle: format!("official-{n}"),
                display_name: format!("Official {n}"),
                ..CreateInvitationRequest::default()
            };
            let invitation = operator.create_invitation(request).await?.into_inner().code;
            let enrolment = Enrolment {
                invitation,
                domain: None,
                root: auth.root_pem.clone(),
                other_roots: Vec::new(),
                device_name: String::new(),
                delivery_domain: Some(node.delivery_domain.clone()),
                key_packages: 1,
            };
            let profile = Profile::new(&auth.url, &node.delivery_url);
            let member = enroll(&folder, profile, &enrolment, PATIENCE).await?;
            let extra = Extra {
                identity: member.identity().clone(),
                profile: member.profile().clone(),
            };
            drop(member);
            std::fs::remove_dir_all(&folder)?;
            told(n);
            anyhow::Ok(extra)
        }
    };
    let tasks = stream::iter(0..count).map(one).buffered(AT_ONCE);
    tasks.try_collect().await
}

/// The connections that all of them share.
///
/// # Errors
/// Not an address.
pub fn channels(extra: &Extra) -> anyhow::Result<(Channel, Channel)> {
    let auth = channel(&extra.profile.auth_url, None, None)?;
    Ok((auth, channel(&extra.profile.delivery_url, None, None)?))
}
