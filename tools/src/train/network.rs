//! The network as a graph of operations: the engine's forward pass, to be differentiated.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use candle_core::{Device, Result, Tensor};
use tandem_engine::blocks::{AttentionConfig, GatedConfig, MlpConfig};
use tandem_engine::model::{self, Ffn, Mixer};
use tandem_engine::{Adapter, Config, LinearId, Linears, Model, NormKind};

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
    /// Of each of the model's ropes.
    angles: Vec<Arc<Angles>>,
}

struct Layer {
    mixer_norm: Option<Arc<NormParameters>>,
    attention: AttentionBlock,
    post_mixer_norm: Option<Arc<NormParameters>>,
    ffn_norm: Option<Arc<NormParameters>>,
    ffn: FfnBlock,
    post_ffn_norm: Option<Arc<NormParameters>>,
}

struct AttentionBlock {
    config: AttentionConfig,
    q: Fixed,
    k: Fixed,
    v: Fixed,
    o: Fixed,
    q_norm: Option<Arc<NormParameters>>,
    k_norm: Option<Arc<NormParameters>>,
}

enum FfnBlock {
    Gated(GatedBlock),
    Mlp(MlpBlock),
}

struct GatedBlock {
    config: GatedConfig,
    gate: Fixed,
    up: Fixed,
    down: Fixed,
}

struct MlpBlock {
    config: MlpConfig,
    up: Fixed,
    down: Fixed,
}

/// A linear of the base, to be found in what is learned by its id.
struct Fixed {
    id: LinearId,
    linear: Arc<Frozen>,
}

/// The low-rank terms of a model's linears.
pub(super) type Deltas = HashMap<LinearId, Vec<Delta>>;

/// What adapters, each times its weight, add to the linears; those of which `is_left_out` are
/// passed over.
pub(super) fn deltas(
    base: &Linears,
    adapters: &[(&Adapter, f32)],
    is_left_out: impl Fn(LinearId) -> bool,
) -> Deltas {
    let mut deltas = Deltas::new();
    for (adapter, weight) in adapters {
        for (name, lora) in adapter.modules() {
            let rank = lora.b.n_cols;
            let Ok(tensor) = base.of_tensor(name, lora.b.n_rows) else {
                continue;
            };
            for (id, rows) in tensor.linears.iter().filter(|(id, _)| !is_left_out(*id)) {
                let scale = weight * lora.scale;
                let b = &lora.b.values[rows.start * rank..rows.end * rank];
                deltas.entry(*id).or_default().push(Delta {
                    rank,
                    a: lora.a.values.clone(),
                    b: b.iter().map(|x| scale * x).collect(),
                });
            }
        }
    }
    deltas
}

/// How a network is made.
#[derive(Clone, Copy)]
pub(super) struct NetworkForm {
    /// The context, which chooses the rotary frequencies of some models.
    pub n_ctx: usize,
    /// Of the longest sequence.
    pub n_positions: usize,
    /// Whether inputs of quantized weights stay float32.
    pub exact: bool,
}

impl Network {
    /// A model with low-rank terms.
    pub(super) fn new(
        model: &Model,
        mut deltas: Deltas,
        form: NetworkForm,
    ) -> anyhow::Result<Network> {
        let NetworkForm {
            n_ctx,
            n_positions,
            exact,
        } = form;
        let config = model.config();
        let output = model.output();
        let has_output_terms = deltas.contains_key(&output.id);
        let is_tied = output.w.is_same(model.token_embd());
        ensure!(
            !config.is_parallel && model.position_embd().is_none(),
            "{} cannot be trained: its blocks are parallel, or its positions learned",
            config.arch.name()
        );
        let layers = model.layers().iter();
        let layers: anyhow::Result<_> = layers
            .map(|w| Layer::new(config, w, &mut deltas, exact))
            .collect();
        let output = Fixed::new(output, &mut deltas, exact).linear;
        let embeddings = match is_tied && !has_output_terms {
            true => Arc::clone(&output),
            false => Arc::new(Frozen::new(
                &model.token_embd().view(),
                &[],
                Vec::new(),
                true,
            )),
        };
        let angles = (0..config.ropes.len()).map(|rope| {
            let angles = Angles::new(model, rope, n_ctx, n_positions);
            Ok(Arc::new(angles.context("a rope that the model lacks")?))
        });
        Ok(Network {
            config: config.clone(),
            embeddings,
            layers: layers?,
            output_norm: block_norm(config, model.output_norm()),
            output,
            angles: angles.collect::<anyhow::Result<_>>()?,
        })
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
        let logits = h.apply_op1(Linear(Arc::clone(&self.output)))?;
        scaled(logits, self.config.logit_scale)
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
        let layer = &self.layers[i];
        let is_last = i + 1 == self.layers.len();
        let scale = self.config.residual_scale;
        let h = norm_if_any(&layer.mixer_norm, x.clone())?;
        let y = self.attention(learned, &layer.attention, &h, batch, is_last)?;
        let x = match is_last {
            true => batch.select(x)?,
            false => x.clone(),
        };
        let x = (x + scaled(norm_if_any(&layer.post_mixer_norm, y)?, scale)?)?;
        let h = norm_if_any(&layer.ffn_norm, x.clone())?;
        let y = match &layer.ffn {
            FfnBlock::Gated(gated) => gated.forward(learned, &h)?,
            FfnBlock::Mlp(mlp) => mlp.forward(learned, &h)?,
        };
        x + scaled(norm_if_any(&layer.post_ffn_norm, y)?, scale)?
    }

