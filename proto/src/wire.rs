//! A reader and a writer for the TLS presentation language with the variable-size vectors of RFC 9420 section 2.1.2.
//!
//! The reader borrows and never allocates in advance, so that a hostile length prefix costs nothing.

/// Bytes that do not parse, with what was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed: {0}")]
pub struct Malformed(pub &'static str);

/// The result of reading.
pub type Read<T> = Result<T, Malformed>;

/// Reads from the front of a byte slice.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What was not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// True at the end.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Refuses trailing bytes.
    ///
    /// # Errors
    /// There are some.
    pub fn finish(self) -> Read<()> {
        match self.rest {
            [] => Ok(()),
            _ => Err(Malformed("trailing bytes")),
        }
    }

    /// The next `n` bytes.
    ///
    /// # Errors
    /// Truncated.
    pub fn take(&mut self, n: usize) -> Read<&'a [u8]> {
        let (head, tail) = self
            .rest
            .split_at_checked(n)
            .ok_or(Malformed("truncated"))?;
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| Malformed("truncated"))
    }

    /// One octet.
    ///
    /// # Errors
    /// Truncated.
    pub fn u8(&mut self) -> Read<u8> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    /// Big-endian.
    ///
    /// # Errors
    /// Truncated.
    pub fn u16(&mut self) -> Read<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// Big-endian.
    ///
    /// # Errors
    /// Truncated.
    pub fn u32(&mut self) -> Read<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Big-endian.
    ///
    /// # Errors
    /// Truncated.
    pub fn u64(&mut self) -> Read<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// A 16-byte id.
    ///
    /// # Errors
    /// Truncated.
    pub fn id(&mut self) -> Read<[u8; 16]> {
        self.array()
    }

    /// A 32-byte hash.
    ///
    /// # Errors
    /// Truncated.
    pub fn hash(&mut self) -> Read<[u8; 32]> {
        self.array()
    }

    /// A vector `<V>`: its length in one, two or four octets, in the shortest form.
    ///
    /// # Errors
    /// Truncated, or a length that is not in its shortest form.
    pub fn vector(&mut self) -> Read<&'a [u8]> {
        let first = self.u8()?;
        let value = u32::from(first & 0x3f);
        let length = match first >> 6 {
            0 => value,
            1 => (value << 8) | u32::from(self.u8()?),
            2 => {
                let [a, b, c] = self.array()?;
                (value << 24) | (u32::from(a) << 16) | (u32::from(b) << 8) | u32::from(c)
            }
            _ => return Err(Malformed("vector length prefix")),
        };
        let shortest = match first >> 6 {
            0 => 0,
            1 => 0x40,
            _ => 0x4000,
        };
        if length < shortest {
            return Err(Malformed("vector length is not in its shortest form"));
        }
        self.take(usize::try_from(length).map_err(|_| Malformed("vector length"))?)
    }

    /// A vector of elements.
    ///
    /// # Errors
    /// Truncated, or an element that does not parse.
    pub fn list<T>(&mut self, mut element: impl FnMut(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let mut inner = Self::new(self.vector()?);
        let mut elements = Vec::new();
        while !inner.is_empty() {
            elements.push(element(&mut inner)?);
        }
        Ok(elements)
    }

    /// `optional<T>`.
    ///
    /// # Errors
    /// Truncated, or a presence octet that is neither 0 nor 1.
    pub fn optional<T>(&mut self, element: impl FnOnce(&mut Self) -> Read<T>) -> Read<Option<T>> {
        match self.u8()? {
            0 => Ok(None),
            1 => element(self).map(Some),
            _ => Err(Malformed("presence octet")),
        }
    }

    /// Runs `element` and returns what it read, as bytes.
    ///
    /// # Errors
    /// Those of `element`.
    pub fn span<T>(&mut self, element: impl FnOnce(&mut Self) -> Read<T>) -> Read<(&'a [u8], T)> {
        let before = self.rest;
        let value = element(self)?;
        let read = before.len() - self.rest.len();
        Ok((&before[..read], value))
    }
}

/// Reads a whole slice.
///
/// # Errors
/// Larger than `max_bytes`, trailing bytes, or those of `element`.
pub fn exact<'a, T>(
    bytes: &'a [u8],
    max_bytes: usize,
    element: impl FnOnce(&mut Reader<'a>) -> Read<T>,
) -> Read<T> {
    if bytes.len() > max_bytes {
        return Err(Malformed("too large"));
    }
    let mut reader = Reader::new(bytes);
    let value = element(&mut reader)?;
    reader.finish()?;
    Ok(value)
}

/// Appends in the same forms.
pub trait Write {
    /// Raw bytes.
    fn put(&mut self, bytes: &[u8]);

    /// A vector `<V>` of at most 2^30 - 1 bytes.
    fn put_vector(&mut self, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        debug_assert!(length < 1 << 30, "RFC 9420 section 2.1.2 ends at 2^30 - 1");
        match length {
            0..0x40 => self.put(&length.to_be_bytes()[3..]),
            0x40..0x4000 => self.put(&(length | 0x4000).to_be_bytes()[2..]),
            _ => self.put(&(length | 0x8000_0000).to_be_bytes()),
        }
        self.put(bytes);
    }
}

impl Write for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_have_three_lengths_and_one_form() {
        for (length, prefix) in [
            (0usize, vec![0x00]),
            (63, vec![0x3f]),
            (64, vec![0x40, 0x40]),
            (16_383, vec![0x7f, 0xff]),
            (16_384, vec![0x80, 0x00, 0x40, 0x00]),
        ] {
            let mut bytes = Vec::new();
            bytes.put_vector(&vec![7; length]);
            assert_eq!(bytes[..prefix.len()], prefix);
            let read = exact(&bytes, usize::MAX, |r| r.vector().map(<[u8]>::len));
            assert_eq!(read, Ok(length));
        }
    }

    #[test]
    fn longer_forms_and_the_reserved_prefix_are_refused() {
        for bytes in [
            &[0x40, 0x01, 7][..],
            &[0x80, 0, 0, 1, 7],
            &[0xc0, 0, 0, 0],
            &[0x05, 1, 2],
            &[],
        ] {
            assert!(Reader::new(bytes).vector().is_err(), "{bytes:?}");
        }
    }
}
