//! `tandem calibrate` and `tandem train-lora`: learning on this machine's cores.
//!
//! The way through it: a `recipe` names a model, adapters and `data`; the `network` is the
//! engine's forward pass as a graph of `ops` that `candle` differentiates, with what is
//! `learned` in it; the `trainer` goes down the gradients by the `optimizer`; `output`
//! writes the result.

mod checkpoint;
mod curve;
mod data;
mod gemm;
mod learned;
mod memory;
mod network;
mod ops;
mod optimizer;
mod output;
mod progress;
mod random;
mod recipe;
mod trainer;
mod watch;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use tandem_engine::adapters::calibration::Kind;
use tandem_engine::{Adapter, Linears, Model, SessionError, SessionOptions};
use tandem_formats::bundle::{self, INPUT_MARK, MergeMethod};

use crate::open;
use learned::{Form, Learned};
use network::{Network, NetworkForm, deltas};
use progress::Progress;
use recipe::{Recipe, Train};
use trainer::{End, Ended, FOR_SPLIT, FOR_VALUES, Pace, Trainer};
pub use watch::{Step, Validation, Watch};

/// Learn a calibration of a composition
///
/// The composition's adapters stay as they are; a few thousand numbers are learned beside them, on
/// examples of inputs and targets. The recipe is a TOML file; the repository's README shows one.
/// Its paths are relative to it. Ctrl-C stops and keeps the best so far.
#[derive(clap::Args, Default)]
pub struct CalibrateArgs {
    /// What `train-lora` takes as well.
    #[command(flatten)]
    pub common: CommonArgs,
    /// What to learn: output_bias, weight_bias, low_rank, projection [default: the recipe's]
    #[arg(long, value_name = "KIND")]
    pub kind: Option<String>,
    /// The rank of low_rank [default: the recipe's]
    #[arg(long, value_name = "R")]
    pub rank: Option<usize>,
}

/// Learn a LoRA adapter
///
/// It is of the model alone, or of the model with the recipe's adapters beneath. The result is a
/// PEFT directory. The recipe is a TOML file as `calibrate` takes it. Its paths are relative to it.
/// Ctrl-C stops and keeps the best so far.
#[derive(clap::Args, Default)]
pub struct TrainLoraArgs {
    /// What `calibrate` takes as well.
    #[command(flatten)]
    pub common: CommonArgs,
    /// The rank [default: the recipe's]
    #[arg(long, value_name = "R")]
    pub rank: Option<usize>,
    /// Alpha: the factors' product is scaled by alpha / rank [default: the recipe's]
    #[arg(long, value_name = "A")]
    pub alpha: Option<f32>,
}

/// What both take.
#[derive(clap::Args, Default)]
pub struct CommonArgs {
    /// The recipe
    pub recipe: PathBuf,
    /// Train on this file of JSON lines instead of the recipe's
    #[arg(long, value_name = "FILE.jsonl")]
    pub data: Option<PathBuf>,
    /// Steps of training, instead of the recipe's
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    pub steps: Option<usize>,
    /// How often to go through the data, instead of the recipe's
    #[arg(long, value_name = "N")]
    pub epochs: Option<f64>,
    /// The learning rate's peak, instead of the recipe's
    #[arg(long, value_name = "RATE")]
    pub lr: Option<f64>,
    /// Examples of a step, instead of the recipe's
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// Decides the first values, the order of the examples and which are held out
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Where to write, instead of the recipe's
    #[arg(long, short, value_name = "PATH")]
    pub out: Option<PathBuf>,
    /// Threads [default: all cores]
    #[arg(long, short, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// The file that keeps the state, to go on from [default: OUT.checkpoint]
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Go on from the checkpoint
    #[arg(long)]
    pub resume: bool,
    /// Draw the losses
    #[arg(long, value_name = "FILE.svg")]
    pub curve: Option<PathBuf>,
}

impl CommonArgs {
    /// The recipe with what the flags say instead.
    fn recipe(&self) -> Result<Recipe> {
        let mut recipe = Recipe::read(&self.recipe)?;
        let train = &mut recipe.train;
        if let Some(epochs) = self.epochs {
            (train.epochs, train.steps) = (epochs, None);
        }
        train.steps = self.steps.or(train.steps);
        train.learning_rate = self.lr.or(train.learning_rate);
        train.batch = self.batch.unwrap_or(train.batch);
        train.seed = self.seed.unwrap_or(train.seed);
        recipe
            .check()
            .with_context(|| format!("{}", self.recipe.display()))?;
        Ok(recipe)
    }

