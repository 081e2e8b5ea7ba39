//! `tandem bundle inspect`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;
use tandem_formats::bundle::{Adapter, Bundle, Calibration, Composition, Factors};

use crate::inspect::{escape, size};

/// Show what is in a bundle
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The bundle
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn inspect(args: &Args) -> Result<()> {
    let bundle = super::open_file(&args.file)?;
    let report = match args.json {
        true => format!("{:#}\n", json_report(&bundle, bundle.n_bytes())),
        false => text_report(&bundle, bundle.n_bytes())?,
    };
    let mut out = std::io::stdout().lock();
    out.write_all(report.as_bytes())?;
    Ok(out.flush()?)
}

/// Bytes of an adapter, a calibration, or a composition's stored merge; 0 where there is none.
pub(crate) fn section_bytes(bundle: &Bundle, what: &str, name: &str) -> usize {
    let mut sections = bundle.sections();
    let found = sections.find(|(w, n, _)| (*w, *n) == (what, name));
    found.map_or(0, |(.., n_bytes)| n_bytes)
}

/// The smallest and the largest rank.
fn ranks(factors: &[Factors]) -> (usize, usize) {
    let ranks = || factors.iter().map(|f| f.rank);
    (ranks().min().unwrap_or(0), ranks().max().unwrap_or(0))
}

fn show_factors(dtype: tandem_engine::DType, factors: &[Factors]) -> String {
    let rank = match ranks(factors) {
        (min, max) if min == max => format!("rank {max}"),
        (min, max) => format!("ranks {min} to {max}"),
    };
    format!("{dtype}, {rank}, {} linears", factors.len())
}

/// The numbers that were learned.
pub(crate) fn n_parameters(calibration: &Calibration) -> usize {
    let matrices = calibration.corrections.iter().flat_map(|c| &c.matrices);
    matrices.map(|m| m.n_rows * m.n_cols).sum()
}

fn text_report(bundle: &Bundle, n_bytes: usize) -> Result<String> {
    let contents = bundle.contents();
    let mut s = String::new();
    writeln!(s, "bundle {}, {}", escape(&contents.name), size(n_bytes))?;
    write!(s, "for {} models", escape(&contents.architecture))?;
    match &contents.base_name {
        Some(name) => writeln!(s, ", made with {}", escape(name))?,
        None => writeln!(s)?,
    }
    let base = &contents.base;
    writeln!(s, "  structure {:032x}", base.structure)?;
    writeln!(s, "  vectors   {:032x}", base.vectors)?;
    writeln!(s, "  content   {:032x}", base.content)?;
    writeln!(s, "\nAdapters")?;
    for Adapter {
        name,
        origin,
        dtype,
        factors,
    } in &contents.adapters
    {
        let n_bytes = size(section_bytes(bundle, "adapter", name));
        let factors = show_factors(*dtype, factors);
        writeln!(
            s,
            "  {name:<24} {n_bytes:>9}  {factors}; from {}",
            escape(origin)
        )?;
    }
    writeln!(s, "\nCalibrations")?;
    for c in &contents.calibrations {
        let name = &c.name;
        let n_bytes = size(section_bytes(bundle, "calibration", name));
        let (kind, n) = (c.kind.name(), n_parameters(c));
        let n_modules = c.corrections.len();
        writeln!(
            s,
            "  {name:<24} {n_bytes:>9}  {kind}, {n_modules} modules, {n} parameters"
        )?;
    }
    writeln!(s, "\nCompositions")?;
    for c in &contents.compositions {
        writeln!(s, "  {:<24} {}", c.name, show_composition(c))?;
        if let Some(merged) = &c.merged {
            let n_bytes = size(section_bytes(bundle, "composition", &c.name));
            let factors = show_factors(merged.dtype, &merged.factors);
            writeln!(s, "    stored merge: {n_bytes}, {factors}")?;
        }
        if let Some(prompt) = &c.prompt {
            writeln!(s, "    prompt: \"{}\"", escape(prompt))?;
        }
        if let Some(description) = &c.description {
            writeln!(s, "    {}", escape(description))?;
        }
    }
    Ok(s)
}

fn show_composition(c: &Composition) -> String {
    let members: Vec<_> = c
        .members
        .iter()
        .map(|m| format!("{} x {}", m.weight, m.adapter))
        .collect();
    let mut s = format!("{} ({}", c.merge.method.name(), members.join(" + "));
    for (name, value) in [
        ("density", c.merge.density.map(|x| x.to_string())),
        ("rank", c.merge.rank.map(|x| x.to_string())),
        ("seed", c.merge.seed.map(|x| x.to_string())),
    ] {
        if let Some(value) = value {
            s += &format!(", {name} {value}");
        }
    }
    s += ")";
    if let Some(calibration) = &c.calibration {
        s += &format!(", calibration {calibration}");
    }
    s
}

pub(super) fn json_report(bundle: &Bundle, n_bytes: usize) -> serde_json::Value {
    let contents = bundle.contents();
    let base = &contents.base;
    let factors = |factors: &[Factors]| -> Vec<_> {
        let show = |f: &Factors| {
            json!({
                "linear": f.linear, "rank": f.rank, "n_in": f.n_in, "n_out": f.n_out,
                "scale": f.scale,
            })
        };
        factors.iter().map(show).collect()
    };
    let adapter = |a: &Adapter| {
        json!({
            "name": a.name, "origin": a.origin, "type": a.dtype.name(),
            "bytes": section_bytes(bundle, "adapter", &a.name), "factors": factors(&a.factors),
        })
    };
    let calibration = |c: &Calibration| {
        let modules: Vec<_> = c.corrections.iter().map(|c| &c.module).collect();
        json!({
            "name": c.name, "kind": c.kind.name(), "modules": modules,
            "parameters": n_parameters(c),
            "bytes": section_bytes(bundle, "calibration", &c.name),
        })
    };
    let composition = |c: &Composition| {
        let member =
            |m: &tandem_formats::bundle::Member| json!({"adapter": m.adapter, "weight": m.weight});
        let members: Vec<_> = c.members.iter().map(member).collect();
        let merged = c.merged.as_ref().map(|m| {
            json!({
                "type": m.dtype.name(), "factors": factors(&m.factors),
                "bytes": section_bytes(bundle, "composition", &c.name),
            })
        });
        json!({
            "name": c.name, "members": members, "merge": c.merge.method.name(),
            "density": c.merge.density, "rank": c.merge.rank, "seed": c.merge.seed,
            "calibration": c.calibration, "prompt": c.prompt, "description": c.description,
            "merged": merged,
        })
    };
    json!({
        "name": contents.name,
        "version": tandem_formats::bundle::VERSION,
        "bytes": n_bytes,
        "base": {
            "architecture": contents.architecture,
            "name": contents.base_name,
            "structure": format!("{:032x}", base.structure),
            "vectors": format!("{:032x}", base.vectors),
            "content": format!("{:032x}", base.content),
        },
        "adapters": contents.adapters.iter().map(adapter).collect::<Vec<_>>(),
        "calibrations": contents.calibrations.iter().map(calibration).collect::<Vec<_>>(),
        "compositions": contents.compositions.iter().map(composition).collect::<Vec<_>>(),
    })
}
