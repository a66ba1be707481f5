//! Faults on purpose, for tests: `CHANCERY_FAULT=<name>` ends the process at the point of that name, without any
//! clean-up; `CHANCERY_FAULT_ITEM=<name>` makes the first item of the loop of that name fail;
//! `CHANCERY_CLOCK_SKEW_SECONDS=<n>` puts the clock forward, or back.

/// Exit code of a crash on purpose.
pub const EXIT: i32 = 86;

/// Ends the process here if the environment asks for it.
pub fn point(name: &str) {
    if std::env::var_os("CHANCERY_FAULT").is_some_and(|wanted| wanted == name) {
        std::process::exit(EXIT);
    }
}

/// Whether the environment asks for the first item of this loop to fail.
pub fn breaks(name: &str) -> bool {
    std::env::var_os("CHANCERY_FAULT_ITEM").is_some_and(|wanted| wanted == name)
}

/// How wrong the clock of this process is made, in seconds.
pub fn clock_skew() -> i64 {
    let skew = std::env::var("CHANCERY_CLOCK_SKEW_SECONDS");
    skew.ok().and_then(|skew| skew.parse().ok()).unwrap_or(0)
}
