//! Every buffer that a pass uses, allocated when the worker starts.

use alloc::vec::Vec;

use tandem_kernels::rope_angles;

use super::activations::Activations;
use super::low_rank_pass::Ranks;
use super::routes::Routes;
use crate::SessionError;
use crate::buffer::zeroed;
use crate::model::{Config, FfnConfig, LayerConfig, MixerConfig};
use crate::sequence::Frequencies;

/// Buffers for `n_batch` rows at a time.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// The residual stream, `[n_batch, n_embd]`.
    pub x: Vec<f32>,
    /// The normalized residual stream, `[n_batch, n_embd]`.
    pub h: Activations,
    /// What linears compute, one after the other: queries, keys and values, what a convolution or a recurrence is
    /// made of, gates and what they gate where rows are looked at as a whole,
    /// and then what a block adds to the residual stream, `[n_batch, n_embd]`.
    pub y: Vec<f32>,
    /// What is inside a block: attention's output or the gated network's, as the input of the linear
    /// that leads back.
    pub inner: Activations,
    /// The inputs of all layers, `[n_batch, n_layer n_input]`; empty where layers have none of their own.
    pub per_layer: Vec<f32>,
    /// A token's part of them, `[n_layer n_input]`.
    pub per_layer_row: Vec<f32>,
    /// Gates on attention's output, `[n_batch, n_q]`; empty where there are none.
    pub gates: Vec<f32>,
    /// The output of one of two mixers beside each other, `[n_batch, n_embd]`; empty where there are none.
    pub mixed: Vec<f32>,
    /// Residual streams, `[n_batch, n_streams n_embd]`, and what a layer will make of them; empty where there is one.
    pub streams: Vec<f32>,
    /// As `streams`.
    pub predicted: Vec<f32>,
    /// Of experts.
    pub experts: ExpertScratch,
    /// Rotary angles of the rows, for each rope of the model.
    pub angles: Vec<RopeAngles>,
    /// The ranks of the compositions' low-rank terms; grows with these.
    pub ranks: Ranks,
}

/// Buffers of experts, with a slot for each row and expert of it; empty in models without.
#[derive(Debug)]
pub(crate) struct ExpertScratch {
    pub routes: Routes,
    /// The router's outputs, `[n_batch, n_experts]`.
    pub logits: Vec<f32>,
    /// `[n_slots, n_embd]`.
    pub input: Activations,
    /// `[n_slots, n_ff]`.
    pub inner: Activations,
    /// `[n_slots, n_embd]`.
    pub output: Vec<f32>,
    /// The output of a dense network beside the experts, or of the expert that all tokens use, `[n_batch, n_embd]`.
    pub dense: Vec<f32>,
}

impl ExpertScratch {
    fn new(widths: &Widths, n_batch: usize) -> Result<ExpertScratch, SessionError> {
        let experts = &widths.experts;
        let n_slots = n_batch.saturating_mul(experts.n_used);
        Ok(ExpertScratch {
            routes: Routes::new(n_batch, experts.n_used, experts.n_experts)?,
            logits: zeroed(n_batch.saturating_mul(experts.n_experts))?,
            input: Activations::new(n_slots, widths.n_embd)?,
            inner: Activations::new(n_slots, experts.n_ff)?,
            output: zeroed(n_slots.saturating_mul(widths.n_embd))?,
            dense: zeroed(n_batch.saturating_mul(experts.n_dense))?,
        })
    }

    /// Bytes of a row.
    fn row_bytes(widths: &Widths) -> usize {
        let experts = &widths.experts;
        let input = Activations::row_bytes(widths.n_embd);
        let inner = Activations::row_bytes(experts.n_ff);
        let output = size_of::<f32>() * widths.n_embd;
        let dense = size_of::<f32>() * experts.n_dense;
        let logits = size_of::<f32>() * experts.n_experts;
        let slots = experts.n_used * (input + inner + output);
        slots + logits + dense + Routes::row_bytes(experts.n_used)
    }
}

/// Cosines and sines of the rows' positions.
#[derive(Debug)]
pub(crate) struct RopeAngles {
    pub n_pairs: usize,
    /// `[n_batch, n_pairs]`.
    pub cos: Vec<f32>,
    /// `[n_batch, n_pairs]`.
    pub sin: Vec<f32>,
}

/// Columns of the buffers.
struct Widths {
    n_embd: usize,
    y: usize,
    inner: usize,
    gates: usize,
    mixed: usize,
    streams: usize,
    /// Of all layers' own inputs.
    per_layer: usize,
    experts: ExpertWidths,
}

/// The largest mixture of experts.
#[derive(Default)]
struct ExpertWidths {
    n_experts: usize,
    n_used: usize,
    n_ff: usize,
    /// Outputs of a dense network beside them.
    n_dense: usize,
}

impl ExpertWidths {
    fn of(config: &Config) -> ExpertWidths {
        let mut widths = ExpertWidths::default();
        for layer in &config.layers {
            let experts = match &layer.ffn {
                FfnConfig::Experts(experts) => Some(experts),
                FfnConfig::DenseAndExperts(both) => {
                    widths.n_dense = config.n_embd;
                    Some(&both.experts)
                }
                _ => None,
            };
            if let Some(experts) = experts {
                if experts.shared.is_some() {
                    widths.n_dense = config.n_embd;
                }
                widths.n_experts = widths.n_experts.max(experts.n_experts);
                widths.n_used = widths.n_used.max(experts.n_used);
                widths.n_ff = widths.n_ff.max(experts.n_ff);
            }
        }
        widths
    }
}

