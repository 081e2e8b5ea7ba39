//! The network as a graph of operations: the engine's forward pass, to be differentiated.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use tandem_engine::adapters::{LinearId, Module};
use tandem_engine::weights::{self, LayerWeights};
use tandem_engine::{Adapter, Config, Model, NormKind};

use super::data::Batch;
use super::learned::{Learned, Term};
use super::ops::{
    Angles, Attention, BiasedLinear, Delta, Frozen, Gate, Linear, Loss, LowRankLinear, Norm,
    NormParameters, Rope,
};

/// A base model with adapters, none of which learn.
pub(super) struct Network {
    pub config: Config,
    /// `[n_vocab, n_embd]`.
    embeddings: Arc<Frozen>,
    layers: Vec<Layer>,
    output_norm: Arc<NormParameters>,
    output: Arc<Frozen>,
    angles: Arc<Angles>,
    angles_local: Arc<Angles>,
}

struct Layer {
    attn_norm: Arc<NormParameters>,
    /// By [`Module`], in the order of [`Module::ALL`].
    linears: [Arc<Frozen>; 7],
    q_norm: Option<Arc<NormParameters>>,
    k_norm: Option<Arc<NormParameters>>,
    post_attn_norm: Option<Arc<NormParameters>>,
    ffn_norm: Arc<NormParameters>,
    post_ffn_norm: Option<Arc<NormParameters>>,
}

/// The low-rank terms of a model's linears.
pub(super) type Deltas = HashMap<LinearId, Vec<Delta>>;

/// What adapters, each times its weight, add to the linears; those of which `is_left_out` are
/// passed over.
pub(super) fn deltas(
    config: &Config,
    adapters: &[(&Adapter, f32)],
    is_left_out: impl Fn(LinearId) -> bool,
) -> Deltas {
    let mut deltas = Deltas::new();
    for (adapter, weight) in adapters {
        for (name, lora) in adapter.modules() {
            let rank = lora.b.n_cols;
            let parts = LinearId::of_tensor(config, name, lora.b.n_rows).unwrap_or_default();
            for (id, rows) in parts.into_iter().filter(|(id, _)| !is_left_out(*id)) {
                let scale = weight * lora.scale;
                let b = &lora.b.values[rows.start * rank..rows.end * rank];
                deltas.entry(id).or_default().push(Delta {
                    rank,
                    a: lora.a.values.clone(),
                    b: b.iter().map(|x| scale * x).collect(),
                });
            }
        }
    }
    deltas
}

