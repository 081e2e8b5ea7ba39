//! Learning calibrations and adapters.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tandem_tools::train::{
    CANDLE_THREADS, CalibrateArgs, CommonArgs, Step, TrainLoraArgs, Trained, Validation, Watch,
};

use crate::arguments::{Reader, readers};
use crate::error::{Failure, Result, argument};
use crate::interrupt::with_events;

/// What happens in a training.
enum Event {
    Note(String),
    Begin(usize, usize),
    Step(Step),
    Validating(usize, usize),
    Validation(Validation),
}

/// Tells the caller's thread.
struct Teller<'a> {
    sender: Mutex<SyncSender<Event>>,
    stop: &'a AtomicBool,
}

impl Teller<'_> {
    fn tell(&self, event: Event) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        // Where nobody listens any more, nobody wants to know.
        let _ = sender.send(event);
    }
}

impl Watch for Teller<'_> {
    fn note(&self, line: &str) {
        self.tell(Event::Note(line.to_string()));
    }

    fn begin(&self, n_done: usize, n_steps: usize) {
        self.tell(Event::Begin(n_done, n_steps));
    }

    fn step(&self, step: &Step) {
        self.tell(Event::Step(*step));
    }

    fn validating(&self, n_done: usize, n_examples: usize) {
        self.tell(Event::Validating(n_done, n_examples));
    }

    fn validated(&self, validation: &Validation) {
        self.tell(Event::Validation(*validation));
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// An event as the caller's function gets it.
fn to_python<'py>(py: Python<'py>, event: Event) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    match event {
        Event::Note(text) => {
            dict.set_item("event", "note")?;
            dict.set_item("text", text)?;
        }
        Event::Begin(n_done, n_steps) => {
            dict.set_item("event", "begin")?;
            dict.set_item("n_done", n_done)?;
            dict.set_item("n_steps", n_steps)?;
        }
        Event::Step(step) => {
            dict.set_item("event", "step")?;
            dict.set_item("n_done", step.n_done)?;
            dict.set_item("n_steps", step.n_steps)?;
            dict.set_item("loss", step.loss)?;
            dict.set_item("tokens_per_second", step.tokens_per_second)?;
            dict.set_item("seconds_left", step.left.as_secs_f64())?;
        }
        Event::Validating(n_done, n_examples) => {
            dict.set_item("event", "validating")?;
            dict.set_item("n_done", n_done)?;
            dict.set_item("n_examples", n_examples)?;
        }
        Event::Validation(validation) => {
            dict.set_item("event", "validation")?;
            dict.set_item("n_done", validation.n_done)?;
            dict.set_item("training_loss", validation.training_loss)?;
            dict.set_item("loss", validation.loss)?;
            dict.set_item("is_best", validation.is_best)?;
        }
    }
    Ok(dict)
}

/// Trains, and gives what came of it.
fn train<'py>(
    py: Python<'py>,
    progress: Option<&Bound<'py, PyAny>>,
    work: impl FnOnce(&dyn Watch) -> anyhow::Result<Trained> + Send,
) -> Result<Bound<'py, PyDict>> {
    let environ = py.import("os")?.getattr("environ")?;
    environ.call_method1("setdefault", (CANDLE_THREADS, "1"))?;
    let stop = AtomicBool::new(false);
    let told = |event| match progress {
        Some(progress) => progress.call1((to_python(py, event)?,)).map(drop),
        None => Ok(()),
    };
    let trained = with_events(py, &stop, told, |sender| {
        let watch = Teller {
            sender: Mutex::new(sender),
            stop: &stop,
        };
        work(&watch)
    })?;
    let trained = trained.map_err(Failure::from)?;
    let report = PyDict::new(py);
    report.set_item("n_steps", trained.n_steps)?;
    report.set_item("best_step", trained.best_step)?;
    report.set_item("best_loss", trained.best_loss)?;
    Ok(report)
}

/// The arguments that both take, and those left over.
fn common<'py>(
    recipe: PathBuf,
    options: Option<&Bound<'py, PyDict>>,
    mut own: impl FnMut(&Reader<'py>) -> Result<bool>,
) -> Result<CommonArgs> {
    let mut args = CommonArgs {
        recipe,
        ..CommonArgs::default()
    };
    for read in readers(options)? {
        match &*read.key {
            "data" => args.data = Some(read.value()?),
            "steps" => args.steps = Some(read.value()?),
            "epochs" => args.epochs = Some(read.value()?),
            "lr" => args.lr = Some(read.value()?),
            "batch" => args.batch = Some(read.value()?),
            "seed" => args.seed = Some(read.value()?),
            "out" => args.out = Some(read.value()?),
            "threads" => args.threads = NonZeroUsize::new(read.positive()?),
            "checkpoint" => args.checkpoint = Some(read.value()?),
            "resume" => args.resume = read.value()?,
            "curve" => args.curve = Some(read.value()?),
            _ if own(&read)? => {}
            _ => return read.unknown(),
        }
    }
    if args.steps.is_some() && args.epochs.is_some() {
        return argument("steps and epochs are one or the other");
    }
    Ok(args)
}

/// Learns a calibration by a recipe in TOML, as `tandem calibrate` does, on all cores. `kind`, `rank`, `data`,
/// `steps`, `epochs`, `lr`, `batch`, `seed`, `out`, `threads`, `checkpoint`, `resume`, `curve` stand in for what
/// the recipe says. `progress` is called with a dictionary for each event; what it raises, and Ctrl-C, stops the
/// training, keeping its best and the state to go on from. Gives the steps and the best loss.
#[pyfunction]
#[pyo3(signature = (recipe, *, progress=None, **options))]
pub(crate) fn calibrate<'py>(
    py: Python<'py>,
    recipe: PathBuf,
    progress: Option<&Bound<'py, PyAny>>,
    options: Option<&Bound<'py, PyDict>>,
) -> Result<Bound<'py, PyDict>> {
    let (mut kind, mut rank) = (None, None);
    let common = common(recipe, options, |read| {
        match &*read.key {
            "kind" => kind = Some(read.value()?),
            "rank" => rank = Some(read.value()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let args = CalibrateArgs { common, kind, rank };
    train(py, progress, |watch| {
        tandem_tools::train::calibrate(&args, watch)
    })
}

/// Learns a LoRA adapter by a recipe in TOML, as `tandem train-lora` does, on all cores. `rank` and `alpha`, and
/// all else as for `calibrate`.
#[pyfunction]
#[pyo3(signature = (recipe, *, progress=None, **options))]
pub(crate) fn train_lora<'py>(
    py: Python<'py>,
    recipe: PathBuf,
    progress: Option<&Bound<'py, PyAny>>,
    options: Option<&Bound<'py, PyDict>>,
) -> Result<Bound<'py, PyDict>> {
    let (mut rank, mut alpha) = (None, None);
    let common = common(recipe, options, |read| {
        match &*read.key {
            "rank" => rank = Some(read.value()?),
            "alpha" => alpha = Some(read.value()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let args = TrainLoraArgs {
        common,
        rank,
        alpha,
    };
    train(py, progress, |watch| {
        tandem_tools::train::train_lora(&args, watch)
    })
}
