//! What `tandem doctor` prints.

use std::fmt::{self, Write as _};

use serde::Serialize;

use super::cpu::{Cores, Cpu};
use super::fit::{Fit, Verdict};
use super::machine::{Memory, Power, System, Temperature};
use crate::inspect::{escape, size};

/// All that was found. Null is what the machine does not tell.
#[derive(Serialize)]
pub(super) struct Report {
    pub version: &'static str,
    #[serde(flatten)]
    pub system: System,
    #[serde(flatten)]
    pub cpu: Cpu,
    /// The level that is chosen, and those that there are.
    pub level: &'static str,
    pub levels: Option<Vec<&'static str>>,
    pub memory: Memory,
    pub power: Power,
    pub temperatures: Vec<Temperature>,
    pub bandwidth: Vec<Bandwidth>,
    /// Threads that there are cores for, and how many of them generate tokens.
    pub threads: Option<usize>,
    pub decode_threads: Option<usize>,
    pub model: Option<Fit>,
    /// What is not as it should be, and what to do.
    pub notes: Vec<String>,
}

/// How fast some threads read memory together.
#[derive(Serialize)]
pub(super) struct Bandwidth {
    pub threads: usize,
    pub bytes_per_second: f64,
}

impl Report {
    /// The report for people.
    pub(super) fn text(&self) -> Result<String, fmt::Error> {
        let mut s = String::new();
        let system = &self.system;
        line(&mut s, "board", or_unknown(&system.board))?;
        let mut os = vec![or_unknown(&system.os)];
        os.extend(
            system
                .kernel
                .as_ref()
                .map(|k| format!("Linux {}", escape(k))),
        );
        os.extend(system.l4t.as_deref().map(escape));
        os.push(match system.page_bytes {
            Some(n) => format!("pages of {} KiB", n / 1024),
            None => "page size unknown".to_string(),
        });
        line(&mut s, "system", os.join(", "))?;
        if self.cpu.cores.is_empty() {
            line(&mut s, "cores", "unknown".to_string())?;
        }
        for cores in &self.cpu.cores {
            line(&mut s, "cores", cores.text())?;
        }
        if let Some(offline) = &self.cpu.offline {
            line(&mut s, "", format!("switched off: {}", escape(offline)))?;
        }
        line(&mut s, "features", self.cpu.features.join(" "))?;
        let levels = self
            .levels
            .as_ref()
            .map(|l| format!(" (of {})", l.join(", ")));
        line(
            &mut s,
            "level",
            format!("{}{}", self.level, levels.unwrap_or_default()),
        )?;
        self.memory_text(&mut s)?;
        self.power_text(&mut s)?;
        for t in &self.temperatures {
            let slows = t.slows_at.map(|at| format!(", slows down at {at:.0}"));
            let slows = slows.unwrap_or_default();
            let text = format!("{} {:.0} C{slows}", escape(&t.zone), t.celsius);
            line(&mut s, "heat", text)?;
        }
        for b in &self.bandwidth {
            let speed = format!(
                "{:.1} GB/s on {}",
                b.bytes_per_second / 1e9,
                threads(b.threads)
            );
            line(&mut s, "reads", speed)?;
        }
        let n = |n: Option<usize>| n.map_or("unknown".to_string(), threads);
        line(
            &mut s,
            "threads",
            format!(
                "prompts on {}, tokens on {}",
                n(self.threads),
                n(self.decode_threads)
            ),
        )?;
        if let Some(model) = &self.model {
            model.text(&mut s)?;
        } else if let Some(best) = self
            .bandwidth
            .iter()
            .map(|b| b.bytes_per_second)
            .reduce(f64::max)
        {
            let text = format!(
                "{:.1} tokens/s with 1 GB of weights, half with 2 GB",
                best / 1e9
            );
            line(&mut s, "at most", text)?;
        }
        for note in &self.notes {
            line(&mut s, "note", note.clone())?;
        }
        Ok(s)
    }

    fn memory_text(&self, s: &mut String) -> fmt::Result {
        let memory = &self.memory;
        let amount = |n: Option<u64>| n.map_or("unknown".to_string(), bytes);
        let (all, free) = (amount(memory.total), amount(memory.available));
        let limit = match (memory.limit, memory.limit_left) {
            (Some(limit), Some(left)) => {
                format!(
                    "; a control group allows {}, {} left",
                    bytes(limit),
                    bytes(left)
                )
            }
            _ => String::new(),
        };
        line(s, "memory", format!("{all}, {free} available{limit}"))?;
        for swap in &memory.swap {
            let name = escape(&swap.name);
            let (all, used) = (bytes(swap.bytes), bytes(swap.used));
            line(s, "swap", format!("{name}: {all}, {used} used"))?;
        }
        if memory.swap.is_empty() {
            line(s, "swap", "none".to_string())?;
        }
        Ok(())
    }

