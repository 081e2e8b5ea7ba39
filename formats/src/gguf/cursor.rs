//! Checked reading from a byte slice. Nothing here allocates except an error.

use alloc::string::ToString;

use super::error::GgufError;

/// A position in a file's bytes; every read checks what is left.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, pos: 0 }
    }

    pub(super) fn pos(&self) -> usize {
        self.pos
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.pos)
    }

    /// What has been read since position `start`.
    pub(super) fn since(&self, start: usize) -> &'a [u8] {
        self.bytes.get(start..self.pos).unwrap_or_default()
    }

    /// The next `n` bytes.
    pub(super) fn take(&mut self, n: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let rest = self.bytes.get(self.pos..).unwrap_or_default();
        match usize::try_from(n).ok().and_then(|n| rest.get(..n)) {
            Some(taken) => {
                self.pos += taken.len();
                Ok(taken)
            }
            None => Err(GgufError::Truncated {
                what,
                offset: self.pos,
                needed: n,
                left: rest.len(),
            }),
        }
    }

    /// The next `N` bytes as an array, for `from_le_bytes`.
    pub(super) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], GgufError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of things that each take at least `min_bytes` of the file. Refused above `max` and
    /// where the rest of the file cannot hold as many, so that the caller may reserve for them.
    pub(super) fn count(
        &mut self,
        what: &'static str,
        max: usize,
        min_bytes: usize,
    ) -> Result<usize, GgufError> {
        let offset = self.pos;
        let found = self.u64(what)?;
        self.check_count(what, offset, found, max, min_bytes)
    }

    /// [`Cursor::count`] for a count read before, at `offset`.
    pub(super) fn check_count(
        &self,
        what: &'static str,
        offset: usize,
        found: u64,
        max: usize,
        min_bytes: usize,
    ) -> Result<usize, GgufError> {
        let count =
            usize::try_from(found)
                .ok()
                .filter(|c| *c <= max)
                .ok_or(GgufError::TooMany {
                    what,
                    offset,
                    found,
                    max: max as u64,
                })?;
        let needed = (count as u64).saturating_mul(min_bytes as u64);
        if needed > self.left() as u64 {
            return Err(GgufError::Truncated {
                what,
                offset: self.pos,
                needed,
                left: self.left(),
            });
        }
        Ok(count)
    }

    /// A length-prefixed string, as bytes.
    pub(super) fn bytes(&mut self, what: &'static str, max: usize) -> Result<&'a [u8], GgufError> {
        let n = self.count(what, max, 1)?;
        self.take(n as u64, what)
    }

    /// A length-prefixed string that must be UTF-8.
    pub(super) fn str(&mut self, what: &'static str, max: usize) -> Result<&'a str, GgufError> {
        let bytes = self.bytes(what, max)?;
        let start = self.pos - bytes.len();
        core::str::from_utf8(bytes).map_err(|e| GgufError::Utf8 {
            what,
            offset: start + e.valid_up_to(),
        })
    }

    /// A length-prefixed key or tensor name: UTF-8 and not empty.
    pub(super) fn name(&mut self, what: &'static str, max: usize) -> Result<&'a str, GgufError> {
        let offset = self.pos;
        let name = self.str(what, max)?;
        if name.is_empty() {
            return Err(GgufError::EmptyName { what, offset });
        }
        Ok(name)
    }

    /// A boolean of the value of `key`.
    pub(super) fn bool(&mut self, key: &str) -> Result<bool, GgufError> {
        let offset = self.pos;
        match self.array("boolean")? {
            [0] => Ok(false),
            [1] => Ok(true),
            [found] => Err(GgufError::Bool {
                key: key.to_string(),
                offset,
                found,
            }),
        }
    }
}
