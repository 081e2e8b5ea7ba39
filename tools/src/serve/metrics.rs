//! What the server counts, in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the histogram's buckets, in seconds.
const BOUNDS: [f64; 9] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Counters and gauges. All threads write, whoever asks reads.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    prompt_us: AtomicU64,
    predicted_us: AtomicU64,
    /// Of all models, those that are gone, too.
    all: TokenCounts,
    pub processing: AtomicI64,
    pub deferred: AtomicI64,
    pub cancelled: AtomicU64,
    pub switches: AtomicU64,
    pub cache_bytes: AtomicU64,
    pub cache_tokens: AtomicU64,
    pub connections: AtomicI64,
    first_token: Mutex<Histogram>,
    requests: Mutex<BTreeMap<Route, u64>>,
}

/// Tokens that a model had to do with.
#[derive(Debug, Default)]
pub(super) struct TokenCounts {
    prompt: AtomicU64,
    cached: AtomicU64,
    predicted: AtomicU64,
}

/// A model by name, and its tokens.
pub(super) struct Counted<'a> {
    pub model: &'a str,
    pub tokens: &'a TokenCounts,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Route {
    path: &'static str,
    status: u16,
}

#[derive(Debug, Default)]
struct Histogram {
    /// Those no longer than each of [`BOUNDS`].
    counts: [u64; BOUNDS.len()],
    n: u64,
    sum: f64,
}

impl Metrics {
    /// Tokens of a prompt were evaluated, for the model with these counts.
    pub(super) fn add_prompt(&self, model: &TokenCounts, n: usize) {
        for counts in [&self.all, model] {
            counts.prompt.fetch_add(n as u64, Relaxed);
        }
    }

    /// Tokens of a prompt were found in the cache.
    pub(super) fn add_cached(&self, model: &TokenCounts, n: usize) {
        for counts in [&self.all, model] {
            counts.cached.fetch_add(n as u64, Relaxed);
        }
    }

    /// A token was picked.
    pub(super) fn add_predicted(&self, model: &TokenCounts) {
        for counts in [&self.all, model] {
            counts.predicted.fetch_add(1, Relaxed);
        }
    }

    /// A pass took so long, of which the rows of prompts have a share from 0 to 1.
    pub(super) fn add_time(&self, time: Duration, prompts: f64) {
        let us = time.as_secs_f64() * 1e6;
        self.prompt_us.fetch_add((us * prompts) as u64, Relaxed);
        self.predicted_us
            .fetch_add((us * (1.0 - prompts)) as u64, Relaxed);
    }

    pub(super) fn add_first_token(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let mut histogram = lock(&self.first_token);
        for (count, bound) in histogram.counts.iter_mut().zip(BOUNDS) {
            *count += u64::from(seconds <= bound);
        }
        histogram.n += 1;
        histogram.sum += seconds;
    }

    /// A request was answered; `path` is the route's, never what the client wrote.
    pub(super) fn add_request(&self, path: &'static str, status: u16) {
        *lock(&self.requests)
            .entry(Route { path, status })
            .or_default() += 1;
    }

