//! Real models' dimensions.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(super) enum ShapeName {
    #[value(name = "llama3.2-1b")]
    Llama32_1b,
    #[value(name = "llama3.2-3b")]
    Llama32_3b,
    #[value(name = "llama3.1-8b")]
    Llama31_8b,
    #[value(name = "qwen2.5-0.5b")]
    Qwen25_05b,
    #[value(name = "qwen2.5-1.5b")]
    Qwen25_15b,
    #[value(name = "smollm2-135m")]
    SmolLm2_135m,
    #[value(name = "smollm2-360m")]
    SmolLm2_360m,
    #[value(name = "tinyllama-1.1b")]
    TinyLlama11b,
    #[value(name = "gemma4-e2b")]
    Gemma4E2b,
    #[value(name = "lfm2-1.2b")]
    Lfm2_1_2b,
    #[value(name = "qwen3.5-0.8b")]
    Qwen35_08b,
    #[value(name = "qwen3.5-2b")]
    Qwen35_2b,
    #[value(name = "qwen3-30b-a3b")]
    Qwen3_30bA3b,
    #[value(name = "granite4-h-1b")]
    Granite4H1b,
}

/// A model's dimensions.
pub(super) struct Shape {
    pub arch: &'static str,
    pub n_vocab: usize,
    pub n_embd: usize,
    pub n_layer: usize,
    pub n_head: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
    pub n_ff: usize,
    pub n_ctx: u32,
    pub rope_base: f32,
    /// Whether the output matrix is the embeddings.
    pub tied: bool,
    pub gemma4: Option<Gemma4Shape>,
    /// Of LFM2 and Granite 4 H the layers that are attention; the others are convolutions, or Mamba-2.
    pub attention_layers: &'static [usize],
    /// In the place of feed-forward networks.
    pub experts: Option<ExpertsShape>,
}

/// Experts of every layer.
pub(super) struct ExpertsShape {
    pub n_experts: usize,
    pub n_used: usize,
    pub n_ff: usize,
}

/// Of Qwen 3.5's delta nets: heads of keys and values, their elements, tokens that the convolution sums, and how
/// many layers bring one of full attention.
pub(super) const DELTA_HEADS: usize = 16;
pub(super) const DELTA_HEAD_DIM: usize = 128;
pub(super) const DELTA_TAPS: usize = 4;
pub(super) const QWEN35_FULL_EVERY: usize = 4;

/// Tokens that one of LFM2's convolutions sums.
pub(super) const LFM2_TAPS: usize = 3;

/// Of Granite 4 H's Mamba-2: heads, their elements, those of a head's state, and tokens that the convolution sums.
pub(super) const MAMBA_HEADS: usize = 48;
pub(super) const MAMBA_HEAD_DIM: usize = 64;
pub(super) const MAMBA_STATE: usize = 128;
pub(super) const MAMBA_TAPS: usize = 4;

/// What a Gemma 4 has besides.
pub(super) struct Gemma4Shape {
    pub window: usize,
    /// One layer in so many sees all tokens, the others see the window.
    pub full_every: usize,
    /// Elements of a head of such a layer.
    pub full_head_dim: usize,
    /// The last layers see the keys of earlier ones.
    pub n_shared_kv: usize,
    /// Elements inside these layers' feed-forward networks.
    pub shared_n_ff: usize,
    /// Elements of each layer's own input.
    pub n_input: usize,
}

impl ShapeName {
    /// The dimensions, from the models' published configurations.
    pub(super) fn shape(self) -> Shape {
        let llama = |n_embd, n_layer, n_head, n_head_kv, n_ff| Shape {
            arch: "llama",
            n_vocab: 128_256,
            n_embd,
            n_layer,
            n_head,
            n_head_kv,
            head_dim: n_embd / n_head,
            n_ff,
            n_ctx: 131_072,
            rope_base: 500_000.0,
            tied: true,
            gemma4: None,
            attention_layers: &[],
            experts: None,
        };
        let qwen35 = |n_embd, n_ff| Shape {
            arch: "qwen35",
            n_vocab: 248_320,
            head_dim: 256,
            n_ctx: 262_144,
            rope_base: 1e7,
            ..llama(n_embd, 24, 8, 2, n_ff)
        };
        match self {
            ShapeName::Llama32_1b => llama(2048, 16, 32, 8, 8192),
            ShapeName::Llama32_3b => llama(3072, 28, 24, 8, 8192),
            ShapeName::Llama31_8b => Shape {
                tied: false,
                ..llama(4096, 32, 32, 8, 14_336)
            },
            ShapeName::Qwen25_05b => Shape {
                arch: "qwen2",
                n_vocab: 151_936,
                n_ctx: 32_768,
                rope_base: 1e6,
                ..llama(896, 24, 14, 2, 4864)
            },
            ShapeName::Qwen25_15b => Shape {
                arch: "qwen2",
                n_vocab: 151_936,
                n_ctx: 32_768,
                rope_base: 1e6,
                ..llama(1536, 28, 12, 2, 8960)
            },
            ShapeName::SmolLm2_135m => Shape {
                n_vocab: 49_152,
                n_ctx: 8192,
                rope_base: 1e5,
                ..llama(576, 30, 9, 3, 1536)
            },
            ShapeName::SmolLm2_360m => Shape {
                n_vocab: 49_152,
                n_ctx: 8192,
                rope_base: 1e5,
                ..llama(960, 32, 15, 5, 2560)
            },
            ShapeName::TinyLlama11b => Shape {
                n_vocab: 32_000,
                n_ctx: 2048,
                rope_base: 1e4,
                tied: false,
                ..llama(2048, 22, 32, 4, 5632)
            },
            ShapeName::Lfm2_1_2b => Shape {
                arch: "lfm2",
                n_vocab: 65_536,
                n_ctx: 128_000,
                rope_base: 1e6,
                attention_layers: &[2, 5, 8, 10, 12, 14],
                ..llama(2048, 16, 32, 8, 8192)
            },
            ShapeName::Qwen35_08b => qwen35(1024, 3584),
            ShapeName::Qwen35_2b => qwen35(2048, 6144),
            ShapeName::Qwen3_30bA3b => Shape {
                arch: "qwen3moe",
                n_vocab: 151_936,
                head_dim: 128,
                n_ctx: 40_960,
                rope_base: 1e6,
                tied: false,
                experts: Some(ExpertsShape {
                    n_experts: 128,
                    n_used: 8,
                    n_ff: 768,
                }),
                ..llama(2048, 48, 32, 4, 6144)
            },
            ShapeName::Granite4H1b => Shape {
                arch: "granitehybrid",
                n_vocab: 100_352,
                rope_base: 1e4,
                attention_layers: &[5, 15, 25, 35],
                ..llama(1536, 40, 12, 4, 4096)
            },
            ShapeName::Gemma4E2b => Shape {
                arch: "gemma4",
                n_vocab: 262_144,
                head_dim: 256,
                rope_base: 1e6,
                gemma4: Some(Gemma4Shape {
                    window: 512,
                    full_every: 5,
                    full_head_dim: 512,
                    n_shared_kv: 20,
                    shared_n_ff: 12_288,
                    n_input: 256,
                }),
                ..llama(1536, 35, 8, 1, 6144)
            },
        }
    }
}