impl Widths {
    fn of(config: &Config) -> Widths {
        let n_embd = config.n_embd;
        let qkv = config.attentions().map(|c| c.n_q_proj() + 2 * c.n_kv());
        let y_of = |layer: &LayerConfig| match &layer.mixer {
            MixerConfig::Attention(_) => 0,
            MixerConfig::ShortConv(_) => 3 * n_embd,
            MixerConfig::DeltaNet(net) => net.n_inner(),
            MixerConfig::Mamba(mamba) => mamba.n_proj(),
            MixerConfig::AttentionAndMamba(both) => both.mamba.n_proj(),
            MixerConfig::None => 0,
        };
        let inner_of = |layer: &LayerConfig| match &layer.mixer {
            MixerConfig::Attention(attention) => attention.n_q(),
            MixerConfig::ShortConv(_) => n_embd,
            MixerConfig::DeltaNet(net) => net.n_v(),
            MixerConfig::Mamba(mamba) => mamba.n_inner(),
            MixerConfig::AttentionAndMamba(both) => both.attention.n_q().max(both.mamba.n_inner()),
            MixerConfig::None => 0,
        };
        let others = config.layers.iter().map(y_of).max().unwrap_or(0);
        let mixed = config.layers.iter().map(inner_of);
        let are_two =
            |layer: &LayerConfig| matches!(layer.mixer, MixerConfig::AttentionAndMamba(_));
        let gated = config.attentions().filter(|c| c.has_gate);
        // Gates whose rows are looked at as a whole lie beside what is gated.
        let sparse = config.layers.iter().map(|layer| match &layer.ffn {
            FfnConfig::Gated(gated) if gated.sparsity.is_some() => 2 * gated.n_ff,
            _ => 0,
        });
        let inside = config.layers.iter().map(|layer| n_inside(&layer.ffn));
        let altup = config.altup.as_ref();
        let n_input = config.per_layer.as_ref().map_or(0, |c| c.n_input);
        Widths {
            n_embd,
            y: qkv.chain(sparse).fold(n_embd.max(others), usize::max),
            inner: mixed
                .chain(inside)
                .chain(altup.map(|c| c.n_laurel))
                .fold(n_input, usize::max),
            gates: gated.map(|c| c.n_q()).max().unwrap_or(0),
            mixed: match config.layers.iter().any(are_two) {
                true => n_embd,
                false => 0,
            },
            streams: altup.map_or(0, |c| c.n_streams * n_embd),
            per_layer: n_input * config.layers.len(),
            experts: ExpertWidths::of(config),
        }
    }
}

/// Elements inside a layer's dense networks: its own, and that of an expert that all tokens use.
fn n_inside(ffn: &FfnConfig) -> usize {
    let shared = match ffn {
        FfnConfig::Experts(experts) => experts.shared.as_ref(),
        FfnConfig::DenseAndExperts(both) => both.experts.shared.as_ref(),
        _ => None,
    };
    let shared = shared.map_or(0, |shared| shared.n_ff);
    ffn.n_ff().max(shared)
}

impl Scratch {
    pub(crate) fn new(config: &Config, n_batch: usize) -> Result<Scratch, SessionError> {
        let widths = Widths::of(config);
        let angles = config.ropes.iter().map(|rope| {
            let n_pairs = rope.n_rot / 2;
            Ok(RopeAngles {
                n_pairs,
                cos: zeroed(n_batch.saturating_mul(n_pairs))?,
                sin: zeroed(n_batch.saturating_mul(n_pairs))?,
            })
        });
        Ok(Scratch {
            x: zeroed(n_batch.saturating_mul(widths.n_embd))?,
            h: Activations::new(n_batch, widths.n_embd)?,
            y: zeroed(n_batch.saturating_mul(widths.y))?,
            inner: Activations::new(n_batch, widths.inner)?,
            per_layer: zeroed(n_batch.saturating_mul(widths.per_layer))?,
            per_layer_row: zeroed(widths.per_layer)?,
            gates: zeroed(n_batch.saturating_mul(widths.gates))?,
            mixed: zeroed(n_batch.saturating_mul(widths.mixed))?,
            streams: zeroed(n_batch.saturating_mul(widths.streams))?,
            predicted: zeroed(n_batch.saturating_mul(widths.streams))?,
            experts: ExpertScratch::new(&widths, n_batch)?,
            angles: angles.collect::<Result<_, SessionError>>()?,
            ranks: Ranks::default(),
        })
    }

    /// Bytes of the buffers; `None` where that overflows.
    pub(crate) fn n_bytes(config: &Config, n_batch: usize) -> Option<usize> {
        let widths = Widths::of(config);
        let angles: usize = config.ropes.iter().map(|rope| rope.n_rot).sum();
        let a_row = size_of::<f32>()
            * (widths.n_embd
                + widths.y
                + widths.gates
                + widths.mixed
                + 2 * widths.streams
                + widths.per_layer
                + angles)
            + Activations::row_bytes(widths.n_embd)
            + Activations::row_bytes(widths.inner)
            + ExpertScratch::row_bytes(&widths);
        n_batch.checked_mul(a_row)
    }
}

impl RopeAngles {
    /// Sets the angles of `n` rows from `row` on, which are at positions `first` and up.
    pub(crate) fn turn(&mut self, frequencies: &Frequencies, row: usize, first: usize, n: usize) {
        let n_pairs = self.n_pairs;
        for t in 0..n {
            let at = (row + t) * n_pairs;
            let (cos, sin) = (&mut self.cos[at..], &mut self.sin[at..]);
            let (cos, sin) = (&mut cos[..n_pairs], &mut sin[..n_pairs]);
            let Frequencies {
                inv_freq,
                magnitude,
            } = frequencies;
            rope_angles(first + t, inv_freq, *magnitude, cos, sin);
        }
    }
}
