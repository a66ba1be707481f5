//! What is fuzzed: every reader of bytes that strangers choose, and the ordering decisions under facts that strangers choose.
//!
//! A target takes any bytes and returns; a broken promise is a panic. `libfuzzer/` holds a program for each, built by cargo-fuzz
//! (`./dev fuzz TARGET`); `corpus/` holds what was found worth keeping, and `tests/corpus.rs` runs all of it in an ordinary test,
//! with a limit on memory.
//!
//! | module | what |
//! |---|---|
//! | [`bytes`] | the readers of `chancery-proto` and of signing requests |
//! | [`mls`] | the readers of openmls, which a member reads with |
//! | [`decide`] | sequences of commands for one group |

pub mod bytes;
pub mod decide;
pub mod mls;

/// Memory that a target may hold at once, octets, for inputs of at most [`MAX_INPUT`].
pub const MAX_MEMORY: usize = 64 << 20;

/// Longest input, octets.
pub const MAX_INPUT: usize = 64 << 10;

/// One target: its name, which is also its corpus' folder, and what it does.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name of the program and of the folder.
    pub name: &'static str,
    /// Runs one input.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "framing",
        run: bytes::framing,
    },
    Target {
        name: "welcome",
        run: bytes::welcome,
    },
    Target {
        name: "key_package",
        run: bytes::key_package,
    },
    Target {
        name: "group_info",
        run: bytes::group_info,
    },
    Target {
        name: "ratchet_tree",
        run: bytes::ratchet_tree,
    },
    Target {
        name: "tree_patch",
        run: bytes::tree_patch,
    },
    Target {
        name: "commit_info",
        run: bytes::commit_info,
    },
    Target {
        name: "policy",
        run: bytes::policy,
    },
    Target {
        name: "certificate",
        run: bytes::certificate,
    },
    Target {
        name: "token",
        run: bytes::token,
    },
    Target {
        name: "csr",
        run: bytes::csr,
    },
    Target {
        name: "openmls_message",
        run: mls::message,
    },
    Target {
        name: "openmls_tree",
        run: mls::tree,
    },
    Target {
        name: "decide",
        run: decide::decide,
    },
];
