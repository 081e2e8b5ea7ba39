//! `tandem bench --parallel`: several sequences in one pass.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde::Serialize;
use tandem_engine::{
    Composition, MAX_SPANS, Model, Sequence, SharedPool, Span, Worker, free_memory,
};

use super::{Args, Print, mean_and_deviation, median};
use crate::adapters::{Parts, bundle_for, read_all};

/// One row of the table.
#[derive(Serialize)]
pub(super) struct Row {
    model: String,
    level: &'static str,
    threads: usize,
    sequences: usize,
    /// How many different compositions they have.
    compositions: usize,
    /// Of all sequences together.
    tokens_per_second: f64,
    deviation: f64,
    /// What a pass, a token of each sequence, takes; the median.
    ms_per_pass: f64,
    /// By how much that is more than a step of one sequence, measured in turn; the median.
    of_one: f64,
}

impl Print for Row {
    const CSV: &str =
        "model,level,threads,sequences,compositions,tokens_per_second,deviation,ms_per_pass,of_one";
    const MD: &str = "| model | level | threads | sequences | compositions | tokens/s | ms/pass | of one |\n\
        |---|---|---:|---:|---:|---:|---:|---:|";

    fn csv(&self) -> String {
        format!(
            "\"{}\",{},{},{},{},{:.3},{:.3},{:.4},{:.4}",
            self.model.replace('"', "\"\""),
            self.level,
            self.threads,
            self.sequences,
            self.compositions,
            self.tokens_per_second,
            self.deviation,
            self.ms_per_pass,
            self.of_one
        )
    }

    fn md(&self) -> String {
        format!(
            "| {} | {} | {} | {} | {} | {:.2} +- {:.2} | {:.2} | {:.2} |",
            self.model.replace('|', "\\|"),
            self.level,
            self.threads,
            self.sequences,
            self.compositions,
            self.tokens_per_second,
            self.deviation,
            self.ms_per_pass,
            self.of_one
        )
    }
}

/// Sequences of one model, each with a composition of its own where there are several.
pub(super) struct Parallel<'a> {
    pub args: &'a Args,
    pub name: &'a str,
    pub model: &'a Model,
    pub parts: &'a Parts,
    pub pool: &'a SharedPool,
}

impl Parallel<'_> {
    /// Times passes of as many sequences as the flag says, in turn with steps of one of them.
    pub(super) fn measure(&self, mut add: impl FnMut(Row)) -> Result<()> {
        let args = self.args;
        ensure!(
            args.gen_tokens > 0,
            "there is nothing to measure: --gen-tokens is 0"
        );
        let most = args.parallel.iter().map(|n| n.get()).max().unwrap_or(1);
        ensure!(
            most <= MAX_SPANS,
            "a pass takes at most {MAX_SPANS} sequences"
        );
        let n_ctx = args.depth.saturating_add(args.gen_tokens);
        let mut options = args.session.options(self.model, self.pool, Some(n_ctx));
        options.n_batch = options.n_batch.max(most);
        let one = Sequence::n_bytes(self.model.config(), &options);
        let needed = one.and_then(|bytes| bytes.checked_mul(most + 1));
        let is_enough = |free| needed.is_some_and(|needed| needed < free);
        ensure!(
            free_memory().is_none_or(is_enough),
            "the KV caches of {most} sequences do not fit the memory: use fewer or --kv-type q8_0"
        );
        let compositions = self.compositions()?;
        let mut worker = Worker::new(self.model, self.pool, &options)?;
        let mut sequences = Vec::new();
        // One more: it is what the others are compared with.
        for i in 0..=most {
            let mut sequence = Sequence::new(self.model, &options)?;
            if let Some(n) = i.checked_rem(compositions.len()) {
                worker.reserve(&compositions[n])?;
                sequence.set_composition(Some(&compositions[n]))?;
            }
            sequences.push(sequence);
        }
        let Some((alone, sequences)) = sequences.split_first_mut() else {
            return Ok(());
        };
        for n in &args.parallel {
            let mut run = Run {
                worker: &mut worker,
                alone,
                sequences: &mut sequences[..n.get()],
                n_vocab: self.model.config().n_vocab,
            };
            let row = run.measure(args)?;
            add(Row {
                model: self.name.to_string(),
                compositions: n.get().min(compositions.len()),
                ..row
            });
        }
        Ok(())
    }

    /// The named composition of a bundle and then its others, or several adapters with their scales
    /// changed around.
    fn compositions(&self) -> Result<Vec<Composition>> {
        let (args, base) = (self.args, self.model.linears());
        let mut all: Vec<Composition> = self.parts.composition(base)?.into_iter().collect();
        if let (Some(path), Some(name)) = (&args.bundle.bundle, &args.bundle.compose) {
            let bundle = bundle_for(path, self.model)?;
            let adapter_type = args.session.adapter_type(self.model);
            let compute = args.session.compute(self.pool);
            for other in bundle.compositions().filter(|other| other != name) {
                all.push(bundle.composition_as(other, adapter_type, compute)?);
            }
        } else if args.adapters.calibration.is_none() {
            let mut lora = args.adapters.clone();
            let adapters = read_all(&lora, base)?;
            let adapter_type = args.session.adapter_type(self.model);
            for _ in 1..adapters.len() {
                let first = lora.lora[0].scale;
                for i in 1..lora.lora.len() {
                    lora.lora[i - 1].scale = lora.lora[i].scale;
                }
                if let Some(last) = lora.lora.last_mut() {
                    last.scale = first;
                }
                let parts = Parts::new(&lora, base, adapters.clone(), adapter_type)?;
                // Where scales are the same it may be one that is there.
                let other = parts.composition(base)?;
                all.extend(other.filter(|other| all.iter().all(|c| c.id() != other.id())));
            }
        }
        Ok(all)
    }
}

