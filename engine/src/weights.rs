//! A model's weights, borrowed from the file and checked against the hyperparameters.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use tandem_formats::{DType, Gguf, Tensor};
use tandem_kernels::{Matrix, quant};

use crate::adapters::Module;
use crate::{Arch, Config, ModelError, NormKind};

/// A model: hyperparameters and weights. It borrows the file's bytes and never changes.
#[derive(Debug)]
pub struct Model<'a> {
    /// The hyperparameters.
    pub config: Config,
    /// Embeddings, `[n_vocab, n_embd]`.
    pub token_embd: Matrix<'a>,
    /// The layers, first to last.
    pub layers: Vec<LayerWeights<'a>>,
    /// Normalization after the last layer.
    pub output_norm: Norm,
    /// Projection to logits, `[n_vocab, n_embd]`; the embeddings where they are tied.
    pub output: Linear<'a>,
    /// Factors of the rotary frequencies, `[n_rot / 2]` or empty.
    pub rope_factors: RopeFactors,
}

/// Divisors of the rotary frequencies; empty where there are none.
#[derive(Debug, Default)]
pub struct RopeFactors {
    /// For contexts up to the one the model was trained on (LongRoPE), or for all (Llama 3).
    pub short: Vec<f32>,
    /// For longer contexts; empty where `short` serves all.
    pub long: Vec<f32>,
}

/// The weights of one layer.
#[derive(Debug)]
pub struct LayerWeights<'a> {
    /// Before attention.
    pub attn_norm: Norm,
    /// Queries, `[n_q, n_embd]`.
    pub q: Linear<'a>,
    /// Keys, `[n_kv, n_embd]`.
    pub k: Linear<'a>,
    /// Values, `[n_kv, n_embd]`.
    pub v: Linear<'a>,
    /// On each query head, `[head_dim]`; empty where there is none.
    pub q_norm: Vec<f32>,
    /// On each key head, `[head_dim]`; empty where there is none.
    pub k_norm: Vec<f32>,
    /// Attention's output, `[n_embd, n_q]`.
    pub o: Linear<'a>,
    /// On attention's output, before it is added.
    pub post_attn_norm: Option<Norm>,
    /// Before the feed-forward network.
    pub ffn_norm: Norm,
    /// The gate, `[n_ff, n_embd]`.
    pub gate: Linear<'a>,
    /// What is gated, `[n_ff, n_embd]`.
    pub up: Linear<'a>,
    /// Back to the residual stream, `[n_embd, n_ff]`.
    pub down: Linear<'a>,
    /// On the feed-forward network's output, before it is added.
    pub post_ffn_norm: Option<Norm>,
}

impl<'a> LayerWeights<'a> {
    /// The linears, in the order of [`Module::ALL`].
    pub fn linears(&self) -> [(Module, &Linear<'a>); 7] {
        [
            (Module::Q, &self.q),
            (Module::K, &self.k),
            (Module::V, &self.v),
            (Module::O, &self.o),
            (Module::Gate, &self.gate),
            (Module::Up, &self.up),
            (Module::Down, &self.down),
        ]
    }
}

/// `y = w x + bias`.
#[derive(Debug)]
pub struct Linear<'a> {
    /// `[n_out, n_in]`.
    pub w: Matrix<'a>,
    /// `[n_out]`; empty where there is none.
    pub bias: Vec<f32>,
}

/// A normalization's parameters.
#[derive(Debug)]
pub struct Norm {
    /// `[n]`.
    pub weight: Vec<f32>,
    /// `[n]`; empty where there is none.
    pub bias: Vec<f32>,
}

impl<'a> Model<'a> {
    /// Reads a model: every tensor that the architecture needs, of the shape that the metadata
    /// asks for, and none besides.
    ///
    /// # Errors
    ///
    /// What is missing, misshapen or not supported, by name.
    pub fn load(gguf: &Gguf<'a>) -> Result<Model<'a>, ModelError> {
        let config = Config::from_gguf(gguf)?;
        let mut tensors = Tensors {
            gguf,
            used: BTreeSet::new(),
        };
        let n_embd = config.n_embd;
        let token_embd = tensors.matrix("token_embd.weight", config.n_vocab, n_embd)?;
        let output = match tensors.optional("output.weight") {
            Some(_) => tensors.linear("output", config.n_vocab, n_embd)?,
            None => Linear {
                w: token_embd,
                bias: Vec::new(),
            },
        };
        let rope_factors = tensors.rope_factors(&config)?;
        let layers = (0..config.n_layer)
            .map(|i| tensors.layer(&config, i))
            .collect::<Result<_, _>>()?;
        let output_norm = tensors.norm("output_norm", &config)?;
        tensors.refuse_unused()?;
        Ok(Model {
            token_embd,
            layers,
            output_norm,
            output,
            rope_factors,
            config,
        })
    }

    /// Bytes read for one token in decode: all weights but the embeddings, of which one row is
    /// read.
    pub fn bytes_per_token(&self) -> usize {
        let layer = |l: &LayerWeights<'_>| {
            [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down]
                .iter()
                .map(|linear| linear.w.n_bytes())
                .sum::<usize>()
        };
        self.layers.iter().map(layer).sum::<usize>() + self.output.w.n_bytes()
    }
}

