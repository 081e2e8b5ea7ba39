//! Recipes for training, in TOML.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::optimizer::AdamW;
use crate::recipe::read_toml;

/// A recipe, its paths being relative to its own folder.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Recipe {
    /// The model: a GGUF file.
    pub base: PathBuf,
    /// A bundle, of which `composition` is calibrated.
    pub bundle: Option<PathBuf>,
    pub composition: Option<String>,
    /// Or adapters from files, and how they are merged.
    #[serde(default)]
    pub adapters: Vec<Member>,
    pub merge: Option<Merge>,
    /// What the model is asked with; otherwise the bundle's composition says it.
    pub prompt: Option<String>,
    pub data: Data,
    pub calibration: Option<Calibration>,
    pub lora: Option<Lora>,
    #[serde(default)]
    pub train: Train,
    #[serde(default)]
    pub optimizer: AdamW,
    #[serde(default)]
    pub output: Output,
    /// Where it was read from.
    #[serde(skip)]
    folder: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Member {
    /// A PEFT directory or a LoRA file of llama.cpp.
    pub path: PathBuf,
    #[serde(default = "one")]
    pub weight: f32,
}

fn one() -> f32 {
    1.0
}

/// How several adapters become one, as in bundles.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Merge {
    pub method: String,
    pub density: Option<f32>,
    pub rank: Option<u32>,
    pub seed: Option<u64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Data {
    /// JSON lines with `input` and `target`.
    pub path: PathBuf,
    /// Examples held out of training, to tell when it is best.
    #[serde(default = "held_out")]
    pub validation: usize,
    /// Use the first so many examples.
    pub limit: Option<usize>,
    /// Tokens of the longest example, and what is done about longer ones.
    pub context: Option<usize>,
    #[serde(default)]
    pub too_long: TooLong,
}

fn held_out() -> usize {
    200
}

/// What is done about examples that are longer than the context.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(super) enum TooLong {
    /// Training is refused.
    #[default]
    Refuse,
    /// They are left out, which is told.
    Skip,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Calibration {
    /// `output_bias`, `weight_bias`, `low_rank` or `projection`.
    pub kind: String,
    /// Of `low_rank`.
    #[serde(default = "four")]
    pub rank: usize,
    /// One for all layers, or one for each.
    #[serde(default = "yes")]
    pub shared: bool,
    /// `q_proj` and so on; all of them where there are none.
    #[serde(default)]
    pub modules: Vec<String>,
}

fn four() -> usize {
    4
}

fn yes() -> bool {
    true
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lora {
    pub rank: usize,
    pub alpha: f32,
    #[serde(default)]
    pub modules: Vec<String>,
}

/// The most examples of a step.
const MAX_BATCH: usize = 1 << 16;

/// The course of training.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Train {
    pub epochs: f64,
    /// Instead of `epochs`.
    pub steps: Option<usize>,
    /// Examples of a step.
    pub batch: usize,
    /// Of these, how many go through the network together; the gradients of a step's parts add up.
    pub micro_batch: usize,
    /// At its highest: 1e-3 for a LoRA and 1e-2 for a calibration, if it is not given.
    pub learning_rate: Option<f64>,
    /// The share of the steps in which the learning rate rises.
    pub warmup: f64,
    /// The longest that a gradient may be.
    pub clip: f64,
    pub seed: u64,
    /// Steps from one validation to the next.
    pub validate_every: usize,
    /// Stop after so many validations without a better one.
    pub patience: usize,
    /// Keep what goes through quantized weights float32, both ways, instead of rounding it to int8 as the engine
    /// does: slower, with weights that take no more memory than the file.
    pub exact: bool,
}

impl Default for Train {
    fn default() -> Train {
        Train {
            epochs: 1.0,
            steps: None,
            batch: 16,
            micro_batch: 4,
            learning_rate: None,
            warmup: 0.05,
            clip: 1.0,
            seed: 0,
            validate_every: 50,
            patience: 10,
            exact: false,
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Output {
    /// The calibration's file, or the adapter's folder.
    pub path: Option<PathBuf>,
    /// The name of the composition that gets the calibration, in the bundle that the recipe takes
    /// its own from.
    pub composition: Option<String>,
    /// How the bundle stores the calibration: `f16` or `f32`.
    pub quant: Option<String>,
}

impl Recipe {
    /// Reads a recipe; errors tell the line.
    pub(super) fn read(path: &Path) -> Result<Recipe> {
        let (mut recipe, folder): (Recipe, _) = read_toml(path)?;
        recipe.folder = folder;
        Ok(recipe)
    }

    /// A path of the recipe.
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    /// Checks what the types of the values do not.
    pub(super) fn check(&self) -> Result<()> {
        let Train {
            epochs,
            steps,
            batch,
            micro_batch,
            learning_rate,
            warmup,
            clip,
            validate_every,
            patience,
            ..
        } = self.train;
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let AdamW {
            beta1,
            beta2,
            epsilon,
            weight_decay,
        } = self.optimizer;
        let is_share = |x: f64| (0.0..1.0).contains(&x);
        for (fits, what) in [
            (positive(epochs), "epochs must be above 0"),
            (steps != Some(0), "steps must be at least 1"),
            (batch > 0, "batch must be at least 1"),
            (batch <= MAX_BATCH, "batch must be at most 65536"),
            (micro_batch > 0, "micro_batch must be at least 1"),
            (
                learning_rate.is_none_or(positive),
                "learning_rate must be above 0",
            ),
            (
                is_share(warmup),
                "warmup must be a share of the steps, from 0 to below 1",
            ),
            (positive(clip), "clip must be above 0"),
            (validate_every > 0, "validate_every must be at least 1"),
            (patience > 0, "patience must be at least 1"),
            (
                is_share(beta1) && is_share(beta2),
                "beta1 and beta2 must be from 0 to below 1",
            ),
            (positive(epsilon), "epsilon must be above 0"),
            (
                weight_decay >= 0.0 && weight_decay.is_finite(),
                "weight_decay must be at least 0",
            ),
            (self.data.limit != Some(0), "limit must be at least 1"),
            (self.data.context != Some(0), "context must be at least 1"),
        ] {
            ensure!(fits, "{what}");
        }
        if self.bundle.is_some() != self.composition.is_some() {
            bail!("bundle and composition go together");
        }
        if self.bundle.is_some() && (!self.adapters.is_empty() || self.merge.is_some()) {
            bail!("give either a bundle with a composition, or adapters");
        }
        if let Some(member) = self.adapters.iter().find(|m| !m.weight.is_finite()) {
            bail!("the weight of {} is not finite", member.path.display());
        }
        Ok(())
    }
}
