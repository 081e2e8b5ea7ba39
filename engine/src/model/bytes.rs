//! A model's bytes: mapped, owned or static, behind counted references.

use alloc::vec::Vec;

use tandem_formats::{Bytes, Gguf, GgufError};

/// The bytes of a model's file, or of all parts of a split one.
#[derive(Clone, Debug)]
pub(crate) struct ModelBytes(pub Vec<Bytes>);

impl ModelBytes {
    /// Reads the metadata.
    pub(crate) fn parse(&self) -> Result<Gguf<'_>, GgufError> {
        let parts = self.0.iter().map(|bytes| Gguf::parse(bytes));
        Gguf::join(parts.collect::<Result<_, _>>()?)
    }

    /// `data`, which lies in these bytes, with a reference that keeps them.
    pub(crate) fn keep(&self, data: &[u8]) -> Bytes {
        let is_inside = |bytes: &&Bytes| {
            let (all, part) = (bytes.as_ptr_range(), data.as_ptr_range());
            all.start <= part.start && part.end <= all.end
        };
        match self.0.iter().find(is_inside) {
            Some(bytes) => bytes.slice_ref(data),
            // Of no bytes there is nothing to keep.
            None => Bytes::copy_from_slice(data),
        }
    }

    /// How many there are.
    pub(crate) fn n_bytes(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }
}
