//! The network's operations with their derivatives, for `candle` to chain.
//!
//! Tensors are float32, contiguous, `[n_tokens, n]`: the tokens of all sequences of a batch one
//! after the other, without padding. Each operation computes its result and, from the gradient of
//! that, the gradients of its inputs; what it needs of the way there it computes again.

mod attention;
mod gate;
mod linear;
mod loss;
mod norm;
mod rope;

use candle_core::{CpuStorage, Device, Layout, Result, Storage, Tensor, bail};

pub(super) use attention::{Attention, Span};
pub(super) use gate::Gate;
pub(super) use linear::{BiasedLinear, Delta, Frozen, Linear, LowRankLinear};
pub(super) use loss::Loss;
pub(super) use norm::{Norm, NormParameters};
pub(super) use rope::{Angles, Rope};

/// The values of a contiguous float32 tensor.
fn values<'s>(storage: &'s CpuStorage, layout: &Layout) -> Result<&'s [f32]> {
    let all = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&all[start..end]),
        None => bail!("a tensor is not contiguous"),
    }
}

/// The values of what [`Tensor::storage_and_layout`] gives.
fn read<'s>(storage: &'s Storage, layout: &Layout) -> Result<&'s [f32]> {
    match storage {
        Storage::Cpu(storage) => values(storage, layout),
        _ => bail!("a tensor is not in memory"),
    }
}

/// A tensor of the shape of another.
fn like(shape: &Tensor, values: Vec<f32>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.shape(), &Device::Cpu)
}

#[cfg(test)]
mod tests;