    /// `o attention(rope(q h), rope(k h), v h)`, of all tokens or of those before a target.
    fn attention(
        &self,
        learned: &Learned,
        block: &AttentionBlock,
        h: &Tensor,
        batch: &Batch,
        at_targets: bool,
    ) -> Result<Tensor> {
        let (h_q, positions, spans) = match at_targets {
            true => (
                batch.select(h)?,
                &batch.target_positions,
                &batch.target_spans,
            ),
            false => (h.clone(), &batch.positions, &batch.spans),
        };
        let q = self.turned(
            block,
            &block.q_norm,
            block.q.forward(learned, &h_q)?,
            positions,
        )?;
        let q = match &block.config.temperature {
            None => q,
            Some(temperature) => {
                let factors = positions.iter().map(|p| temperature.factor(*p));
                let n = positions.len();
                q.broadcast_mul(&Tensor::from_iter(factors, &Device::Cpu)?.reshape((n, 1))?)?
            }
        };
        let k = block.k.forward(learned, h)?;
        let k = self.turned(block, &block.k_norm, k, &batch.positions)?;
        let v = block.v.forward(learned, h)?;
        let attention = Attention {
            spans: Arc::clone(spans),
            n_head: block.config.n_head,
            n_head_kv: block.config.n_head_kv,
            head_dim: block.config.head_dim,
            scale: block.config.scale,
            window: block.config.window,
            softcap: block.config.softcap,
        };
        block.o.forward(learned, &q.apply_op3(&k, &v, attention)?)
    }

    /// Heads, normalized and turned by their positions as the block has it.
    fn turned(
        &self,
        block: &AttentionBlock,
        norm: &Option<Arc<NormParameters>>,
        x: Tensor,
        positions: &Arc<Vec<usize>>,
    ) -> Result<Tensor> {
        let config = &block.config;
        let x = match config.norm_after_rope {
            true => x,
            false => norm_if_any(norm, x)?,
        };
        let x = match config.rope {
            None => x,
            Some(rope) => x.apply_op1(Rope {
                angles: Arc::clone(&self.angles[rope]),
                head_dim: config.head_dim,
                positions: Arc::clone(positions),
            })?,
        };
        match config.norm_after_rope {
            true => norm_if_any(norm, x),
            false => Ok(x),
        }
    }
}

