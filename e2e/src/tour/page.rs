//! A page's blocks: what to run and what it should print.

use anyhow::{Context as _, bail};
use serde_json::Value;

/// What a block should print on stdout.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    /// Lines, with `…` for what may be anything.
    Text(Vec<String>),
    /// JSON values, one after the other.
    Json(Vec<Value>),
}

/// Commands that are run together.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Line of the page that the commands begin in.
    pub line: usize,
    /// The commands, as they stand.
    pub commands: String,
    /// What they print; `None` where the page does not say.
    pub expected: Option<Expected>,
}

/// What a page plays.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page {
    /// In order.
    pub blocks: Vec<Block>,
    /// Blocks that are shown only: line and reason.
    pub not_played: Vec<(usize, String)>,
}

/// Reads a page.
///
/// # Errors
/// A block without end, JSON that cannot be read, or a block that is not played for no reason.
pub fn parse(text: &str) -> anyhow::Result<Page> {
    let mut page = Page::default();
    let mut lines = (1..).zip(text.lines());
    // Whether a block of output would belong to the last block of commands.
    let mut adjacent = false;
    while let Some((number, line)) = lines.next() {
        let (info, end) = if let Some(info) = line.strip_prefix("```") {
            (info.trim(), "```")
        } else if line.trim_end() == "<!-- sh" {
            ("sh", "-->")
        } else {
            adjacent = adjacent && line.trim().is_empty();
            continue;
        };
        let mut body = Vec::new();
        loop {
            let (_, line) = lines
                .next()
                .with_context(|| format!("line {number}: a block without end"))?;
            if line.trim_end() == end {
                break;
            }
            body.push(line.to_owned());
        }
        let (kind, reason) = info.split_once(' ').unwrap_or((info, ""));
        match kind {
            "sh" if reason.is_empty() => {
                page.blocks.push(Block {
                    line: number + 1,
                    commands: body.join("\n"),
                    expected: None,
                });
                adjacent = true;
            }
            "sh" => {
                let why = reason
                    .strip_prefix("not-played=\"")
                    .and_then(|why| why.strip_suffix('"'))
                    .filter(|why| !why.is_empty())
                    .with_context(|| format!("line {number}: not-played=\"…\" needs a reason"))?;
                page.not_played.push((number, why.to_owned()));
                adjacent = false;
            }
            "text" | "json" if adjacent => {
                let expected = if kind == "text" {
                    Expected::Text(body)
                } else {
                    let values = serde_json::Deserializer::from_str(&body.join("\n"))
                        .into_iter()
                        .collect::<Result<_, _>>();
                    Expected::Json(values.with_context(|| format!("line {number}"))?)
                };
                let Some(block) = page.blocks.last_mut() else {
                    bail!("line {number}: output of nothing");
                };
                block.expected = Some(expected);
                adjacent = false;
            }
            _ => adjacent = false,
        }
    }
    Ok(page)
}

/// How many commands a block has: lines that are no comment, no continuation and no part of a here-document.
pub fn count(commands: &str) -> usize {
    let mut count = 0;
    let mut inside: Option<String> = None;
    let mut continues = false;
    for line in commands.lines() {
        if let Some(end) = &inside {
            if line.trim() == end {
                inside = None;
            }
            continue;
        }
        let line = line.trim();
        if !continues && !line.is_empty() && !line.starts_with('#') {
            count += 1;
        }
        continues = line.ends_with('\\');
        if let Some((_, word)) = line.split_once("<<") {
            let word = word.trim_start_matches(['-', ' ']);
            let word = word.split_whitespace().next().unwrap_or_default();
            inside = Some(word.trim_matches(['\'', '"']).to_owned());
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn blocks_come_with_what_they_print() {
        let page = parse(
            "# Page\n\n```sh\necho one\n```\n\n```text\none\n```\n\n```sh\necho '{}'\n```\nIn between.\n```text\nnot its output\n```\n\
             <!-- sh\nhidden\n-->\n```json\n{\"a\": \"…\"}\n```\n```sh not-played=\"takes a day\"\nsleep 86400\n```\n```text\nfree\n```\n",
        )
        .unwrap();
        let expected: Vec<_> = page.blocks.iter().map(|b| b.expected.clone()).collect();
        assert_eq!(
            expected,
            [
                Some(Expected::Text(vec!["one".into()])),
                None,
                Some(Expected::Json(vec![json!({"a": "…"})])),
            ]
        );
        assert_eq!(page.blocks[0].line, 4);
        assert_eq!(page.blocks[2].commands, "hidden");
        assert_eq!(page.not_played, [(24, "takes a day".to_owned())]);
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        for text in [
            "```sh\necho",
            "```sh\na\n```\n```json\n{\n```\n",
            "```sh maybe\na\n```\n",
            "```sh not-played=\"\"\na\n```\n",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn commands_are_counted_and_their_input_is_not() {
        assert_eq!(count("a \\\n  b\n# why\n\nc\n"), 2);
        assert_eq!(count("psql <<'SQL'\nselect 1;\nselect 2;\nSQL\nnext\n"), 2);
    }
}
