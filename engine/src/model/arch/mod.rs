//! The supported architectures. Each is data in a file of its own: what its files call things and in
//! what it differs from the others. `keys` reads the hyperparameters by it; no arithmetic of the
//! network asks for an architecture's name.

mod cohere;
mod exaone;
mod gemma;
mod glm;
mod gpt;
mod gpt_oss;
mod granite;
mod hunyuan;
mod keys;
mod lfm;
mod llama;
mod mamba;
mod nemotron;
mod olmo;
mod phi;
mod qwen;
mod stablelm;
mod starcoder;

use alloc::format;
use alloc::string::ToString;

use tandem_formats::Gguf;
use tandem_kernels::{Activation, RopeStyle};

use super::config::{Config, NormKind};
use crate::ModelError;
use crate::blocks::Gating;

/// All architectures.
const ALL: [&Architecture; 37] = [
    &llama::LLAMA,
    &llama::MISTRAL3,
    &llama::SMOLLM3,
    &llama::ERNIE4_5,
    &granite::GRANITE,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &qwen::QWEN3VL,
    &stablelm::STABLELM,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &gemma::GEMMA3N,
    &gemma::GEMMA4,
    &phi::PHI3,
    &exaone::EXAONE4,
    &hunyuan::HUNYUAN_DENSE,
    &glm::GLM4,
    &olmo::OLMO2,
    &llama::ARCEE,
    &llama::APERTUS,
    &nemotron::NEMOTRON,
    &starcoder::STARCODER2,
    &lfm::LFM2,
    &cohere::COHERE2,
    &phi::PHI2,
    &gpt::GPTNEOX,
    &gpt::GPT2,
    &lfm::LFM2MOE,
    &qwen::QWEN3MOE,
    &qwen::QWEN35,
    &qwen::QWEN35MOE,
    &granite::GRANITEMOE,
    &gpt_oss::GPT_OSS,
    &granite::GRANITEHYBRID,
    &nemotron::NEMOTRON_H,
    &mamba::MAMBA2,
    &mamba::FALCON_H1,
];

/// An architecture: its name in GGUF files, and what tells it from others.
#[derive(Debug)]
pub struct Architecture {
    /// The name in GGUF files, also the prefix of the metadata keys.
    name: &'static str,
    norm: NormKind,
    activation: Activation,
    /// Whether the activation is xIELU, of which the file has the numbers of each layer.
    has_xielu: bool,
    /// Whether the feed-forward network has a gate.
    is_gated: bool,
    rope_style: RopeStyle,
    embedding_scale: EmbeddingScale,
    windows: Windows,
    no_rope: NoRope,
    /// Whether a norm stands before each block.
    pre_norms: bool,
    /// Whether heads are normalized after they are turned instead of before.
    norm_after_rope: bool,
    parallel: Parallel,
    /// What files call what is added to the variance, where they do it in the other norm's words.
    eps_key: Option<&'static str>,
    /// What the layers' names begin with in Hugging Face's models.
    hf_layers: &'static str,
    /// Whether norms with a mean have a bias, too.
    norm_bias: bool,
    /// What bounds logits where the file does not say.
    logit_softcap: Option<f32>,
    /// Whether the file has a number that logits are multiplied with.
    scales_logits: bool,
    /// Whether the file has an embedding for each position, which is added to the token's.
    has_positions: bool,
    /// Whether queries and keys are normalized as whole rows instead of head by head.
    norms_rows: bool,
    score_scale: ScoreScale,
    /// Whether values are normalized head by head, without a weight.
    norms_values: bool,
    /// Whether a layer without a projection for values takes the keys' for that.
    values_may_be_keys: bool,
    /// Whether the last layers may see earlier ones' keys and values.
    shares_kv: bool,
    /// Whether layers may have an input of their own for each token.
    has_per_layer_inputs: bool,
    /// Whether there are several residual streams, and gates that only outliers open.
    has_altup: bool,
    without_kv: WithoutKv,
    /// Whether layers have Mamba-2 beside attention.
    has_mamba_beside: bool,
    /// Whether layers are a mixer or a feed-forward network, not one and then the other.
    is_one_block: bool,
    experts: ExpertForm,
    /// How the router's outputs become weights, where the file does not say.
    gating: Gating,
    /// Bounds what is in experts, see [`ExpertsConfig`](crate::blocks::ExpertsConfig).
    expert_bound: Option<f32>,
    shared_expert: SharedForm,
    /// Whether layers that are no full attention are delta nets, and how many layers bring one that is, where the
    /// file does not say.
    delta_nets: Option<usize>,
    /// Whether queries come with a gate on the output of attention.
    gates_attention: bool,
    /// Whether each query head has a score of nothing.
    has_sinks: bool,
    /// Whether YaRN's ramp begins and ends at whole pairs.
    yarn_whole_pairs: bool,
    /// What files call the norm before the feed-forward network.
    ffn_norm: &'static str,
    /// What files call the norm before the output.
    output_norm: &'static str,
    /// Tensors of a layer that are optional in general but not here: without them the result would be
    /// wrong.
    needed: &'static [&'static str],
    /// Keys that are optional in general but not here.
    needed_keys: &'static [&'static str],
    /// What files call a layer's linears.
    modules: &'static [ModuleName],
    /// Other names that adapters have for them.
    other_names: &'static [ModuleName],
    /// Whether files have the rows of queries and keys in another order than Hugging Face: elements
    /// `2 j` and `2 j + 1` of a head, which are turned together, at `j` and `head_dim / 2 + j` there.
    turns_rows: bool,
}

