//! Answering the examples, on all threads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result};
use tandem_engine::{Composition, Session};

use super::Plan;
use crate::dataset::Example;
use crate::greedy;
use crate::progress::Progress;

/// What is answered, and with what.
pub(super) struct Evaluation<'p> {
    pub examples: &'p [Example],
    pub plans: &'p [Plan],
    /// The compositions by the names that the plans give; `None` is the model alone.
    pub compositions: &'p BTreeMap<&'p str, Option<Composition>>,
    pub max_tokens: usize,
    /// The tokens that a composition of this name is asked an input with.
    pub ask: &'p (dyn Fn(&str, &str) -> Result<Vec<u32>> + Sync),
}

/// What was said to one example.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub text: String,
    /// Milliseconds of all steps.
    pub ms: f64,
}

impl Evaluation<'_> {
    /// Answers all examples by the first plan, then by the second and so on, on a thread for each
    /// session: many small answers at once are faster than each on all threads.
    pub(super) fn run(&self, sessions: Vec<Session>) -> Result<Vec<Answer>> {
        let n_answers = self.plans.len() * self.examples.len();
        let progress = Progress::new(n_answers as u64, "evaluating");
        let next = AtomicUsize::new(0);
        let work = |mut session: Session| {
            let mut answers = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= n_answers {
                    return answers;
                }
                let answer = self.answer(&mut session, i);
                if answer.is_err() {
                    // Nobody begins another one.
                    next.fetch_max(n_answers, Ordering::Relaxed);
                }
                answers.push((i, answer));
                progress.add(1);
            }
        };
        let mut answers = Vec::new();
        std::thread::scope(|scope| {
            let threads: Vec<_> = sessions
                .into_iter()
                .map(|session| scope.spawn(|| work(session)))
                .collect();
            for thread in threads {
                let part = thread.join();
                answers.extend(part.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
        });
        // With those before it, an error comes in the order of the examples.
        answers.sort_by_key(|(i, _)| *i);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    /// The answer number `i`.
    fn answer(&self, session: &mut Session, i: usize) -> Result<Answer> {
        let n = self.examples.len();
        let (plan, example) = (&self.plans[i / n], &self.examples[i % n]);
        let start = Instant::now();
        let mut text = example.input.clone();
        for (step, name) in plan.steps.iter().enumerate() {
            let answer = self.step(session, name, &text);
            text = answer.with_context(|| match step {
                0 => format!("line {}, {name}", example.line),
                _ => format!("line {}, {name}, asked for {text:?}", example.line),
            })?;
        }
        Ok(Answer {
            text,
            ms: start.elapsed().as_secs_f64() * 1e3,
        })
    }

    /// What the composition `name` says to `input`.
    fn step(&self, session: &mut Session, name: &str, input: &str) -> Result<String> {
        let composition = self.compositions.get(name).and_then(Option::as_ref);
        session.set_composition(composition)?;
        let prompt = (self.ask)(name, input)?;
        Ok(greedy::answer(session, &prompt, self.max_tokens)?.0)
    }
}
