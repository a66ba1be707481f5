//! The worked examples: computed here field by field, held against the product's own writers, and compared with `docs/examples.md` and
//! `docs/vectors/*.json`. `UPDATE_EXAMPLES=1` writes them anew.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "examples/bound.rs"]
mod bound;
#[path = "examples/identity.rs"]
mod identity;
#[path = "examples/log.rs"]
mod log;
#[path = "examples/mls.rs"]
mod mls;
#[path = "examples/model.rs"]
mod model;
#[path = "examples/people.rs"]
mod people;
#[path = "examples/signed.rs"]
mod signed;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use model::Chapter;

const HEAD: &str = "# Worked examples

Bytes that a client on the wire contract makes or checks, field by field, in hex. Each chapter is a JSON file too, in [vectors](vectors/): `vectors[].fields[]` holds `name`, `type`, `value` and `bytes`, `bytes` all of them one after the other, `derived[]` what follows from them. What the fields mean is in [bytes](bytes.md). A test (`proto/tests/examples.rs`) computes this page and the files, and fails when they differ.

Everybody is of `interior.example`; user ids are sixteen times `11`, device ids sixteen times `22` and `33`, the group id is sixteen times `44`, message ids are sixteen times `55`. The device key is the Ed25519 key of RFC 8032 section 7.1, test 1, with the seed `9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60`.
";

fn chapters() -> Vec<Chapter> {
    vec![
        bound::authenticated_data(),
        bound::policy(),
        log::chain(),
        log::content_hash(),
        log::group_state(),
        mls::welcome(),
        mls::tree(),
        signed::chapter(),
        identity::token(),
        identity::certificate(),
    ]
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// The files that are made here, relative to `docs`.
fn files() -> Vec<(String, String)> {
    let chapters = chapters();
    let pages = chapters.iter().map(Chapter::to_page);
    let page = std::iter::once(HEAD.to_owned()).chain(pages).collect();
    let json = |chapter: &Chapter| {
        let text = serde_json::to_string_pretty(chapter).unwrap();
        (format!("vectors/{}", chapter.file), text + "\n")
    };
    let mut files: Vec<(String, String)> = chapters.iter().map(json).collect();
    files.push(("examples.md".to_owned(), page));
    files
}

#[test]
fn the_page_and_the_vectors_say_what_the_code_does() {
    for (name, computed) in files() {
        let path = docs().join(&name);
        if std::env::var_os("UPDATE_EXAMPLES").is_some() {
            fs::write(&path, &computed).unwrap();
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        for (line, (computed, written)) in computed.lines().zip(written.lines()).enumerate() {
            assert_eq!(computed, written, "line {} of docs/{name}", line + 1);
        }
        assert_eq!(
            computed.lines().count(),
            written.lines().count(),
            "docs/{name}"
        );
    }
}

#[test]
fn no_file_of_vectors_is_left_behind() {
    let made: BTreeSet<String> = chapters().iter().map(|c| c.file.to_owned()).collect();
    let found: BTreeSet<String> = fs::read_dir(docs().join("vectors"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(made, found);
}

/// Every label that the product signs under has its example.
#[test]
fn every_label_has_an_example() {
    let source = include_str!("../src/signed.rs");
    let labels: BTreeSet<&str> = source
        .lines()
        .filter(|line| line.starts_with("pub const "))
        .filter_map(|line| line.split('"').nth(1))
        .collect();
    let chapter = signed::chapter();
    let shown: BTreeSet<&str> = chapter.vectors.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(labels, shown);
}