impl Layer {
    fn new(
        config: &Config,
        w: &model::Layer,
        deltas: &mut Deltas,
        exact: bool,
    ) -> anyhow::Result<Layer> {
        let mut fixed = |linear: &model::Linear| Fixed::new(linear, deltas, exact);
        let Mixer::Attention(attention) = &w.mixer else {
            bail!(
                "{} cannot be trained: some of its layers are no attention",
                config.arch.name()
            );
        };
        let c = &attention.config;
        let (Some(k), Some(v), false) = (&attention.k, &attention.v, c.norms_values || c.has_gate)
        else {
            bail!(
                "{} cannot be trained: its attention shares keys, normalizes values or has gates",
                config.arch.name()
            );
        };
        ensure!(
            w.per_layer.is_none() && w.output_scale == 1.0,
            "{} cannot be trained: its layers have inputs of their own",
            config.arch.name()
        );
        let norm_of = |n: &Option<model::Norm>| n.as_ref().map(|n| block_norm(config, n));
        Ok(Layer {
            mixer_norm: norm_of(&w.mixer_norm),
            attention: AttentionBlock {
                config: attention.config.clone(),
                q: fixed(&attention.q),
                k: fixed(k),
                v: fixed(v),
                o: fixed(&attention.o),
                q_norm: head_norm(config, &attention.q_norm),
                k_norm: head_norm(config, &attention.k_norm),
            },
            post_mixer_norm: norm_of(&w.post_mixer_norm),
            ffn_norm: norm_of(&w.ffn_norm),
            ffn: match &w.ffn {
                Ffn::Gated(gated) => FfnBlock::Gated(GatedBlock {
                    config: gated.config.clone(),
                    gate: fixed(&gated.gate),
                    up: fixed(&gated.up),
                    down: fixed(&gated.down),
                }),
                Ffn::Mlp(mlp) => FfnBlock::Mlp(MlpBlock {
                    config: mlp.config.clone(),
                    up: fixed(&mlp.up),
                    down: fixed(&mlp.down),
                }),
                _ => bail!(
                    "{} cannot be trained: its feed-forward networks are experts",
                    config.arch.name()
                ),
            },
            post_ffn_norm: norm_of(&w.post_ffn_norm),
        })
    }
}

impl GatedBlock {
    /// `down (activation(gate h) * (up h))`.
    fn forward(&self, learned: &Learned, h: &Tensor) -> Result<Tensor> {
        let gate = self.gate.forward(learned, h)?;
        let up = self.up.forward(learned, h)?;
        let gated = gate.apply_op2(&up, Gate(self.config.activation))?;
        self.down.forward(learned, &gated)
    }
}

impl MlpBlock {
    /// `down activation(up h)`.
    fn forward(&self, learned: &Learned, h: &Tensor) -> Result<Tensor> {
        let up = self.up.forward(learned, h)?;
        // A gate that lets all through.
        let inner = up.apply_op2(&up.ones_like()?, Gate(self.config.activation))?;
        self.down.forward(learned, &inner)
    }
}

impl Fixed {
    /// The base's linear with its terms, which are taken out of `deltas`.
    fn new(linear: &model::Linear, deltas: &mut Deltas, exact: bool) -> Fixed {
        let own = deltas.remove(&linear.id).unwrap_or_default();
        Fixed {
            id: linear.id,
            linear: Arc::new(Frozen::new(&linear.w.view(), &linear.bias, own, exact)),
        }
    }

    /// `x` through the linear and what is learned for it.
    fn forward(&self, learned: &Learned, x: &Tensor) -> Result<Tensor> {
        let linear = Arc::clone(&self.linear);
        match learned.term(self.id)? {
            None => x.apply_op1(Linear(linear)),
            Some(Term::Bias(p)) => x.apply_op2(&p, BiasedLinear(linear)),
            Some(Term::LowRank { a, b, scale }) => {
                x.apply_op3(&a, &b, LowRankLinear { linear, scale })
            }
        }
    }
}

fn block_norm(config: &Config, n: &model::Norm) -> Arc<NormParameters> {
    Arc::new(NormParameters {
        kind: config.norm,
        eps: config.norm_eps,
        weight: n.weight.clone(),
        bias: n.bias.clone(),
    })
}

/// Heads are normalized by their root mean square in every architecture that does it.
fn head_norm(config: &Config, weight: &[f32]) -> Option<Arc<NormParameters>> {
    let parameters = NormParameters {
        kind: NormKind::Rms,
        eps: config.norm_eps,
        weight: weight.to_vec(),
        bias: Vec::new(),
    };
    (!weight.is_empty()).then(|| Arc::new(parameters))
}

fn scaled(x: Tensor, scale: f32) -> Result<Tensor> {
    match scale == 1.0 {
        true => Ok(x),
        false => x.affine(f64::from(scale), 0.0),
    }
}

fn norm_if_any(parameters: &Option<Arc<NormParameters>>, x: Tensor) -> Result<Tensor> {
    match parameters {
        Some(parameters) => x.apply_op1(Norm(Arc::clone(parameters))),
        None => Ok(x),
    }
}
