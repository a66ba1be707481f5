//! Options. Each is also an environment variable; limits carry their unit last in the name.

mod trust;

use std::num::NonZeroUsize;

use chancery_proto::common::v1::Limit;

pub use trust::{AuthServiceConfig, Declared, TrustOptions};

use crate::error::Error;

/// What one node of the service needs to know.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Domain that this service orders groups for.
    #[arg(long, env = "CHANCERY_DS_DOMAIN")]
    pub domain: String,
    /// An Authentication Service whose devices may call: `domain=NAME,url=URL,root=FILE[,ca=FILE]`. Repeatable; `root` pins the root certificate (PEM).
    #[arg(
        long = "auth-service",
        env = "CHANCERY_DS_AUTH_SERVICES",
        value_delimiter = ';',
        required = true
    )]
    pub auth_services: Vec<AuthServiceConfig>,
    /// How often keys and certificates of the Authentication Services are fetched again.
    #[arg(
        long,
        env = "CHANCERY_DS_AUTH_REFRESH_SECONDS",
        default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub auth_refresh_seconds: u64,
    /// How often the heads of followed groups are polled: the bound on what another node's Commit waits when its wake-up is lost.
    #[arg(
        long,
        env = "CHANCERY_DS_HEAD_POLL_MILLIS",
        default_value_t = 200,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub head_poll_millis: u64,
    /// Groups, and a tenth of it devices, that one poll looks at; a node that follows more takes several polls for all.
    #[arg(
        long,
        env = "CHANCERY_DS_HEAD_POLL_ITEMS",
        default_value_t = 2_000,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub head_poll_items: u32,
    /// Readers that fetch the news of followed groups, each of many groups at once.
    #[arg(
        long,
        env = "CHANCERY_DS_FOLLOWERS_ITEMS",
        default_value_t = 2,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub followers_items: u16,
    /// Subscriptions that read what they missed at the same time; the others wait for their turn, so that live ones are not slowed down. By default half as
    /// many as there are cores.
    #[arg(
        long,
        env = "CHANCERY_DS_CATCH_UP_ITEMS",
        default_value_t = half_the_cores(),
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub catch_up_items: u16,
    /// Interval of the heartbeat on subscriptions.
    #[arg(
        long,
        env = "CHANCERY_DS_HEARTBEAT_SECONDS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub heartbeat_seconds: u64,
    /// How often entries past retention are looked for.
    #[arg(
        long,
        env = "CHANCERY_DS_RETENTION_LOOK_SECONDS",
        default_value_t = 3_600,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub retention_look_seconds: u64,
    /// How long after the first reported failure an unsettled Commit is voided, if nobody confirms it meanwhile.
    #[arg(
        long,
        env = "CHANCERY_DS_VOID_AFTER_SECONDS",
        default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub void_after_seconds: u32,
    /// How long the maker of a voided Commit begins no epoch where none of another device settles meanwhile; with one it may at once.
    #[arg(
        long,
        env = "CHANCERY_DS_BAR_SECONDS",
        default_value_t = 300,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub bar_seconds: u32,
    /// Members of large groups that are online are asked, one at a time, to renew their leaves, until no Commit is larger than this, besides what it adds;
    /// 0 asks nobody. A smaller number takes more of them.
    #[arg(long, env = "CHANCERY_DS_WARM_COMMIT_BYTES", default_value_t = 5_120)]
    pub warm_commit_bytes: u32,
    /// Difference between clocks that is forgiven.
    #[arg(long, env = "CHANCERY_DS_CLOCK_LEEWAY_SECONDS", default_value_t = 60)]
    pub clock_leeway_seconds: u32,
    /// Cipher suites (RFC 9420 section 17.1) that KeyPackages and groups may use.
    #[arg(
        long = "suite",
        env = "CHANCERY_DS_SUITES",
        value_delimiter = ',',
        default_values_t = [1u16, 2, 3]
    )]
    pub suites: Vec<u16>,
    /// Refuse KeyPackages and leaves from outside that carry an extension of a GREASE type (RFC 9420 section 13.5):
    /// openmls 0.9.2 reads no tree that holds such a leaf. `false` is for groups that hold no openmls member.
    #[arg(
        long,
        env = "CHANCERY_DS_REFUSE_GREASE_EXTENSIONS",
        default_value_t = true,
        action = clap::ArgAction::Set
    )]
    pub refuse_grease_extensions: bool,
    /// Verified access tokens that are remembered.
    #[arg(long, env = "CHANCERY_DS_TOKEN_CACHE_ITEMS", default_value_t = NonZeroUsize::new(16_384).expect("not zero"))]
    pub token_cache_items: NonZeroUsize,
    /// How far Authentication Services are believed.
    #[command(flatten)]
    pub trust: TrustOptions,
    /// How messages are appended.
    #[command(flatten)]
    pub batch: BatchOptions,
    /// Largest sizes and counts.
    #[command(flatten)]
    pub limits: Limits,
}

