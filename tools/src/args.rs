//! Flags that several subcommands share.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser as _;
use tandem_engine::adapters::calibration::Kind;
use tandem_engine::chat::TemplateArgs;
use tandem_engine::{
    AdapterType, Composition, Compute, DType, Level, MAX_DRAFT, MAX_PENALTY_WINDOW, Model,
    Sampling, Session, SessionError, SessionOptions, SharedPool, ThreadPool, threads,
};

use crate::adapters::{Parts, bundle_for};
use crate::open;

/// The model's file.
#[derive(clap::Args)]
pub(crate) struct FileArgs {
    /// The model: a GGUF file (of a split model, the first part)
    #[arg(value_name = "MODEL", required_unless_present = "model")]
    file: Option<PathBuf>,
    /// The same
    #[arg(long, short, value_name = "FILE", conflicts_with = "file")]
    model: Option<PathBuf>,
    /// Read the model into memory instead of mapping its file, which must not change while it is in use
    #[arg(long)]
    no_mmap: bool,
}

impl FileArgs {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        let path = self.model.as_deref().or(self.file.as_deref());
        // One of them is required.
        path.unwrap_or(Path::new(""))
    }

    /// Opens it.
    pub(crate) fn open(&self) -> Result<Model> {
        match self.no_mmap {
            false => open::model(self.path()),
            true => open::model_in_memory(self.path()),
        }
    }
}

/// Which model, and how it runs.
#[derive(clap::Args)]
pub(crate) struct ModelArgs {
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    pub adapters: AdapterArgs,
    #[command(flatten)]
    pub bundle: BundleArgs,
    #[command(flatten)]
    pub session: SessionArgs,
}

impl ModelArgs {
    /// The model's file.
    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Opens the model.
    pub(crate) fn open(&self) -> Result<Model> {
        self.file.open()
    }

    /// Another composition of the bundle that the flags name.
    pub(crate) fn composition_named(
        &self,
        model: &Model,
        name: &str,
    ) -> Result<Option<Composition>> {
        let path = self.bundle.bundle.as_deref();
        let path = path.context("there is no bundle to take it from: give one by --bundle")?;
        let bundle = bundle_for(path, model)?;
        let pool = self.session.pool();
        let compute = self.session.compute(&pool);
        let adapter_type = self.session.adapter_type(model);
        Parts::of_bundle(&bundle, name, adapter_type, compute)?.composition(model.linears())
    }

    /// A session of the model as the flags want it, with what they add to the model.
    pub(crate) fn session(&self, model: &Model) -> Result<Session> {
        self.session_of(model, None)
    }

    /// The same; `n_ctx` is the context where the flags name none.
    pub(crate) fn session_of(&self, model: &Model, n_ctx: Option<usize>) -> Result<Session> {
        let pool = self.session.pool();
        let compute = self.session.compute(&pool);
        let parts = Parts::load(&self.adapters, &self.bundle, &self.session, compute, model)?;
        let composition = parts.composition(model.linears())?;
        self.session
            .session(model, &pool, composition.as_ref(), n_ctx)
    }
}

/// Which composition of a bundle is added to the model.
#[derive(clap::Args)]
pub(crate) struct BundleArgs {
    /// Add a composition of this adapter bundle, see `tandem bundle`
    #[arg(long, value_name = "FILE", requires = "compose", conflicts_with_all = ["lora", "calibration"])]
    pub bundle: Option<PathBuf>,
    /// The composition
    #[arg(long, value_name = "NAME", requires = "bundle")]
    pub compose: Option<String>,
}

/// What is added to the model.
#[derive(Clone, clap::Args)]
pub(crate) struct AdapterArgs {
    /// Add a LoRA adapter: a PEFT directory or a llama.cpp LoRA file, times SCALE (1 by default).
    /// Several are added up
    #[arg(long, value_name = "PATH[=SCALE]", value_parser = lora)]
    pub lora: Vec<Lora>,
    /// Add a calibration, learned for these adapters at these scales: a safetensors file
    #[arg(long, value_name = "FILE", requires = "kind")]
    pub calibration: Option<PathBuf>,
    /// What the calibration is: a vector p added to the outputs, or to every column of the weights;
    /// a low-rank term P2 P1; a projection M between the adapters' factors
    #[arg(long, value_name = "KIND", value_parser = kinds(), requires = "calibration")]
    pub kind: Option<Kind>,
}

