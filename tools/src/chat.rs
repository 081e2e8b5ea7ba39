//! `tandem chat`: a conversation.

mod command;

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde::{Deserialize, Serialize};
use tandem_engine::{Error, Message, Model, Sampling, Session, StopReason};
use tandem_formats::write_atomically;

use self::command::{HELP, Line};
use crate::args::{ChatArgs, ModelArgs, SamplerArgs};
use crate::open;
use crate::progress::prefill;

/// Talk with a model
///
/// Ctrl-C stops a reply, Ctrl-D or /quit ends the conversation, /help shows what else there is.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    chat: ChatArgs,
    #[command(flatten)]
    sampler: SamplerArgs,
}

/// The most tokens of a reply, where the flags do not say.
const MAX_TOKENS: usize = 1024;
/// Lines in a row that cannot be read before it is given up.
const MAX_BAD_LINES: usize = 100;

pub(crate) fn chat(args: &Args) -> Result<()> {
    let path = args.model.path();
    let model = args.model.open()?;
    open::tokenizer(path, &model)?;
    let chat = model.chat()?;
    chat.context("the file has no chat template: use `tandem run` instead")?;
    let mut session = args.model.session(&model)?;
    session.set_template_args(args.chat.template_args());
    let stop = Arc::new(AtomicBool::new(false));
    session.set_interrupt(Some(Arc::clone(&stop)));
    // While a line is edited the terminal is in raw mode and Ctrl-C comes as a key.
    let on_ctrl_c = Arc::clone(&stop);
    ctrlc::set_handler(move || on_ctrl_c.store(true, Ordering::Relaxed))?;

    let mut talk = Talk {
        args,
        session,
        sampling: args.sampler.sampling(MAX_TOKENS),
        stop,
        system: args.chat.system.clone().unwrap_or_default(),
        messages: Vec::new(),
    };
    let mut editor = DefaultEditor::new()?;
    let mut n_bad = 0;
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            // A byte that is no UTF-8.
            Err(ReadlineError::Io(error))
                if error.kind() == std::io::ErrorKind::InvalidData && n_bad < MAX_BAD_LINES =>
            {
                n_bad += 1;
                tell!("this line is not UTF-8, it was not sent");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        n_bad = 0;
        // Where there is no terminal there may be no history to keep.
        let _ = editor.add_history_entry(&line);
        match Line::parse(&line) {
            Line::Quit => return Ok(()),
            line => talk.take(&model, line)?,
        }
    }
}

/// One message, as it is kept and saved.
#[derive(Clone, Serialize, Deserialize)]
struct Said {
    role: String,
    content: String,
}

/// A conversation, and what answers it.
struct Talk<'a> {
    args: &'a Args,
    session: Session,
    sampling: Sampling,
    stop: Arc<AtomicBool>,
    /// What the model is told before; nothing where it is empty.
    system: String,
    /// What was said since.
    messages: Vec<Said>,
}

impl Talk<'_> {
    /// Does what a line says. Errors that end the conversation come back.
    fn take(&mut self, model: &Model, line: Line<'_>) -> Result<()> {
        match line {
            Line::Nothing | Line::Quit => {}
            Line::Help => tell!("{HELP}"),
            Line::Wrong(why) => tell!("{why}"),
            Line::Clear => self.messages.clear(),
            Line::System(text) => {
                self.system = text.to_string();
                self.messages.clear();
            }
            Line::Undo => match self.pop_message() {
                Some(said) => tell!("[taken back: {}]", said.content),
                None => tell!("nothing was said yet"),
            },
            Line::Regenerate => match self.pop_message() {
                Some(said) => return self.say(said.content),
                None => tell!("nothing was said yet"),
            },
            Line::Save(path) => told(self.save(Path::new(path))),
            Line::Load(path) => told(self.load(Path::new(path))),
            Line::Compose(name) => told(self.compose(model, name)),
            Line::Message(text) => return self.say(text.to_string()),
        }
        Ok(())
    }

    /// Takes back the user's last message, with what was answered.
    fn pop_message(&mut self) -> Option<Said> {
        let last = self.messages.iter().rposition(|said| said.role == "user")?;
        let said = self.messages[last].clone();
        self.messages.truncate(last);
        Some(said)
    }

    /// Answers a message.
    fn say(&mut self, content: String) -> Result<()> {
        let role = "user".to_string();
        self.messages.push(Said { role, content });
        self.stop.store(false, Ordering::Relaxed);
        let reply = self.reply();
        // Another answer to the same words draws other numbers.
        self.sampling.seed = self.sampling.seed.wrapping_add(1);
        match reply {
            Ok(content) => {
                let role = "assistant".to_string();
                self.messages.push(Said { role, content });
            }
            Err(error) => {
                self.messages.pop();
                // The terminal, or whoever reads, is gone.
                if error.downcast_ref::<std::io::Error>().is_some() {
                    return Err(error);
                }
                let hint = match error.downcast_ref() {
                    Some(Error::Session(_)) => "; /clear begins a new conversation",
                    _ => "",
                };
                tell!("error: {error:#}{hint}");
            }
        }
        Ok(())
    }

    /// Evaluates what of the conversation is new, and streams the reply.
    fn reply(&mut self) -> Result<String> {
        let system = Some(&*self.system).filter(|text| !text.is_empty());
        let messages = self.messages.iter();
        let messages: Vec<Message<'_>> = system
            .map(Message::system)
            .into_iter()
            .chain(messages.map(|s| Message {
                role: &s.role,
                content: &s.content,
            }))
            .collect();
        let is_stopped = || self.stop.load(Ordering::Relaxed);
        let mut text = String::new();
        let mut out = std::io::stdout().lock();
        let mut generation = self.session.generate(&messages[..], &self.sampling)?;
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
            None | Some(StopReason::EndOfText | StopReason::StopString) => {}
            Some(reason) => tell!("[stopped: {}]", reason.name()),
        }
        Ok(text)
    }

    /// The whole conversation, the system's message first.
    fn save(&self, path: &Path) -> Result<String> {
        let system = Said {
            role: "system".to_string(),
            content: self.system.clone(),
        };
        let system = Some(system).filter(|said| !said.content.is_empty());
        let all: Vec<_> = system.iter().chain(&self.messages).collect();
        write_atomically(path, |file| -> Result<()> {
            serde_json::to_writer_pretty(&mut *file, &all)?;
            Ok(writeln!(file)?)
        })
        .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(format!("[{} messages saved]", all.len()))
    }

    fn load(&mut self, path: &Path) -> Result<String> {
        let wrong = || format!("{} is no saved conversation", path.display());
        let mut all: Vec<Said> = serde_json::from_slice(&open::bytes(path)?).with_context(wrong)?;
        let is_known = |said: &Said| matches!(&*said.role, "system" | "user" | "assistant");
        ensure!(all.iter().all(is_known), "{}", wrong());
        let n = all.len();
        self.system = match all.first() {
            Some(first) if first.role == "system" => all.remove(0).content,
            _ => String::new(),
        };
        self.messages = all;
        Ok(format!("[{n} messages loaded]"))
    }

    fn compose(&mut self, model: &Model, name: &str) -> Result<String> {
        let composition = match name {
            "none" => None,
            _ => self.args.model.composition_named(model, name)?,
        };
        self.session.set_composition(composition.as_ref())?;
        Ok(format!("[composition: {name}]"))
    }
}

/// Says how a command went.
fn told(result: Result<String>) {
    match result {
        Ok(text) => tell!("{text}"),
        Err(error) => tell!("error: {error:#}"),
    }
}