    /// All of it, with the counts of these models.
    pub(super) fn text<'m>(&self, models: impl Iterator<Item = Counted<'m>>) -> String {
        let mut out = Text::default();
        let seconds = |us: &AtomicU64| us.load(Relaxed) as f64 / 1e6;
        let count = |n: &AtomicU64| n.load(Relaxed) as f64;
        let gauge = |n: &AtomicI64| n.load(Relaxed) as f64;
        for (name, help, value) in [
            (
                "prompt_tokens_total",
                "Prompt tokens computed.",
                count(&self.all.prompt),
            ),
            (
                "prompt_cached_tokens_total",
                "Prompt tokens found in the cache.",
                count(&self.all.cached),
            ),
            (
                "prompt_seconds_total",
                "Time for prompts.",
                seconds(&self.prompt_us),
            ),
            (
                "tokens_predicted_total",
                "Tokens generated.",
                count(&self.all.predicted),
            ),
            (
                "tokens_predicted_seconds_total",
                "Time for generated tokens.",
                seconds(&self.predicted_us),
            ),
            (
                "requests_cancelled_total",
                "Answers whose clients left.",
                count(&self.cancelled),
            ),
            (
                "composition_switches_total",
                "Passes with another composition than the one before.",
                count(&self.switches),
            ),
        ] {
            out.one(name, "counter", help, value);
        }
        for (name, help, value) in [
            (
                "requests_processing",
                "Answers at work.",
                gauge(&self.processing),
            ),
            (
                "requests_deferred",
                "Answers that wait.",
                gauge(&self.deferred),
            ),
            (
                "cache_bytes",
                "Memory of cached prefixes.",
                count(&self.cache_bytes),
            ),
            (
                "cache_tokens",
                "Tokens of cached prefixes.",
                count(&self.cache_tokens),
            ),
            ("connections", "Open connections.", gauge(&self.connections)),
        ] {
            out.one(name, "gauge", help, value);
        }
        if let Some(n_bytes) = resident_bytes() {
            // By the name that all programs have it under.
            let name = "process_resident_memory_bytes";
            let _ = write!(
                out.0,
                "# HELP {name} Memory in use, pages of the model's file included.\n# TYPE {name} gauge\n\
                 {name} {n_bytes}\n"
            );
        }
        out.family("model_tokens_total", "counter", "Tokens by model and kind.");
        for Counted { model, tokens } in models {
            let model = escaped(model);
            for (kind, n) in [
                ("prompt", &tokens.prompt),
                ("cached", &tokens.cached),
                ("predicted", &tokens.predicted),
            ] {
                let labels = format!("{{model=\"{model}\",kind=\"{kind}\"}}");
                out.sample("model_tokens_total", &labels, count(n));
            }
        }
        out.family("requests_total", "counter", "Requests by route and status.");
        for (Route { path, status }, n) in &*lock(&self.requests) {
            let labels = format!("{{path=\"{path}\",status=\"{status}\"}}");
            out.sample("requests_total", &labels, *n as f64);
        }
        let name = "time_to_first_token_seconds";
        out.family(name, "histogram", "From a request to its first token.");
        let histogram = lock(&self.first_token);
        let bucket = format!("{name}_bucket");
        for (bound, n) in BOUNDS.iter().zip(histogram.counts) {
            out.sample(&bucket, &format!("{{le=\"{bound}\"}}"), n as f64);
        }
        out.sample(&bucket, "{le=\"+Inf\"}", histogram.n as f64);
        out.sample(&format!("{name}_sum"), "", histogram.sum);
        out.sample(&format!("{name}_count"), "", histogram.n as f64);
        out.0
    }
}

/// Memory that the process has in use.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// A thread that panicked left counts, which are right still.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn escaped(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(
            self.0,
            "# HELP tandem_{name} {help}\n# TYPE tandem_{name} {kind}\n"
        );
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(self.0, "tandem_{name}{labels} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, "", value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_told_in_the_format() {
        let metrics = Metrics::default();
        let (a, b) = (TokenCounts::default(), TokenCounts::default());
        metrics.add_prompt(&b, 5);
        metrics.add_predicted(&a);
        metrics.add_time(Duration::from_secs(2), 0.75);
        metrics.add_first_token(Duration::from_millis(200));
        metrics.add_request("/health", 200);
        let models = [("a", &a), ("b\"c", &b)];
        let text = metrics.text(
            models
                .map(|(model, tokens)| Counted { model, tokens })
                .into_iter(),
        );
        for line in [
            "# TYPE tandem_prompt_tokens_total counter",
            "tandem_prompt_tokens_total 5",
            "tandem_prompt_seconds_total 1.5",
            "tandem_tokens_predicted_seconds_total 0.5",
            "tandem_model_tokens_total{model=\"b\\\"c\",kind=\"prompt\"} 5",
            "tandem_requests_total{path=\"/health\",status=\"200\"} 1",
            "tandem_time_to_first_token_seconds_bucket{le=\"0.1\"} 0",
            "tandem_time_to_first_token_seconds_bucket{le=\"0.25\"} 1",
            "tandem_time_to_first_token_seconds_bucket{le=\"+Inf\"} 1",
            "tandem_time_to_first_token_seconds_count 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
        }
    }
}