/// One `--lora`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lora {
    pub path: PathBuf,
    pub scale: f32,
}

fn lora(text: &str) -> std::result::Result<Lora, String> {
    // A path may have an equals sign in it, too.
    let (path, scale) = match text.rsplit_once('=') {
        _ if Path::new(text).exists() => (text, 1.0),
        Some((path, scale)) if scale.parse::<f32>().is_ok() => (path, finite(scale)?),
        Some((path, scale)) if Path::new(path).exists() => {
            return Err(format!(
                "the scale '{scale}' is no number: PATH=SCALE is wanted"
            ));
        }
        _ => (text, 1.0),
    };
    match path.is_empty() {
        true => Err("a path is wanted before the scale".to_string()),
        false => Ok(Lora {
            path: path.into(),
            scale,
        }),
    }
}

fn kinds() -> impl clap::builder::TypedValueParser<Value = Kind> {
    PossibleValuesParser::new(Kind::ALL.map(Kind::name))
        .map(|name| Kind::from_name(&name).unwrap_or(Kind::OutputBias))
}

/// How a table is printed.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum Output {
    Md,
    Json,
    Csv,
}

/// What goes with the model's chat template.
#[derive(clap::Args)]
pub(crate) struct ChatArgs {
    /// What the model is told before the conversation begins
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Give the model's chat template a value, in JSON or else as a text: enable_thinking=false,
    /// tools=[...]
    #[arg(long, value_name = "NAME=VALUE", value_parser = template_arg)]
    pub template_arg: Vec<TemplateArg>,
}

/// One `--template-arg`.
#[derive(Clone, Debug)]
pub(crate) struct TemplateArg {
    name: String,
    value: String,
}

fn template_arg(text: &str) -> std::result::Result<TemplateArg, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok(TemplateArg {
            name: name.to_string(),
            value: value.to_string(),
        }),
        _ => Err("NAME=VALUE is wanted".to_string()),
    }
}

impl ChatArgs {
    /// What the template is given.
    pub(crate) fn template_args(&self) -> TemplateArgs {
        let mut args = TemplateArgs::new();
        for TemplateArg { name, value } in &self.template_arg {
            if args.set_json(name, value).is_err() {
                args.set_text(name, value);
            }
        }
        args
    }

    /// Whether the prompt cannot be without a chat template.
    pub(crate) fn need_template(&self) -> bool {
        self.system.is_some() || !self.template_arg.is_empty()
    }
}

/// How a model runs.
#[derive(clap::Args)]
pub(crate) struct SessionArgs {
    /// Context size in tokens, prompt and reply together [default: the model's, at most 4096]
    #[arg(long, short, value_name = "N", visible_alias = "ctx-size")]
    pub ctx: Option<NonZeroUsize>,
    /// Threads to run on, never more than there are cores [default, and -1: all cores for the prompt; for
    /// single tokens the fewest that reach full speed, measured at the start and again as the load changes]
    #[arg(long, short, value_name = "N", value_parser = thread_count, allow_negative_numbers = true)]
    threads: Option<NonZeroUsize>,
    /// Threads for single tokens [default: see --threads]
    #[arg(long, value_name = "N")]
    pub threads_decode: Option<NonZeroUsize>,
    /// Tokens of the prompt evaluated at once
    #[arg(long, value_name = "N", default_value = "256")]
    pub batch: NonZeroUsize,
    /// Type of the KV cache [default: f16; f32 with --exact]
    #[arg(long, value_name = "TYPE", value_parser = kv_types())]
    pub kv_type: Option<DType>,
    #[command(flatten)]
    pub cpu: CpuArgs,
    /// Store the adapters' factors as f32, f16, q8 or q4 [default: q8 for models with quantized
    /// weights, f32 for others and with --exact]
    #[arg(long, value_name = "TYPE", value_parser = adapter_types())]
    pub lora_type: Option<AdapterType>,
    /// Keep activations in float32, where quantized weights would have them rounded to int8
    #[arg(long)]
    pub exact: bool,
}

