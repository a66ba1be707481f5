//! What was printed against what the page says.

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::page::Expected;

/// Stands for anything.
pub const ANYTHING: &str = "…";

/// Compares what a block printed with what the page says.
///
/// # Errors
/// The first difference.
pub fn check(expected: &Expected, printed: &str) -> anyhow::Result<()> {
    match expected {
        Expected::Text(lines) => {
            let printed: Vec<&str> = printed.lines().map(str::trim_end).collect();
            let lines: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
            ensure!(
                fits(&lines, &printed),
                "it printed:\n{}\nthe page says:\n{}",
                printed.join("\n"),
                lines.join("\n")
            );
            Ok(())
        }
        Expected::Json(values) => {
            let printed: Vec<Value> = serde_json::Deserializer::from_str(printed)
                .into_iter()
                .collect::<Result<_, _>>()
                .with_context(|| format!("it printed no JSON: {printed}"))?;
            ensure!(
                printed.len() == values.len(),
                "it printed {} JSON values, the page has {}",
                printed.len(),
                values.len()
            );
            for (expected, value) in values.iter().zip(&printed) {
                same(expected, value).with_context(|| format!("it printed {value}"))?;
            }
            Ok(())
        }
    }
}

/// Whether lines fit lines, with a lone `…` for any number of them.
fn fits(expected: &[&str], printed: &[&str]) -> bool {
    match expected.split_first() {
        None => printed.is_empty(),
        Some((&ANYTHING, rest)) => (0..=printed.len()).any(|from| fits(rest, &printed[from..])),
        Some((line, rest)) => printed
            .split_first()
            .is_some_and(|(first, others)| line_fits(line, first) && fits(rest, others)),
    }
}

/// Whether a line fits one in which each `…` is anything.
fn line_fits(expected: &str, line: &str) -> bool {
    let mut parts = expected.split(ANYTHING);
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

fn same(expected: &Value, value: &Value) -> anyhow::Result<()> {
    match (expected, value) {
        (Value::String(text), _) if text == ANYTHING => Ok(()),
        (Value::String(text), Value::String(printed)) if line_fits(text, printed) => Ok(()),
        (Value::Object(fields), Value::Object(printed)) => {
            for (name, expected) in fields.iter().filter(|(name, _)| *name != ANYTHING) {
                let value = printed.get(name).with_context(|| format!("no {name}"))?;
                same(expected, value).with_context(|| name.clone())?;
            }
            let further = printed.keys().find(|name| !fields.contains_key(*name));
            match further {
                Some(name) if !fields.contains_key(ANYTHING) => bail!("the page has no {name}"),
                _ => Ok(()),
            }
        }
        (Value::Array(items), Value::Array(printed)) => {
            let open = items.last().is_some_and(|last| last == ANYTHING);
            let items = if open {
                &items[..items.len() - 1]
            } else {
                items
            };
            ensure!(
                printed.len() == items.len() || (open && printed.len() > items.len()),
                "{} items, the page has {}",
                printed.len(),
                items.len()
            );
            items.iter().zip(printed).try_for_each(|(e, v)| same(e, v))
        }
        _ if expected == value => Ok(()),
        _ => bail!("{value} is not {expected}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(lines: &[&str], printed: &str) -> bool {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        check(&Expected::Text(lines), printed).is_ok()
    }

    fn json(expected: Value, printed: &str) -> bool {
        check(&Expected::Json(vec![expected]), printed).is_ok()
    }

    #[test]
    fn text_fits_with_anything_where_the_page_says_so() {
        assert!(text(&["one", "t…o", "…"], "one\ntwo\nthree\nfour\n"));
        assert!(text(&["…"], ""));
        assert!(text(&["a…b…c"], "a-b-b-c"));
        assert!(!text(&["one"], "one\ntwo\n"));
        assert!(!text(&["one", "two"], "one\n"));
        assert!(!text(&["a…c"], "a-b"));
        assert!(!text(&[], "something"));
    }

    #[test]
    fn json_fits_with_anything_where_the_page_says_so() {
        assert!(json(json!({"seq": 1, "id": "…"}), r#"{"id":[1],"seq":1}"#));
        assert!(json(json!({"seq": 1, "…": "…"}), r#"{"id":"x","seq":1}"#));
        assert!(json(
            json!({"device": "mimi://a/d/…"}),
            r#"{"device":"mimi://a/d/12"}"#
        ));
        assert!(json(json!([1, "…"]), "[1,2,3]"));
        assert!(!json(json!({"seq": 1}), r#"{"seq":1,"id":2}"#));
        assert!(!json(json!({"seq": 1, "id": "…"}), r#"{"seq":1}"#));
        assert!(!json(json!({"seq": 1}), r#"{"seq":2}"#));
        assert!(!json(json!([1]), "[1,2]"));
        assert!(!json(json!({}), "{} {}"));
        assert!(!json(json!({}), "no json"));
    }
}
