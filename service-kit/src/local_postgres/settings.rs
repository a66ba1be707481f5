//! The command line of a private server. Settings travel there and not in a file, so that a newer binary never meets an older file.

use std::path::Path;

use super::ClusterOptions;

/// What a cluster promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// A COMMIT survives a crash and a power cut.
    Durable,
    /// Nothing survives; several times faster. For tests only.
    Volatile,
    /// PostgreSQL's own defaults, but for where it listens: what an operator meets who changes nothing. For tests and
    /// measurements.
    Stock,
}

/// Where it listens: nowhere but on its socket.
const PLACE: &[(&str, &str)] = &[
    ("listen_addresses", ""),
    ("port", "5432"),
    ("unix_socket_permissions", "0700"),
];

const COMMON: &[(&str, &str)] = &[
    // Statements and the DETAIL of an error may carry values of rows: they stay out of the log.
    ("log_error_verbosity", "terse"),
    ("log_min_error_statement", "panic"),
    ("log_parameter_max_length", "0"),
    ("log_parameter_max_length_on_error", "0"),
    ("log_timezone", "UTC"),
    ("timezone", "UTC"),
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
];

const DURABLE: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("full_page_writes", "on"),
    ("checkpoint_timeout", "15min"),
    ("max_wal_size", "2GB"),
];

const VOLATILE: &[(&str, &str)] = &[
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    ("autovacuum", "off"),
];

impl Profile {
    fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Durable => DURABLE,
            Self::Volatile => VOLATILE,
            Self::Stock => &[],
        }
    }

    pub(super) fn initdb_arguments(self) -> &'static [&'static str] {
        match self {
            Self::Durable => &["--data-checksums"],
            Self::Volatile => &["--no-sync"],
            Self::Stock => &[],
        }
    }
}

/// What compresses page images in the WAL best for its price; servers that were built without it, and those before 15, know only `on`.
pub(super) const LZ4: &str = "wal_compression=lz4";

/// All settings in the order in which the server reads them: a later one wins.
pub(super) fn of(options: &ClusterOptions, run: &Path, lz4: bool) -> Vec<(String, String)> {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let common: &[(&str, &str)] = match options.profile {
        Profile::Stock => &[],
        Profile::Durable | Profile::Volatile => COMMON,
    };
    let settings = options.profile.settings();
    let mut all: Vec<_> = PLACE
        .iter()
        .chain(common)
        .chain(settings)
        .map(own)
        .collect();
    if options.profile == Profile::Durable {
        let how = if lz4 { "lz4" } else { "on" };
        all.push(("wal_compression".to_owned(), how.to_owned()));
    }
    if options.profile != Profile::Stock {
        let most = options.max_connections.to_string();
        all.push(("max_connections".to_owned(), most));
    }
    // The value is a list: a folder name with a comma or a blank has to be quoted.
    all.push((
        "unix_socket_directories".to_owned(),
        super::quoted(&run.to_string_lossy()),
    ));
    all.extend(options.settings.iter().cloned());
    all
}
