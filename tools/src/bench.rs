//! `tandem bench`: how fast a model runs.

mod parallel;
mod sustain;
mod switch;

use std::io::Write as _;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;
use tandem_engine::{Composition, Model, Session, SharedPool, free_memory};
use tandem_kernels::Limited;

use crate::adapters::Parts;
use crate::args::{AdapterArgs, BundleArgs, Output, SessionArgs};
use crate::bandwidth::ReadBandwidth;
use crate::open;

/// Measure how fast a model runs
///
/// Prefill and decode are timed as llama-bench does (`pp`, `tg` rows), and beside them the
/// memory's read bandwidth, which is decode's limit. Rows with a depth (`@d`) tell what a token
/// costs behind so many others.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The models
    #[arg(long, short, value_name = "FILE", required = true)]
    model: Vec<PathBuf>,
    /// Tokens of the prompt; 0 leaves prefill out
    #[arg(long, short = 'p', value_name = "N", default_value_t = 256)]
    prompt_tokens: usize,
    /// Tokens to generate; 0 leaves decode out
    #[arg(long, short = 'n', value_name = "N", default_value_t = 64)]
    gen_tokens: usize,
    /// Tokens that are in the context already; they are evaluated once, and not timed
    #[arg(long, short, value_name = "N", default_value_t = 0)]
    depth: usize,
    /// Runs that count, after one that does not
    #[arg(long, short, value_name = "N", default_value = "5")]
    repeat: NonZeroUsize,
    /// With a composition or adapters: the model alone in turn with them, prompt by prompt and token
    /// by token, and which part of its speed they keep
    #[arg(long, conflicts_with_all = ["switch", "parallel"])]
    beside_base: bool,
    /// Time changes of the composition instead: ready-made, and made on the spot by each method
    #[arg(long)]
    switch: bool,
    /// Time passes over several sequences instead, so many in turn with one: each has another of the
    /// bundle's compositions, or the adapters with their scales changed around
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        conflicts_with = "switch"
    )]
    parallel: Vec<NonZeroUsize>,
    /// Generate tokens for so many seconds instead, and show their speed over time, with the threads and the
    /// heat of the machine: boards slow down when they get hot
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["switch", "parallel", "beside_base"])]
    sustain: Option<NonZeroU32>,
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Output::Md)]
    output: Output,
    #[command(flatten)]
    adapters: AdapterArgs,
    #[command(flatten)]
    bundle: BundleArgs,
    #[command(flatten)]
    session: SessionArgs,
}

/// One row of the table.
#[derive(Serialize)]
struct Row {
    model: String,
    size_bytes: u64,
    level: &'static str,
    threads: usize,
    test: String,
    tokens_per_second: f64,
    deviation: f64,
    /// Median of the repetitions, which noise moves less than the mean.
    median: f64,
    /// What a token costs, by that median.
    ms_per_token: f64,
    /// Read bandwidth measured between the runs, GB/s.
    bandwidth: f64,
    /// Decode: the share of that bandwidth at which weights and factors were read.
    bandwidth_share: Option<f64>,
    /// The part of the speed of the model alone, the median of all turns.
    of_base: Option<f64>,
}

pub(crate) fn bench(args: &Args) -> Result<()> {
    ensure!(
        args.prompt_tokens.max(args.gen_tokens) > 0,
        "there is nothing to measure"
    );
    let pool = args.session.pool();
    let (mut rows, mut switches, mut passes) = (Vec::new(), Vec::new(), Vec::new());
    let mut sustained = Vec::new();
    for path in &args.model {
        let model = open::model(path)?;
        let mut name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if !args.adapters.lora.is_empty() {
            name += &format!(" + {} LoRA", args.adapters.lora.len());
        }
        if let Some(composition) = &args.bundle.compose {
            name += &format!(" + {composition}");
        }
        let compute = args.session.compute(&pool);
        let parts = Parts::load(&args.adapters, &args.bundle, &args.session, compute, &model)?;
        if args.switch {
            let switching = switch::Switching {
                args,
                name: &name,
                model: &model,
                parts: &parts,
                pool: &pool,
            };
            switching.measure(|row| switches.push(row))?;
            continue;
        }
        if let Some(seconds) = args.sustain {
            let sustaining = sustain::Sustaining {
                args,
                name: &name,
                model: &model,
                parts: &parts,
                pool: &pool,
            };
            let time = Duration::from_secs(seconds.get().into());
            sustaining.measure(time, |row| sustained.push(row))?;
            continue;
        }
        if !args.parallel.is_empty() {
            let parallel = parallel::Parallel {
                args,
                name: &name,
                model: &model,
                parts: &parts,
                pool: &pool,
            };
            parallel.measure(|row| passes.push(row))?;
            continue;
        }
        let composition = parts.composition(model.linears())?;
        measure(args, &model, composition.as_ref(), &pool, |row| {
            rows.push(Row {
                model: name.clone(),
                size_bytes: model.n_bytes() as u64,
                ..row
            });
        })?;
    }
    match args.switch {
        true => print(args.output, &switches),
        false if args.sustain.is_some() => print(args.output, &sustained),
        false if !args.parallel.is_empty() => print(args.output, &passes),
        false => print(args.output, &rows),
    }
}

