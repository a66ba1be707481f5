//! The command line: arguments in, one JSON object out, an exit code that says why.
//!
//! | module | what |
//! |---|---|
//! | this one | arguments |
//! | [`run`] | commands |
//! | [`messages`] | `send`, `read`, `listen`, `outbox`: their arguments and what they do |
//! | [`output`] | the JSON of answers |
//! | [`print`](mod@print) | answers, failures and bad usage onto stdout and stderr, with the exit code |
//! | [`debug`] | single raw calls, for tests and for operators who look into something |

pub mod debug;
pub mod messages;
pub mod output;
pub mod print;
pub mod run;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use openmls::prelude::Ciphersuite;

use crate::core::{
    group::{Founding, SUITES},
    records::{self, GroupName},
};

/// A member of encrypted groups, for scripts: results are JSON on stdout, messages go to stderr, nothing ever asks.
#[derive(Debug, Parser)]
#[command(name = "client-cli", version)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub options: Options,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Folder of the device: addresses, store, key.
    #[arg(
        long,
        global = true,
        env = "CHANCERY_PROFILE",
        default_value = ".chancery",
        value_name = "DIR"
    )]
    pub profile: PathBuf,
    /// Address of the Authentication Service, in place of the profile's.
    #[arg(long, global = true, env = "CHANCERY_AUTH_URL", value_name = "URL")]
    pub auth_url: Option<String>,
    /// Address of the Delivery Service, in place of the profile's.
    #[arg(long, global = true, env = "CHANCERY_DELIVERY_URL", value_name = "URL")]
    pub delivery_url: Option<String>,
    /// PEM file of the authority that signed the servers' TLS certificates, for `https://` addresses; `-` is stdin.
    #[arg(long, global = true, env = "CHANCERY_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// How long one command repeats a request that gets no answer, and waits for another command on the same profile.
    #[arg(
        long,
        global = true,
        env = "CHANCERY_TIMEOUT_SECONDS",
        default_value_t = 30,
        value_name = "N"
    )]
    pub timeout_seconds: u64,
    /// How many devices this one removes in an hour because the Authentication Service says that they are gone, without a person asking for it.
    #[arg(
        long,
        global = true,
        env = "CHANCERY_REMOVALS_PER_HOUR",
        default_value_t = crate::member::REMOVALS_PER_HOUR,
        value_name = "N"
    )]
    pub removals_per_hour: u32,
    /// How long a device that was left out of a group is left to whoever tried to add it, seconds: only then others
    /// try.
    #[arg(
        long,
        global = true,
        env = "CHANCERY_LEFT_OUT_WAIT_SECONDS",
        default_value_t = crate::member::LEFT_OUT_WAIT_SECONDS,
        value_name = "N"
    )]
    pub left_out_wait_seconds: u32,
    /// The most bytes that are read of a file or of stdin.
    #[arg(
        long,
        global = true,
        env = "CHANCERY_MAX_INPUT_BYTES",
        default_value_t = 16 << 20,
        value_name = "N"
    )]
    pub max_input_bytes: u64,
    /// Accepted for scripts that say it: JSON is the only form.
    #[arg(long, global = true)]
    pub json: bool,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Makes a key, becomes a device, writes the profile, publishes KeyPackages.
    Enroll(Enroll),
    /// Says who this profile is.
    Whoami,
    /// Lists devices of users; of the own one when none is named.
    Devices {
        /// `mimi://<domain>/u/<uuid>`; repeatable.
        #[arg(long = "user", value_name = "URI")]
        users: Vec<String>,
    },
    /// The directory.
    #[command(subcommand)]
    Users(Users),
    /// Revokes one of the own user's devices, for ever.
    Revoke {
        /// `mimi://<domain>/d/<uuid>`.
        device: String,
    },
    /// KeyPackages.
    #[command(subcommand)]
    Keys(Keys),
    /// Groups.
    #[command(subcommand)]
    Group(Group),
    /// Sends TEXT, or stdin, or each line of a file.
    Send(messages::Send),
    /// Reads Welcomes and logs up to their heads; settles what a crash left open.
    Sync {
        /// Only this group's log.
        #[arg(long)]
        group: Option<GroupName>,
    },
    /// Prints what this device has read of a group.
    Read(messages::Read),
    /// Messages that wait for an answer.
    #[command(subcommand)]
    Outbox(messages::Outbox),
    /// Follows everything; one JSON object per line.
    Listen(messages::Listen),
    /// Single raw calls with a valid token; they do not touch the store.
    #[command(subcommand)]
    Debug(debug::Debug),
    /// Prints a completion script.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// Whether it changes something at a service or in the profile when it is done.
    pub fn changes(&self) -> bool {
        match self {
            Self::Enroll(_)
            | Self::Revoke { .. }
            | Self::Keys(Keys::Publish { .. })
            | Self::Send(_)
            | Self::Sync { .. }
            | Self::Outbox(messages::Outbox::Drop { .. })
            | Self::Debug(debug::Debug::Claim { .. } | debug::Debug::Forget { .. }) => true,
            Self::Group(group) => !matches!(group, Group::List | Group::Show { .. }),
            Self::Whoami
            | Self::Devices { .. }
            | Self::Users(_)
            | Self::Keys(Keys::Stock)
            | Self::Read(_)
            | Self::Outbox(messages::Outbox::List)
            | Self::Listen(_)
            | Self::Debug(_)
            | Self::Completions { .. } => false,
        }
    }
}

