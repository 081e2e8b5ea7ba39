//! `tandem serve`: an HTTP server, in which every composition is a model by name.
//!
//! One thread talks with the clients ([`http`]), another owns the model ([`scheduler`]). A request is read and
//! checked ([`chat`], [`completions`]), becomes a task for each text that it asks for, is worked on in a [`slot`],
//! and gets events back, of which its answer is made ([`answer`]).

mod access;
mod answer;
mod asked;
mod cache;
mod call_grammar;
mod catalog;
mod chat;
mod completions;
mod error;
mod fields;
mod http;
mod info;
mod line;
mod listen;
mod logprobs;
mod messages;
mod metrics;
mod ollama;
mod output;
mod pace;
mod scheduler;
mod slot;
mod store;
mod task;
mod tools;

use std::hash::{BuildHasher as _, Hasher as _};
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use tandem_engine::chat::Chat;
use tandem_engine::constraint::{Framed, GrammarError, Grammars};
use tandem_engine::tokenizer::Tokenizer;
use tandem_engine::{
    Composition, MAX_SPANS, Model, Sampling, Sequence, Session, SessionOptions, Worker,
};
use tokio::sync::mpsc;

use self::access::{Access, Caller, Peer};
use self::answer::Answer;
use self::asked::Asked;
use self::cache::Group;
use self::catalog::{Catalog, HowToOpen, Made, Sources, content_id};
use self::error::ApiError;
use self::http::Offers;
use self::line::Line;
use self::listen::Listener;
use self::metrics::{Counted, Metrics};
use self::output::Form;
use self::scheduler::{Limits, Scheduler};
use self::store::{Folder, Store};
use self::task::{Calls, Event, MAX_EVENTS, Message, Task};
use crate::adapters::{Parts, read_all};
use crate::args::{AdapterArgs, FileArgs, SessionArgs, size};
use crate::calls::syntax::CallSyntax;
use crate::open;

/// Requests that are read at once.
const MAX_READERS: usize = 4;

/// Answer requests over HTTP, as OpenAI's API and Ollama's have them
///
/// The base and every composition of the bundles are models by name. Clients are pointed at
/// http://127.0.0.1:8080/v1. A key, if one is needed, is better given by a file or by TANDEM_API_KEY: others
/// on the machine can read a command line.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    file: FileArgs,
    /// Make each composition of this bundle a model; several may be given
    #[arg(long, value_name = "FILE")]
    bundle: Vec<PathBuf>,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// Name of the composition that --lora makes [default: lora]
    #[arg(long, value_name = "NAME", requires = "lora")]
    name: Option<String>,
    /// Name of the base [default: its file's]; `base` is always another one
    #[arg(long, value_name = "NAME")]
    name_base: Option<String>,
    /// Another name of a model, of the default one if none is named; several may be given
    #[arg(long, value_name = "NAME[=MODEL]")]
    alias: Vec<String>,
    /// The model of requests that name none [default: the base]
    #[arg(long, value_name = "MODEL")]
    default: Option<String>,
    /// Address to listen on; a path is a Unix socket
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// Permissions of the Unix socket, in octal
    #[arg(long, value_name = "MODE", default_value = "660", value_parser = octal)]
    socket_mode: Mode,
    /// Answers at work at once [default: as many as memory allows, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MAX_SPANS as i64))]
    parallel: Option<u16>,
    /// Requests that may wait; more are told to come again later
    #[arg(long, value_name = "N", default_value_t = 64)]
    queue: usize,
    /// Memory for what was evaluated before, to go on from: 512M, 1G [default: a quarter of what is free, at
    /// most 512M]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    cache: Option<usize>,
    /// Keep what was evaluated over restarts, in files of this folder, of --cache's size together. They hold
    /// what was said
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// A key that requests need; several may be given
    #[arg(
        long,
        value_name = "KEY",
        env = "TANDEM_API_KEY",
        hide_env_values = true
    )]
    api_key: Vec<String>,
    /// Keys that requests need, one a line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Let pages of this origin ask, beside those of this machine; * lets all, and needs a key
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// Answer to this host name, too
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// The largest request's body
    #[arg(long, value_name = "SIZE", default_value = "8M", value_parser = size)]
    max_body: usize,
    /// Seconds that a connection may be idle, or send headers
    #[arg(long, value_name = "S", default_value_t = 65)]
    timeout_idle: u64,
    /// Seconds that a request's body may take
    #[arg(long, value_name = "S", default_value_t = 30)]
    timeout_read: u64,
    /// Seconds that answers at work may go on when the server is to end
    #[arg(long, value_name = "S", default_value_t = 30)]
    grace: u64,
    /// Leave out the page for the browser
    #[arg(long)]
    no_page: bool,
    /// Leave out what Ollama's clients ask for
    #[arg(long)]
    no_ollama: bool,
    /// End when nobody has asked for so many seconds; with systemd's socket activation the next request
    /// starts the server again
    #[arg(long, value_name = "S")]
    exit_idle: Option<u64>,
    #[command(flatten)]
    session: SessionArgs,
}