    fn out(&self, recipe: &Recipe) -> Option<PathBuf> {
        let own = || recipe.output.path.as_ref().map(|path| recipe.path(path));
        self.out.clone().or_else(own)
    }
}

pub(crate) fn calibrate_command(args: &CalibrateArgs) -> Result<()> {
    use_own_threads();
    calibrate(args, &Progress::new()?).map(drop)
}

pub(crate) fn train_lora_command(args: &TrainLoraArgs) -> Result<()> {
    use_own_threads();
    train_lora(args, &Progress::new()?).map(drop)
}

/// The variable that says how many threads candle shares each addition among. They wait for work by
/// spinning, and ours have an example each: it should be 1.
pub const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";

fn use_own_threads() {
    // SAFETY: no other thread of this process runs yet, so none reads the environment.
    unsafe { std::env::set_var(CANDLE_THREADS, "1") };
}

/// Learns a calibration, as `tandem calibrate` does. The environment should have [`CANDLE_THREADS`].
///
/// # Errors
///
/// A recipe, a model, adapters or data that cannot be used; a loss that is no finite number any more.
pub fn calibrate(args: &CalibrateArgs, watch: &dyn Watch) -> Result<Trained> {
    let recipe = args.common.recipe()?;
    let in_recipe = || format!("{}", args.common.recipe.display());
    let calibration = recipe.calibration.clone();
    let calibration = calibration
        .context("there is no [calibration]")
        .with_context(in_recipe)?;
    let kind = args.kind.as_ref().unwrap_or(&calibration.kind);
    let kind = Kind::from_name(kind).with_context(|| {
        let names = Kind::ALL.map(Kind::name);
        format!("no calibration {kind:?}; there are {}", names.join(", "))
    })?;
    let rank = args.rank.unwrap_or(calibration.rank);
    check_rank(rank)?;
    let form = Form::Calibration {
        kind,
        rank,
        shared: calibration.shared,
    };
    let out = args.common.out(&recipe);
    let dtype = output::dtype(recipe.output.quant.as_deref()).with_context(in_recipe)?;
    let in_bundle = recipe.output.composition.as_deref();
    if in_bundle.is_some() && recipe.bundle.is_none() {
        bail!("output.composition names a composition of the bundle, and the recipe has none");
    }
    ensure!(
        out.is_some() || in_bundle.is_some(),
        "where shall the calibration go? Give --out, or output.path or output.composition"
    );
    let job = Job {
        args: &args.common,
        recipe: &recipe,
        form,
        modules: &calibration.modules,
        out: out.as_deref(),
        watch,
    };
    job.run(|done| {
        let calibration = done.learned.calibration(done.linears)?;
        if let Some(out) = &out {
            output::calibration(out, done.linears, &calibration)?;
            let n = done.learned.n_parameters();
            watch.note(&format!("{}: {n} numbers", out.display()));
        }
        let bundle = recipe.bundle.as_ref().map(|path| recipe.path(path));
        if let (Some(bundle), Some(from), Some(to)) = (&bundle, &recipe.composition, in_bundle) {
            let place = output::Place {
                bundle,
                from,
                to,
                dtype,
            };
            output::into_bundle(&place, kind, &calibration)?;
            watch.note(&format!("{}: composition {to:?} has it", bundle.display()));
        }
        Ok(())
    })
}

/// Learns an adapter, as `tandem train-lora` does. The environment should have [`CANDLE_THREADS`].
///
/// # Errors
///
/// As [`calibrate`].
pub fn train_lora(args: &TrainLoraArgs, watch: &dyn Watch) -> Result<Trained> {
    let recipe = args.common.recipe()?;
    let lora = recipe.lora.clone();
    let lora =
        lora.with_context(|| format!("{}: there is no [lora]", args.common.recipe.display()))?;
    let rank = args.rank.unwrap_or(lora.rank);
    let alpha = args.alpha.unwrap_or(lora.alpha);
    check_rank(rank)?;
    ensure!(alpha > 0.0 && alpha.is_finite(), "alpha must be above 0");
    let out = args.common.out(&recipe);
    let out = out.context("where shall the adapter go? Give --out or output.path")?;
    ensure!(
        !out.is_file(),
        "{} is a file, and an adapter is a folder",
        out.display()
    );
    let form = Form::Lora { rank, alpha };
    let job = Job {
        args: &args.common,
        recipe: &recipe,
        form,
        modules: &lora.modules,
        out: Some(&out),
        watch,
    };
    job.run(|done| {
        let adapter = done.learned.adapter(done.linears)?;
        let lora = output::LoraConfig { rank, alpha };
        output::peft(&out, done.linears, &adapter, lora, &recipe.base)?;
        let n = done.learned.n_parameters();
        watch.note(&format!("{}: {n} numbers", out.display()));
        Ok(())
    })
}