/// `enroll`
#[derive(Debug, Args)]
pub struct Enroll {
    /// The invitation's code.
    #[arg(
        long,
        env = "CHANCERY_INVITATION",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    pub invitation: String,
    /// PEM file of the own domain's root certificate, which is pinned; `-` is stdin.
    #[arg(long, value_name = "FILE")]
    pub root: PathBuf,
    /// Another domain to trust: `domain=NAME,url=URL,root=FILE`. Repeatable.
    #[arg(long = "trust", value_name = "SPEC")]
    pub trust: Vec<String>,
    /// The domain that the Authentication Service must speak for.
    #[arg(long, value_name = "NAME")]
    pub domain: Option<String>,
    /// The Delivery Service's domain; as it says itself when absent.
    #[arg(long, value_name = "NAME")]
    pub delivery_domain: Option<String>,
    /// Name of the device, for its user.
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub device_name: String,
    /// How many one-time KeyPackages to publish.
    #[arg(long, default_value_t = crate::member::stock::KEY_PACKAGES, value_name = "N")]
    pub key_packages: u32,
}

/// `users`
#[derive(Debug, Subcommand)]
pub enum Users {
    /// Finds people by the beginnings of their names or handles.
    Search {
        /// At least 2 characters.
        text: String,
    },
}

/// `keys`
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Publishes one-time KeyPackages, and a last resort when there is none or it was given out.
    Publish {
        /// How many.
        #[arg(long, default_value_t = crate::member::stock::KEY_PACKAGES)]
        count: u32,
        /// Cipher suite (RFC 9420 section 17.1): 1, 2 or 3.
        #[arg(long, default_value = "1", value_parser = suite)]
        suite: Ciphersuite,
    },
    /// Prints what the server has in stock.
    Stock,
}

fn suite(text: &str) -> Result<Ciphersuite, String> {
    let known = |code: u16| SUITES.into_iter().find(|s| u16::from(*s) == code);
    text.parse()
        .ok()
        .and_then(known)
        .ok_or_else(|| "this device knows suites 1, 2 and 3".to_owned())
}

/// A group's id, apart from its domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupId(pub Vec<u8>);

fn group_id(text: &str) -> Result<GroupId, String> {
    records::group_id(text).map(GroupId)
}

/// Whom a change is about.
#[derive(Debug, Args)]
pub struct Whom {
    /// `mimi://<domain>/u/<uuid>`, of the own domain: all active devices. Repeatable.
    #[arg(long = "user", value_name = "URI")]
    pub users: Vec<String>,
    /// `mimi://<domain>/d/<uuid>`. Repeatable.
    #[arg(long = "device", value_name = "URI")]
    pub devices: Vec<String>,
    /// A file with a device or a user on each line, as above; `-` is stdin. For thousands.
    #[arg(long = "from", value_name = "FILE")]
    pub from: Option<PathBuf>,
}

/// `group`
#[derive(Debug, Subcommand)]
pub enum Group {
    /// Makes a group, then adds the named; thousands of them in several Commits.
    Create {
        /// Whom.
        #[command(flatten)]
        whom: Whom,
        /// Cipher suite (RFC 9420 section 17.1): 1, 2 or 3.
        #[arg(long, default_value = "1", value_parser = suite)]
        suite: Ciphersuite,
        /// The group's id, hex of 16 to 64 random bytes: a command that was killed and is repeated with it goes on with the same group.
        #[arg(long, value_name = "HEX", value_parser = group_id)]
        id: Option<GroupId>,
        /// How many past epochs messages may come from; 0 for groups of thousands, whose members keep every secret of each of them.
        #[arg(long, default_value_t = Founding::default().past_epochs, value_name = "N")]
        past_epochs: u8,
        /// Leaves out this user's other devices, which are added too otherwise.
        #[arg(long)]
        no_own_devices: bool,
    },
    /// Lists the groups of the store.
    List,
    /// Prints this device's own state of a group.
    Show {
        /// `<domain>/<hex>`.
        #[arg(long)]
        group: GroupName,
    },
    /// Adds devices; thousands of them in several Commits. Repeated after it was killed it goes on with those that are not in.
    Add {
        /// `<domain>/<hex>`.
        #[arg(long)]
        group: GroupName,
        /// Whom.
        #[command(flatten)]
        whom: Whom,
    },
    /// Removes devices in one Commit, and with them those that asked to leave.
    Remove {
        /// `<domain>/<hex>`.
        #[arg(long)]
        group: GroupName,
        /// Only those that asked to leave.
        #[arg(long)]
        leaving: bool,
        /// Whom.
        #[command(flatten)]
        whom: Whom,
    },
    /// Asks the others to remove this device.
    Leave {
        /// `<domain>/<hex>`.
        #[arg(long)]
        group: GroupName,
    },
    /// Renews the keys of this device's leaf.
    Update {
        /// `<domain>/<hex>`.
        #[arg(long)]
        group: GroupName,
    },
    /// Ends a group and goes on in a new one with everybody who has a KeyPackage; for a group that is beyond repair.
    Replace {
        /// `<domain>/<hex>`.
        #[arg(long)]
        group: GroupName,
    },
    /// Comes back by an external Commit after this device lost its state of the group.
    Rejoin {
        /// `<domain>/<hex>`.
        #[arg(long)]
        group: GroupName,
    },
}