/// Looks tensors up and keeps account of those that were asked for.
struct Tensors<'g, 'a> {
    gguf: &'g Gguf<'a>,
    used: BTreeSet<&'a str>,
}

impl<'a> Tensors<'_, 'a> {
    fn optional(&mut self, name: &str) -> Option<Tensor<'a>> {
        let tensor = *self.gguf.tensor(name)?;
        self.used.insert(tensor.name);
        Some(tensor)
    }

    fn needed(&mut self, name: &str) -> Result<Tensor<'a>, ModelError> {
        self.optional(name)
            .ok_or_else(|| ModelError::MissingTensor {
                name: name.to_string(),
            })
    }

    fn matrix(
        &mut self,
        name: &str,
        n_rows: usize,
        n_cols: usize,
    ) -> Result<Matrix<'a>, ModelError> {
        let t = self.needed(name)?;
        check_shape(&t, n_rows, n_cols)?;
        Matrix::new(t.dtype, n_rows, n_cols, t.data).ok_or(ModelError::Type {
            name: name.to_string(),
            found: t.dtype,
        })
    }

    /// A vector of floats `[n]`; empty where there is no such tensor.
    fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>, ModelError> {
        let Some(t) = self.optional(name) else {
            return Ok(Vec::new());
        };
        check_shape(&t, 1, n)?;
        if !matches!(t.dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(ModelError::Type {
                name: name.to_string(),
                found: t.dtype,
            });
        }
        let mut values = vec![0.0; n];
        quant::dequantize(t.dtype, t.data, &mut values);
        Ok(values)
    }

    fn linear(&mut self, name: &str, n_out: usize, n_in: usize) -> Result<Linear<'a>, ModelError> {
        Ok(Linear {
            w: self.matrix(&format!("{name}.weight"), n_out, n_in)?,
            bias: self.vector(&format!("{name}.bias"), n_out)?,
        })
    }

    /// Several linears that the file may have fused into one, rows one after the other.
    fn fused<const N: usize>(
        &mut self,
        fused: &str,
        parts: [(&str, usize); N],
        n_in: usize,
    ) -> Result<[Linear<'a>; N], ModelError> {
        let whole = match self.gguf.tensor(&format!("{fused}.weight")) {
            Some(_) => Some(self.linear(fused, parts.iter().map(|(_, n)| n).sum(), n_in)?),
            None => None,
        };
        let mut start = 0;
        let mut linears = Vec::with_capacity(N);
        for (name, n_out) in parts {
            let rows = start..start + n_out;
            start = rows.end;
            linears.push(match &whole {
                Some(whole) => Linear {
                    bias: whole.bias.get(rows.clone()).unwrap_or_default().to_vec(),
                    w: whole.w.rows(rows),
                },
                None => self.linear(name, n_out, n_in)?,
            });
        }
        linears.try_into().map_err(|_| ModelError::MissingTensor {
            name: fused.to_string(),
        })
    }

    fn norm(&mut self, name: &str, config: &Config) -> Result<Norm, ModelError> {
        self.optional_norm(name, config)?
            .ok_or_else(|| ModelError::MissingTensor {
                name: format!("{name}.weight"),
            })
    }

    fn optional_norm(&mut self, name: &str, config: &Config) -> Result<Option<Norm>, ModelError> {
        let weight = self.vector(&format!("{name}.weight"), config.n_embd)?;
        let bias = match config.norm {
            NormKind::Rms => Vec::new(), // a bias stays unused and is refused as such
            NormKind::Layer => self.vector(&format!("{name}.bias"), config.n_embd)?,
        };
        if config.norm == NormKind::Layer && bias.is_empty() && !weight.is_empty() {
            return Err(ModelError::MissingTensor {
                name: format!("{name}.bias"),
            });
        }
        Ok((!weight.is_empty()).then_some(Norm { weight, bias }))
    }

    fn rope_factors(&mut self, config: &Config) -> Result<RopeFactors, ModelError> {
        let n = config.n_rot / 2;
        let mut factors = |name: &str| -> Result<Vec<f32>, ModelError> {
            let factors = self.vector(name, n)?;
            match factors.iter().all(|f| f.is_finite() && *f > 0.0) {
                true => Ok(factors),
                false => Err(ModelError::Value {
                    key: name.to_string(),
                    reason: "a factor is not positive and finite",
                }),
            }
        };
        let all = factors("rope_freqs.weight")?;
        let (short, long) = (
            factors("rope_factors_short.weight")?,
            factors("rope_factors_long.weight")?,
        );
        Ok(match short.is_empty() {
            true => RopeFactors { short: all, long },
            false => RopeFactors { short, long },
        })
    }

    fn layer(&mut self, config: &Config, i: usize) -> Result<LayerWeights<'a>, ModelError> {
        let name = |part: &str| format!("blk.{i}.{part}");
        let (n_embd, n_q, n_kv, n_ff) = (config.n_embd, config.n_q(), config.n_kv(), config.n_ff);
        let [q, k, v] = self.fused(
            &name("attn_qkv"),
            [
                (&name("attn_q"), n_q),
                (&name("attn_k"), n_kv),
                (&name("attn_v"), n_kv),
            ],
            n_embd,
        )?;
        // Phi 3 has the gate in `ffn_up`, before what is gated.
        let up = self.gguf.tensor(&name("ffn_up.weight"));
        let [gate, up] = match up.is_some_and(|t| t.n_rows() == 2 * n_ff) {
            true => self.fused(
                &name("ffn_up"),
                [(&name("ffn_gate"), n_ff), (&name("ffn_up"), n_ff)],
                n_embd,
            )?,
            false => [
                self.linear(&name("ffn_gate"), n_ff, n_embd)?,
                self.linear(&name("ffn_up"), n_ff, n_embd)?,
            ],
        };
        let layer = LayerWeights {
            attn_norm: self.norm(&name("attn_norm"), config)?,
            q,
            k,
            v,
            q_norm: self.vector(&name("attn_q_norm.weight"), config.head_dim)?,
            k_norm: self.vector(&name("attn_k_norm.weight"), config.head_dim)?,
            o: self.linear(&name("attn_output"), n_embd, n_q)?,
            post_attn_norm: self.optional_norm(&name("post_attention_norm"), config)?,
            ffn_norm: self.norm(&name("ffn_norm"), config)?,
            gate,
            up,
            down: self.linear(&name("ffn_down"), n_embd, n_ff)?,
            post_ffn_norm: self.optional_norm(&name("post_ffw_norm"), config)?,
        };
        // Optional in general, but not for these: without them the result would be wrong.
        let missing = match config.arch {
            Arch::Qwen2 if layer.q.bias.is_empty() => "attn_q.bias",
            Arch::Qwen2 if layer.k.bias.is_empty() => "attn_k.bias",
            Arch::Qwen2 if layer.v.bias.is_empty() => "attn_v.bias",
            Arch::Qwen3 | Arch::Gemma3 if layer.q_norm.is_empty() => "attn_q_norm.weight",
            Arch::Qwen3 | Arch::Gemma3 if layer.k_norm.is_empty() => "attn_k_norm.weight",
            Arch::Gemma3 if layer.post_attn_norm.is_none() => "post_attention_norm.weight",
            Arch::Gemma3 if layer.post_ffn_norm.is_none() => "post_ffw_norm.weight",
            _ => return Ok(layer),
        };
        Err(ModelError::MissingTensor {
            name: name(missing),
        })
    }

    fn refuse_unused(&self) -> Result<(), ModelError> {
        match self
            .gguf
            .tensors()
            .iter()
            .find(|t| !self.used.contains(t.name))
        {
            Some(t) => Err(ModelError::UnusedTensor {
                name: t.name.to_string(),
            }),
            None => Ok(()),
        }
    }
}

fn check_shape(t: &Tensor<'_>, n_rows: usize, n_cols: usize) -> Result<(), ModelError> {
    let is_matrix = t.shape().iter().skip(2).all(|n| *n == 1);
    match is_matrix && t.n_rows() == n_rows && t.n_cols() == n_cols {
        true => Ok(()),
        false => Err(ModelError::Shape {
            name: String::from(t.name),
            wanted: (n_rows, n_cols),
            found: (t.n_rows(), t.n_cols()),
        }),
    }
}