/// Permissions of a file.
#[derive(Clone, Copy, Debug)]
struct Mode(u32);

fn octal(text: &str) -> std::result::Result<Mode, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(Mode(mode)),
        _ => Err("permissions in octal are wanted, as 660".to_string()),
    }
}

/// The server, from its first moment on.
struct Server {
    access: Access,
    offers: Offers,
    max_body: usize,
    timeout_idle: Duration,
    timeout_read: Duration,
    grace: Duration,
    exit_idle: Option<Duration>,
    /// Not there while the model is being opened.
    served: OnceLock<Served>,
    /// How many requests' answers are not over.
    n_at_work: AtomicUsize,
    /// Bytes of all bodies that are being read.
    n_body_bytes: AtomicUsize,
    is_ending: tokio::sync::watch::Sender<bool>,
    /// Whether answers at work may go on when the server is to end.
    has_grace: tokio::sync::watch::Sender<bool>,
}

impl Server {
    fn is_ending(&self) -> bool {
        *self.is_ending.borrow()
    }

    /// From now on no answers begin.
    fn end(&self) {
        self.is_ending.send_replace(true);
        if let Some(served) = self.served.get() {
            let _ = served.inbox.send(Message::Ending);
        }
    }

    fn served(&self) -> Result<&Served, ApiError> {
        self.served.get().ok_or_else(|| ApiError {
            retry_after: Some(1),
            ..ApiError::new(
                hyper::StatusCode::SERVICE_UNAVAILABLE,
                "the model is being opened",
            )
            .code("loading")
        })
    }
}

/// Lets the model's thread end when it is dropped.
struct EndWithThis(Arc<Server>);

impl Drop for EndWithThis {
    fn drop(&mut self) {
        if let Some(served) = self.0.served.get() {
            let _ = served.inbox.send(Message::End);
        }
    }
}

/// What can be asked, once the model is open.
struct Served {
    model: Model,
    /// The model's file's name, without its folder.
    file_name: String,
    catalog: RwLock<Arc<Catalog>>,
    sources: Sources,
    calls: CallSyntax,
    /// Whether the template knows of thoughts.
    thinks: bool,
    defaults: Sampling,
    n_ctx: usize,
    n_parallel: usize,
    inbox: Sender<Message>,
    line: Arc<Line>,
    /// The tokens that end answers.
    ends: Arc<[u32]>,
    metrics: Arc<Metrics>,
}