    fn power_text(&self, s: &mut String) -> fmt::Result {
        let power = &self.power;
        if let Some(mode) = &power.jetson_mode {
            line(s, "power", format!("Jetson mode {}", escape(mode)))?;
        }
        let list = |limits: &[&str]| match limits {
            [] => "none".to_string(),
            limits => limits.join(", "),
        };
        match (&power.limits_now, &power.limits_before) {
            (Some(now), Some(before)) => {
                let text = format!(
                    "limits now: {}; since the start: {}",
                    list(now),
                    list(before)
                );
                line(s, "power", text)
            }
            (Some(now), None) => line(s, "power", format!("limits now: {}", list(now))),
            (None, _) if power.jetson_mode.is_none() => line(
                s,
                "power",
                "unknown whether it limits the speed".to_string(),
            ),
            (None, _) => Ok(()),
        }
    }

    /// What is not as it should be, and what to do.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let all = [&self.power.limits_now, &self.power.limits_before];
        let limits: Vec<_> = all.into_iter().flatten().flatten().copied().collect();
        if limits.contains(&"under-voltage") {
            notes
                .push("the supply's voltage fell too low: use the board's own power supply".into());
        } else if !limits.is_empty() {
            notes.push("the board slowed down: cool it, and look for a tight power supply".into());
        }
        let hot = |t: &Temperature| t.slows_at.is_some_and(|at| t.celsius >= at);
        if let Some(hot) = self.temperatures.iter().find(|t| hot(t)) {
            notes.push(format!(
                "{} is so hot that it slows down",
                escape(&hot.zone)
            ));
        }
        let cores = &self.cpu.cores;
        if cores
            .iter()
            .any(|c| c.governor.as_deref() == Some("powersave"))
        {
            notes.push("the governor powersave keeps the cores slow: choose ondemand".into());
        }
        let capped = cores.iter().find_map(|c| c.capped_mhz.zip(c.max_mhz));
        if let Some((cap, max)) = capped {
            notes.push(format!("cores may run at {cap} of {max} MHz only"));
        }
        let mode = self.power.jetson_mode.as_deref();
        if mode.is_some_and(|mode| !mode.starts_with("MAXN")) {
            notes
                .push("`sudo nvpmodel -m 0` chooses the mode of full power on most Jetsons".into());
        }
        if let (Some(4096), Some(board)) = (self.system.page_bytes, &self.system.board)
            && board.starts_with("Raspberry Pi 5")
        {
            notes.push(
                "the kernel with pages of 16 KiB, kernel_2712.img, is a little faster".into(),
            );
        }
        if let Some(model) = &self.model {
            notes.extend(model.note());
        }
        notes
    }
}

impl Cores {
    fn text(&self) -> String {
        let mut parts = vec![format!("{} x {}", self.cpus.len(), escape(&self.name))];
        parts.extend(self.max_mhz.map(|mhz| format!("up to {mhz} MHz")));
        parts.extend(self.capacity.map(|c| format!("capacity {c}")));
        parts.extend(
            self.governor
                .as_ref()
                .map(|g| format!("governor {}", escape(g))),
        );
        parts.join(", ")
    }
}

impl Fit {
    fn text(&self, s: &mut String) -> fmt::Result {
        line(s, "model", escape(&self.file.display().to_string()))?;
        let (weights, token) = (bytes(self.weight_bytes), size(self.bytes_per_token));
        line(s, "", format!("{weights} of weights, {token} read a token"))?;
        if self.table_bytes > 0 {
            let table = bytes(self.table_bytes);
            let text = format!("{table} of embeddings for each layer, which may stay on the disk");
            line(s, "", text)?;
        }
        let (cache, buffers) = (size(self.kv_cache_bytes), size(self.buffer_bytes));
        line(
            s,
            "",
            format!(
                "{cache} of cache for {} tokens, {buffers} of buffers",
                self.ctx
            ),
        )?;
        let verdict = match self.verdict {
            Some(Verdict::Fits) => "fits",
            Some(Verdict::WeightsDoNotStay) => "does not stay in memory",
            Some(Verdict::DoesNotFit) => "does not fit",
            None => "unknown whether it fits",
        };
        line(s, "", verdict.to_string())?;
        if let Some((empty, full)) = self.max_tokens_per_second {
            let text = format!("{empty:.1} tokens/s, {full:.1} when the context is full");
            line(s, "at most", text)?;
        }
        Ok(())
    }

    fn note(&self) -> Option<String> {
        let what = match self.verdict? {
            Verdict::Fits => return None,
            Verdict::WeightsDoNotStay => {
                "the weights do not stay in memory, each token waits for the disk"
            }
            Verdict::DoesNotFit => "the cache does not fit",
        };
        let ctx = match self.max_ctx {
            Some(n) => format!("use --ctx {n} or less, or --kv-type q8_0"),
            None => "use a smaller model or fewer bits, see `tandem quantize`".to_string(),
        };
        Some(format!("{what}: {ctx}"))
    }
}

/// A line with its heading.
fn line(s: &mut String, heading: &str, text: String) -> fmt::Result {
    writeln!(s, "{heading:<9} {text}")
}

fn or_unknown(text: &Option<String>) -> String {
    text.as_deref().map_or("unknown".to_string(), escape)
}

fn bytes(n: u64) -> String {
    size(usize::try_from(n).unwrap_or(usize::MAX))
}

fn threads(n: usize) -> String {
    match n {
        1 => "1 thread".to_string(),
        n => format!("{n} threads"),
    }
}
