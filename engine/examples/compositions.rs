//! Every composition of a bundle on one text, all in the same passes:
//! `cargo run --release --example compositions -- MODEL.gguf BUNDLE.tandem TEXT`.
//!
//! Each composition has a sequence of its own. A pass reads the model's weights once for all of them,
//! and each gets to the bit what it would get alone.

use tandem_engine::tokenizer::ControlTokens;
use tandem_engine::{
    Composition, Model, Prompt, Sequence, SessionOptions, Span, Worker, argmax, chat, threads,
};

const MAX_TOKENS: usize = 32;

/// One composition's answer.
struct Answer {
    composition: Composition,
    sequence: Sequence,
    /// What is evaluated next.
    tokens: Vec<u32>,
    /// After these, `[n_vocab]`.
    logits: Vec<f32>,
    ids: Vec<u32>,
    is_done: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let [model, bundle, text] = [args.next(), args.next(), args.next()];
    let model = Model::open(model.ok_or("a model is wanted")?)?;
    let bundle = model.bundle(bundle.ok_or("a bundle is wanted")?)?;
    let text = text.ok_or("a text is wanted")?;
    let tokenizer = model.tokenizer()?;
    let vocab = tokenizer.vocab();

    let mut options = SessionOptions::for_model(model.config());
    options.n_ctx = options.n_ctx.min(512);
    let mut worker = Worker::new(&model, threads::all(), &options)?;
    let mut answers = Vec::new();
    for name in bundle.compositions() {
        let composition = bundle.composition(name)?;
        let mut sequence = Sequence::new(&model, &options)?;
        sequence.set_composition(Some(&composition))?;
        let tokens = match composition.prompt() {
            Some(form) => chat::fill(tokenizer, form, text.as_bytes())?,
            None => model.prompt_ids(Prompt::Input(text.as_bytes()))?,
        };
        answers.push(Answer {
            composition,
            sequence,
            tokens,
            logits: vec![0.0; model.config().n_vocab],
            ids: Vec::new(),
            is_done: false,
        });
    }
    for answer in &answers {
        worker.reserve(&answer.composition)?;
    }

    while answers.iter().any(|answer| !answer.is_done) {
        let going_on = answers.iter_mut().filter(|answer| !answer.is_done);
        let mut spans: Vec<Span> = going_on
            .map(|answer| Span {
                sequence: &mut answer.sequence,
                tokens: &answer.tokens,
                logits: &mut answer.logits,
            })
            .collect();
        worker.forward(&mut spans)?;
        for answer in answers.iter_mut().filter(|answer| !answer.is_done) {
            let id = argmax(&answer.logits);
            answer.ids.push(id);
            answer.tokens = vec![id];
            answer.is_done = vocab.is_end_of_generation(id) || answer.ids.len() == MAX_TOKENS;
        }
    }
    for (name, answer) in bundle.compositions().zip(&answers) {
        println!(
            "{name}: {}",
            vocab.decode(&answer.ids, ControlTokens::Hide)?
        );
    }
    Ok(())
}