impl Served {
    /// What can be asked for now.
    fn catalog(&self) -> Arc<Catalog> {
        let catalog = self.catalog.read();
        Arc::clone(&catalog.unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the bundles anew; where that cannot be, all stays as it is.
    fn reload(&self) {
        match self.sources.read(&self.model, Some(&self.catalog())) {
            Ok(catalog) => {
                let n = catalog.entries().len();
                let mut place = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
                *place = Arc::new(catalog);
                tell!("the bundles were read anew: {n} models");
            }
            Err(error) => tell!("error: the bundles are used as they were: {error:#}"),
        }
    }

    fn metrics_text(&self) -> String {
        let catalog = self.catalog();
        let counted = catalog.entries().iter().map(|entry| Counted {
            model: &entry.id,
            tokens: &entry.counts,
        });
        self.metrics.text(counted)
    }

    fn tokenizer(&self) -> Result<&Tokenizer, ApiError> {
        self.model.tokenizer().map_err(|_| ApiError::internal())
    }

    fn grammars(&self) -> Result<&Grammars, ApiError> {
        let grammars = self.model.grammars();
        grammars.map_err(|error| grammar_error("", &error))
    }

    fn chat(&self) -> Result<&Chat, ApiError> {
        match self.model.chat() {
            Ok(Some(chat)) => Ok(chat),
            _ => Err(chat::no_template()),
        }
    }
}

/// A request that was checked: what the model is to do.
struct Job {
    asked: Asked,
    prompt: Arc<[u32]>,
    more_prompts: Vec<Arc<[u32]>>,
    composition: Option<Composition>,
    answer: Answer,
    caller: Caller,
    asked_at: Instant,
    logprobs: Option<usize>,
    prompt_logprobs: bool,
    /// Where in the prompt others are likely to go on from.
    boundary: Option<usize>,
    form: Form,
    /// What the answer must be, where anything was asked for.
    grammar: Option<Arc<Framed>>,
    /// Of calls that the model may make.
    calls: Option<Arc<Calls>>,
}

/// A request at work.
struct Submitted {
    answer: Answer,
    events: mpsc::Receiver<Event>,
    stream: bool,
}

impl Job {
    fn new(
        asked: Asked,
        prompt: Arc<[u32]>,
        composition: Option<Composition>,
        answer: Answer,
    ) -> Job {
        Job {
            asked,
            prompt,
            more_prompts: Vec::new(),
            composition,
            answer,
            caller: Caller::at(Peer::HERE),
            asked_at: Instant::now(),
            logprobs: None,
            prompt_logprobs: false,
            boundary: None,
            form: Form::default(),
            grammar: None,
            calls: None,
        }
    }

    /// Hands the request to the model's thread.
    fn submit(mut self, served: &Served) -> Result<Submitted, ApiError> {
        let mut place = Some(served.line.enter(self.caller.line)?);
        let (sender, events) = mpsc::channel(MAX_EVENTS);
        let mut prompts = vec![self.prompt.clone()];
        prompts.append(&mut self.more_prompts);
        let n = self.asked.n;
        for (i, prompt) in prompts.into_iter().enumerate() {
            let choices = i * n..(i + 1) * n;
            let mut choices = choices.map(|choice| self.task(choice, &prompt, served, &sender));
            let Some(mut first) = choices.next() else {
                continue;
            };
            first.followers = choices.collect();
            first.place = place.take();
            served
                .inbox
                .send(Message::Task(Box::new(first)))
                .map_err(|_| ApiError::internal())?;
        }
        self.answer.streams = self.asked.stream;
        Ok(Submitted {
            answer: self.answer,
            events,
            stream: self.asked.stream,
        })
    }

    /// The task of one choice; the k-th of its prompt has the k-th seed.
    fn task(
        &self,
        choice: usize,
        prompt: &Arc<[u32]>,
        served: &Served,
        events: &mpsc::Sender<Event>,
    ) -> Task {
        let k = choice % self.asked.n;
        let mut sampling = self.asked.sampling.clone();
        sampling.seed = sampling.seed.wrapping_add(k as u64);
        sampling.max_tokens = sampling.max_tokens.min(served.n_ctx - prompt.len());
        Task {
            choice,
            counts: Arc::clone(&self.asked.model.counts),
            composition: self.composition.clone(),
            prompt: Arc::clone(prompt),
            sampling,
            logit_bias: Arc::clone(&self.asked.logit_bias),
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs && k == 0,
            form: self.form.clone(),
            grammar: self.grammar.clone(),
            calls: self.calls.clone(),
            group: Group {
                composition: content_id(self.composition.as_ref()),
                caller: self.caller.group,
            },
            keep: self.asked.keep,
            boundary: self.boundary,
            events: events.clone(),
            followers: Vec::new(),
            asked_at: self.asked_at,
            place: None,
            ends: Arc::clone(&served.ends),
        }
    }
}

pub(crate) fn serve(args: &Args) -> Result<()> {
    let mut access = Access::default();
    access.origins = args.allow_origin.clone();
    access.hosts = args.allow_host.clone();
    let keys = keys(args)?;
    access.set_keys(keys.iter().map(String::as_str));
    ensure!(
        !keys.is_empty() || !access.origins.iter().any(|origin| origin == "*"),
        "--allow-origin * needs an API key: else every page that you open could use the model"
    );
    // First of all, so that a port that is taken is told at once.
    let listener = Listener::bind(&args.host, args.port, args.socket_mode.0)?;
    access.is_public = listener.is_public();
    access.is_unix = listener.is_unix();
    if access.is_public && keys.is_empty() {
        tell!(
            "warning: whoever reaches {} can use the model, as no API key is needed: see --api-key-file",
            listener.address()
        );
    }
    let server = Arc::new(Server {
        access,
        offers: Offers {
            page: !args.no_page,
            ollama: !args.no_ollama,
        },
        max_body: args.max_body,
        timeout_idle: Duration::from_secs(args.timeout_idle),
        timeout_read: Duration::from_secs(args.timeout_read),
        grace: Duration::from_secs(args.grace),
        exit_idle: args.exit_idle.map(Duration::from_secs),
        served: OnceLock::new(),
        n_at_work: AtomicUsize::new(0),
        n_body_bytes: AtomicUsize::new(0),
        is_ending: tokio::sync::watch::Sender::new(false),
        has_grace: tokio::sync::watch::Sender::new(true),
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Reading requests must not take all cores from the model.
        .max_blocking_threads(MAX_READERS)
        .build()?;
    let address = listener.address();
    let clients = std::thread::spawn({
        let server = Arc::clone(&server);
        move || {
            // The model's thread ends with this one, however that ends.
            let _end = EndWithThis(Arc::clone(&server));
            runtime.block_on(http::run(server, listener));
            // Whoever reads a request still has nobody to answer.
            runtime.shutdown_background();
        }
    });
    let scheduler = open_model(args, &server)?;
    drop(server);
    tell!("listening on {address}");
    if address.starts_with("http") {
        tell!("open that in a browser, or give it to clients, with /v1 to those of OpenAI's API");
    }
    listen::tell_ready();
    scheduler.run();
    clients
        .join()
        .map_err(|_| anyhow!("the thread that talks with clients failed"))
}

fn keys(args: &Args) -> Result<Vec<String>> {
    let mut keys = args.api_key.clone();
    let is_empty = |key: &String| key.trim().is_empty();
    ensure!(!keys.iter().any(is_empty), "the API key is empty");
    if let Some(path) = &args.api_key_file {
        let name = || format!("cannot read {}", path.display());
        let text = std::fs::read_to_string(path).with_context(name)?;
        keys.extend(text.lines().map(|line| line.trim().to_string()));
        let has_some = keys.iter().any(|key| !key.is_empty());
        ensure!(has_some, "{} has no keys", path.display());
    }
    keys.retain(|key| !key.is_empty());
    Ok(keys)
}

/// Opens all that the flags name, after which requests are answered.
fn open_model(args: &Args, server: &Server) -> Result<Scheduler> {
    let model = args.file.open()?;
    open::tokenizer(args.file.path(), &model)?;
    // A template that cannot be read is told now, not to the first client.
    let chat = model
        .chat()
        .context("cannot use the file's chat template")?;
    let pool = args.session.pool();
    let options = args.session.options(&model, &pool, None);
    Session::check_memory(model.config(), &options, None)?;
    let how = HowToOpen {
        adapter_type: args.session.adapter_type(&model),
        level: options.level,
        pool: pool.clone(),
    };
    let sources = sources(args, &model, how)?;
    let catalog = sources.read(&model, None)?;
    let limits = limits(args, &model, &options);
    let metrics = Arc::new(Metrics::default());
    let worker = Worker::new(&model, pool, &options)?;
    let (inbox, tasks) = std::sync::mpsc::channel();
    let vocab = model.tokenizer()?.vocab();
    let ids = 0..vocab.n_tokens() as u32;
    let ends = ids.filter(|id| vocab.is_end_of_generation(*id)).collect();
    let template = model.gguf().ok();
    let template = template.and_then(|gguf| gguf.get_str(info::TEMPLATE).ok().flatten());
    let served = Served {
        file_name: args
            .file
            .path()
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into(),
        calls: CallSyntax::learn(chat, model.tokenizer()?),
        thinks: template.is_some_and(|template| template.contains("<think>")),
        defaults: asked::defaults(&model),
        n_ctx: options.n_ctx,
        n_parallel: limits.n_parallel,
        line: Arc::new(Line::new(args.queue + limits.n_parallel)),
        inbox,
        ends,
        metrics: Arc::clone(&metrics),
        catalog: RwLock::new(Arc::new(catalog)),
        sources,
        model,
    };
    let mut scheduler = Scheduler::new(worker, options, limits, tasks, metrics);
    if let Some(path) = &args.cache_dir {
        let folder = Folder::open(path, &served.model, &options, limits.cache_bytes)?;
        scheduler.keep_in(Store::start(folder, served.inbox.clone())?);
    }
    // It was empty until now.
    let _ = server.served.set(served);
    Ok(scheduler)
}

/// What the flags make models of.
fn sources(args: &Args, model: &Model, how: HowToOpen) -> Result<Sources> {
    let mut made = None;
    if let Some(first) = args.adapters.lora.first() {
        let base = model.linears();
        let adapters = read_all(&args.adapters, base)?;
        let parts = Parts::new(&args.adapters, base, adapters, how.adapter_type)?;
        made = parts.composition(base)?.map(|composition| Made {
            name: args.name.clone().unwrap_or_else(|| "lora".to_string()),
            file: first.path.clone(),
            composition,
        });
    }
    let file = args.file.path();
    let base = args.name_base.clone();
    Ok(Sources {
        base: base.unwrap_or_else(|| catalog::base_name(file)),
        file: file.to_path_buf(),
        bundles: args.bundle.clone(),
        made,
        default: args.default.clone(),
        aliases: args.alias.clone(),
        how,
    })
}

/// What the flags say, else what the memory allows.
fn limits(args: &Args, model: &Model, options: &SessionOptions) -> Limits {
    let free = tandem_engine::free_memory().unwrap_or(usize::MAX);
    let cache_bytes = args.cache.unwrap_or((free / 4).min(512 << 20));
    let context = Sequence::n_bytes(model.config(), options).unwrap_or(usize::MAX);
    let fit = free.saturating_sub(cache_bytes) / context.max(1);
    let n_parallel = args.parallel.map_or(fit.clamp(1, 4), usize::from);
    Limits {
        n_parallel: n_parallel.min(options.n_batch),
        cache_bytes,
    }
}

/// A form that answers cannot be held to, which the request has at `param`.
fn grammar_error(param: &str, error: &GrammarError) -> ApiError {
    let code = match error {
        GrammarError::Invalid(_) => "invalid_schema",
        GrammarError::TooComplex(_) => "schema_too_complex",
        error => {
            tell!("error: {error}");
            return ApiError::internal();
        }
    };
    ApiError::field(param, &error.to_string()).code(code)
}

/// A number that nobody knows.
fn random() -> u64 {
    // Its keys are the system's random numbers.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u8(0);
    hasher.finish()
}

/// `n` letters and digits that nobody knows.
fn random_text(n: usize) -> String {
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut out = String::with_capacity(n);
    while out.len() < n {
        let mut bits = random();
        for _ in 0..8 {
            out.push(char::from(LETTERS[(bits % 62) as usize]));
            bits /= 62;
        }
    }
    out.truncate(n);
    out
}
