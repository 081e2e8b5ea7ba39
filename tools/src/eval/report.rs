//! The results, and how they are printed.

use std::io::{self, Write};

use anyhow::Result;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use serde::Serialize;
use serde_json::json;

use super::Plan;
use super::extra::Extra;
use super::rouge::{Scores, Tokenizer, scores};
use super::run::Answer;
use crate::args::Output;
use crate::dataset::Example;

/// What `--output json` prints.
#[derive(Serialize)]
pub(super) struct Report {
    pub model: String,
    pub data: String,
    #[serde(rename = "examples")]
    pub n_examples: usize,
    pub tokenizer: &'static str,
    pub max_tokens: usize,
    #[serde(rename = "threads")]
    pub n_threads: usize,
    /// The time of all answers.
    pub seconds: f64,
    pub rows: Vec<Row>,
}

/// One composition's results.
#[derive(Serialize)]
pub(super) struct Row {
    composition: String,
    /// Each example's.
    inferences: usize,
    rouge1: Mean,
    rouge2: Mean,
    #[serde(rename = "rougeL")]
    rouge_l: Mean,
    /// The mean over the examples, each on one thread.
    ms_per_example: f64,
    extra_parameters: usize,
    extra_bytes: usize,
    #[serde(skip)]
    answers: Vec<(String, Scores)>,
}

/// A mean in percent, and the interval that 95 % of the means of as many examples, drawn from these
/// with repetition, are in.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Mean {
    mean: f64,
    low: f64,
    high: f64,
}

impl Row {
    pub(super) fn new(
        tokenizer: Tokenizer,
        plan: &Plan,
        examples: &[Example],
        answers: &[Answer],
        extra: Extra,
    ) -> Row {
        let scored = |(example, answer): (&Example, &Answer)| {
            let scores = scores(tokenizer, &example.target, &answer.text);
            (answer.text.clone(), scores)
        };
        let scored: Vec<_> = examples.iter().zip(answers).map(scored).collect();
        let mean = |i: usize| Mean::new(&scored.iter().map(|(_, s)| s[i]).collect::<Vec<_>>());
        let ms: f64 = answers.iter().map(|answer| answer.ms).sum();
        Row {
            composition: plan.name.clone(),
            inferences: plan.steps.len(),
            rouge1: mean(0),
            rouge2: mean(1),
            rouge_l: mean(2),
            ms_per_example: ms / answers.len() as f64,
            extra_parameters: extra.n_parameters,
            extra_bytes: extra.n_bytes,
            answers: scored,
        }
    }

    fn rouge(&self) -> [Mean; 3] {
        [self.rouge1, self.rouge2, self.rouge_l]
    }
}

impl Mean {
    /// Of numbers between 0 and 1.
    fn new(values: &[f64]) -> Mean {
        const N_DRAWINGS: usize = 1000;
        let n = values.len();
        let percent = |sum: f64| 100.0 * sum / n as f64;
        // The same drawings for every row, and on every machine.
        let mut random = Xoshiro256PlusPlus::seed_from_u64(0);
        let mut draw = || ((u128::from(random.next_u64()) * n as u128) >> 64) as usize;
        let mut means: Vec<f64> = (0..N_DRAWINGS)
            .map(|_| percent((0..n).map(|_| values[draw()]).sum()))
            .collect();
        means.sort_by(f64::total_cmp);
        Mean {
            mean: percent(values.iter().sum()),
            low: means[N_DRAWINGS / 40],
            high: means[N_DRAWINGS - 1 - N_DRAWINGS / 40],
        }
    }
}

impl Report {
    /// Prints the results to standard output.
    pub(super) fn print(&self, output: Output) -> Result<()> {
        let mut out = io::stdout().lock();
        match output {
            Output::Json => {
                serde_json::to_writer_pretty(&mut out, self)?;
                writeln!(out)?;
            }
            Output::Csv => self.print_csv(&mut out)?,
            Output::Md => self.print_md(&mut out)?,
        }
        out.flush()?;
        Ok(())
    }

    fn print_csv(&self, out: &mut impl Write) -> io::Result<()> {
        write!(out, "composition")?;
        for score in ["rouge1", "rouge2", "rougeL"] {
            write!(out, ",{score},{score}_low,{score}_high")?;
        }
        writeln!(
            out,
            ",inferences,ms_per_example,extra_parameters,extra_bytes,examples"
        )?;
        for row in &self.rows {
            write!(out, "{}", row.composition)?;
            for Mean { mean, low, high } in row.rouge() {
                write!(out, ",{mean:.3},{low:.3},{high:.3}")?;
            }
            let (n, ms) = (row.inferences, row.ms_per_example);
            let (parameters, bytes) = (row.extra_parameters, row.extra_bytes);
            writeln!(out, ",{n},{ms:.2},{parameters},{bytes},{}", self.n_examples)?;
        }
        Ok(())
    }

    fn print_md(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(
            out,
            "| composition | ROUGE-1 | ROUGE-2 | ROUGE-L | inferences | ms an example | extra parameters | extra bytes |"
        )?;
        writeln!(out, "|---|---:|---:|---:|---:|---:|---:|---:|")?;
        for row in &self.rows {
            write!(out, "| {} |", row.composition)?;
            for Mean { mean, low, high } in row.rouge() {
                write!(out, " {mean:.1} ({low:.1} to {high:.1}) |")?;
            }
            let (n, ms) = (row.inferences, row.ms_per_example);
            let (parameters, bytes) = (row.extra_parameters, row.extra_bytes);
            writeln!(out, " {n} | {ms:.1} | {parameters} | {bytes} |")?;
        }
        let (n, data, tokenizer) = (self.n_examples, &self.data, self.tokenizer);
        writeln!(
            out,
            "\n{n} examples of {}, tokenizer {tokenizer}; {:.0} s on {} threads",
            crate::visible(data),
            self.seconds,
            self.n_threads
        )
    }

    /// Writes every answer, a JSON object a line.
    pub(super) fn write_predictions(
        &self,
        examples: &[Example],
        out: &mut impl Write,
    ) -> io::Result<()> {
        for row in &self.rows {
            for (example, (text, [rouge1, rouge2, rouge_l])) in examples.iter().zip(&row.answers) {
                let answer = json!({
                    "composition": row.composition, "line": example.line,
                    "target": example.target, "prediction": text,
                    "rouge1": rouge1, "rouge2": rouge2, "rougeL": rouge_l,
                });
                writeln!(out, "{answer}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_lies_in_its_interval() {
        let one = Mean::new(&[0.25]);
        assert_eq!((one.mean, one.low, one.high), (25.0, 25.0, 25.0));
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let mean = Mean::new(&values);
        assert_eq!(mean.mean, 50.0);
        // The mean of 400 throws of a coin is off by 2.5 % as a rule, by twice that in 95 of 100.
        assert!((44.0..46.5).contains(&mean.low), "{mean:?}");
        assert!((53.5..56.0).contains(&mean.high), "{mean:?}");
    }
}