fn measure(
    args: &Args,
    model: &Model,
    composition: Option<&Composition>,
    pool: &SharedPool,
    mut add: impl FnMut(Row),
) -> Result<()> {
    let n_ctx = args
        .depth
        .saturating_add(args.prompt_tokens.max(args.gen_tokens));
    let mut session = args
        .session
        .session(model, pool, composition, Some(n_ctx))?;
    let bytes_per_token =
        model.bytes_per_token() + composition.map_or(0, Composition::bytes_per_token);
    // Any ids do; they are spread over the vocabulary so that different embeddings are read.
    let n_vocab = model.config().n_vocab;
    let ids: Vec<u32> = (0..n_ctx).map(|i| (i * 7919 % n_vocab) as u32).collect();
    let depth = &ids[..args.depth];
    go_to(&mut session, depth)?;
    let mut base = None;
    if args.beside_base {
        ensure!(
            composition.is_some(),
            "--beside-base compares a composition or adapters with the model: name some"
        );
        let mut session = args.session.session(model, pool, None, Some(n_ctx))?;
        go_to(&mut session, depth)?;
        base = Some(session);
    }
    let memory = ReadBandwidth::new(free_memory());
    for (kind, n) in [("pp", args.prompt_tokens), ("tg", args.gen_tokens)] {
        if n == 0 {
            continue;
        }
        let n_threads = session.n_threads(if kind == "pp" { n } else { 1 });
        let pool = Limited::new(pool.get(), n_threads);
        let (mut speeds, mut bandwidths, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..=args.repeat.get() {
            go_to(&mut session, depth)?;
            base.iter_mut().try_for_each(|base| go_to(base, depth))?;
            let mut seconds = 0.0;
            for ids in ids[..n].chunks(if kind == "pp" { n } else { 1 }) {
                let here = timed(&mut session, ids)?;
                seconds += here;
                if let Some(base) = &mut base {
                    let alone = timed(base, ids)?;
                    if run > 0 {
                        ratios.push(alone / here);
                    }
                }
            }
            let bandwidth = memory.measure(&pool);
            if run > 0 {
                speeds.push(n as f64 / seconds);
                bandwidths.push(bandwidth);
            }
        }
        let (mean, deviation) = mean_and_deviation(&speeds);
        let bandwidth = median(&mut bandwidths);
        let median = median(&mut speeds);
        let depth = if args.depth > 0 {
            format!("@d{}", args.depth)
        } else {
            String::new()
        };
        add(Row {
            model: String::new(),
            size_bytes: 0,
            level: session.level().name(),
            threads: n_threads,
            test: format!("{kind}{n}{depth}"),
            tokens_per_second: mean,
            deviation,
            median,
            ms_per_token: 1e3 / median,
            bandwidth: bandwidth / 1e9,
            bandwidth_share: (kind == "tg").then(|| median * bytes_per_token as f64 / bandwidth),
            of_base: (!ratios.is_empty()).then(|| self::median(&mut ratios)),
        });
    }
    Ok(())
}

/// Brings a session to where it has evaluated `depth` and no more.
fn go_to(session: &mut Session, depth: &[u32]) -> Result<()> {
    // Layers with a window cannot always go back so far.
    let kept = session.rewind(depth.len());
    if kept < depth.len() {
        session.feed(&depth[kept..])?;
    }
    Ok(())
}

/// Seconds that `session` takes for `ids` at once.
fn timed(session: &mut Session, ids: &[u32]) -> Result<f64> {
    let start = Instant::now();
    session.eval(ids)?;
    Ok(start.elapsed().as_secs_f64())
}

fn mean_and_deviation(x: &[f64]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let squares: f64 = x.iter().map(|x| (x - mean) * (x - mean)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

fn median(x: &mut [f64]) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// What tables are printed of.
trait Print: Serialize {
    const CSV: &str;
    const MD: &str;
    fn csv(&self) -> String;
    fn md(&self) -> String;
}

impl Print for Row {
    const CSV: &str = "model,size_bytes,level,threads,test,tokens_per_second,deviation,median,ms_per_token,bandwidth,bandwidth_share,of_base";
    const MD: &str = "| model | size | level | threads | test | tokens/s | median | ms/token | read GB/s | share | of base |\n\
        |---|---:|---|---:|---|---:|---:|---:|---:|---:|---:|";

    fn csv(&self) -> String {
        format!(
            "\"{}\",{},{},{},{},{:.3},{:.3},{:.3},{:.4},{:.3},{},{}",
            self.model.replace('"', "\"\""),
            self.size_bytes,
            self.level,
            self.threads,
            self.test,
            self.tokens_per_second,
            self.deviation,
            self.median,
            self.ms_per_token,
            self.bandwidth,
            digits(self.bandwidth_share, 4),
            digits(self.of_base, 4)
        )
    }

    fn md(&self) -> String {
        format!(
            "| {} | {:.2} GB | {} | {} | {} | {:.2} +- {:.2} | {:.2} | {:.2} | {:.1} | {} | {} |",
            self.model.replace('|', "\\|"),
            self.size_bytes as f64 / 1e9,
            self.level,
            self.threads,
            self.test,
            self.tokens_per_second,
            self.deviation,
            self.median,
            self.ms_per_token,
            self.bandwidth,
            digits(self.bandwidth_share, 3),
            digits(self.of_base, 3)
        )
    }
}

/// A value that not every row has.
fn digits(value: Option<f64>, digits: usize) -> String {
    value.map_or(String::new(), |v| format!("{v:.digits$}"))
}

fn print<R: Print>(output: Output, rows: &[R]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, rows)?;
            writeln!(out)?;
        }
        Output::Csv => {
            writeln!(out, "{}", R::CSV)?;
            rows.iter()
                .try_for_each(|row| writeln!(out, "{}", row.csv()))?;
        }
        Output::Md => {
            writeln!(out, "{}", R::MD)?;
            rows.iter()
                .try_for_each(|row| writeln!(out, "{}", row.md()))?;
        }
    }
    Ok(())
}
