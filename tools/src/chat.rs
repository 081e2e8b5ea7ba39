//! `tandem chat`: a conversation.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use tandem_engine::{Error, Message, Sampling, Session, StopReason};

use crate::args::{ModelArgs, SamplerArgs};
use crate::open;
use crate::progress::prefill;

/// Talk with a model
///
/// Ctrl-C stops a reply, Ctrl-D or /quit ends the conversation, /clear begins a new one.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What the model is told before the conversation begins
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// The most tokens of one reply
    #[arg(long, short, value_name = "N", default_value_t = 1024)]
    n_predict: usize,
    #[command(flatten)]
    sampler: SamplerArgs,
}

pub(crate) fn chat(args: &Args) -> Result<()> {
    let path = &args.model.model;
    let model = open::model(path)?;
    open::tokenizer(path, &model)?;
    let chat = model.chat()?;
    chat.context("the file has no chat template: use `tandem run` instead")?;
    let mut session = args.model.session(&model)?;
    let mut sampling = args.sampler.sampling(args.n_predict);
    let stop = Arc::new(AtomicBool::new(false));
    // While a line is edited the terminal is in raw mode and Ctrl-C comes as a key.
    let on_ctrl_c = Arc::clone(&stop);
    ctrlc::set_handler(move || on_ctrl_c.store(true, Ordering::Relaxed))?;

    let mut editor = DefaultEditor::new()?;
    let mut conversation = Conversation::new(args.system.as_deref());
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match line.trim() {
            "" => continue,
            "/quit" => return Ok(()),
            "/clear" => {
                conversation = Conversation::new(args.system.as_deref());
                continue;
            }
            _ => {}
        }
        // Where there is no terminal there may be no history to keep.
        let _ = editor.add_history_entry(&line);
        conversation.messages.push(("user", line));
        stop.store(false, Ordering::Relaxed);
        let messages = conversation.messages();
        let reply = reply(&mut session, &messages, &sampling, &stop);
        // Another answer to the same words draws other numbers.
        sampling.seed = sampling.seed.wrapping_add(1);
        match reply {
            Ok(text) => conversation.messages.push(("assistant", text)),
            Err(error) if matches!(error.downcast_ref(), Some(Error::Session(_))) => {
                tell!("error: {error:#}; /clear begins a new conversation");
                conversation.messages.pop();
            }
            Err(error) => return Err(error),
        }
    }
}

/// Evaluates what of the conversation is new, and streams the reply.
fn reply(
    session: &mut Session,
    messages: &[Message<'_>],
    sampling: &Sampling,
    stop: &AtomicBool,
) -> Result<String> {
    let is_stopped = || stop.load(Ordering::Relaxed);
    let mut text = String::new();
    let mut out = std::io::stdout().lock();
    let mut generation = session.generate(messages, sampling)?;
    prefill(&mut generation, is_stopped)?;
    if is_stopped() {
        generation.cancel();
    }
    while let Some(piece) = generation.next() {
        let piece = piece?;
        text.push_str(&piece);
        out.write_all(piece.as_bytes())?;
        out.flush()?;
        if is_stopped() {
            generation.cancel();
        }
    }
    writeln!(out)?;
    match generation.stop_reason() {
        None | Some(StopReason::EndOfText) => {}
        Some(reason) => tell!("[stopped: {}]", reason.name()),
    }
    Ok(text)
}

/// Who said what so far.
struct Conversation {
    messages: Vec<(&'static str, String)>,
}

impl Conversation {
    fn new(system: Option<&str>) -> Conversation {
        Conversation {
            messages: system
                .map(|text| ("system", text.to_string()))
                .into_iter()
                .collect(),
        }
    }

    fn messages(&self) -> Vec<Message<'_>> {
        let messages = self.messages.iter();
        messages
            .map(|(role, content)| Message { role, content })
            .collect()
    }
}