fn half_the_cores() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    u16::try_from(cores / 2).unwrap_or(u16::MAX).max(1)
}

/// How messages that come at the same time are appended together.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Appending")]
pub struct BatchOptions {
    /// Transactions that append messages at the same time; groups are spread over them.
    #[arg(
        long,
        env = "CHANCERY_DS_APPEND_LANES_ITEMS",
        default_value_t = 4,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub append_lanes_items: u16,
    /// Messages in one transaction. Nobody waits for it to fill.
    #[arg(
        long,
        env = "CHANCERY_DS_APPEND_BATCH_ITEMS",
        default_value_t = 256,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub append_batch_items: u16,
    /// Bytes of messages in one transaction; a larger message goes alone.
    #[arg(
        long,
        env = "CHANCERY_DS_APPEND_BATCH_BYTES",
        default_value_t = 4_194_304
    )]
    pub append_batch_bytes: u32,
    /// How long a transaction waits for a group that somebody else holds, before it leaves that group's messages for another transaction.
    #[arg(
        long,
        env = "CHANCERY_DS_APPEND_LOCK_MILLIS",
        default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub append_lock_millis: u32,
    /// Messages that wait to be appended, before more wait to be read from their connections.
    #[arg(
        long,
        env = "CHANCERY_DS_APPEND_WAITING_ITEMS",
        default_value_t = 4_096,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub append_waiting_items: u32,
    /// Groups and senders of which a node remembers what it read last, about 200 bytes each, so that it writes without asking first where nothing has changed; 0: it always asks.
    #[arg(
        long,
        env = "CHANCERY_DS_APPEND_REMEMBERED_ITEMS",
        default_value_t = 262_144
    )]
    pub append_remembered_items: u32,
    /// Messages of one `SendMessages` stream that are under way at once.
    #[arg(
        long,
        env = "CHANCERY_DS_PIPELINE_ITEMS",
        default_value_t = 256,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub pipeline_items: u16,
}

/// Everything that is bounded. Published by `GetServiceInfo`, enforced, and named in the refusal.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// One MLS message: application, proposal or Commit.
    #[arg(long, env = "CHANCERY_DS_MESSAGE_BYTES", default_value_t = 1_048_576)]
    pub message_bytes: u32,
    /// One GroupInfo, and one Welcome's shared part.
    #[arg(long, env = "CHANCERY_DS_GROUP_INFO_BYTES", default_value_t = 65_536)]
    pub group_info_bytes: u32,
    /// One Welcome as uploaded, for all its joiners.
    #[arg(long, env = "CHANCERY_DS_WELCOME_BYTES", default_value_t = 8_388_608)]
    pub welcome_bytes: u32,
    /// One KeyPackage.
    #[arg(long, env = "CHANCERY_DS_KEY_PACKAGE_BYTES", default_value_t = 16_384)]
    pub key_package_bytes: u32,
    /// One request.
    #[arg(long, env = "CHANCERY_DS_REQUEST_BYTES", default_value_t = 33_554_432)]
    pub request_bytes: u32,
    /// Leaves of a group's tree.
    #[arg(
        long,
        env = "CHANCERY_DS_GROUP_MEMBERS_ITEMS",
        default_value_t = 131_072
    )]
    pub group_members_items: u32,
    /// KeyPackages in one publish.
    #[arg(long, env = "CHANCERY_DS_PUBLISH_ITEMS", default_value_t = 200)]
    pub publish_items: u32,
    /// Unclaimed KeyPackages that one device keeps here.
    #[arg(long, env = "CHANCERY_DS_STOCK_ITEMS", default_value_t = 1_000)]
    pub stock_items: u32,
    /// Longest lifetime of a KeyPackage.
    #[arg(
        long,
        env = "CHANCERY_DS_KEY_PACKAGE_LIFETIME_SECONDS",
        default_value_t = 7_776_000
    )]
    pub key_package_lifetime_seconds: u32,
    /// Devices in one claim.
    #[arg(
        long,
        env = "CHANCERY_DS_CLAIM_DEVICES_ITEMS",
        default_value_t = 10_000
    )]
    pub claim_devices_items: u32,
    /// One-time KeyPackages of one device that one claimant may take in an hour; later claims get the last resort.
    #[arg(
        long,
        env = "CHANCERY_DS_CLAIMS_PER_TARGET_HOUR_ITEMS",
        default_value_t = 20
    )]
    pub claims_per_target_hour_items: u32,
    /// Groups in one subscription.
    #[arg(long, env = "CHANCERY_DS_CURSORS_ITEMS", default_value_t = 10_000)]
    pub cursors_items: u32,
    /// Entries in one page of `ReadLog`.
    #[arg(long, env = "CHANCERY_DS_PAGE_ITEMS", default_value_t = 1_000)]
    pub page_items: u32,
    /// How long an unread Welcome waits.
    #[arg(
        long,
        env = "CHANCERY_DS_WELCOME_LIFETIME_SECONDS",
        default_value_t = 2_592_000
    )]
    pub welcome_lifetime_seconds: u32,
    /// How long application messages are kept; their ids and their places in the chain outlive them.
    #[arg(long, env = "CHANCERY_DS_RETENTION_DAYS", default_value_t = 30)]
    pub retention_days: u32,
    /// How long Commits and everything else in a log are kept: a device that was away for less catches up, one that was away for longer comes back by
    /// an external Commit.
    #[arg(
        long,
        env = "CHANCERY_DS_HANDSHAKE_RETENTION_DAYS",
        default_value_t = 365
    )]
    pub handshake_retention_days: u32,
}

