//! Adapters and calibrations in float32 as the matrices of a bundle.

use anyhow::{Context as _, Result, ensure};
use tandem_engine::adapters::Calibration;
use tandem_engine::{Adapter, DType, Level};
use tandem_formats::BundleError;
use tandem_formats::adapter::calibration::Parts;
use tandem_formats::adapter::{Floats, Lora};
use tandem_formats::bundle::{CalibrationKind, Correction, Factors, Matrix, low_rank_type};
use tandem_kernels::{encode_low_rank, encode_rows, quant};

/// An adapter's factors, stored as `dtype`.
pub(super) fn factors(adapter: &Adapter, dtype: DType) -> Result<Vec<Factors>> {
    let loras = adapter.modules().iter();
    loras.map(|(name, lora)| pack(name, lora, dtype)).collect()
}

fn pack(linear: &str, lora: &Lora, dtype: DType) -> Result<Factors> {
    let (rank, n_in, n_out) = (lora.a.n_rows, lora.a.n_cols, lora.b.n_rows);
    let partial = || BundleError::FactorType {
        name: "factors".to_string(),
        linear: linear.to_string(),
        dtype,
        n_in,
    };
    let row_bytes = dtype.row_bytes(n_in).ok_or_else(partial)?;
    let mut a = vec![0; row_bytes * rank];
    let level = Level::detect();
    encode_rows(level, dtype, &lora.a.values, 1.0, &mut a);

    // A power of two brings B's largest value near 1000, as the 16-bit scales of rows would lose
    // precision on the small values that B often has. Float32 stays as it is.
    let largest = lora.b.values.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let exponent = match dtype == DType::F32 || largest == 0.0 {
        true => 0,
        // As far as both the power and its inverse are normal numbers.
        false => (9 - largest.log2().floor() as i32).clamp(-100, 100),
    };
    let layout = low_rank_type(dtype).ok_or_else(partial)?;
    let n_bytes = layout.n_bytes(n_out, rank);
    let mut b =
        vec![0; n_bytes.with_context(|| format!("{linear}: rank {rank} is not supported"))?];
    let factor = 2.0_f32.powi(exponent);
    encode_low_rank(level, layout, &lora.b.values, rank, factor, &mut b);

    let factors = Factors {
        linear: linear.to_string(),
        rank,
        n_in,
        n_out,
        scale: lora.scale,
        b_scale: 2.0_f32.powi(-exponent),
        a: a.into(),
        b: b.into(),
    };
    let (a, b) = factors.values(dtype).ok_or_else(partial)?;
    ensure!(
        a.iter().chain(&b).all(|x| x.is_finite()),
        "{linear}: values outside the range of {dtype}"
    );
    Ok(factors)
}

/// A calibration's matrices, stored as `dtype`; those that may not be in Q8_0 in F16 instead.
pub(crate) fn corrections(
    calibration: &Calibration,
    kind: CalibrationKind,
    dtype: DType,
) -> Result<Vec<Correction>> {
    let mut corrections = Vec::new();
    for ((layer, tensor), parts) in calibration.modules() {
        let module = match layer {
            Some(layer) => format!("blk.{layer}.{tensor}"),
            None => tensor.clone(),
        };
        let Parts { p, p1, p2, m } = parts;
        // A file may hold the parts of several kinds; a module without those asked for is a mistake.
        let wanted = match kind {
            CalibrationKind::OutputBias | CalibrationKind::WeightBias => vec![p],
            CalibrationKind::LowRank => vec![p1, p2],
            CalibrationKind::Projection => vec![m],
        };
        let mut matrices = Vec::new();
        for (part, name) in wanted.into_iter().zip(kind.tensors()) {
            let part = part.as_ref();
            let part = part.with_context(|| format!("module {module} has no {name}"))?;
            let mut part = part.clone();
            if *name == "p" {
                (part.n_rows, part.n_cols) = (1, part.n_rows);
            }
            let is_block = kind.stores(name, DType::Q8_0) && part.n_cols.is_multiple_of(32);
            let dtype = match dtype == DType::Q8_0 && !is_block {
                true => DType::F16,
                false => dtype,
            };
            let matrix = store(&part, dtype);
            matrices.push(matrix.with_context(|| {
                format!("module {module}: values of {name} outside the range of {dtype}; use f32")
            })?);
        }
        corrections.push(Correction { module, matrices });
    }
    Ok(corrections)
}

/// A matrix stored as `dtype`; `None` where its values do not fit that.
fn store(floats: &Floats, dtype: DType) -> Option<Matrix> {
    let n_bytes = dtype.row_bytes(floats.values.len())?;
    let mut data = vec![0; n_bytes];
    quant::quantize(dtype, &floats.values, &mut data);
    let mut back = vec![0.0; floats.values.len()];
    quant::dequantize(dtype, &data, &mut back);
    back.iter().all(|x| x.is_finite()).then_some(Matrix {
        n_rows: floats.n_rows,
        n_cols: floats.n_cols,
        dtype,
        data: data.into(),
    })
}
