//! How much memory training will take, told before it begins.

use tandem_engine::{DType, Model, free_memory};

use super::data::Example;
use super::learned::Learned;
use crate::inspect::size;

/// What goes through the network at the same time.
#[derive(Clone, Copy)]
pub(super) struct Together {
    pub n_threads: usize,
    /// Examples of each thread.
    pub n_examples: usize,
    /// Whether the inputs of quantized weights stay float32.
    pub exact: bool,
}

/// How much it will be, with a warning where the machine has less.
pub(super) fn lines(
    model: &Model,
    learned: &Learned,
    examples: &[Example],
    together: Together,
) -> Vec<String> {
    let needed = estimate(model, learned, examples, together);
    let mut lines = vec![format!("about {} of memory", size(needed))];
    if let Some(free) = free_memory().filter(|free| *free < needed) {
        let way_back = if together.exact {
            ""
        } else {
            ", and exact = true"
        };
        lines.push(format!(
            "warning: the machine has {} left: a smaller micro_batch or fewer --threads take less{way_back}",
            size(free)
        ));
    }
    lines
}

/// Bytes that training keeps at its fullest: the outputs of every operation until the gradients have come
/// back through it, on each thread for its own examples.
fn estimate(model: &Model, learned: &Learned, examples: &[Example], together: Together) -> usize {
    let config = model.config();
    let mut lengths: Vec<_> = examples
        .iter()
        .map(|e| (e.tokens.len(), e.n_targets()))
        .collect();
    lengths.sort_unstable_by_key(|(n_tokens, _)| std::cmp::Reverse(*n_tokens));
    lengths.truncate(together.n_examples);
    let n_tokens: usize = lengths.iter().map(|(n, _)| n).sum();
    let n_targets: usize = lengths.iter().map(|(_, n)| n).sum();
    // Each output of a linear, and about as much again by half for rotations, gates and products; norms
    // and sums of each layer.
    let linears = model
        .linears()
        .iter()
        .filter(|linear| linear.layer.is_some());
    let n_out: usize = linears.map(|linear| linear.n_out).sum();
    let a_token = n_out + n_out / 2 + 4 * config.n_embd * config.layers.len();
    // Logits, their gradient, and what it is made of.
    let logits = n_targets.saturating_mul(3 * config.n_vocab);
    let floats = n_tokens.saturating_mul(a_token).saturating_add(logits);
    let on_threads = floats.saturating_mul(4).saturating_mul(together.n_threads);
    // Values, the best of them, two moments, and a gradient of each thread.
    let learning = 4 * learned.n_parameters() * (4 + together.n_threads);
    let way_back = if together.exact { 0 } else { transposed(model) };
    on_threads
        .saturating_add(learning)
        .saturating_add(model.n_bytes())
        .saturating_add(way_back)
}

/// Bytes of the quantized matrices a second time, in Q8_0, with rows and columns exchanged.
fn transposed(model: &Model) -> usize {
    let Ok(file) = model.gguf() else { return 0 };
    let tensors = file.tensors().iter();
    let matrices = tensors.filter(|t| t.dtype.is_quantized() && t.shape().len() == 2);
    let bytes = matrices.map(|t| DType::Q8_0.row_bytes(t.shape().iter().product()));
    bytes.flatten().sum()
}
