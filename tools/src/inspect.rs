//! `tandem inspect`: what is in a GGUF file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Map, json};
use tandem_engine::{DType, Model, Session, SessionOptions};
use tandem_formats::{Array, Gguf, GgufFiles, Value};

use crate::open;

/// Show what is in a GGUF file and what memory it will need
///
/// Metadata, tensors, sizes, and what running it takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file (of a split model, the first part)
    file: PathBuf,
    /// Context size for the memory estimate [default: the model's, at most 4096]
    #[arg(long, value_name = "N")]
    ctx: Option<NonZeroUsize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Elements of an array that are shown.
const ARRAY_HEAD: usize = 6;
/// Characters of a string that are shown.
const STRING_HEAD: usize = 200;

pub(crate) fn inspect(args: &Args) -> Result<()> {
    let files = open::files(&args.file)?;
    let gguf = files.parse()?;
    let report = match args.json {
        true => format!("{:#}\n", json_report(args, &files, &gguf)),
        false => text_report(args, &files, &gguf)?,
    };
    let mut out = std::io::stdout().lock();
    out.write_all(report.as_bytes())?;
    Ok(out.flush()?)
}

/// What running the model takes, or why it cannot be run.
struct Needs {
    n_ctx: usize,
    kv_cache: usize,
    scratch: usize,
    bytes_per_token: usize,
}

fn needs(args: &Args, gguf: &Gguf<'_>) -> Result<Needs, String> {
    if gguf.tensors().is_empty() {
        return Err("the file has no weights".to_string());
    }
    let model = Model::open(&args.file).map_err(|error| error.to_string())?;
    let mut options = SessionOptions::for_model(model.config());
    options.n_ctx = args.ctx.map_or(options.n_ctx, NonZeroUsize::get);
    let memory = Session::memory(model.config(), &options, None)
        .ok_or("a context of that size is too large")?;
    Ok(Needs {
        n_ctx: options.n_ctx,
        kv_cache: memory.kv_cache,
        scratch: memory.scratch,
        bytes_per_token: model.bytes_per_token(),
    })
}

/// Elements, bytes and tensors of each type.
fn by_type(gguf: &Gguf<'_>) -> BTreeMap<DType, (usize, usize, usize)> {
    let mut types = BTreeMap::new();
    for t in gguf.tensors() {
        let sum: &mut (usize, usize, usize) = types.entry(t.dtype).or_default();
        *sum = (sum.0 + t.n_elements(), sum.1 + t.data.len(), sum.2 + 1);
    }
    types
}

fn text_report(args: &Args, files: &GgufFiles, gguf: &Gguf<'_>) -> Result<String> {
    let mut s = String::new();
    for path in files.paths() {
        writeln!(s, "{}", escape(&path.display().to_string()))?;
    }
    writeln!(
        s,
        "GGUF version {}, {}",
        gguf.version(),
        size(files.n_bytes() as usize)
    )?;
    writeln!(s, "\nMetadata")?;
    for (key, value) in gguf.metadata() {
        writeln!(s, "  {} = {}", escape(key), show(value))?;
    }
    writeln!(s, "\nTensors")?;
    for t in gguf.tensors() {
        let shape = t
            .shape()
            .iter()
            .map(usize::to_string)
            .collect::<Vec<_>>()
            .join(" x ");
        writeln!(
            s,
            "  {:<40} {:<8} {shape:<20} {}",
            escape(t.name),
            t.dtype.name(),
            size(t.data.len())
        )?;
    }
    writeln!(s, "\nTypes")?;
    let types = by_type(gguf);
    for (dtype, (n_elements, n_bytes, n)) in &types {
        writeln!(
            s,
            "  {:<8} {n:>5} tensors, {n_elements:>12} parameters, {}",
            dtype.name(),
            size(*n_bytes)
        )?;
    }
    let n_parameters: usize = types.values().map(|t| t.0).sum();
    writeln!(s, "  {n_parameters} parameters in all")?;
    writeln!(s, "\nTo run")?;
    match needs(args, gguf) {
        Ok(needs) => {
            writeln!(
                s,
                "  weights   {} mapped, {} read a token",
                size(files.n_bytes() as usize),
                size(needs.bytes_per_token)
            )?;
            writeln!(
                s,
                "  KV cache  {} at {} tokens in F16",
                size(needs.kv_cache),
                needs.n_ctx
            )?;
            writeln!(s, "  buffers   {}", size(needs.scratch))?;
        }
        Err(why) => writeln!(s, "  cannot be run: {}", escape(&why))?,
    }
    Ok(s)
}

