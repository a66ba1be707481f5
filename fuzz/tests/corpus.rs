//! Every input of the corpus through its target, within the limit on memory; and the corpus is one that gets somewhere.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cap::Cap;
use chancery_fuzz::{MAX_MEMORY, TARGETS};
use chancery_proto::{
    certificate, commit_info::CommitInfo, framing, group_info::GroupInfo, key_package::KeyPackage,
    policy::Policy, tree::Tree, welcome::Welcome,
};

/// Going over the limit ends the process: a test that cannot be passed by catching.
#[global_allocator]
static MEMORY: Cap<std::alloc::System> = Cap::new(std::alloc::System, usize::MAX);

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target)
}

fn inputs(target: &str) -> Vec<Vec<u8>> {
    let files = fs::read_dir(folder(target)).expect("each target has a corpus");
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read(path).expect("it is read"))
        .collect()
}

#[test]
fn every_input_keeps_the_promises() {
    MEMORY.set_limit(MAX_MEMORY).expect("less is in use");
    for target in TARGETS {
        let inputs = inputs(target.name);
        assert!(!inputs.is_empty(), "{} has no corpus", target.name);
        for input in &inputs {
            (target.run)(input);
            // Cut and flipped in places spread over it, which costs little and finds what a refactoring broke.
            for at in (0..input.len()).step_by(input.len() / 16 + 1) {
                (target.run)(&input[..at]);
                let mut flipped = input.clone();
                flipped[at] ^= 0x81;
                (target.run)(&flipped);
            }
        }
    }
    MEMORY.set_limit(usize::MAX).expect("more is never refused");
}

#[test]
fn the_corpus_holds_what_readers_accept() {
    let most = chancery_fuzz::MAX_INPUT;
    let accepted = |target: &str, reads: &dyn Fn(&[u8]) -> bool| {
        let many = inputs(target).iter().filter(|input| reads(input)).count();
        assert!(many > 0, "nothing that {target} accepts");
    };
    accepted("framing", &|b| {
        matches!(framing::parse(b, most), Ok(framing::Message::Private(_)))
    });
    accepted("framing", &|b| {
        matches!(
            framing::parse(b, most),
            Ok(framing::Message::ExternalCommit(_))
        )
    });
    accepted("welcome", &|b| {
        Welcome::parse(b, most).is_ok_and(|w| w.secrets.len() > 1)
    });
    accepted("key_package", &|b| {
        KeyPackage::parse(b, most).is_ok_and(|k| k.verify() == Some(true))
    });
    accepted("group_info", &|b| GroupInfo::parse(b, most).is_ok());
    accepted("ratchet_tree", &|b| {
        Tree::from_ratchet_tree(b).is_ok_and(|t| t.width() > 2)
    });
    accepted("commit_info", &|b| {
        CommitInfo::decode(b).is_ok_and(|c| !c.added.is_empty())
    });
    accepted("policy", &|b| {
        Policy::decode(b).is_ok_and(|p| !p.items.is_empty())
    });
    accepted("certificate", &|b| certificate::read_device(b).is_ok());
}