fn check_rank(rank: usize) -> Result<()> {
    let max = tandem_kernels::MAX_RANK;
    ensure!(
        (1..=max).contains(&rank),
        "the rank must be from 1 to {max}"
    );
    Ok(())
}

/// What training leaves.
struct Done<'a> {
    linears: &'a Linears,
    learned: &'a Learned,
}

/// What is to be trained, and who follows it.
struct Job<'a> {
    args: &'a CommonArgs,
    recipe: &'a Recipe,
    form: Form,
    modules: &'a [String],
    out: Option<&'a Path>,
    watch: &'a dyn Watch,
}

/// What came of a training.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Trained {
    /// Steps that were taken, those before a checkpoint included.
    pub n_steps: usize,
    /// The step that is kept; none where no examples are held out.
    pub best_step: Option<usize>,
    /// Its loss a token on the examples held out.
    pub best_loss: Option<f32>,
}

impl Job<'_> {
    /// Trains as the recipe says, and has the result written.
    fn run(&self, write: impl FnOnce(Done<'_>) -> Result<()>) -> Result<Trained> {
        let Job {
            args,
            recipe,
            ref form,
            modules,
            out,
            watch,
        } = *self;
        let start = Instant::now();
        let checkpoint = checkpoint_path(args, form, out)?;
        let model = open::model(&recipe.path(&recipe.base))?;
        let composition = Composed::read(recipe, &model)?;
        if matches!(form, Form::Calibration { .. }) {
            ensure!(
                !composition.members.is_empty(),
                "the composition has no members: give adapters, or a bundle and its composition"
            );
        }
        let prompt = recipe.prompt.clone().or(composition.prompt.clone());
        let prompt = prompt.context("neither the recipe nor the composition has a prompt")?;
        ensure!(
            prompt.contains(INPUT_MARK),
            "the prompt {prompt:?} has no place for the input, {INPUT_MARK}"
        );
        let default_ctx = SessionOptions::for_model(model.config()).n_ctx;
        let n_ctx = recipe.data.context.unwrap_or(default_ctx);
        let examples = self.shuffled_examples(&model, &prompt, n_ctx)?;
        let (validation, training) = examples.split_at(recipe.data.validation);

        let members = composition.members();
        let mut values = random::generator(recipe.train.seed, FOR_VALUES);
        let learned = Learned::new(
            model.linears(),
            form.clone(),
            modules,
            &members,
            &mut values,
        )?;
        let longest = examples.iter().map(|e| e.tokens.len()).max().unwrap_or(0);
        let form_of_network = NetworkForm {
            n_ctx: default_ctx.max(n_ctx),
            n_positions: longest,
            exact: recipe.train.exact,
        };
        let n_threads = args.threads.map_or(0, NonZeroUsize::get); // 0: all cores
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            // candle walks the graph by recursion.
            .stack_size(64 << 20)
            .build()?;
        let together = memory::Together {
            n_threads: pool.current_num_threads(),
            n_examples: recipe.train.micro_batch.min(recipe.train.batch),
            exact: recipe.train.exact,
        };
        for line in memory::lines(&model, &learned, &examples, together) {
            watch.note(&line);
        }
        let network = composition.network(&model, &learned, form_of_network)?;
        let weights: Vec<f32> = composition.members.iter().map(|(_, w)| *w).collect();
        let fingerprint = format!(
            "{form:?} {modules:?} {:?} {:?} base {:?} bundle {:?} {:?} adapters {:?} {weights:?} merge \
             {:?} prompt {prompt:?}, {} examples of {} tokens",
            // Other lengths, and other pauses, go on from the same state.
            Train {
                epochs: 0.0,
                steps: None,
                validate_every: 0,
                patience: 0,
                ..recipe.train.clone()
            },
            recipe.optimizer,
            recipe.base,
            recipe.bundle,
            recipe.composition,
            recipe.adapters,
            recipe.merge,
            examples.len(),
            examples.iter().map(|e| e.tokens.len()).sum::<usize>()
        );
        let trainer = Trainer {
            network: &network,
            learned: &learned,
            training,
            validation,
            train: &recipe.train,
            learning_rate: recipe.train.learning_rate.unwrap_or(match form {
                Form::Lora { .. } => 1e-3,
                Form::Calibration { .. } => 1e-2,
            }),
            optimizer: &recipe.optimizer,
            pool: &pool,
            checkpoint: &checkpoint,
            fingerprint: &fingerprint,
            watch,
        };
        let mut state = match args.resume {
            true => checkpoint::load(
                &checkpoint,
                &learned.names(),
                &fingerprint,
                &learned.values()?,
            )?,
            false => {
                ensure!(
                    !checkpoint.exists(),
                    "there is a checkpoint of an earlier run, {}: go on from it by --resume, or remove it first",
                    checkpoint.display()
                );
                trainer.start()?
            }
        };
        watch.note(&format!(
            "{} numbers to learn, {} examples, {} held out, {} steps of {}",
            learned.n_parameters(),
            training.len(),
            validation.len(),
            trainer.n_steps(),
            recipe.train.batch
        ));
        let n_before = state.course.losses.len();
        let Ended { end, pace } = trainer.run(&mut state)?;
        ensure!(
            end != End::Stopped || state.course.losses.len() > n_before,
            "stopped before the first step; nothing was written"
        );
        for line in lines_of_end(end, &state.course, start, pace) {
            watch.note(&line);
        }
        write(Done {
            linears: model.linears(),
            learned: &learned,
        })?;
        if let Some(path) = &args.curve {
            curve::draw(path, &state.course)?;
        }
        match end {
            End::Stopped => watch.note(&format!("--resume goes on from {}", checkpoint.display())),
            // Not there where training ended before the first was due.
            _ => drop(std::fs::remove_file(&checkpoint)),
        }
        let best = state.course.best();
        Ok(Trained {
            n_steps: state.course.losses.len(),
            best_step: best.map(|(step, _)| step),
            best_loss: best.map(|(_, loss)| loss),
        })
    }

    /// The examples in the order that the seed gives; the first are to be held out.
    fn shuffled_examples(
        &self,
        model: &Model,
        prompt: &str,
        n_ctx: usize,
    ) -> Result<Vec<data::Example>> {
        let Job {
            args,
            recipe,
            watch,
            ..
        } = *self;
        let own_path = || recipe.path(&recipe.data.path);
        let path = args.data.clone().unwrap_or_else(own_path);
        let tokenizer = open::tokenizer(&recipe.path(&recipe.base), model)?;
        let form = data::Form {
            tokenizer,
            prompt,
            n_ctx,
            too_long: recipe.data.too_long,
            watch,
        };
        let mut examples = data::read(&path, &form, recipe.data.limit)?;
        // As a session refuses them: a vocabulary may have more tokens than there are embeddings.
        let n_vocab = model.config().n_vocab;
        for example in &examples {
            let outside = example.tokens.iter().find(|id| **id as usize >= n_vocab);
            if let Some(id) = outside.copied() {
                let place = || format!("{}, line {}", path.display(), example.line);
                return Err(SessionError::Token { id, n_vocab }).with_context(place);
            }
        }
        let seed = recipe.train.seed;
        random::shuffle(&mut random::generator(seed, FOR_SPLIT), &mut examples);
        ensure!(
            recipe.data.validation < examples.len(),
            "{} has {} examples, of which {} are to be held out: none is left to learn from",
            path.display(),
            examples.len(),
            recipe.data.validation
        );
        Ok(examples)
    }
}

