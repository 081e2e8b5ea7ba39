//! ROUGE (Lin, 2004): how far two texts have the same words, as the Python package `rouge-score`
//! computes it.

use std::collections::HashMap;

use clap::ValueEnum;

/// What is a word.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum Tokenizer {
    /// Runs of the letters a to z and digits, in lower case, as `rouge-score` takes by default: a
    /// letter with an accent parts two words
    Words,
    /// What stands between white space, as it is
    Whitespace,
}

impl Tokenizer {
    /// The name on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Tokenizer::Words => "words",
            Tokenizer::Whitespace => "whitespace",
        }
    }

    fn tokenize(self, text: &str) -> Vec<String> {
        match self {
            Tokenizer::Words => {
                let text = text.to_lowercase();
                let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
                let words = text.split(|c| !is_word(c)).filter(|word| !word.is_empty());
                words.map(str::to_string).collect()
            }
            Tokenizer::Whitespace => {
                // Python counts the separators of files, groups, records and units as white space.
                let is_space = |c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c);
                let words = text.split(is_space).filter(|word| !word.is_empty());
                words.map(str::to_string).collect()
            }
        }
    }
}

/// The F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, between 0 and 1.
pub(super) type Scores = [f64; 3];

/// Compares a text with the one wanted.
pub(super) fn scores(tokenizer: Tokenizer, target: &str, prediction: &str) -> Scores {
    let target = tokenizer.tokenize(target);
    let prediction = tokenizer.tokenize(prediction);
    let lcs = n_common_subsequence(&target, &prediction);
    [
        n_grams(1, &target, &prediction),
        n_grams(2, &target, &prediction),
        f_measure(lcs, target.len(), prediction.len()),
    ]
}

/// The harmonic mean of precision and recall.
fn f_measure(n_common: usize, n_target: usize, n_prediction: usize) -> f64 {
    let precision = n_common as f64 / n_prediction.max(1) as f64;
    let recall = n_common as f64 / n_target.max(1) as f64;
    match precision + recall > 0.0 {
        true => 2.0 * precision * recall / (precision + recall),
        false => 0.0,
    }
}

/// ROUGE-n: runs of `n` words that both texts have, as often as both have them.
fn n_grams(n: usize, target: &[String], prediction: &[String]) -> f64 {
    let mut counts: HashMap<&[String], usize> = HashMap::new();
    for gram in target.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    let mut n_common = 0;
    for gram in prediction.windows(n) {
        if let Some(left) = counts.get_mut(gram).filter(|left| **left > 0) {
            *left -= 1;
            n_common += 1;
        }
    }
    let n_grams = |words: &[String]| (words.len() + 1).saturating_sub(n);
    f_measure(n_common, n_grams(target), n_grams(prediction))
}

/// Words of the longest sequence that is in both, in this order but not necessarily side by side.
fn n_common_subsequence(a: &[String], b: &[String]) -> usize {
    // `row[j]` is the length for the words of `a` so far and the first `j` of `b`.
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut before = 0; // row[j] of one word of `a` less
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = match x == y {
                true => before + 1,
                false => above.max(row[j]),
            };
            before = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;

    #[test]
    fn as_rouge_score_has_it() {
        let golden = include_bytes!("../../../fixtures/rouge/rouge.json");
        let golden: Json = serde_json::from_slice(golden).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() > 100);
        for case in cases {
            let (target, prediction) = (&case["target"], &case["prediction"]);
            for tokenizer in [Tokenizer::Words, Tokenizer::Whitespace] {
                let found = scores(
                    tokenizer,
                    target.as_str().unwrap(),
                    prediction.as_str().unwrap(),
                );
                let wanted = case[tokenizer.name()].as_array().unwrap();
                assert_eq!(wanted.len(), found.len());
                for (found, wanted) in found.into_iter().zip(wanted) {
                    let wanted = wanted.as_f64().unwrap();
                    let name = tokenizer.name();
                    assert!(
                        (found - wanted).abs() < 1e-12,
                        "{name}, {target}, {prediction}: {found}, not {wanted}"
                    );
                }
            }
        }
    }
}