fn kv_types() -> impl clap::builder::TypedValueParser<Value = DType> {
    PossibleValuesParser::new(["f32", "f16", "q8_0"])
        .map(|name| DType::from_name(&name).unwrap_or(DType::F16))
}

fn adapter_types() -> impl clap::builder::TypedValueParser<Value = AdapterType> {
    PossibleValuesParser::new(AdapterType::ALL.map(AdapterType::name))
        .map(|name| AdapterType::from_name(&name).unwrap_or(AdapterType::F32))
}

/// Which instructions are used.
#[derive(clap::Args)]
pub(crate) struct CpuArgs {
    /// Use the instructions of a lower CPU level [default: the best that the CPU has]
    #[arg(long, value_name = "LEVEL", env = "TANDEM_CPU", value_parser = level)]
    cpu: Option<Level>,
}

impl CpuArgs {
    pub(crate) fn level(&self) -> Level {
        self.cpu.unwrap_or_else(Level::detect)
    }
}

/// What the flag says by -1.
const DEFAULT_THREADS: NonZeroUsize = NonZeroUsize::MAX;

/// A number of threads; -1, as others take it, is the default.
fn thread_count(text: &str) -> std::result::Result<NonZeroUsize, String> {
    match text.parse() {
        Ok(n) => Ok(n),
        Err(_) if text == "-1" => Ok(DEFAULT_THREADS),
        Err(_) => Err("a number of at least 1 is wanted, or -1 for the default".to_string()),
    }
}

/// The level of a name, if this CPU has it. An empty one, as unit files set the variable, is the best.
fn level(name: &str) -> std::result::Result<Level, String> {
    if name.is_empty() {
        return Ok(Level::detect());
    }
    Level::from_name(name).ok_or_else(|| {
        let names: Vec<_> = Level::available().map(Level::name).collect();
        format!("this CPU has {}", names.join(", "))
    })
}

impl SessionArgs {
    /// How many threads the flags name.
    pub(crate) fn threads(&self) -> Option<NonZeroUsize> {
        self.threads.filter(|n| *n != DEFAULT_THREADS)
    }

    /// Threads for whatever the flags ask for.
    pub(crate) fn pool(&self) -> SharedPool {
        let n_cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let n_threads = self.threads().unwrap_or(n_cores);
        if n_threads > n_cores {
            tell!("warning: --threads {n_threads} is more than there are cores: {n_cores} run");
        }
        let n_threads = n_threads.max(self.threads_decode.unwrap_or(n_threads));
        ThreadPool::new(n_threads.get()).into()
    }

    /// How adapters are stored.
    pub(crate) fn adapter_type(&self, model: &Model) -> AdapterType {
        let default = || AdapterType::for_model(model, self.exact);
        self.lora_type.unwrap_or_else(default)
    }

