//! `tandem doctor`: what a machine has, and what a model may expect of it.

pub(crate) mod cpu;
mod fit;
mod machine;
mod report;
mod root;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use tandem_engine::{Level, Pool, threads};
use tandem_kernels::Limited;

use crate::args::{AdapterArgs, BundleArgs, SessionArgs};
use crate::bandwidth::ReadBandwidth;
use cpu::Cpu;
use fit::Fit;
use machine::{Memory, Power, System};
use report::{Bandwidth, Report};
use root::Root;

/// Show what this machine has, and what a model may expect of it
///
/// CPU, cores and the level that is chosen, memory, swap, temperature and power, the memory's read
/// bandwidth and the threads that follow from it. With a model: whether it fits, and the most
/// tokens a second that the bandwidth allows.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Tell whether this model fits, and how fast it can be at most
    #[arg(long, short, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Read /proc, /sys, /etc and /var/lib/nvpmodel below this folder: another machine's, copied from
    /// there. Nothing is measured then
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    #[command(flatten)]
    adapters: AdapterArgs,
    #[command(flatten)]
    bundle: BundleArgs,
    #[command(flatten)]
    session: SessionArgs,
}

/// Times that the bandwidth of a number of threads is measured; the best one tells what they can
/// do, as noise only slows.
const N_RUNS: usize = 3;

/// The temperature of this machine's hottest zone, in degrees Celsius.
pub(crate) fn hottest_zone() -> Option<f64> {
    let zones = machine::temperatures(&Root(Path::new("/")));
    zones.iter().map(|zone| zone.celsius).max_by(f64::total_cmp)
}

pub(crate) fn doctor(args: &Args) -> Result<()> {
    let is_here = args.root == Path::new("/");
    ensure!(args.root.is_dir(), "{} is no folder", args.root.display());
    ensure!(
        args.model.is_some()
            || args.bundle.bundle.is_none()
                && args.adapters.lora.is_empty()
                && args.adapters.calibration.is_none(),
        "name the model that the adapters are for by --model"
    );
    let root = Root(&args.root);
    let cpu = Cpu::read(&root);
    let (level, levels) = match is_here {
        true => {
            let level = args.session.cpu.level();
            let levels = Level::available().map(Level::name);
            (level.name(), Some(levels.collect()))
        }
        false => (cpu::level(&cpu.features), None),
    };
    let pool = args.session.pool();
    let memory = Memory::read(&root);
    let bandwidth = match is_here {
        true => measure(pool.get(), memory.usable()),
        false => Vec::new(),
    };
    let fit = match &args.model {
        Some(path) => Some(Fit::of(args, path, &pool, is_here, &memory, &bandwidth)?),
        None => None,
    };
    let decode_threads = match &fit {
        Some(fit) => fit.decode_threads,
        None => by_bandwidth(&bandwidth),
    };
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        system: System::read(&root),
        cpu,
        level,
        levels,
        memory,
        power: Power::read(&root, is_here),
        temperatures: machine::temperatures(&root),
        bandwidth,
        threads: is_here.then(|| pool.get().n_threads()),
        decode_threads,
        model: fit,
        notes: Vec::new(),
    };
    report.notes = report.notes();
    let text = match args.json {
        true => serde_json::to_string_pretty(&report)? + "\n",
        false => report.text()?,
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// The bandwidth of every number of threads that is tried, with a buffer that fits the free memory.
fn measure(pool: &dyn Pool, free: Option<u64>) -> Vec<Bandwidth> {
    let free = free.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    let memory = ReadBandwidth::new(free);
    let best = |n: &usize| {
        let pool = Limited::new(pool, *n);
        let runs = (0..N_RUNS).map(|_| memory.measure(&pool));
        Bandwidth {
            threads: *n,
            bytes_per_second: runs.fold(0.0, f64::max),
        }
    };
    threads::counts(pool.n_threads()).iter().map(best).collect()
}

/// The fewest threads that read as fast as any number does.
fn by_bandwidth(bandwidth: &[Bandwidth]) -> Option<usize> {
    let counts: Vec<_> = bandwidth.iter().map(|b| b.threads).collect();
    let times: Vec<_> = bandwidth
        .iter()
        .map(|b| b.bytes_per_second.recip())
        .collect();
    (!counts.is_empty()).then(|| threads::fewest(&counts, &times))
}
