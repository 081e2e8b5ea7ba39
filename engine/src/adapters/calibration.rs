//! Learned corrections of a composition (Bohdal et al., arXiv 2507.16083 and 2510.13848).
//!
//! A calibration adds to each module that it has parts for, with `A_cat` and `B_cat` the factors of
//! all adapters one after the other:
//!
//! | kind | parts | adds to `y = W x + ...` |
//! |---|---|---|
//! | [`Kind::OutputBias`] | `p` `[n_out]` | `p` |
//! | [`Kind::WeightBias`] | `p` `[n_out]` | `p sum(x)`: `p` is added to every column of the weights |
//! | [`Kind::LowRank`] | `P1` `[rank, n_in]`, `P2` `[n_out, rank]` | `P2 (P1 x)` |
//! | [`Kind::Projection`] | `M` `[ranks, ranks]` | `B_cat M A_cat x`, in place of the adapters' own terms |
//!
//! How the file names its parts, see [`tandem_formats::adapter::calibration`].

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use tandem_formats::adapter::calibration::{Module, Parts};
use tandem_formats::adapter::{Floats, Lora};

use super::packed::{FactorValues, PackedFactors, Users};
use super::{Adapter, AdapterType, CompositionError, PackedAdapter};
use crate::Level;
use crate::model::{LinearId, Linears};

/// What a calibration's parts mean.
pub use tandem_formats::bundle::CalibrationKind as Kind;

/// Packs a calibration of any kind but [`Kind::Projection`], for which see [`project`]. Parts that
/// hold for all layers are stored once.
///
/// # Errors
///
/// A module that the base lacks, parts of a wrong shape, or no part that the kind needs.
pub fn pack(
    base: &Linears,
    file: &BTreeMap<Module, Parts>,
    kind: Kind,
    adapter_type: AdapterType,
) -> Result<PackedAdapter, CompositionError> {
    Calibration::from_file(base, file)?.pack(base, kind, adapter_type)
}

/// The adapter that computes `B_cat M A_cat x` for every module that the calibration has an `M`
/// for, and `B_cat A_cat x` with weights and scales as they are for the others: `cat` is the merge
/// `cat` of the adapters, in whose order `M`'s rows and columns stand. `M` holds weights and scales
/// itself.
///
/// # Errors
///
/// As [`pack`]; an `M` that is not square of the ranks' sum.
pub fn project(
    base: &Linears,
    file: &BTreeMap<Module, Parts>,
    adapters: &[&Adapter],
    weights: &[f32],
) -> Result<Adapter, CompositionError> {
    Calibration::from_file(base, file)?.project(base, adapters, weights)
}

/// A calibration in the terms of a base model, as [`Adapter`] is an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// By the base's tensor, without layer and `.weight`: `attn_q`. Rows are in the base's order.
    modules: BTreeMap<Module, Parts>,
}

impl Calibration {
    /// A calibration as a file has it, under Hugging Face's names.
    ///
    /// # Errors
    ///
    /// A module that the base lacks, or parts for another number of outputs.
    pub fn from_file(
        base: &Linears,
        file: &BTreeMap<Module, Parts>,
    ) -> Result<Calibration, CompositionError> {
        let mut modules = BTreeMap::new();
        for ((layer, module), parts) in file {
            let tensor =
                base.short_name(module)
                    .ok_or_else(|| CompositionError::UnknownModule {
                        name: module.clone(),
                    })?;
            let name = tensor_in(base, layer.unwrap_or(first_with(base, tensor)), tensor)?;
            let mut parts = parts.clone();
            for rows in [&mut parts.p, &mut parts.p2].into_iter().flatten() {
                // Checked before rows are moved by it.
                base.of_tensor(&name, rows.n_rows)?;
                base.to_file_order(&name, &mut rows.values, rows.n_cols);
            }
            modules.insert((*layer, tensor.to_string()), parts);
        }
        Ok(Calibration { modules })
    }

    /// A calibration of parts that are named, shaped and ordered as the base's tensors.
    ///
    /// # Errors
    ///
    /// A layer that the base lacks.
    pub fn new(
        base: &Linears,
        modules: BTreeMap<Module, Parts>,
    ) -> Result<Calibration, CompositionError> {
        for (layer, tensor) in modules.keys() {
            tensor_in(base, layer.unwrap_or(first_with(base, tensor)), tensor)?;
        }
        Ok(Calibration { modules })
    }