/// Where the state is kept. Whether all results can be written is asked here, before hours of work, not
/// after.
fn checkpoint_path(args: &CommonArgs, form: &Form, out: Option<&Path>) -> Result<PathBuf> {
    let curve = args.curve.as_deref();
    for path in [out, curve, args.checkpoint.as_deref()]
        .into_iter()
        .flatten()
    {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        let is_there = folder.is_none_or(Path::is_dir);
        ensure!(
            is_there,
            "there is no folder to write {} in",
            path.display()
        );
    }
    let checkpoint = args.checkpoint.clone().unwrap_or_else(|| {
        let mut name = out.unwrap_or(&args.recipe).as_os_str().to_owned();
        name.push(".checkpoint");
        PathBuf::from(name)
    });
    ensure!(
        out != Some(&*checkpoint) && curve != Some(&*checkpoint),
        "{} cannot be both the checkpoint and a result",
        checkpoint.display()
    );
    let out_file = out.filter(|_| matches!(form, Form::Calibration { .. }));
    for path in [out_file, curve, Some(&*checkpoint)].into_iter().flatten() {
        ensure!(!path.is_dir(), "{} is a folder", path.display());
    }
    Ok(checkpoint)
}

fn lines_of_end(end: End, course: &checkpoint::Course, start: Instant, pace: Pace) -> Vec<String> {
    let why = match end {
        End::Finished => "",
        End::Early => ", as validation got no better",
        End::Stopped => ", as asked for",
    };
    let speed = match pace.tokens_per_second() {
        0.0 => String::new(),
        speed => format!(", {speed:.0} tokens/s"),
    };
    let mut lines = vec![format!(
        "ended after {} steps{why}, {:.1} s{speed}",
        course.losses.len(),
        start.elapsed().as_secs_f64()
    )];
    if let Some((step, loss)) = course.best() {
        lines.push(format!("kept: step {step}, validation loss {loss:.4}"));
    }
    lines
}

