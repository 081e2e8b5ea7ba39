//! `tandem chat`: a conversation.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use tandem_engine::chat_template::Message;
use tandem_engine::tokenizer::{ControlTokens, Tokenizer};
use tandem_engine::{Sampler, Session, SessionError, StopReason, generate};

use crate::adapters::Parts;
use crate::args::{ModelArgs, SamplerArgs};
use crate::open;
use crate::progress::prefill;
use crate::prompt::Chat;

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
    let files = open::files(path)?;
    let gguf = files.parse()?;
    let model = open::model(path, &gguf)?;
    let tokenizer = open::tokenizer(path, &gguf)?;
    let chat = Chat::from_gguf(&gguf, tokenizer.vocab())?;
    let chat = chat.context("the file has no chat template: use `tandem run` instead")?;
    let pool = args.model.session.pool();
    let chosen = args.model.bundle.open()?;
    let parts = Parts::load(
        &args.model.adapters,
        chosen.as_ref(),
        &args.model.session,
        &pool,
        &gguf,
        &model,
    )?;
    let composition = parts.composition(&model.config)?;
    let composition = composition.as_ref();
    let mut session = args
        .model
        .session
        .session(&model, &pool, composition, None)?;
    let mut sampler = Sampler::new(args.sampler.options(), model.config.n_vocab);
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
        let ids = conversation.encode(&chat, &tokenizer)?;
        stop.store(false, Ordering::Relaxed);
        match reply(args, &tokenizer, &mut session, &mut sampler, &ids, &stop) {
            Ok(text) => conversation.messages.push(("assistant", text)),
            Err(error) if error.is::<SessionError>() => {
                tell!("error: {error:#}; /clear begins a new conversation");
                conversation.messages.pop();
            }
            Err(error) => return Err(error),
        }
    }
}

/// Evaluates what of the conversation is new, and streams the reply.
fn reply(
    args: &Args,
    tokenizer: &Tokenizer<'_>,
    session: &mut Session<'_, '_>,
    sampler: &mut Sampler,
    ids: &[u32],
    stop: &AtomicBool,
) -> Result<String> {
    let vocab = tokenizer.vocab();
    let new = session.keep_prefix(ids);
    let mut decoder = vocab.stream_continuation(ControlTokens::Hide);
    let mut text = String::new();
    let mut out = std::io::stdout().lock();
    let mut failure = None;
    let is_end = |id| vocab.is_end_of_generation(id);
    let new = prefill(session, new, args.model.session.batch.get())?;
    let reason = generate(session, sampler, new, args.n_predict, is_end, |id| {
        let result = decoder
            .push(id)
            .map_err(anyhow::Error::from)
            .and_then(|piece| {
                text.push_str(piece);
                out.write_all(piece.as_bytes())?;
                Ok(out.flush()?)
            });
        failure = result.err();
        match failure.is_some() || stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })?;
    if let Some(error) = failure {
        return Err(error);
    }
    let rest = decoder.finish();
    text.push_str(rest);
    writeln!(out, "{rest}")?;
    match reason {
        StopReason::EndOfText => {}
        reason => tell!("[stopped: {}]", reason.name()),
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

    fn encode(&self, chat: &Chat, tokenizer: &Tokenizer<'_>) -> Result<Vec<u32>> {
        let messages: Vec<_> = self
            .messages
            .iter()
            .map(|(role, content)| Message { role, content })
            .collect();
        Ok(chat.encode(tokenizer, &messages)?)
    }
}