    /// What merges run on.
    pub(crate) fn compute<'p>(&self, pool: &'p SharedPool) -> Compute<'p> {
        Compute::new(self.cpu.level(), pool.get())
    }

    /// A session as the flags want it; `n_ctx` is the context where they name none.
    pub(crate) fn session(
        &self,
        model: &Model,
        pool: &SharedPool,
        composition: Option<&Composition>,
        n_ctx: Option<usize>,
    ) -> Result<Session> {
        let options = self.options(model, pool, n_ctx);
        let check = Session::check_memory(model.config(), &options, composition);
        check.map_err(|error| match error {
            SessionError::TooLarge { .. } => {
                anyhow!("{error}: use a smaller --ctx or --kv-type q8_0")
            }
            error => error.into(),
        })?;
        let mut session = Session::new(model, pool, options)?;
        session.set_composition(composition)?;
        Ok(session)
    }

    /// What a session is made with; `n_ctx` is the context where the flags name none.
    pub(crate) fn options(
        &self,
        model: &Model,
        pool: &SharedPool,
        n_ctx: Option<usize>,
    ) -> SessionOptions {
        let mut options = SessionOptions::for_model(model.config());
        let n_ctx_train = model.config().n_ctx_train;
        if let Some(n_ctx) = self.ctx.map(NonZeroUsize::get).filter(|n| *n > n_ctx_train) {
            tell!(
                "warning: the model was trained on {n_ctx_train} tokens at once; what goes beyond, up to \
                 --ctx {n_ctx}, it may not understand"
            );
        }
        let default_ctx = n_ctx.unwrap_or(options.n_ctx);
        options.n_ctx = self.ctx.map_or(default_ctx, NonZeroUsize::get);
        options.n_batch = self.batch.get();
        if self.exact {
            options.kv_type = DType::F32;
        }
        options.kv_type = self.kv_type.unwrap_or(options.kv_type);
        options.exact = self.exact;
        options.level = self.cpu.level();
        options.n_threads = self.threads().map_or(usize::MAX, NonZeroUsize::get);
        let given = self
            .threads_decode
            .or(self.threads())
            .map(NonZeroUsize::get);
        options.follow_load = given.is_none();
        let measured = || threads::for_decode(model, pool.get(), options.level, self.exact);
        options.n_threads_decode = given.unwrap_or_else(measured);
        options
    }
}

/// How tokens are picked.
#[derive(clap::Args)]
pub(crate) struct SamplerArgs {
    /// The most tokens of an answer; -1 goes on to its end or the context's [default: 256; 1024 in chat]
    #[arg(long, short, value_name = "N", value_parser = n_predict, allow_negative_numbers = true)]
    n_predict: Option<Tokens>,
    /// Temperature: 0 always picks the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.8, value_parser = at_least_0, allow_negative_numbers = true)]
    pub temp: f32,
    /// Pick among the K most likely tokens; 0, or -1, is off
    #[arg(long, value_name = "K", default_value = "40", value_parser = top_k, allow_negative_numbers = true)]
    pub top_k: usize,
    /// Pick among the most likely tokens that reach probability P; 1 is off
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = probability, allow_negative_numbers = true)]
    pub top_p: f32,
    /// Pick among tokens at least P times as likely as the most likely; 0 is off
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = probability, allow_negative_numbers = true)]
    pub min_p: f32,
    /// Pick among the most typical tokens that reach probability P; 1 is off
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = probability, allow_negative_numbers = true)]
    pub typical_p: f32,
    /// Divide the logits of recent tokens by X; 1 is off
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = positive, allow_negative_numbers = true)]
    pub repeat_penalty: f32,
    /// Subtract X from a recent token's logit for each time it occurred
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = finite, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Subtract X from a recent token's logit
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = finite, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// How many tokens count as recent
    #[arg(long, value_name = "N", default_value = "64", value_parser = penalty_window)]
    pub penalty_window: usize,
    /// Seed of the random numbers; -1 is a new one each time, told on stderr
    #[arg(long, short, value_name = "S", default_value = "-1", value_parser = seed, allow_negative_numbers = true)]
    pub seed: Seed,
    /// Guess up to N tokens ahead from what the text said before, and evaluate them beside the next; 0 is
    /// off. The text is the same
    #[arg(long, value_name = "N", default_value = "15", value_parser = max_draft)]
    pub max_draft: usize,
    /// End the text before this one, which is not printed; several may be given
    #[arg(long, value_name = "TEXT", value_parser = stop_string)]
    pub stop: Vec<String>,
}

/// A number of bytes: 4096, 512K, 8M, 1G.
#[cfg(feature = "serve")]
pub(crate) fn size(text: &str) -> std::result::Result<usize, String> {
    let unit = match text.bytes().last() {
        Some(b'K' | b'k') => 1 << 10,
        Some(b'M' | b'm') => 1 << 20,
        Some(b'G' | b'g') => 1 << 30,
        _ => 1,
    };
    let digits = &text[..text.len() - usize::from(unit > 1)];
    let n = digits
        .parse::<usize>()
        .ok()
        .and_then(|n| n.checked_mul(unit));
    n.ok_or_else(|| "a number of bytes is wanted, as 512M".to_string())
}

/// A number of tokens.
#[derive(Clone, Copy, Debug)]
struct Tokens(usize);

