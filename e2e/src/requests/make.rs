//! Making one request: filled from the descriptor, with what is real where a reader looks first, and then spoilt or not.

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};

/// What is real: without it everything would be refused at the first look.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Domains.
    pub domains: Vec<String>,
    /// Ids of groups that the caller is in.
    pub groups: Vec<Vec<u8>>,
    /// Ids of devices and users.
    pub people: Vec<Vec<u8>>,
    /// MLS objects and other bytes that a reader accepts.
    pub objects: Vec<Vec<u8>>,
}

type Random = fastrand::Rng;

/// Deeper messages stay empty.
const DEPTH: u8 = 6;

pub(super) fn request(input: &MessageDescriptor, known: &Known, random: &mut Random) -> Bytes {
    let mut bytes = message(input, known, random, 0).encode_to_vec();
    if random.u8(0..10) < 4 {
        for _ in 0..random.usize(1..4) {
            spoil(&mut bytes, random);
        }
    }
    bytes.into()
}

fn message(
    kind: &MessageDescriptor,
    known: &Known,
    random: &mut Random,
    depth: u8,
) -> DynamicMessage {
    let mut message = DynamicMessage::new(kind.clone());
    for field in kind.fields() {
        if random.u8(0..10) < 2 || depth > DEPTH {
            continue;
        }
        let value = if field.is_list() {
            // Now and then more than any limit.
            let most = if random.u8(0..100) == 0 { 3_000 } else { 4 };
            let items = 0..random.usize(0..most);
            Value::List(
                items
                    .map(|_| one(&field, kind, known, random, depth))
                    .collect(),
            )
        } else if field.is_map() {
            continue;
        } else {
            one(&field, kind, known, random, depth)
        };
        // A field that does not take the value stays as it was.
        let _refused = message.try_set_field(&field, value);
    }
    message
}

fn one(
    field: &FieldDescriptor,
    of: &MessageDescriptor,
    known: &Known,
    random: &mut Random,
    depth: u8,
) -> Value {
    match field.kind() {
        Kind::Message(inner) => Value::Message(message(&inner, known, random, depth + 1)),
        Kind::Bytes => Value::Bytes(octets(field, of, known, random)),
        Kind::String => Value::String(text(known, random)),
        Kind::Bool => Value::Bool(random.bool()),
        Kind::Enum(_) => Value::EnumNumber(random.i32(-1..9)),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(number(random)),
        Kind::Uint32 | Kind::Fixed32 => {
            Value::U32(u32::try_from(number(random)).unwrap_or(u32::MAX))
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(number(random).cast_signed()),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(random.i32(..)),
        Kind::Float => Value::F32(random.f32()),
        Kind::Double => Value::F64(random.f64()),
    }
}

fn number(random: &mut Random) -> u64 {
    match random.u8(0..8) {
        0 => u64::MAX,
        1 => i64::MAX.cast_unsigned(),
        2 => i64::MAX.cast_unsigned() + 1,
        3 => random.u64(..),
        _ => random.u64(0..6),
    }
}

fn text(known: &Known, random: &mut Random) -> String {
    match random.u8(0..8) {
        0 => String::new(),
        1 => "x".repeat(random.usize(0..10_000)),
        2 => "\u{0}'; DROP TABLE groups; --\u{202e}".to_owned(),
        _ => random.choice(&known.domains).cloned().unwrap_or_default(),
    }
}

fn octets(
    field: &FieldDescriptor,
    of: &MessageDescriptor,
    known: &Known,
    random: &mut Random,
) -> Bytes {
    let pick = |list: &[Vec<u8>], random: &mut Random| random.choice(list).cloned();
    let real = match (of.name(), field.name()) {
        ("GroupRef", _) => pick(&known.groups, random),
        ("DeviceRef" | "UserRef", _) => pick(&known.people, random),
        (_, "message_id" | "request_id" | "group_id") => {
            Some(random.u128(..).to_be_bytes().to_vec())
        }
        _ => random.choice(&known.objects).cloned(),
    };
    match random.u8(0..10) {
        0 => Bytes::new(),
        1 => (0..random.usize(0..5_000)).map(|_| random.u8(..)).collect(),
        2 => {
            let mut bytes = real.unwrap_or_default();
            spoil(&mut bytes, random);
            bytes.into()
        }
        _ => real.unwrap_or_default().into(),
    }
}

/// Flips, cuts, repeats, or puts in a length that promises more than there is.
fn spoil(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.is_empty() {
        bytes.push(random.u8(..));
        return;
    }
    let at = random.usize(0..bytes.len());
    match random.u8(0..5) {
        0 => bytes[at] ^= 1 << random.u8(0..8),
        1 => bytes.truncate(at),
        2 => bytes[at] = random.u8(..),
        3 => {
            let piece = bytes[at..].to_vec();
            bytes.splice(at..at, piece);
        }
        _ => {
            let length = [0xff, 0xff, 0xff, 0xff, 0x0f];
            bytes.splice(at..at, length);
        }
    }
}
