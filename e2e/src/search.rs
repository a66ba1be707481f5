//! Looks for a text in every file of a folder, in the forms that a server might have written it: raw, hex, base64, UTF-16.

use std::{fs, io, path::Path};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use memchr::memmem;

/// Every form of a text, with its name.
pub fn forms(text: &str) -> Vec<(&'static str, Vec<u8>)> {
    let bytes = text.as_bytes();
    let utf16 = |unit: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(unit).collect::<Vec<u8>>();
    let mut forms = vec![
        ("raw", bytes.to_vec()),
        ("hex", hex::encode(bytes).into_bytes()),
        ("HEX", hex::encode_upper(bytes).into_bytes()),
        ("UTF-16LE", utf16(u16::to_le_bytes)),
        ("UTF-16BE", utf16(u16::to_be_bytes)),
    ];
    // Inside a longer base64 text it begins at one of three places; the characters that its neighbours touch are left out.
    for before in 0..3 {
        let shifted = [&vec![0; before][..], bytes].concat();
        let first = (before * 8).div_ceil(6);
        let whole = shifted.len() * 8 / 6;
        let cut = |encoded: String| encoded.as_bytes()[first..whole].to_vec();
        forms.push(("base64", cut(STANDARD_NO_PAD.encode(&shifted))));
        forms.push(("base64url", cut(URL_SAFE_NO_PAD.encode(&shifted))));
    }
    forms
}

/// Where a text was found: file and form.
///
/// # Errors
/// A file that cannot be read.
pub fn find(folder: &Path, text: &str) -> io::Result<Vec<(String, &'static str)>> {
    let forms = forms(text);
    let forms: Vec<_> = forms
        .iter()
        .map(|(name, form)| (*name, memmem::Finder::new(form)))
        .collect();
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let bytes = match fs::read(entry.path()) {
                    Ok(bytes) => bytes,
                    // PostgreSQL removes files while it runs.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                for (name, form) in &forms {
                    if form.find(&bytes).is_some() {
                        found.push((entry.path().display().to_string(), *name));
                    }
                }
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn every_form_is_found_and_another_text_is_not() {
        let text = "canary-7f3a/é";
        let long = |before: &str| format!("{before}{text} and more");
        let utf16 =
            |unit: fn(u16) -> [u8; 2]| long("x").encode_utf16().flat_map(unit).collect::<Vec<u8>>();
        let written: Vec<Vec<u8>> = vec![
            long("abc").into_bytes(),
            hex::encode(long("a")).into_bytes(),
            hex::encode_upper(long("ab")).into_bytes(),
            utf16(u16::to_le_bytes),
            utf16(u16::to_be_bytes),
            STANDARD.encode(long("")).into_bytes(),
            STANDARD.encode(long("a")).into_bytes(),
            STANDARD.encode(long("ab")).into_bytes(),
            URL_SAFE_NO_PAD.encode(long("abc?")).into_bytes(),
        ];
        for (index, bytes) in written.iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("sub")).unwrap();
            fs::write(dir.path().join("sub/file"), bytes).unwrap();
            assert_ne!(find(dir.path(), text).unwrap(), [], "form {index}");
            assert_eq!(find(dir.path(), "canary-8f3a").unwrap(), [], "form {index}");
        }
    }
}