fn n_predict(text: &str) -> std::result::Result<Tokens, String> {
    match text.parse() {
        Ok(n) => Ok(Tokens(n)),
        Err(_) if text == "-1" => Ok(Tokens(usize::MAX)),
        Err(_) => Err("a whole number is wanted, or -1 for no limit".to_string()),
    }
}

/// Where random numbers begin.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seed {
    Random,
    Fixed(u64),
}

fn seed(text: &str) -> std::result::Result<Seed, String> {
    match text.parse() {
        Ok(seed) => Ok(Seed::Fixed(seed)),
        Err(_) if text == "-1" => Ok(Seed::Random),
        Err(_) => Err("a whole number of at least 0 is wanted, or -1 for a random one".to_string()),
    }
}

fn stop_string(text: &str) -> std::result::Result<String, String> {
    match text.is_empty() {
        true => Err("a text is wanted".to_string()),
        false => Ok(text.to_string()),
    }
}

impl SamplerArgs {
    /// How a text is continued, by at most `default` tokens where the flags do not say.
    pub(crate) fn sampling(&self, default: usize) -> Sampling {
        let mut sampling = Sampling::default();
        sampling.max_tokens = self.n_predict.map_or(default, |n| n.0);
        sampling.temperature = self.temp;
        sampling.penalty_window = self.penalty_window;
        sampling.repeat_penalty = self.repeat_penalty;
        sampling.frequency_penalty = self.frequency_penalty;
        sampling.presence_penalty = self.presence_penalty;
        sampling.top_k = self.top_k;
        sampling.typical_p = self.typical_p;
        sampling.top_p = self.top_p;
        sampling.min_p = self.min_p;
        sampling.seed = match self.seed {
            Seed::Fixed(seed) => seed,
            Seed::Random => clock_seed(),
        };
        sampling.max_draft = self.max_draft;
        sampling.stop.clone_from(&self.stop);
        sampling
    }
}

fn clock_seed() -> u64 {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed();
    now.map_or(0, |time| time.as_nanos() as u64)
}

fn top_k(text: &str) -> std::result::Result<usize, String> {
    match text {
        "-1" => Ok(0),
        _ => text
            .parse()
            .map_err(|_| "a number is wanted, or -1 for all tokens".to_string()),
    }
}

fn max_draft(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(n) if n <= MAX_DRAFT => Ok(n),
        _ => Err(format!("a number up to {MAX_DRAFT} is wanted")),
    }
}

fn penalty_window(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(n) if n <= MAX_PENALTY_WINDOW => Ok(n),
        _ => Err(format!("a number up to {MAX_PENALTY_WINDOW} is wanted")),
    }
}

fn number(
    text: &str,
    fits: impl Fn(f32) -> bool,
    wanted: &str,
) -> std::result::Result<f32, String> {
    match text.parse() {
        Ok(x) if fits(x) => Ok(x),
        _ => Err(format!("a number {wanted} is wanted")),
    }
}

fn finite(text: &str) -> std::result::Result<f32, String> {
    number(text, f32::is_finite, "that is finite")
}

fn at_least_0(text: &str) -> std::result::Result<f32, String> {
    number(text, |x| x >= 0.0 && x.is_finite(), "of at least 0")
}

fn positive(text: &str) -> std::result::Result<f32, String> {
    number(text, |x| x > 0.0 && x.is_finite(), "above 0")
}

fn probability(text: &str) -> std::result::Result<f32, String> {
    number(text, |x| (0.0..=1.0).contains(&x), "between 0 and 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loras_have_scales() {
        let parsed = |text: &str, path: &str, scale: f32| {
            let path = path.into();
            assert_eq!(lora(text), Ok(Lora { path, scale }));
        };
        parsed("a/b", "a/b", 1.0);
        parsed("a/b=0.5", "a/b", 0.5);
        parsed("a=b=-2", "a=b", -2.0);
        parsed("a=b", "a=b", 1.0);
        for text in ["=0.5", "a=inf", "a=NaN", ""] {
            assert!(lora(text).is_err(), "{text}");
        }
    }
}
