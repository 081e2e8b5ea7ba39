//! Convolutions over time, each channel by itself.

use core::ops::Range;

use alloc::vec;
use alloc::vec::Vec;

use tandem_kernels::{Level, TileMut, add_product};

use crate::ModelError;
use crate::model::Tensors;

/// The weights of a causal convolution of `n_channels` channels.
#[derive(Debug)]
pub(super) struct Taps {
    n_taps: usize,
    n_channels: usize,
    /// Those of the oldest token first, `[n_taps, n_channels]`.
    weights: Vec<f32>,
}

impl Taps {
    /// From a tensor that has those of a channel together.
    pub(super) fn load(
        tensors: &mut Tensors<'_, '_>,
        name: &str,
        n_channels: usize,
        n_taps: usize,
    ) -> Result<Taps, ModelError> {
        let by_channel = tensors.float_matrix(name, n_channels, n_taps)?;
        let mut weights = vec![0.0; by_channel.len()];
        for (channel, own) in by_channel.chunks_exact(n_taps).enumerate() {
            for (tap, weight) in own.iter().enumerate() {
                weights[tap * n_channels + channel] = *weight;
            }
        }
        Ok(Taps {
            n_taps,
            n_channels,
            weights,
        })
    }

    /// The sum at `position` for the channels `channels`, whose columns up to that position are in `ring`, to `y`.
    pub(super) fn sum(&self, level: Level, ring: &mut TileMut<'_>, at: At, y: &mut [f32]) {
        y.fill(0.0);
        let n_places = ring.n_rows();
        // Before the text there is nothing.
        for tap in (self.n_taps - 1).saturating_sub(at.position)..self.n_taps {
            let position = at.position + tap + 1 - self.n_taps;
            let weights = &self.weights[tap * self.n_channels..][at.channels.clone()];
            add_product(level, weights, ring.row(position % n_places), y);
        }
    }
}

/// A token's position, and some of the channels.
pub(super) struct At {
    pub position: usize,
    pub channels: Range<usize>,
}