fn json_report(args: &Args, files: &GgufFiles, gguf: &Gguf<'_>) -> serde_json::Value {
    let metadata: Map<_, _> = gguf
        .metadata()
        .map(|(key, value)| (key.to_string(), to_json(value)))
        .collect();
    let tensors: Vec<_> = gguf
        .tensors()
        .iter()
        .map(|t| json!({"name": t.name, "type": t.dtype.name(), "shape": t.shape(), "bytes": t.data.len()}))
        .collect();
    let types = by_type(gguf);
    let n_parameters: usize = types.values().map(|t| t.0).sum();
    let types: Map<_, _> = types
        .iter()
        .map(|(dtype, (n_elements, n_bytes, n))| {
            let sums = json!({"tensors": n, "parameters": n_elements, "bytes": n_bytes});
            (dtype.name().to_string(), sums)
        })
        .collect();
    let run = match needs(args, gguf) {
        Ok(needs) => json!({
            "ctx": needs.n_ctx,
            "kv_cache_bytes": needs.kv_cache,
            "buffer_bytes": needs.scratch,
            "bytes_per_token": needs.bytes_per_token,
        }),
        Err(why) => json!({"error": why}),
    };
    json!({
        "files": files.paths().map(|p| p.display().to_string()).collect::<Vec<_>>(),
        "version": gguf.version(),
        "bytes": files.n_bytes(),
        "metadata": metadata,
        "tensors": tensors,
        "types": types,
        "parameters": n_parameters,
        "run": run,
    })
}

/// A number of bytes in a handy unit.
pub(crate) fn size(n_bytes: usize) -> String {
    match n_bytes {
        0..10_000 => format!("{n_bytes} B"),
        10_000..10_000_000 => format!("{:.1} kB", n_bytes as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", n_bytes as f64 / 1e6),
        _ => format!("{:.2} GB", n_bytes as f64 / 1e9),
    }
}

/// The beginning of a text from a file, made harmless.
pub(crate) fn escape(text: &str) -> String {
    let head: String = text.chars().take(STRING_HEAD).collect();
    let rest = if head.len() < text.len() { "..." } else { "" };
    crate::visible(&head) + rest
}

fn show(value: &Value<'_>) -> String {
    match value {
        Value::Str(s) => format!("\"{}\"", escape(s)),
        Value::Bytes(s) => format!("\"{}\" (not UTF-8)", escape(&String::from_utf8_lossy(s))),
        Value::Array(array) => {
            let head: Vec<_> = elements(array)
                .take(ARRAY_HEAD)
                .map(|v| escape(&v.to_string()))
                .collect();
            let rest = if array.len() > ARRAY_HEAD {
                ", ..."
            } else {
                ""
            };
            format!(
                "{} x {} [{}{rest}]",
                array.len(),
                array.element_type().name(),
                head.join(", ")
            )
        }
        value => escape(&to_json(value).to_string()),
    }
}

fn elements<'a>(array: &Array<'a>) -> impl Iterator<Item = serde_json::Value> + use<'a> {
    let strings = array.iter_str().into_iter().flatten();
    let strings = strings.map(|s| String::from_utf8_lossy(s).into_owned().into());
    // Strings need not be UTF-8, which is why they have an iterator of their own.
    let is_string = array.iter_str().is_some();
    let values = array.iter_values().filter(|_| !is_string);
    strings.chain(values.into_iter().flatten().map(|v| to_json(&v)))
}

fn to_json(value: &Value<'_>) -> serde_json::Value {
    match *value {
        Value::Str(s) => json!(s),
        Value::Bytes(s) => json!(String::from_utf8_lossy(s)),
        Value::Bool(b) => json!(b),
        Value::F32(x) => json!(x),
        Value::F64(x) => json!(x),
        Value::U64(x) => json!(x),
        Value::I64(x) => json!(x),
        Value::U32(x) => json!(x),
        Value::I32(x) => json!(x),
        Value::U16(x) => json!(x),
        Value::I16(x) => json!(x),
        Value::U8(x) => json!(x),
        Value::I8(x) => json!(x),
        Value::Array(ref array) => elements(array).collect(),
    }
}
