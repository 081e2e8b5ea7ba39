//! LoRA adapters and calibrations as others store them: [PEFT](peft) directories,
//! [llama.cpp's GGUF adapters](lora_gguf), calibrations in [safetensors](calibration).
//!
//! Each reader gives plain float factors under the names that the file uses; what these names mean
//! for a base model is the engine's to know. What a file asks for and is not supported is refused
//! by name: an adapter applied without a part of it would give wrong results silently.

pub mod calibration;
mod error;
pub mod lora_gguf;
pub mod peft;
mod safetensors;

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use tandem_kernels::{DType, quant};

pub use error::AdapterError;

/// A matrix or vector of floats from a file, all of them finite.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Floats {
    /// Rows; of a vector, its elements.
    pub n_rows: usize,
    /// Columns; 1 for a vector.
    pub n_cols: usize,
    /// Row by row.
    pub values: Vec<f32>,
}

impl Floats {
    /// Makes it one of another shape, whose values are still to be written.
    ///
    /// # Panics
    ///
    /// If no memory holds so many.
    pub fn reshape(&mut self, n_rows: usize, n_cols: usize) {
        let n = n_rows.checked_mul(n_cols).expect("a matrix fits memory");
        (self.n_rows, self.n_cols) = (n_rows, n_cols);
        self.values.resize(n, 0.0);
    }
}

/// The low-rank factors of one module: `y += scale b (a x)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// The module, as the file names it.
    pub module: String,
    /// `[rank, n_in]`.
    pub a: Floats,
    /// `[n_out, rank]`.
    pub b: Floats,
    /// `alpha / rank`, or what else the file's kind of adapter wants.
    pub scale: f32,
}

/// Decodes `data`, whose size was checked against the shape.
fn floats(
    name: &str,
    dtype: DType,
    n_rows: usize,
    n_cols: usize,
    data: &[u8],
) -> Result<Floats, AdapterError> {
    let mut values = vec![0.0; n_rows * n_cols];
    quant::dequantize(dtype, data, &mut values);
    match values.iter().all(|x| x.is_finite()) {
        true => Ok(Floats {
            n_rows,
            n_cols,
            values,
        }),
        false => Err(AdapterError::NotFinite {
            name: name.to_string(),
        }),
    }
}

/// Joins the factors of one module, `names` being those of `a` and `b`.
fn lora(
    module: String,
    names: (&str, &str),
    a: Floats,
    b: Floats,
    scale: f32,
) -> Result<Lora, AdapterError> {
    if a.values.is_empty() || b.values.is_empty() || b.n_cols != a.n_rows {
        return Err(AdapterError::Ranks {
            a: names.0.to_string(),
            b: names.1.to_string(),
            found: ((a.n_rows, a.n_cols), (b.n_rows, b.n_cols)),
        });
    }
    if !scale.is_finite() {
        return Err(AdapterError::NotFinite { name: module });
    }
    Ok(Lora {
        module,
        a,
        b,
        scale,
    })
}