    /// The calibration under Hugging Face's names and in its order of rows: the inverse of
    /// [`Calibration::from_file`].
    pub fn to_file(&self, base: &Linears) -> BTreeMap<Module, Parts> {
        let mut file = BTreeMap::new();
        for ((layer, tensor), parts) in &self.modules {
            let mut modules = base.arch().modules().iter();
            let found = modules.find(|module| module.tensor == *tensor);
            let module = found.map_or(tensor.as_str(), |module| module.last());
            let mut parts = parts.clone();
            for rows in [&mut parts.p, &mut parts.p2].into_iter().flatten() {
                base.to_hf_order(tensor, &mut rows.values, rows.n_cols);
            }
            file.insert((*layer, module.to_string()), parts);
        }
        file
    }

    /// The parts, by layer (`None`: all layers) and the name of the base's tensor.
    pub fn modules(&self) -> &BTreeMap<Module, Parts> {
        &self.modules
    }

    /// See [`pack`].
    ///
    /// # Errors
    ///
    /// As [`pack`].
    pub fn pack(
        &self,
        base: &Linears,
        kind: Kind,
        adapter_type: AdapterType,
    ) -> Result<PackedAdapter, CompositionError> {
        let (mut factors, mut biases) = (Users::new(), Users::new());
        for ((layer, module), parts) in &self.modules {
            let name = tensor_in(base, layer.unwrap_or(first_with(base, module)), module)?;
            // Layers that have parts of their own go without the shared ones, and those of another kind too.
            let layers: Vec<usize> = match layer {
                Some(layer) => vec![*layer],
                None => (0..base.n_layer())
                    .filter(|i| !self.modules.contains_key(&(Some(*i), module.clone())))
                    .filter(|i| base.of_layer(*i, module).is_some())
                    .collect(),
            };
            let wrong = |reason| CompositionError::Calibration {
                name: module.clone(),
                reason,
            };
            let (a, b) = match kind {
                Kind::OutputBias | Kind::WeightBias => {
                    let p = parts.p.clone().ok_or_else(|| wrong("has no p"))?;
                    (None, p)
                }
                Kind::LowRank => {
                    let p1 = parts.p1.clone().ok_or_else(|| wrong("has no P1"))?;
                    let p2 = parts.p2.clone().ok_or_else(|| wrong("has no P2"))?;
                    if p1.n_rows != p2.n_cols || p1.n_rows == 0 {
                        return Err(wrong("has a P1 and a P2 of different or no ranks"));
                    }
                    (Some(p1), p2)
                }
                Kind::Projection => {
                    return Err(CompositionError::Option {
                        reason: "a projection goes between adapters and is no term of its own",
                    });
                }
            };
            // The shape is the same in all layers.
            let tensor = base.of_tensor(&name, b.n_rows)?;
            let n_in = tensor.n_in;
            if a.as_ref().is_some_and(|a| a.n_cols != n_in) {
                return Err(wrong("has a P1 for another number of inputs"));
            }
            let ones = || vec![1.0; n_in];
            let a = a.map_or_else(ones, |a| a.values);
            for (i, (_, rows)) in tensor.linears.iter().enumerate() {
                let mut users: Vec<LinearId> = Vec::new();
                for layer in &layers {
                    let own = base.of_tensor(&tensor_in(base, *layer, module)?, b.n_rows)?;
                    users.extend(own.linears.get(i).map(|(id, _)| *id));
                }
                let b_rows = &b.values[rows.start * b.n_cols..rows.end * b.n_cols];
                if kind == Kind::OutputBias {
                    biases.add(b_rows.into(), users);
                    continue;
                }
                let values = FactorValues {
                    a: &a,
                    b: b_rows,
                    rank: b.n_cols,
                    scale: 1.0,
                };
                let packed = PackedFactors::pack(Level::detect(), values, adapter_type);
                let packed = packed.ok_or_else(|| {
                    wrong("has a rank above 65536 or leaves the range of float32")
                })?;
                factors.add(packed, users);
            }
        }
        if factors.is_empty() && biases.is_empty() {
            return Err(CompositionError::Option {
                reason: "the calibration is empty",
            });
        }
        PackedAdapter::new(base, factors, biases, None)
    }

    /// See [`project`].
    ///
    /// # Errors
    ///
    /// As [`project`].
    pub fn project(
        &self,
        base: &Linears,
        adapters: &[&Adapter],
        weights: &[f32],
    ) -> Result<Adapter, CompositionError> {
        let mut loras = Vec::new();
        let mut names: Vec<&String> = adapters.iter().flat_map(|a| a.modules().keys()).collect();
        names.sort();
        names.dedup();
        let mut n_used = 0;
        for name in names {
            let m = self.projection_of(base, name)?;
            n_used += usize::from(m.is_some());
            let parts = adapters.iter().zip(weights);
            let parts: Vec<(&Lora, f32)> = parts
                .filter_map(|(adapter, weight)| Some((adapter.modules().get(name)?, *weight)))
                .collect();
            same_shape(name, parts.iter().map(|(l, _)| (l.b.n_rows, l.a.n_cols)))?;
            // With an M the factors stand as they are.
            let plain = cat(name, &parts, m.is_none());
            loras.push(match m {
                Some(m) => multiply(plain, m)?,
                None => plain,
            });
        }
        if n_used == 0 {
            return Err(CompositionError::Option {
                reason: "the calibration has no M for any module that the adapters change",
            });
        }
        Adapter::new(base, loras)
    }

