//! Options. Each is also an environment variable; limits carry their unit last in the name.

use std::path::PathBuf;

use chancery_proto::common::v1::Limit;

/// What one node of the service needs to know.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Domain whose people this service vouches for.
    #[arg(long, env = "CHANCERY_AS_DOMAIN")]
    pub domain: String,
    /// Folder of the keys and certificates; what is missing in it is made at the first start.
    #[arg(long, env = "CHANCERY_AS_KEYS")]
    pub keys: PathBuf,
    /// Domain of a Delivery Service that tokens are issued for. Repeatable.
    #[arg(
        long = "delivery-domain",
        env = "CHANCERY_AS_DELIVERY_DOMAINS",
        value_delimiter = ','
    )]
    pub delivery_domains: Vec<String>,
    /// Lifetime of an access token; at most 600.
    #[arg(
        long,
        env = "CHANCERY_AS_TOKEN_LIFETIME_SECONDS",
        default_value_t = 600,
        value_parser = clap::value_parser!(u32).range(1..=600)
    )]
    pub token_lifetime_seconds: u32,
    /// Lifetime of a device's certificate.
    #[arg(
        long,
        env = "CHANCERY_AS_CERTIFICATE_LIFETIME_DAYS",
        default_value_t = 365,
        value_parser = clap::value_parser!(u32).range(1..=3650)
    )]
    pub certificate_lifetime_days: u32,
    /// Lifetime of an invitation that does not ask for another.
    #[arg(
        long,
        env = "CHANCERY_AS_INVITATION_LIFETIME_SECONDS",
        default_value_t = 604_800,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub invitation_lifetime_seconds: u32,
    /// Interval of the signed heartbeat on the status feed.
    #[arg(
        long,
        env = "CHANCERY_AS_HEARTBEAT_SECONDS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub heartbeat_seconds: u64,
    /// How often an open status feed looks for what another node wrote.
    #[arg(
        long,
        env = "CHANCERY_AS_FEED_POLL_MILLIS",
        default_value_t = 200,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub feed_poll_millis: u64,
    /// How often certificates that ended are looked for.
    #[arg(
        long,
        env = "CHANCERY_AS_EXPIRY_LOOK_SECONDS",
        default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub expiry_look_seconds: u64,
    /// Difference between clocks that is forgiven.
    #[arg(long, env = "CHANCERY_AS_CLOCK_LEEWAY_SECONDS", default_value_t = 60)]
    pub clock_leeway_seconds: u32,
    /// Largest sizes and counts.
    #[command(flatten)]
    pub limits: Limits,
}

impl Config {
    /// Audiences that tokens are issued for.
    pub fn audiences(&self) -> Vec<String> {
        let mut audiences = vec![self.audience()];
        audiences.extend(self.delivery_domains.iter().map(|d| format!("ds:{d}")));
        audiences
    }

    /// This service's own audience.
    pub fn audience(&self) -> String {
        format!("as:{}", self.domain)
    }
}

/// Everything that is bounded. Published by `GetServiceInfo`, enforced, and named in the refusal.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// One request.
    #[arg(long, env = "CHANCERY_AS_REQUEST_BYTES", default_value_t = 4_194_304)]
    pub request_bytes: u32,
    /// A certificate signing request.
    #[arg(long, env = "CHANCERY_AS_CSR_BYTES", default_value_t = 4_096)]
    pub csr_bytes: u32,
    /// A device's, user's or organisation's name, or a handle.
    #[arg(long, env = "CHANCERY_AS_NAME_BYTES", default_value_t = 256)]
    pub name_bytes: u32,
    /// Devices of one user that are not revoked.
    #[arg(long, env = "CHANCERY_AS_USER_DEVICES_ITEMS", default_value_t = 32)]
    pub user_devices_items: u32,
    /// Users in one question or import.
    #[arg(long, env = "CHANCERY_AS_USERS_ITEMS", default_value_t = 1_000)]
    pub users_items: u32,
    /// One page of a list.
    #[arg(long, env = "CHANCERY_AS_PAGE_ITEMS", default_value_t = 200)]
    pub page_items: u32,
    /// How long an invitation may live.
    #[arg(
        long,
        env = "CHANCERY_AS_INVITATION_SECONDS",
        default_value_t = 7_776_000
    )]
    pub invitation_seconds: u32,
}

impl Limits {
    /// As published.
    pub fn published(&self) -> Vec<Limit> {
        [
            ("request_bytes", self.request_bytes, "bytes"),
            ("csr_bytes", self.csr_bytes, "bytes"),
            ("name_bytes", self.name_bytes, "bytes"),
            ("user_devices_items", self.user_devices_items, "items"),
            ("users_items", self.users_items, "items"),
            ("page_items", self.page_items, "items"),
            ("invitation_seconds", self.invitation_seconds, "seconds"),
        ]
        .into_iter()
        .map(|(name, value, unit)| Limit {
            name: name.into(),
            value: value.into(),
            unit: unit.into(),
        })
        .collect()
    }
}