/// A composition to be calibrated; without members, the base alone.
struct Composed {
    members: Vec<(Adapter, f32)>,
    /// What the adapters are merged to, where that is not their sum.
    merged: Option<Adapter>,
    prompt: Option<String>,
}

impl Composed {
    fn read(recipe: &Recipe, model: &Model) -> Result<Composed> {
        if let (Some(path), Some(name)) = (&recipe.bundle, &recipe.composition) {
            return Composed::of_bundle(&recipe.path(path), name, model);
        }
        let base = model.linears();
        let mut members = Vec::new();
        for member in &recipe.adapters {
            let path = recipe.path(&member.path);
            let adapter = crate::adapters::read(&path, base)
                .with_context(|| format!("cannot use the adapter {}", path.display()))?;
            members.push((adapter, member.weight));
        }
        let how = recipe.merge.as_ref();
        let how = how.map(|m| crate::bundle::method(&m.method, m.density, m.rank, m.seed));
        let how = how.transpose()?;
        let mut composed = Composed {
            members,
            merged: None,
            prompt: None,
        };
        composed.merge(base, how.as_ref())?;
        Ok(composed)
    }

    fn of_bundle(path: &Path, name: &str, model: &Model) -> Result<Composed> {
        let unusable = || format!("cannot use {}", path.display());
        let base = model.linears();
        let bundle = crate::adapters::bundle_for(path, model)?;
        let bundle = bundle.file();
        let parts = bundle.parts(name).with_context(unusable)?;
        let mut members = Vec::new();
        // Also where their merge is stored: what is learned may go between them.
        for member in &parts.composition.members {
            let (adapter, _) = bundle.adapter(&member.adapter).with_context(unusable)?;
            let adapter = Adapter::from_factors(base, adapter.dtype, &adapter.factors);
            members.push((adapter.with_context(unusable)?, member.weight));
        }
        let mut composed = Composed {
            members,
            merged: None,
            prompt: parts.composition.prompt.clone(),
        };
        let how = &parts.composition.merge;
        match parts.merged.filter(|_| how.method != MergeMethod::Cat) {
            Some((stored, _)) => {
                let merged = Adapter::from_factors(base, stored.dtype, &stored.factors);
                composed.merged = Some(merged.with_context(unusable)?);
            }
            None => composed.merge(base, Some(how))?,
        }
        Ok(composed)
    }

    fn merge(&mut self, base: &Linears, how: Option<&bundle::Merge>) -> Result<()> {
        if let Some(how) = how.filter(|how| how.method != MergeMethod::Cat) {
            self.merged = Some(crate::bundle::merge_now(base, &self.members(), how)?);
        }
        Ok(())
    }

    fn members(&self) -> Vec<(&Adapter, f32)> {
        self.members
            .iter()
            .map(|(adapter, weight)| (adapter, *weight))
            .collect()
    }

    /// The base with the composition's terms, but those that are part of what is learned.
    fn network(&self, model: &Model, learned: &Learned, form: NetworkForm) -> Result<Network> {
        if let (Some(_), true) = (&self.merged, learned.replaces_any()) {
            bail!("a projection goes between the adapters of the merge cat only");
        }
        let plain = match &self.merged {
            Some(merged) => vec![(merged, 1.0)],
            None => self.members(),
        };
        let deltas = deltas(model.linears(), &plain, |id| learned.replaces(id));
        Network::new(model, deltas, form)
    }
}

#[cfg(test)]
mod tests;