/// What multiplies the embeddings.
#[derive(Debug)]
enum EmbeddingScale {
    One,
    /// The root of the residual stream's length.
    RootOfWidth,
    /// A number in the file, which has others for the blocks' outputs and the logits' divisor, too.
    InFile,
}

/// Where files may have experts.
#[derive(Debug, PartialEq)]
enum ExpertForm {
    None,
    /// In the place of the feed-forward network.
    Alone,
    /// Beside it, with a router that looks at the residual stream.
    BesideDense,
}

/// What layers without KV heads are.
#[derive(Debug, PartialEq)]
enum WithoutKv {
    /// There are none.
    Refused,
    ShortConv,
    Mamba,
}

/// Whether there is an expert besides that all tokens use.
#[derive(Debug, PartialEq)]
enum SharedForm {
    None,
    /// There is, each token as much of it as a gate says.
    Gated,
    /// There is where the file says so.
    InFile,
}

/// What multiplies the scores of attention, where the file does not say.
#[derive(Debug)]
enum ScoreScale {
    One,
    /// The inverse root of a head's length.
    OfHead,
    /// The same, but of the embedding's share of a head in the model with so many layers.
    OfShare {
        n_layer: usize,
    },
}

/// Whether the feed-forward network of a layer sees what its mixer saw, instead of what that gave.
#[derive(Debug, PartialEq)]
enum Parallel {
    No,
    /// It does, behind the mixer's norm.
    OneNorm,
    /// Where the file says so, behind a norm of its own.
    InFile,
}

/// Which layers do not turn their heads.
#[derive(Debug)]
enum NoRope {
    Nowhere,
    Everywhere,
    /// None does, where the file says so.
    InFile,
    /// Every n-th.
    Every(usize),
    /// Those that see all tokens, where others have a window.
    BesideWindows,
}

/// Which layers see a window, where a file names one.
#[derive(Debug)]
enum Windows {
    /// All layers.
    All,
    /// All but every n-th, which alone have the file's rotary frequencies scaled.
    AllBut {
        every: usize,
        /// The others' rope, where it is not the same.
        own_rope: Option<OwnRope>,
    },
}

/// The rope of layers with a window, which is not scaled.
#[derive(Debug)]
struct OwnRope {
    /// The key of its base.
    key: &'static str,
    /// The base without that key; otherwise that of the other layers.
    default: Option<f32>,
}

/// What files call a linear of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModuleName {
    /// Hugging Face's module: `self_attn.q_proj`.
    pub hf: &'static str,
    /// The tensor without layer and `.weight`: `attn_q`. It may hold several linears.
    pub tensor: &'static str,
}

impl ModuleName {
    const fn new(hf: &'static str, tensor: &'static str) -> ModuleName {
        ModuleName { hf, tensor }
    }

    /// The last part of Hugging Face's name: `q_proj`.
    pub fn last(&self) -> &'static str {
        self.hf.rsplit('.').next().unwrap_or(self.hf)
    }
}

/// The linears of a layer, each in a tensor of its own.
const SEPARATE: &[ModuleName] = &[
    ModuleName::new("self_attn.q_proj", "attn_q"),
    ModuleName::new("self_attn.k_proj", "attn_k"),
    ModuleName::new("self_attn.v_proj", "attn_v"),
    ModuleName::new("self_attn.o_proj", "attn_output"),
    ModuleName::new("mlp.gate_proj", "ffn_gate"),
    ModuleName::new("mlp.up_proj", "ffn_up"),
    ModuleName::new("mlp.down_proj", "ffn_down"),
];

/// The same without a gate.
const UNGATED: &[ModuleName] = &[
    ModuleName::new("self_attn.q_proj", "attn_q"),
    ModuleName::new("self_attn.k_proj", "attn_k"),
    ModuleName::new("self_attn.v_proj", "attn_v"),
    ModuleName::new("self_attn.o_proj", "attn_output"),
    ModuleName::new("mlp.up_proj", "ffn_up"),
    ModuleName::new("mlp.down_proj", "ffn_down"),
];

