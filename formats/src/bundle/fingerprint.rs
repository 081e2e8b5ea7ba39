//! Which base model a bundle is for.

use alloc::vec::Vec;

use tandem_kernels::{DType, quant};
use xxhash_rust::xxh3::Xxh3;

use super::BundleError;
use crate::{Gguf, Tensor, Value};

/// Bytes hashed at each end of a tensor.
const SAMPLE_BYTES: usize = 4096;

/// Three hashes (XXH3, 128 bits) of a base model, each narrower than the one before. They tell
/// models apart that are different by circumstance, not by malice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BaseFingerprint {
    /// The architecture, the numbers of heads, and every tensor's name and shape. Models with one
    /// structure take the same adapters; quantization keeps it.
    pub structure: u128,
    /// The values of the vectors (norms and biases), which quantization leaves alone and training
    /// all weights does not.
    pub vectors: u128,
    /// Every tensor's type, first and last 4 KiB. Quantization changes it.
    pub content: u128,
}

impl BaseFingerprint {
    /// The fingerprint of a base model. It takes milliseconds, and touches at most four pages of
    /// each tensor that is no vector.
    ///
    /// # Errors
    /// [`BundleError::MissingKey`] where the model has no architecture or number of heads;
    /// [`BundleError::Gguf`] where they are of a wrong type.
    pub fn of(base: &Gguf<'_>) -> Result<BaseFingerprint, BundleError> {
        let missing = |key: &str| BundleError::MissingKey { key: key.into() };
        let arch = base
            .get_str("general.architecture")?
            .ok_or_else(|| missing("general.architecture"))?;
        let head_count = alloc::format!("{arch}.attention.head_count");
        let n_head = counts(base, &head_count)?;
        let n_head = n_head.ok_or_else(|| missing(&head_count))?;
        let n_head_kv = counts(base, &alloc::format!("{head_count}_kv"))?;
        let n_head_kv = n_head_kv.unwrap_or_else(|| n_head.clone());

        let mut tensors: Vec<&Tensor<'_>> = base.tensors().iter().collect();
        tensors.sort_unstable_by_key(|t| t.name);

        let mut structure = Xxh3::new();
        text(&mut structure, arch);
        structure.update(&n_head);
        structure.update(&n_head_kv);
        let mut vectors = Xxh3::new();
        let mut content = Xxh3::new();
        for t in tensors {
            text(&mut structure, t.name);
            structure.update(&(t.shape().len() as u32).to_le_bytes());
            for dim in t.shape() {
                structure.update(&(*dim as u64).to_le_bytes());
            }
            if t.shape().len() == 1 && matches!(t.dtype, DType::F32 | DType::F16 | DType::BF16) {
                text(&mut vectors, t.name);
                hash_values(&mut vectors, t);
            }
            text(&mut content, t.name);
            content.update(&(t.dtype as u32).to_le_bytes());
            match t.data.len() <= 2 * SAMPLE_BYTES {
                true => content.update(t.data),
                false => {
                    content.update(t.data.get(..SAMPLE_BYTES).unwrap_or_default());
                    let last = t.data.len() - SAMPLE_BYTES;
                    content.update(t.data.get(last..).unwrap_or_default());
                }
            }
        }
        Ok(BaseFingerprint {
            structure: structure.digest128(),
            vectors: vectors.digest128(),
            content: content.digest128(),
        })
    }
}

/// A number's bytes, or those of a list's length and of its numbers, one for each layer.
fn counts(base: &Gguf<'_>, key: &str) -> Result<Option<Vec<u8>>, BundleError> {
    let Some(Value::Array(list)) = base.get(key) else {
        let count = base.get_u64(key)?;
        return Ok(count.map(|n| n.to_le_bytes().to_vec()));
    };
    let mut bytes = (list.len() as u64).to_le_bytes().to_vec();
    for value in list.iter_values().into_iter().flatten() {
        let count = value.as_integer().map(u64::try_from);
        let count = count.and_then(Result::ok).unwrap_or(u64::MAX);
        bytes.extend(count.to_le_bytes());
    }
    Ok(Some(bytes))
}

/// A string after its length, so that two strings are not one longer one.
fn text(hash: &mut Xxh3, s: &str) {
    hash.update(&(s.len() as u64).to_le_bytes());
    hash.update(s.as_bytes());
}

/// The values as F32, whichever plain type they are stored in.
fn hash_values(hash: &mut Xxh3, t: &Tensor<'_>) {
    let mut values = [0.0; 256];
    for bytes in t.data.chunks(values.len() * t.dtype.block_bytes()) {
        let n = bytes.len() / t.dtype.block_bytes();
        let values = values.get_mut(..n).unwrap_or_default();
        quant::dequantize(t.dtype, bytes, values);
        for value in values {
            hash.update(&value.to_le_bytes());
        }
    }
}
