//! Convolutions over time, each channel by itself.

use core::ops::Range;

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use tandem_kernels::{Activation, Level, SharedMatrix, TileMut, activate, add_product};

use crate::ModelError;
use crate::exec::Step;
use crate::model::Tensors;
use crate::sequence::{Columns, LayerState};

/// Channels of a task.
const TASK_CHANNELS: usize = 256;

/// The shape of a convolution over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conv {
    /// Tokens that an output depends on, its own included.
    pub n_taps: usize,
    pub n_channels: usize,
}

/// The weights of a causal convolution of `n_channels` channels.
#[derive(Debug)]
pub(super) struct Taps {
    n_taps: usize,
    n_channels: usize,
    /// Those of the oldest token first, `[n_taps, n_channels]`.
    weights: Vec<f32>,
    /// Added to the sums, `[n_channels]`; empty where there is none.
    bias: Vec<f32>,
}

impl Taps {
    /// From a tensor that has those of a channel together, and one of biases, which may be missing.
    pub(super) fn load(
        tensors: &mut Tensors<'_, '_>,
        name: &str,
        conv: Conv,
    ) -> Result<Taps, ModelError> {
        let Conv { n_taps, n_channels } = conv;
        let by_channel = tensors.float_matrix(&format!("{name}.weight"), n_channels, n_taps)?;
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
            bias: tensors.vector(&format!("{name}.bias"), n_channels)?,
        })
    }

    /// Whether something is added to the sums.
    pub(super) fn has_bias(&self) -> bool {
        !self.bias.is_empty()
    }

    /// Channels of a task, of which there are no more than tiles of a matrix.
    pub(super) fn task_channels(&self) -> usize {
        let least = self.n_channels.div_ceil(SharedMatrix::<f32>::MAX_TILES);
        TASK_CHANNELS.max(least)
    }

    /// Replaces the rows `[n_rows, n_channels]` of one sequence, which are at positions `first` and up, by the SiLU of
    /// what the sums give of them.
    pub(super) fn sum_rows(
        &self,
        step: &Step<'_>,
        columns: &mut Columns,
        first: usize,
        rows: &mut [f32],
    ) {
        let (n, task) = (self.n_channels, self.task_channels());
        let n_rows = rows.len() / n;
        let n_places = columns.n_places();
        let ring = columns.share(first + n_rows, task);
        let rows = SharedMatrix::new(rows, n, n_rows, task);
        step.light_pool().run(n.div_ceil(task), &|j| {
            let (mut rows, mut ring) = (rows.tile(0, j), ring.tile(0, j));
            let channels = j * task..j * task + rows.n_cols();
            for t in 0..n_rows {
                let row = rows.row(t);
                ring.row((first + t) % n_places).copy_from_slice(row);
                let at = At {
                    position: first + t,
                    channels: channels.clone(),
                };
                self.sum(step.level, &mut ring, at, row);
                activate(step.level, Activation::Silu, row);
            }
        });
    }

    /// The sum at `position` for the channels `channels`, whose columns up to that position are in `ring`, to `y`.
    pub(super) fn sum(&self, level: Level, ring: &mut TileMut<'_>, at: At, y: &mut [f32]) {
        match self.bias.get(at.channels.clone()) {
            Some(bias) => y.copy_from_slice(bias),
            None => y.fill(0.0),
        }
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

/// The columns of a layer with a convolution.
pub(super) fn columns_of(state: &mut LayerState) -> &mut Columns {
    let Some(columns) = &mut state.columns else {
        unreachable!("a layer with a convolution has its columns");
    };
    columns
}