/// What most architectures have in common; each changes what it has otherwise.
const COMMON: Architecture = Architecture {
    name: "",
    norm: NormKind::Rms,
    activation: Activation::Silu,
    has_xielu: false,
    is_gated: true,
    rope_style: RopeStyle::Neox,
    embedding_scale: EmbeddingScale::One,
    windows: Windows::All,
    no_rope: NoRope::Nowhere,
    pre_norms: true,
    norm_after_rope: false,
    parallel: Parallel::No,
    eps_key: None,
    hf_layers: "model.layers",
    norm_bias: true,
    logit_softcap: None,
    scales_logits: false,
    has_positions: false,
    norms_rows: false,
    score_scale: ScoreScale::OfHead,
    norms_values: false,
    values_may_be_keys: false,
    shares_kv: false,
    has_per_layer_inputs: false,
    has_altup: false,
    without_kv: WithoutKv::Refused,
    has_mamba_beside: false,
    is_one_block: false,
    experts: ExpertForm::None,
    gating: Gating::Softmax,
    expert_bound: None,
    shared_expert: SharedForm::None,
    delta_nets: None,
    gates_attention: false,
    has_sinks: false,
    yarn_whole_pairs: true,
    ffn_norm: "ffn_norm",
    output_norm: "output_norm",
    needed: &[],
    needed_keys: &[],
    modules: SEPARATE,
    other_names: &[],
    turns_rows: false,
};

impl PartialEq for Architecture {
    fn eq(&self, other: &Architecture) -> bool {
        self.name == other.name
    }
}

impl Architecture {
    /// The architecture that `general.architecture` names.
    pub fn from_name(name: &str) -> Option<&'static Architecture> {
        ALL.into_iter().find(|arch| arch.name == name)
    }

    /// The names of all architectures.
    pub fn names() -> impl Iterator<Item = &'static str> {
        ALL.into_iter().map(|arch| arch.name)
    }

    /// The name in GGUF files.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What files call a layer's linears.
    pub fn modules(&self) -> &'static [ModuleName] {
        self.modules
    }

    /// The tensor, without layer and `.weight`, that holds a module of Hugging Face's.
    pub(crate) fn tensor_of(&self, hf: &str) -> Option<&'static str> {
        let mut names = self.modules.iter().chain(self.other_names);
        names.find(|m| m.hf == hf).map(|m| m.tensor)
    }

    /// What the layers' names begin with in Hugging Face's models, without the last dot.
    pub(crate) fn hf_layers(&self) -> &'static str {
        self.hf_layers
    }

    pub(crate) fn turns_rows(&self) -> bool {
        self.turns_rows
    }

    pub(crate) fn has_pre_norms(&self) -> bool {
        self.pre_norms
    }

    pub(crate) fn has_norm_bias(&self) -> bool {
        self.norm_bias
    }

    /// Whether the mixer's norm serves the feed-forward network, too.
    pub(crate) fn shares_norm(&self) -> bool {
        self.parallel == Parallel::OneNorm
    }

    pub(crate) fn has_positions(&self) -> bool {
        self.has_positions
    }

    pub(crate) fn ffn_norm(&self) -> &'static str {
        self.ffn_norm
    }

    pub(crate) fn output_norm(&self) -> &'static str {
        self.output_norm
    }

    pub(crate) fn needs(&self, tensor: &str) -> bool {
        self.needed.contains(&tensor)
    }
}

/// Reads and checks the hyperparameters of a model.
pub(super) fn read(gguf: &Gguf<'_>) -> Result<Config, ModelError> {
    let name = gguf.get_str("general.architecture")?;
    let name = name.ok_or_else(|| ModelError::MissingKey {
        key: "general.architecture".to_string(),
    })?;
    let kind = gguf.get_str("general.type")?.unwrap_or("model");
    if kind != "model" {
        return Err(ModelError::Value {
            key: "general.type".to_string(),
            reason: "the file is no model (an adapter or a vocabulary needs one beside it)",
        });
    }
    let arch = Architecture::from_name(name).ok_or_else(|| ModelError::Architecture {
        found: name.chars().take(64).collect(),
    })?;
    keys::Keys::new(gguf, arch).config()
}

/// A key of an architecture.
fn key(arch: &Architecture, name: &str) -> alloc::string::String {
    format!("{}.{name}", arch.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_by_all_their_names() {
        let granite = Architecture::from_name("granite").unwrap();
        let tensor = |module| granite.tensor_of(module);
        assert_eq!(tensor("mlp.up_proj"), Some("ffn_up"));
        assert_eq!(tensor("shared_mlp.input_linear"), Some("ffn_up"));
        assert_eq!(tensor("shared_mlp.output_linear"), Some("ffn_down"));
        assert_eq!(tensor("mlp.c_fc"), None);
    }

    #[test]
    fn names_are_unique() {
        for (i, arch) in ALL.iter().enumerate() {
            assert!(ALL[..i].iter().all(|other| other.name != arch.name));
        }
    }
}
