//! What the programs of `fuzz_targets/` share: Rust's memory is limited, and going over the limit ends the process.

use cap::Cap;

#[global_allocator]
static MEMORY: Cap<std::alloc::System> = Cap::new(std::alloc::System, usize::MAX);

/// Sets the limit.
pub fn limit() {
    MEMORY
        .set_limit(chancery_fuzz::MAX_MEMORY)
        .expect("nothing is in use yet");
}