/// Passes of some sequences.
struct Run<'r> {
    worker: &'r mut Worker,
    alone: &'r mut Sequence,
    sequences: &'r mut [Sequence],
    n_vocab: usize,
}

impl Run<'_> {
    fn measure(&mut self, args: &Args) -> Result<Row> {
        let n = self.sequences.len();
        let (mut speeds, mut passes, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..=args.repeat.get() {
            self.go_to(args.depth)?;
            let mut seconds = 0.0;
            for i in 0..args.gen_tokens {
                let step = timed(self.worker, std::slice::from_mut(self.alone), i)?;
                let pass = timed(self.worker, self.sequences, i)?;
                seconds += pass;
                if run > 0 {
                    passes.push(1e3 * pass);
                    ratios.push(pass / step);
                }
            }
            if run > 0 {
                speeds.push((n * args.gen_tokens) as f64 / seconds);
            }
        }
        let (tokens_per_second, deviation) = mean_and_deviation(&speeds);
        Ok(Row {
            model: String::new(),
            level: self.worker.level().name(),
            threads: self.worker.n_threads(n),
            sequences: n,
            compositions: 0,
            tokens_per_second,
            deviation,
            ms_per_pass: median(&mut passes),
            of_one: median(&mut ratios),
        })
    }

    /// Brings all sequences to where they have evaluated `depth` tokens and no more.
    fn go_to(&mut self, depth: usize) -> Result<()> {
        let ids: Vec<u32> = (0..depth).map(|i| id(i, self.n_vocab)).collect();
        let alone = std::iter::once(&mut *self.alone);
        for sequence in alone.chain(self.sequences.iter_mut()) {
            let kept = sequence.rewind(depth);
            for tokens in ids[kept..].chunks(self.worker.n_batch()) {
                let logits = &mut [];
                self.worker.forward(&mut [Span {
                    sequence: &mut *sequence,
                    tokens,
                    logits,
                }])?;
            }
        }
        Ok(())
    }
}

/// Any id; they are spread over the vocabulary so that different embeddings are read.
fn id(i: usize, n_vocab: usize) -> u32 {
    (i * 7919 % n_vocab) as u32
}

/// Seconds of a pass that gives each sequence a token, and its logits.
fn timed(worker: &mut Worker, sequences: &mut [Sequence], step: usize) -> Result<f64> {
    let n_vocab = worker.model().config().n_vocab;
    let ids: Vec<u32> = (0..sequences.len())
        .map(|i| id(step * MAX_SPANS + i, n_vocab))
        .collect();
    let mut logits = vec![0.0; sequences.len() * n_vocab];
    let rows = ids.chunks(1).zip(logits.chunks_mut(n_vocab));
    let mut spans: Vec<_> = sequences
        .iter_mut()
        .zip(rows)
        .map(|(sequence, (tokens, logits))| Span {
            sequence,
            tokens,
            logits,
        })
        .collect();
    let start = Instant::now();
    worker.forward(&mut spans)?;
    Ok(start.elapsed().as_secs_f64())
}
