//! Crashes on purpose, for tests: `CHANCERY_FAULT=<name>` ends the process at the point of that name, without any clean-up.

/// Exit code of a crash on purpose.
pub const EXIT: i32 = 86;

/// Ends the process here if the environment asks for it.
pub fn point(name: &str) {
    if std::env::var_os("CHANCERY_FAULT").is_some_and(|wanted| wanted == name) {
        std::process::exit(EXIT);
    }
}