impl Limits {
    /// Holds a size or count against one of these limits.
    ///
    /// # Errors
    /// `LIMIT_EXCEEDED` with the limit's name.
    pub fn within(&self, limit: &'static str, max: u32, got: usize) -> Result<(), Error> {
        if got as u64 > u64::from(max) {
            return Err(Error::Limit {
                limit,
                max: u64::from(max),
                got: got as u64,
            });
        }
        Ok(())
    }

    /// As published.
    pub fn published(&self) -> Vec<Limit> {
        [
            ("message_bytes", self.message_bytes, "bytes"),
            ("group_info_bytes", self.group_info_bytes, "bytes"),
            ("welcome_bytes", self.welcome_bytes, "bytes"),
            ("key_package_bytes", self.key_package_bytes, "bytes"),
            ("request_bytes", self.request_bytes, "bytes"),
            ("group_members_items", self.group_members_items, "items"),
            ("publish_items", self.publish_items, "items"),
            ("stock_items", self.stock_items, "items"),
            (
                "key_package_lifetime_seconds",
                self.key_package_lifetime_seconds,
                "seconds",
            ),
            ("claim_devices_items", self.claim_devices_items, "items"),
            (
                "claims_per_target_hour_items",
                self.claims_per_target_hour_items,
                "items",
            ),
            ("cursors_items", self.cursors_items, "items"),
            ("page_items", self.page_items, "items"),
            (
                "welcome_lifetime_seconds",
                self.welcome_lifetime_seconds,
                "seconds",
            ),
            (
                "handshake_retention_days",
                self.handshake_retention_days,
                "days",
            ),
        ]
        .into_iter()
        .map(|(name, value, unit)| Limit {
            name: name.into(),
            value: value.into(),
            unit: unit.into(),
        })
        .collect()
    }

    /// Refuses limits under which something accepted could not be delivered.
    ///
    /// # Errors
    /// Says which two do not fit together.
    pub fn check(&self) -> Result<(), String> {
        let parts = u64::from(self.message_bytes) * 2
            + u64::from(self.welcome_bytes)
            + u64::from(self.group_info_bytes);
        if u64::from(self.request_bytes) < parts {
            return Err(format!(
                "request_bytes ({}) is less than two messages, a Welcome and a GroupInfo together ({parts})",
                self.request_bytes
            ));
        }
        // An id must be known for as long as clients repeat it, and Commits for as long as messages that they decrypt.
        if self.retention_days < 7 || self.handshake_retention_days < self.retention_days.max(30) {
            return Err(format!(
                "retention_days ({}) is less than 7, or handshake_retention_days ({}) less than that or than 30",
                self.retention_days, self.handshake_retention_days
            ));
        }
        // A joiner's cut Welcome travels in one frame, which must fit a default gRPC receiver.
        if self.group_info_bytes > 1_048_576 {
            return Err("group_info_bytes above 1 MiB could not be delivered in a frame".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    fn defaults() -> Config {
        use clap::Parser as _;
        Cli::parse_from([
            "x",
            "--domain",
            "interior.example",
            "--auth-service",
            "domain=interior.example,url=http://127.0.0.1:1,root=/r.pem",
        ])
        .config
    }

    #[test]
    fn the_defaults_can_deliver_what_they_accept() {
        assert_eq!(defaults().limits.check(), Ok(()));
    }

    #[test]
    fn limits_that_could_not_deliver_are_refused() {
        let mut limits = defaults().limits;
        limits.request_bytes = limits.message_bytes;
        assert!(limits.check().is_err());
    }
}
