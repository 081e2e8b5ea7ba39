//! Training data: JSON lines of `input` and `target`, as tokens.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{Device, Tensor};
use tandem_engine::chat;
use tandem_engine::tokenizer::{EncodeOptions, Tokenizer};

use super::ops::Span;
use super::recipe::TooLong;
use super::watch::Watch;
use crate::dataset;

/// A prompt with the wanted answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Example {
    /// Where it stands in the file, counted from 1.
    pub line: usize,
    /// The prompt, the answer, the end token.
    pub tokens: Vec<u32>,
    /// How many of these are the prompt.
    pub n_prompt: usize,
}

impl Example {
    /// Tokens that are predicted: the answer and the end.
    pub(super) fn n_targets(&self) -> usize {
        self.tokens.len() - self.n_prompt
    }
}

/// How texts become examples.
pub(super) struct Form<'a> {
    pub tokenizer: &'a Tokenizer,
    /// With a mark for the input.
    pub prompt: &'a str,
    /// The most tokens of an example, and what is done about longer ones.
    pub n_ctx: usize,
    pub too_long: TooLong,
    /// Who is told of examples that are left out.
    pub watch: &'a dyn Watch,
}

/// Reads the examples of a file, at most `limit`.
pub(super) fn read(path: &Path, form: &Form<'_>, limit: Option<usize>) -> Result<Vec<Example>> {
    let Form {
        tokenizer,
        prompt,
        n_ctx,
        too_long,
        watch,
    } = *form;
    let end = tokenizer.vocab().eos();
    let end = end.context("the model's vocabulary names no token that ends a text")?;
    let (mut examples, mut skipped) = (Vec::new(), Vec::new());
    for text in dataset::read(path, limit.unwrap_or(usize::MAX))? {
        let line = text.line;
        let example = example(&text, tokenizer, prompt, end)
            .with_context(|| format!("{}, line {line}", path.display()))?;
        match example.tokens.len() > n_ctx {
            false => examples.push(example),
            true if too_long == TooLong::Skip => skipped.push(line),
            true => bail!(
                "{}, line {line}: the example has {} tokens, the context {n_ctx}: shorten it, or \
                 have such lines left out with too_long = \"skip\"",
                path.display(),
                example.tokens.len()
            ),
        }
    }
    if let Some(first) = skipped.first() {
        watch.note(&format!(
            "note: {} examples of {} are longer than {n_ctx} tokens and left out, the first in line {first}",
            skipped.len(),
            path.display()
        ));
    }
    ensure!(!examples.is_empty(), "{} has no examples", path.display());
    Ok(examples)
}

fn example(
    text: &dataset::Example,
    tokenizer: &Tokenizer,
    prompt: &str,
    end: u32,
) -> Result<Example> {
    let mut tokens = chat::fill(tokenizer, prompt, text.input.as_bytes())?;
    let n_prompt = tokens.len();
    ensure!(n_prompt > 0, "the prompt has no tokens");
    let options = EncodeOptions {
        add_special: false,
        parse_special: false,
    };
    tokens.extend(tokenizer.encode(text.target.as_bytes(), options)?);
    tokens.push(end);
    Ok(Example {
        line: text.line,
        tokens,
        n_prompt,
    })
}

/// Several examples that go through the network together, one after the other.
pub(super) struct Batch {
    /// All tokens but each example's last.
    pub tokens: Vec<u32>,
    /// Of each of these, in its example.
    pub positions: Arc<Vec<usize>>,
    pub spans: Arc<Vec<Span>>,
    /// The tokens to be predicted.
    pub targets: Arc<Vec<u32>>,
    /// The rows of `tokens` after which they come.
    target_rows: Tensor,
    /// As `positions` and `spans`, with these rows alone as queries.
    pub target_positions: Arc<Vec<usize>>,
    pub target_spans: Arc<Vec<Span>>,
}

impl Batch {
    pub(super) fn new<'e>(
        examples: impl IntoIterator<Item = &'e Example>,
    ) -> candle_core::Result<Batch> {
        let (mut tokens, mut targets) = (Vec::new(), Vec::new());
        let (mut positions, mut spans) = (Vec::new(), Vec::new());
        let (mut target_positions, mut target_spans) = (Vec::new(), Vec::new());
        let mut target_rows: Vec<u32> = Vec::new();
        for example in examples {
            let (first, n) = (tokens.len(), example.tokens.len() - 1);
            let span = Span {
                first_key: first,
                n_keys: n,
                first_query: first,
                n_queries: n,
            };
            spans.push(span);
            target_spans.push(Span {
                first_query: targets.len(),
                n_queries: example.n_targets(),
                ..span
            });
            positions.extend(0..n);
            target_positions.extend(example.n_prompt - 1..n);
            target_rows.extend((first + example.n_prompt - 1..first + n).map(|row| row as u32));
            tokens.extend_from_slice(&example.tokens[..n]);
            targets.extend_from_slice(&example.tokens[example.n_prompt..]);
        }
        let n_targets = target_rows.len();
        Ok(Batch {
            tokens,
            positions: Arc::new(positions),
            spans: Arc::new(spans),
            targets: Arc::new(targets),
            target_rows: Tensor::from_vec(target_rows, n_targets, &Device::Cpu)?,
            target_positions: Arc::new(target_positions),
            target_spans: Arc::new(target_spans),
        })
    }

    /// The rows of `x` `[n_tokens, n]` after which targets come.
    pub(super) fn select(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.index_select(&self.target_rows, 0)
    }
}
