//! What the command lines of all programs do alike: JSON lines that change nothing on a terminal, and text files that
//! are read up to a limit.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use serde::Serialize;
use serde_json::{Serializer, ser::Formatter};

/// The name that stands for standard input wherever a file is named.
pub const STDIN: &str = "-";

/// The UTF-8 form of U+FEFF, which some editors write before a text.
const BOM: &str = "\u{feff}";

/// Standard input has one end: whoever reads it second would read nothing.
static STDIN_READ: AtomicBool = AtomicBool::new(false);

/// Why a text cannot be read. Nothing of it was used.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The file cannot be opened or read.
    #[error("{name}: {error}")]
    Unreadable {
        /// The file's name.
        name: String,
        /// What the system says.
        error: io::Error,
    },
    /// There is more than the limit.
    #[error("{name}: more than {max} bytes")]
    TooLarge {
        /// The file's name.
        name: String,
        /// The most bytes that are read.
        max: u64,
    },
    /// The bytes are no UTF-8.
    #[error("{name}: not UTF-8 at byte {at}")]
    NotUtf8 {
        /// The file's name.
        name: String,
        /// The first byte, counted from 0, that does not belong to a character.
        at: usize,
    },
    /// Nothing is there.
    #[error("{name}: empty")]
    Empty {
        /// The file's name.
        name: String,
    },
    /// Two options name standard input.
    #[error("standard input is named twice")]
    StdinTwice,
}

/// Reads a text file of at most `max` bytes, without a byte order mark at its beginning; `-` is standard input.
///
/// # Errors
/// See [`InputError`]; an empty file is none.
pub fn read_text(file: &Path, max: u64) -> Result<String, InputError> {
    if file != Path::new(STDIN) {
        let name = file.display().to_string();
        return match File::open(file) {
            Ok(reader) => text_of(reader, &name, max),
            Err(error) => Err(InputError::Unreadable { name, error }),
        };
    }
    if STDIN_READ.swap(true, Ordering::SeqCst) {
        return Err(InputError::StdinTwice);
    }
    text_of(io::stdin().lock(), "stdin", max)
}

/// Reads a text of at most `max` bytes, without a byte order mark at its beginning. At most one byte more is taken
/// from the reader.
///
/// # Errors
/// See [`InputError`]; an empty text is none.
pub fn text_of(reader: impl Read, name: &str, max: u64) -> Result<String, InputError> {
    let name = || name.to_owned();
    let mut bytes = Vec::new();
    reader
        .take(max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| InputError::Unreadable {
            name: name(),
            error,
        })?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > max {
        return Err(InputError::TooLarge { name: name(), max });
    }
    let mut text = String::from_utf8(bytes).map_err(|error| InputError::NotUtf8 {
        name: name(),
        at: error.utf8_error().valid_up_to(),
    })?;
    if text.starts_with(BOM) {
        text.drain(..BOM.len());
    }
    Ok(text)
}

/// Writes a value as JSON on one line, in ASCII where a terminal or an editor might obey a character instead of
/// showing it. A reader of JSON gets the
/// same text either way.
///
/// # Errors
/// The writer's, or a value that has no JSON form.
pub fn write_json_line(writer: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = Vec::new();
    value
        .serialize(&mut Serializer::with_formatter(&mut line, Escaping))
        .map_err(io::Error::other)?;
    line.push(b'\n');
    writer.write_all(&line)?;
    writer.flush()
}

/// Compact JSON that escapes what [`is_obeyed`] names.
struct Escaping;

impl Formatter for Escaping {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut written = 0;
        for (at, character) in fragment.char_indices().filter(|(_, c)| is_obeyed(*c)) {
            writer.write_all(&fragment.as_bytes()[written..at])?;
            write!(writer, "\\u{:04x}", u32::from(character))?;
            written = at + character.len_utf8();
        }
        writer.write_all(&fragment.as_bytes()[written..])
    }
}

/// Characters that act on what shows them: DEL and C1 controls, marks and overrides of the writing direction, line
/// separators, the byte order mark.
/// JSON escapes the C0 controls by itself. All of them are below U+10000.
fn is_obeyed(character: char) -> bool {
    matches!(
        character,
        '\u{7f}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200e}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{feff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped_and_comes_back() {
        for (text, line) in [
            ("plain", "\"plain\"\n"),
            ("é ä 語 👍🏽", "\"é ä 語 👍🏽\"\n"),
            ("\u{1b}[2J", "\"\\u001b[2J\"\n"),
            ("\u{7f}\u{9b}2J", "\"\\u007f\\u009b2J\"\n"),
            ("a\u{202e}txt\u{2069}b", "\"a\\u202etxt\\u2069b\"\n"),
            (
                "\u{61c}\u{200f}\u{2028}\u{feff}",
                "\"\\u061c\\u200f\\u2028\\ufeff\"\n",
            ),
            ("\u{200d}\u{200c}", "\"\u{200d}\u{200c}\"\n"),
        ] {
            let mut written = Vec::new();
            write_json_line(&mut written, &text).expect("it can be written");
            assert_eq!(String::from_utf8_lossy(&written), line);
            let back: String = serde_json::from_slice(&written).expect("it is JSON");
            assert_eq!(back, text);
        }
    }

    #[test]
    fn a_text_is_read_to_its_limit_and_not_beyond() {
        let read = |bytes: &[u8], max| text_of(bytes, "x", max);
        assert_eq!(read(b"four", 4).ok().as_deref(), Some("four"));
        assert!(matches!(
            read(b"five!", 4),
            Err(InputError::TooLarge { max: 4, .. })
        ));
        assert_eq!(read(b"", 4).ok().as_deref(), Some(""));
        // Something without an end is left alone after one byte more.
        assert!(matches!(
            text_of(io::repeat(b'x'), "x", 1 << 16),
            Err(InputError::TooLarge { .. })
        ));
    }

    #[test]
    fn one_byte_order_mark_is_passed_over_and_other_encodings_are_refused() {
        let read = |bytes: &[u8]| text_of(bytes, "x", 99);
        assert_eq!(read(b"\xef\xbb\xbfhello").ok().as_deref(), Some("hello"));
        assert_eq!(
            read("\u{feff}\u{feff}x".as_bytes()).ok().as_deref(),
            Some("\u{feff}x")
        );
        for (bytes, at) in [
            (&b"caf\xe9"[..], 3),
            (b"\xff\xfeh\0i\0", 0),
            (b"\xed\xa0\x80", 0),
        ] {
            let refused = read(bytes);
            assert!(
                matches!(refused, Err(InputError::NotUtf8 { at: found, .. }) if found == at),
                "{refused:?}"
            );
        }
    }
}
