//! Between the engine's adapters in float32 and the matrices of a bundle.

use anyhow::{Context as _, Result, anyhow, ensure};
use tandem_engine::adapters::Calibration;
use tandem_engine::{Adapter, Config, DType};
use tandem_formats::BundleError;
use tandem_formats::adapter::calibration::Parts;
use tandem_formats::adapter::{Floats, Lora};
use tandem_formats::bundle::{CalibrationKind, Correction, Factors, Matrix, low_rank_type};
use tandem_kernels::quant;

/// An adapter's factors, stored as `dtype`.
pub(super) fn factors(adapter: &Adapter, dtype: DType) -> Result<Vec<Factors<'static>>> {
    let loras = adapter.modules().iter();
    loras.map(|(name, lora)| pack(name, lora, dtype)).collect()
}

fn pack(linear: &str, lora: &Lora, dtype: DType) -> Result<Factors<'static>> {
    let (rank, n_in, n_out) = (lora.a.n_rows, lora.a.n_cols, lora.b.n_rows);
    let partial = || BundleError::FactorType {
        name: "factors".to_string(),
        linear: linear.to_string(),
        dtype,
        n_in,
    };
    let row_bytes = dtype.row_bytes(n_in).ok_or_else(partial)?;
    let mut a = vec![0; row_bytes * rank];
    quant::quantize(dtype, &lora.a.values, &mut a);

    // A power of two brings B's largest value near 1000, as the 16-bit scales of rows would lose
    // precision on the small values that B often has. Float32 stays as it is.
    let largest = lora.b.values.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let factor = match dtype == DType::F32 || largest == 0.0 {
        true => 1.0,
        false => 2.0_f64.powi(9 - f64::from(largest).log2().floor() as i32),
    };
    let scaled: Vec<f32> = lora
        .b
        .values
        .iter()
        .map(|x| (f64::from(*x) * factor) as f32)
        .collect();
    let layout = low_rank_type(dtype).ok_or_else(partial)?;
    let n_bytes = layout.n_bytes(n_out, rank);
    let mut b =
        vec![0; n_bytes.with_context(|| format!("{linear}: rank {rank} is not supported"))?];
    layout.pack(&scaled, rank, &mut b);

    let factors = Factors {
        linear: linear.to_string().into(),
        rank,
        n_in,
        n_out,
        scale: (f64::from(lora.scale) / factor) as f32,
        a: a.into(),
        b: b.into(),
    };
    let (a, b) = super::extract::values(dtype, &factors).ok_or_else(partial)?;
    ensure!(
        a.iter().chain(&b).all(|x| x.is_finite()) && factors.scale.is_finite(),
        "{linear}: values outside the range of {dtype}"
    );
    Ok(factors)
}

/// The adapter that stored factors are.
pub(super) fn adapter(config: &Config, dtype: DType, factors: &[Factors<'_>]) -> Result<Adapter> {
    let mut loras = Vec::new();
    for f in factors {
        let (a, b) = super::extract::values(dtype, f)
            .ok_or_else(|| anyhow!("{}: no valid factors", f.linear))?;
        loras.push(Lora {
            module: f.linear.to_string(),
            a: Floats {
                n_rows: f.rank,
                n_cols: f.n_in,
                values: a,
            },
            b: Floats {
                n_rows: f.n_out,
                n_cols: f.rank,
                values: b,
            },
            scale: f.scale,
        });
    }
    Ok(Adapter::new(config, loras)?)
}

/// A calibration's matrices, stored as `dtype`, for a composition of `members`.
pub(super) fn corrections(
    calibration: &Calibration,
    kind: CalibrationKind,
    dtype: DType,
    members: &[(&Adapter, f32)],
) -> Result<Vec<Correction<'static>>> {
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
            match kind {
                CalibrationKind::OutputBias | CalibrationKind::WeightBias => {
                    (part.n_rows, part.n_cols) = (1, part.n_rows);
                }
                CalibrationKind::Projection => divide_rows(&mut part, &module, members)?,
                CalibrationKind::LowRank => {}
            }
            let matrix = store(&part, dtype);
            matrices.push(matrix.with_context(|| {
                format!("module {module}: values of {name} outside the range of {dtype}; use f32")
            })?);
        }
        corrections.push(Correction {
            module: module.into(),
            matrices,
        });
    }
    Ok(corrections)
}

/// Divides M's rows by the scales of the adapters they belong to: a bundle's M goes with B times
/// scale, where the one that was learned goes with B.
fn divide_rows(m: &mut Floats, module: &str, members: &[(&Adapter, f32)]) -> Result<()> {
    let is_of_module = |linear: &str| {
        linear == module
            || linear
                .strip_suffix(module)
                .is_some_and(|l| l.ends_with('.'))
    };
    // Each linear of the module has its ranks and scales; one M can serve those only that agree.
    let linears = members
        .iter()
        .flat_map(|(adapter, _)| adapter.modules().keys());
    let mut scales: Option<Vec<f32>> = None;
    for linear in linears.filter(|l| is_of_module(l)) {
        let loras = members
            .iter()
            .filter_map(|(adapter, _)| adapter.modules().get(linear));
        let here: Vec<f32> = loras.flat_map(|l| vec![l.scale; l.a.n_rows]).collect();
        ensure!(
            scales.as_ref().is_none_or(|s| *s == here),
            "module {module}: the adapters' ranks or scales differ from layer to layer; give each layer an M of its own"
        );
        scales = Some(here);
    }
    let scales = scales.unwrap_or_default();
    ensure!(
        (m.n_rows, m.n_cols) == (scales.len(), scales.len()) && !scales.contains(&0.0),
        "module {module}: M is {} x {}, the adapters' ranks add up to {}",
        m.n_rows,
        m.n_cols,
        scales.len()
    );
    for (row, scale) in m.values.chunks_exact_mut(scales.len()).zip(&scales) {
        row.iter_mut().for_each(|x| *x /= scale);
    }
    Ok(())
}

/// A matrix in F16 or F32; `None` where it does not fit the former.
fn store(floats: &Floats, dtype: DType) -> Option<Matrix<'static>> {
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
