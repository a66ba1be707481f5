//! Publishing and claiming KeyPackages.

use chancery_proto::{delivery::v1::*, signed};
use tonic::Status;
use uuid::Uuid;

use super::{
    World,
    forge::{DOMAIN, Device},
};

/// Publishes KeyPackages of a device.
pub async fn publish(
    world: &World,
    device: &Device,
    packages: Vec<Vec<u8>>,
) -> Result<Vec<Stock>, Status> {
    let request = PublishKeyPackagesRequest {
        key_packages: packages.into_iter().map(Into::into).collect(),
        ..PublishKeyPackagesRequest::default()
    };
    let response = world
        .client()
        .publish_key_packages(world.by(device, request))
        .await?;
    Ok(response.into_inner().stock)
}

/// Claims one KeyPackage of suite 1 of each device.
pub async fn claim(
    world: &World,
    node: usize,
    by: &Device,
    of: &[&Device],
    id: Uuid,
) -> Vec<Claim> {
    let request = ClaimKeyPackagesRequest {
        claim_id: id.as_bytes().to_vec().into(),
        devices: of.iter().map(|d| d.device_ref()).collect(),
        suites: vec![1],
        ..ClaimKeyPackagesRequest::default()
    };
    let mut client = world.nodes[node].client.clone();
    let mut stream = client
        .claim_key_packages(world.by(by, request))
        .await
        .unwrap()
        .into_inner();
    let mut claims = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        claims.extend(part.claims);
    }
    claims
}

/// Publishes KeyPackages in place of all that a device has of these suites, signed by its key.
pub async fn replace(
    world: &World,
    device: &Device,
    suites: &[u16],
    packages: Vec<Vec<u8>>,
) -> Result<Vec<Stock>, Status> {
    let expires = time::OffsetDateTime::now_utc().unix_timestamp() + 60;
    let content = signed::replace(DOMAIN, suites, &packages, expires);
    let signature = device.sign(&signed::to_be_signed(signed::REPLACE, &content));
    let request = PublishKeyPackagesRequest {
        key_packages: packages.into_iter().map(Into::into).collect(),
        replace_suites: suites.iter().map(|suite| (*suite).into()).collect(),
        replace_signature: signature.into(),
        replace_expires_at: expires,
    };
    let response = world
        .client()
        .publish_key_packages(world.by(device, request))
        .await?;
    Ok(response.into_inner().stock)
}

/// A device's stock.
pub async fn stock(world: &World, device: &Device) -> Vec<Stock> {
    let request = world.by(device, GetKeyPackageStockRequest {});
    let answer = world.client().get_key_package_stock(request).await;
    answer.unwrap().into_inner().stock
}
