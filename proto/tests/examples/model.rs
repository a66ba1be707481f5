//! What a file of vectors is made of: bytes field by field, and what follows from them.

use std::fmt::Write as _;

use serde::Serialize;

/// One field: its name, its type in the presentation language of RFC 9420 section 2.1, its value for people, its bytes.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Field {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) value: String,
    /// Lower-case hex.
    pub(crate) bytes: String,
}

/// Something that is computed from the bytes of all fields.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Derived {
    pub(crate) name: String,
    /// The computation, in one line.
    pub(crate) how: String,
    /// Lower-case hex, or text where `how` says so.
    pub(crate) value: String,
}

/// Bytes whose fields are all named.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Vector {
    pub(crate) name: String,
    pub(crate) about: String,
    /// In the order of the bytes.
    pub(crate) fields: Vec<Field>,
    /// All fields, one after the other.
    pub(crate) bytes: String,
    pub(crate) derived: Vec<Derived>,
}

/// One JSON file of `docs/vectors`, one chapter of `docs/examples.md`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Chapter {
    #[serde(skip)]
    pub(crate) file: &'static str,
    pub(crate) title: String,
    pub(crate) about: String,
    pub(crate) vectors: Vec<Vector>,
}

/// Collects fields; written apart from the writer of the product on purpose.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fields {
    fields: Vec<Field>,
    bytes: Vec<u8>,
}

/// The length of a vector `<V>` in the variable-size encoding of RFC 9420 section 2.1.2.
fn length_prefix(length: usize) -> Vec<u8> {
    let length = u32::try_from(length).unwrap();
    match length {
        0..64 => vec![u8::try_from(length).unwrap()],
        64..16_384 => u16::try_from(length | 0x4000)
            .unwrap()
            .to_be_bytes()
            .to_vec(),
        _ => (length | 0x8000_0000).to_be_bytes().to_vec(),
    }
}

impl Fields {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Bytes of a fixed length.
    pub(crate) fn fixed(mut self, name: &str, kind: &str, value: &str, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self.fields.push(Field {
            name: name.into(),
            kind: kind.into(),
            value: value.into(),
            bytes: hex::encode(bytes),
        });
        self
    }

    pub(crate) fn uint8(self, name: &str, value: u8) -> Self {
        self.fixed(name, "uint8", &value.to_string(), &[value])
    }

    pub(crate) fn uint16(self, name: &str, value: u16) -> Self {
        self.fixed(
            name,
            "uint16",
            &format!("0x{value:04x}"),
            &value.to_be_bytes(),
        )
    }

    pub(crate) fn uint32(self, name: &str, value: u32) -> Self {
        self.fixed(name, "uint32", &value.to_string(), &value.to_be_bytes())
    }

    pub(crate) fn uint64(self, name: &str, value: u64) -> Self {
        self.fixed(name, "uint64", &value.to_string(), &value.to_be_bytes())
    }

    pub(crate) fn int64(self, name: &str, value: i64) -> Self {
        self.fixed(name, "int64", &value.to_string(), &value.to_be_bytes())
    }

    /// A vector `<V>`: its length, then its bytes.
    pub(crate) fn vector(self, name: &str, value: &str, bytes: &[u8]) -> Self {
        let with_length = self.length(name, bytes.len());
        if bytes.is_empty() {
            return with_length;
        }
        with_length.fixed(name, "opaque", value, bytes)
    }

    /// A vector `<V>` of text.
    pub(crate) fn text(self, name: &str, text: &str) -> Self {
        self.vector(name, &format!("\"{text}\""), text.as_bytes())
    }

    fn length(self, name: &str, length: usize) -> Self {
        let prefix = length_prefix(length);
        self.fixed(
            &format!("{name}: length"),
            "length",
            &length.to_string(),
            &prefix,
        )
    }

    /// A vector `<V>` of structures: its length, then their fields.
    pub(crate) fn vector_of(self, name: &str, inner: Self) -> Self {
        self.length(name, inner.bytes.len()).then(name, inner)
    }

    /// More fields of the same structure.
    pub(crate) fn append(mut self, other: Self) -> Self {
        self.bytes.extend(other.bytes);
        self.fields.extend(other.fields);
        self
    }

    /// Fields of a structure inside this one.
    fn then(mut self, name: &str, inner: Self) -> Self {
        self.bytes.extend(&inner.bytes);
        self.fields
            .extend(inner.fields.into_iter().map(|field| Field {
                name: format!("{name} / {}", field.name),
                ..field
            }));
        self
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A vector whose bytes the product must make too.
    ///
    /// # Panics
    /// The fields are not what the product made.
    pub(crate) fn checked(self, name: &str, about: &str, made: &[u8]) -> Vector {
        assert_eq!(
            hex::encode(&self.bytes),
            hex::encode(made),
            "{name}: the fields are not what the code makes"
        );
        Vector {
            name: name.into(),
            about: about.into(),
            bytes: hex::encode(&self.bytes),
            fields: self.fields,
            derived: Vec::new(),
        }
    }
}

impl Vector {
    pub(crate) fn derived(mut self, name: &str, how: &str, value: &[u8]) -> Self {
        self.derived.push(Derived {
            name: name.into(),
            how: how.into(),
            value: hex::encode(value),
        });
        self
    }

    pub(crate) fn derived_text(mut self, name: &str, how: &str, value: &str) -> Self {
        self.derived.push(Derived {
            name: name.into(),
            how: how.into(),
            value: value.into(),
        });
        self
    }
}

impl Chapter {
    /// As it stands in `docs/examples.md`.
    pub(crate) fn to_page(&self) -> String {
        let mut page = format!(
            "\n## {}\n\n{} ([JSON](vectors/{}))\n",
            self.title, self.about, self.file
        );
        for vector in &self.vectors {
            write!(page, "\n### {}\n\n{}\n", vector.name, vector.about).unwrap();
            if !vector.fields.is_empty() {
                page.push_str("\n| field | type | value | bytes |\n|---|---|---|---|\n");
            }
            for field in &vector.fields {
                writeln!(
                    page,
                    "| {} | {} | {} | `{}` |",
                    field.name, field.kind, field.value, field.bytes
                )
                .unwrap();
            }
            page.push_str("\n```text\n");
            if vector.fields.len() > 1 {
                writeln!(page, "bytes {}", vector.bytes).unwrap();
            }
            for derived in &vector.derived {
                writeln!(page, "{} {}", derived.name, derived.value).unwrap();
            }
            page.push_str("```\n");
            for derived in &vector.derived {
                writeln!(page, "\n`{}` is {}.", derived.name, derived.how).unwrap();
            }
        }
        page
    }
}