impl Network {
    /// A model with low-rank terms, for a context of `n_ctx` (which chooses the rotary frequencies
    /// of some models) and sequences of at most `n_positions`.
    pub(super) fn new(
        model: &Model<'_>,
        mut deltas: Deltas,
        n_ctx: usize,
        n_positions: usize,
    ) -> Network {
        let config = &model.config;
        let has_output_terms = deltas.contains_key(&LinearId::Output);
        let mut frozen = |id: LinearId, linear: &weights::Linear<'_>| {
            let deltas = deltas.remove(&id).unwrap_or_default();
            Arc::new(Frozen::new(&linear.w, &linear.bias, deltas))
        };
        let norm = |weight: &[f32], bias: &[f32], kind| {
            Arc::new(NormParameters {
                kind,
                eps: config.norm_eps,
                weight: weight.to_vec(),
                bias: bias.to_vec(),
            })
        };
        let block_norm = |n: &weights::Norm| norm(&n.weight, &n.bias, config.norm);
        // Heads are normalized by their root mean square in every architecture that does it.
        let head_norm = |w: &[f32]| (!w.is_empty()).then(|| norm(w, &[], NormKind::Rms));
        let layer = |(i, w): (usize, &LayerWeights<'_>)| Layer {
            attn_norm: block_norm(&w.attn_norm),
            linears: w
                .linears()
                .map(|(module, linear)| frozen(LinearId::Layer(i, module), linear)),
            q_norm: head_norm(&w.q_norm),
            k_norm: head_norm(&w.k_norm),
            post_attn_norm: w.post_attn_norm.as_ref().map(block_norm),
            ffn_norm: block_norm(&w.ffn_norm),
            post_ffn_norm: w.post_ffn_norm.as_ref().map(block_norm),
        };
        let layers = model.layers.iter().enumerate().map(layer).collect();
        let is_tied = core::ptr::eq(model.output.w.row(0), model.token_embd.row(0));
        let output = frozen(LinearId::Output, &model.output);
        let embeddings = match is_tied && !has_output_terms {
            true => Arc::clone(&output),
            false => Arc::new(Frozen::new(&model.token_embd, &[], Vec::new())),
        };
        let angles = |is_local| Arc::new(Angles::new(model, n_ctx, is_local, n_positions));
        Network {
            config: config.clone(),
            embeddings,
            layers,
            output_norm: block_norm(&model.output_norm),
            output,
            angles: angles(false),
            angles_local: angles(true),
        }
    }

    /// The sum over a batch of the loss of each target token.
    pub(super) fn loss(&self, learned: &Learned, batch: &Batch) -> Result<Tensor> {
        self.logits(learned, batch)?.apply_op1(Loss {
            targets: Arc::clone(&batch.targets),
            softcap: self.config.logit_softcap,
        })
    }

    /// Logits, before they are capped, where a target is to be predicted: `[n_targets, n_vocab]`.
    pub(super) fn logits(&self, learned: &Learned, batch: &Batch) -> Result<Tensor> {
        let mut x = self.embed(&batch.tokens)?;
        for i in 0..self.layers.len() {
            x = self.layer(learned, i, &x, batch)?;
        }
        if self.layers.is_empty() {
            x = batch.select(&x)?;
        }
        let h = x.apply_op1(Norm(Arc::clone(&self.output_norm)))?;
        h.apply_op1(Linear(Arc::clone(&self.output)))
    }

    fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        let n = self.config.n_embd;
        let mut x = vec![0.0; tokens.len() * n];
        for (id, x) in tokens.iter().zip(x.chunks_exact_mut(n)) {
            self.embeddings.row(*id as usize, x);
            x.iter_mut().for_each(|x| *x *= self.config.embedding_scale);
        }
        Tensor::from_vec(x, (tokens.len(), n), &Device::Cpu)
    }

    /// Layer `i` on `x` `[n_tokens, n_embd]`. Of the last layer's results those at targets alone
    /// are computed: `[n_targets, n_embd]`.
    fn layer(&self, learned: &Learned, i: usize, x: &Tensor, batch: &Batch) -> Result<Tensor> {
        let (config, w) = (&self.config, &self.layers[i]);
        let is_last = i + 1 == self.layers.len();
        let linear = |module: Module, x: &Tensor| {
            let frozen = &w.linears[module as usize];
            linear(learned, LinearId::Layer(i, module), frozen, x)
        };
        let norm = |n: &Arc<NormParameters>, x: &Tensor| x.apply_op1(Norm(Arc::clone(n)));
        let optional = |n: &Option<Arc<NormParameters>>, x: Tensor| match n {
            Some(n) => norm(n, &x),
            None => Ok(x),
        };
        let local = config.local_attention(i);
        let rotate = |x: Tensor, positions: &Arc<Vec<usize>>| {
            let angles = match local {
                Some(_) => &self.angles_local,
                None => &self.angles,
            };
            x.apply_op1(Rope {
                angles: Arc::clone(angles),
                positions: Arc::clone(positions),
            })
        };

        // x += o attention(rope(q h), rope(k h), v h) with h = norm(x)
        let h = norm(&w.attn_norm, x)?;
        let (x, h_q, positions, spans) = match is_last {
            true => {
                let (positions, spans) = (&batch.target_positions, &batch.target_spans);
                (batch.select(x)?, batch.select(&h)?, positions, spans)
            }
            false => (x.clone(), h.clone(), &batch.positions, &batch.spans),
        };
        let q = rotate(optional(&w.q_norm, linear(Module::Q, &h_q)?)?, positions)?;
        let k = optional(&w.k_norm, linear(Module::K, &h)?)?;
        let k = rotate(k, &batch.positions)?;
        let v = linear(Module::V, &h)?;
        let attention = Attention {
            spans: Arc::clone(spans),
            n_head: config.n_head,
            n_head_kv: config.n_head_kv,
            head_dim: config.head_dim,
            scale: config.attention_scale,
            window: local.map(|local| local.window),
        };
        let o = linear(Module::O, &q.apply_op3(&k, &v, attention)?)?;
        let x = (x + optional(&w.post_attn_norm, o)?)?;

        // x += down (activation(gate h) * (up h)) with h = norm(x)
        let h = norm(&w.ffn_norm, &x)?;
        let (gate, up) = (linear(Module::Gate, &h)?, linear(Module::Up, &h)?);
        let gated = gate.apply_op2(&up, Gate(config.activation))?;
        let down = linear(Module::Down, &gated)?;
        x + optional(&w.post_ffn_norm, down)?
    }
}

/// A linear with what is learned for it.
fn linear(learned: &Learned, id: LinearId, frozen: &Arc<Frozen>, x: &Tensor) -> Result<Tensor> {
    let linear = Arc::clone(frozen);
    match learned.term(id)? {
        None => x.apply_op1(Linear(linear)),
        Some(Term::Bias(p)) => x.apply_op2(&p, BiasedLinear(linear)),
        Some(Term::LowRank { a, b, scale }) => x.apply_op3(&a, &b, LowRankLinear { linear, scale }),
    }
}