    /// The M for a tensor of the base, the layer's own or that of all layers.
    fn projection_of(
        &self,
        base: &Linears,
        name: &str,
    ) -> Result<Option<&Floats>, CompositionError> {
        let mut shared = None;
        for ((layer, module), parts) in &self.modules {
            let Some(m) = &parts.m else { continue };
            match layer {
                Some(layer) if tensor_in(base, *layer, module)? == name => return Ok(Some(m)),
                Some(_) => {}
                None => {
                    let of_layer = |i| tensor_in(base, i, module).is_ok_and(|t| t == name);
                    if (0..base.n_layer()).any(of_layer) {
                        shared = Some(m);
                    }
                }
            }
        }
        Ok(shared)
    }
}

/// The first layer that has the tensor `module`, or the first of all where none has.
fn first_with(base: &Linears, module: &str) -> usize {
    let mut layers = 0..base.n_layer();
    layers
        .find(|i| base.of_layer(*i, module).is_some())
        .unwrap_or(0)
}

/// That the adapters' products for one tensor of the base are of one shape: of some tensors they may be
/// for a part.
pub(super) fn same_shape(
    name: &str,
    mut shapes: impl Iterator<Item = (usize, usize)>,
) -> Result<(), CompositionError> {
    let wanted = shapes.next().unwrap_or_default();
    match shapes.find(|shape| *shape != wanted) {
        None => Ok(()),
        Some(found) => Err(CompositionError::Shape {
            name: name.to_string(),
            wanted,
            found,
        }),
    }
}

/// Factors one after the other; with `scaled`, B's columns times weights and scales.
fn cat(name: &str, parts: &[(&Lora, f32)], scaled: bool) -> Lora {
    let rank = parts.iter().map(|(lora, _)| lora.a.n_rows).sum();
    let (n_out, n_in) = parts
        .first()
        .map_or((0, 0), |(lora, _)| (lora.b.n_rows, lora.a.n_cols));
    let (mut a, mut b) = (Floats::default(), Floats::default());
    a.reshape(rank, n_in);
    b.reshape(n_out, rank);
    let mut first = 0;
    for (lora, weight) in parts {
        let rows = &mut a.values[first * n_in..][..lora.a.values.len()];
        rows.copy_from_slice(&lora.a.values);
        let scale = if scaled { weight * lora.scale } else { 1.0 };
        let columns = first..first + lora.b.n_cols;
        put_columns(&lora.b.values, scale, columns.clone(), &mut b);
        first = columns.end;
    }
    Lora {
        module: name.to_string(),
        a,
        b,
        scale: 1.0,
    }
}

/// Writes `scale x` to these columns of `y`.
pub(super) fn put_columns(x: &[f32], scale: f32, columns: Range<usize>, y: &mut Floats) {
    let rows = x.chunks_exact(columns.len());
    for (x, y) in rows.zip(y.values.chunks_exact_mut(y.n_cols)) {
        let y = y[columns.clone()].iter_mut();
        y.zip(x).for_each(|(y, x)| *y = scale * x);
    }
}

/// `b := b m`.
fn multiply(mut lora: Lora, m: &Floats) -> Result<Lora, CompositionError> {
    let rank = lora.b.n_cols;
    if (m.n_rows, m.n_cols) != (rank, rank) {
        return Err(CompositionError::Calibration {
            name: lora.module,
            reason: "has an M that is not square of the sum of the adapters' ranks",
        });
    }
    for row in lora.b.values.chunks_exact_mut(rank) {
        let mut product = vec![0.0_f64; rank];
        for (x, m) in row.iter().zip(m.values.chunks_exact(rank)) {
            for (sum, m) in product.iter_mut().zip(m) {
                *sum += f64::from(*x) * f64::from(*m);
            }
        }
        for (x, sum) in row.iter_mut().zip(product) {
            *x = sum as f32;
        }
    }
    match lora.b.values.iter().all(|x| x.is_finite()) {
        true => Ok(lora),
        false => Err(CompositionError::NotFinite { name: lora.module }),
    }
}

/// A tensor of a layer, without `.weight`.
fn tensor_in(base: &Linears, layer: usize, tensor: &str) -> Result<String, CompositionError> {
    let name = format!("blk.{layer}.{tensor}");
    match layer < base.n_layer() {
        true => Ok(name),
        false => Err(CompositionError::UnknownModule { name }),
    }
}
