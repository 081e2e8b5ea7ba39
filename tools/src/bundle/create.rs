//! `tandem bundle create` and `add`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use tandem_engine::adapters::{Calibration, merge};
use tandem_engine::{Adapter, Compute, Config, DType, Level, Linears, threads};
use tandem_formats::Gguf;
use tandem_formats::bundle::{
    self, BaseFingerprint, CalibrationKind, Composition, Contents, Member, Merge, MergeMethod,
    MergedFactors,
};

use super::pack;
use crate::adapters::read;
use crate::inspect::size;
use crate::open;
use crate::recipe::{self, Quant, Recipe};

/// Make a bundle by a recipe
///
/// The recipe is a TOML file; the repository's README shows one. Its paths are relative to it.
#[derive(clap::Args)]
pub(crate) struct CreateArgs {
    /// The recipe
    recipe: PathBuf,
    /// Where to write; an existing file is replaced when the new one is complete
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Add a recipe's adapters and compositions to a bundle
///
/// The compositions may use adapters that the bundle has. The base must be the bundle's.
#[derive(clap::Args)]
pub(crate) struct AddArgs {
    /// The bundle
    file: PathBuf,
    /// The recipe; its [bundle], with name and base, may be left out
    recipe: PathBuf,
    /// The base model [default: the recipe's, or the GGUF file beside the bundle or the recipe that the
    /// bundle is for]
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
}

pub(super) fn create(args: &CreateArgs) -> Result<()> {
    let contents = create_by(&args.recipe, &args.out)?;
    tell_written(&args.out, &contents);
    Ok(())
}

/// Makes a bundle by the recipe in a file, as `tandem bundle create` does, and gives what is in it.
///
/// # Errors
///
/// A recipe, a base, adapters or calibrations that cannot be used; a bundle that cannot be written.
pub fn create_by(path: &Path, out: &Path) -> Result<Contents> {
    let recipe = Recipe::read(path)?;
    let name = recipe.bundle.name.clone();
    let name = name.with_context(|| format!("{}: [bundle] has no name", path.display()))?;
    let base = recipe.bundle.base.as_ref();
    let base = base.with_context(|| format!("{}: [bundle] has no base", path.display()))?;
    with_base(&recipe.path(base), |base, linears| {
        let contents = Contents {
            name,
            architecture: linears.arch().name().into(),
            base_name: base.get_str("general.name")?.map(Into::into),
            base: BaseFingerprint::of(base)?,
            adapters: Vec::new(),
            calibrations: Vec::new(),
            compositions: Vec::new(),
        };
        extend(contents, &recipe, base, linears, out)
    })
}

pub(super) fn add(args: &AddArgs) -> Result<()> {
    let recipe = Recipe::read(&args.recipe)?;
    let _lock = super::lock(&args.file)?;
    let bundle = super::open_file(&args.file)?;
    // What is kept must be whole, or its damage would get a checksum that is right.
    bundle
        .verify()
        .with_context(|| format!("cannot use {}", args.file.display()))?;
    if let Some(name) = &recipe.bundle.name {
        let own = &bundle.contents().name;
        ensure!(name == own, "the bundle is called {own:?}, not {name:?}");
    }
    let base = match (&args.base, &recipe.bundle.base) {
        (Some(path), _) => path.clone(),
        (None, Some(path)) => recipe.path(path),
        (None, None) => base_beside(&[parent(&args.file), recipe.folder()], bundle.contents())
            .context(
                "no model that the bundle is for lies beside it or the recipe: name it by --base",
            )?,
    };
    let contents = with_base(&base, |base, linears| {
        extend(
            bundle.contents().clone(),
            &recipe,
            base,
            linears,
            &args.file,
        )
    })?;
    tell_written(&args.file, &contents);
    Ok(())
}

fn tell_written(path: &Path, contents: &Contents) {
    let n_bytes = std::fs::metadata(path).map_or(0, |m| m.len());
    tell!(
        "{}: {} adapters, {} calibrations, {} compositions, {}",
        path.display(),
        contents.adapters.len(),
        contents.calibrations.len(),
        contents.compositions.len(),
        size(n_bytes as usize)
    );
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// The first GGUF file of some folders that is the bundle's base.
fn base_beside(folders: &[&Path], contents: &Contents) -> Option<PathBuf> {
    let is_base = |path: &Path| {
        let files = open::files(path).ok()?;
        contents.check_base(&files.parse().ok()?).ok()
    };
    for folder in folders {
        let folder = match folder.as_os_str().is_empty() {
            true => Path::new("."),
            false => folder,
        };
        let Ok(entries) = std::fs::read_dir(folder) else {
            continue;
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        // A pipe of this name would keep us waiting.
        paths.retain(|path| path.is_file() && path.extension().is_some_and(|e| e == "gguf"));
        paths.sort();
        if let Some(path) = paths.into_iter().find(|path| is_base(path).is_some()) {
            return Some(path);
        }
    }
    None
}

/// Opens the base.
fn with_base(
    path: &Path,
    run: impl FnOnce(&Gguf<'_>, &Linears) -> Result<Contents>,
) -> Result<Contents> {
    let files = open::files(path)?;
    let base = files.parse()?;
    let config = Config::from_gguf(&base)
        .with_context(|| format!("cannot use {} as the base", path.display()))?;
    run(&base, &Linears::of(&config))
}

/// Adds what the recipe has and writes the bundle.
fn extend(
    mut contents: Contents,
    recipe: &Recipe,
    base: &Gguf<'_>,
    linears: &Linears,
    out: &Path,
) -> Result<Contents> {
    // As they were before they were rounded: what merges and projections are computed from.
    let mut originals = BTreeMap::new();
    for stored in &contents.adapters {
        let adapter = Adapter::from_factors(linears, stored.dtype, &stored.factors)?;
        originals.insert(stored.name.to_string(), adapter);
    }
    for entry in &recipe.adapter {
        let adapter = read(&recipe.path(&entry.path), linears)
            .with_context(|| format!("adapter {:?}", entry.name))?;
        let dtype = dtype(entry.quant);
        let factors =
            pack::factors(&adapter, dtype).with_context(|| format!("adapter {:?}", entry.name))?;
        contents.adapters.push(bundle::Adapter {
            name: entry.name.clone(),
            origin: entry.path.display().to_string(),
            dtype,
            factors,
        });
        originals.insert(entry.name.clone(), adapter);
    }

    let mut known: Vec<Shared<'_>> = Vec::new();
    for entry in &recipe.composition {
        let in_composition = || format!("composition {:?}", entry.name);
        let members = members(entry, &originals).with_context(in_composition)?;
        let merge = method(&entry.merge, entry.density, entry.rank, entry.seed)
            .with_context(in_composition)?;
        let calibration = match &entry.calibration {
            Some(used) => {
                let shared = known.iter().find(|known| {
                    let fits = |name: &String| *name == known.name;
                    known.entry.is_same(used) && used.name.as_ref().is_none_or(fits)
                });
                let name = match shared {
                    Some(shared) => shared.name.clone(),
                    None => calibration_name(recipe, used, &contents)?,
                };
                if shared.is_none() {
                    let calibration = calibrate(linears, recipe, used, &name);
                    let calibration = calibration.with_context(in_composition)?;
                    contents.calibrations.push(calibration);
                    known.push(Shared {
                        entry: used,
                        name: name.clone(),
                    });
                }
                Some(name)
            }
            None => None,
        };
        let merged = match entry.ready_made {
            true => {
                let dtype = dtype(entry.quant);
                let factors = merge_now(linears, &members, &merge)
                    .and_then(|adapter| pack::factors(&adapter, dtype))
                    .with_context(in_composition)?;
                Some(MergedFactors { dtype, factors })
            }
            false => None,
        };
        let member = |m: &recipe::Member| Member {
            adapter: m.name.clone(),
            weight: m.weight,
        };
        contents.compositions.push(Composition {
            name: entry.name.clone(),
            members: entry.adapters.iter().map(member).collect(),
            merge,
            calibration,
            prompt: entry.prompt.clone(),
            description: entry.description.clone(),
            merged,
        });
    }
    contents.check()?;
    contents.check_base(base)?;
    super::write(out, &contents)?;
    Ok(contents)
}

/// A calibration of a recipe, and the name that it got in the bundle.
struct Shared<'r> {
    entry: &'r recipe::Calibration,
    name: String,
}

/// What a calibration is called: as its entry says, or another one for the same; otherwise as its file, with
/// a number where another one has that name.
fn calibration_name(
    recipe: &Recipe,
    entry: &recipe::Calibration,
    contents: &Contents,
) -> Result<String> {
    let entries = recipe.composition.iter();
    let named = entries.filter_map(|c| c.calibration.as_ref());
    let named = named.filter_map(|c| Some((c, c.name.as_ref()?)));
    let of_same = named.clone().find(|(other, _)| other.is_same(entry));
    if let Some(name) = entry.name.as_ref().or(of_same.map(|(_, name)| name)) {
        return Ok(name.clone());
    }
    let file_name = entry.file_name()?;
    let mut name = file_name.to_string();
    let mut number = 1;
    while contents.calibrations.iter().any(|c| c.name == name)
        || named.clone().any(|(_, stated)| *stated == name)
    {
        number += 1;
        name = format!("{file_name}-{number}");
    }
    Ok(name)
}

/// The block format of a recipe's word.
fn dtype(quant: Quant) -> DType {
    match quant {
        Quant::F32 => DType::F32,
        Quant::F16 => DType::F16,
        Quant::Q8 => DType::Q8_0,
        Quant::Q4 => DType::Q4_0,
    }
}

/// A composition's adapters and weights.
fn members<'o>(
    entry: &recipe::Composition,
    originals: &'o BTreeMap<String, Adapter>,
) -> Result<Vec<(&'o Adapter, f32)>> {
    let find = |m: &recipe::Member| {
        let adapter = originals.get(&m.name);
        let adapter = adapter.with_context(|| {
            let names: Vec<_> = originals.keys().map(String::as_str).collect();
            format!("no adapter {:?}; there are {}", m.name, names.join(", "))
        })?;
        Ok((adapter, m.weight))
    };
    entry.adapters.iter().map(find).collect()
}

/// A merge as recipes tell it.
pub(crate) fn method(
    name: &str,
    density: Option<f32>,
    rank: Option<u32>,
    seed: Option<u64>,
) -> Result<Merge> {
    let method = MergeMethod::from_name(name).with_context(|| {
        let names: Vec<_> = MergeMethod::ALL.iter().map(|m| m.name()).collect();
        format!("no merge {name:?}; there are {}", names.join(", "))
    })?;
    Ok(Merge {
        method,
        density,
        rank,
        seed,
    })
}

/// Merges adapters, on all cores.
pub(crate) fn merge_now(
    linears: &Linears,
    members: &[(&Adapter, f32)],
    how: &Merge,
) -> Result<Adapter> {
    let (adapters, weights): (Vec<&Adapter>, Vec<f32>) = members.iter().copied().unzip();
    let pool = threads::all();
    let compute = Compute::new(Level::detect(), &pool);
    Ok(merge(linears, &adapters, &weights, &how.into(), compute)?)
}

fn calibrate(
    linears: &Linears,
    recipe: &Recipe,
    entry: &recipe::Calibration,
    name: &str,
) -> Result<bundle::Calibration> {
    let kind = CalibrationKind::from_name(&entry.kind).with_context(|| {
        let names: Vec<_> = CalibrationKind::ALL.iter().map(|k| k.name()).collect();
        format!(
            "no calibration {:?}; there are {}",
            entry.kind,
            names.join(", ")
        )
    })?;
    let dtype = match entry.quant {
        Quant::F16 => DType::F16,
        Quant::F32 => DType::F32,
        Quant::Q8 => DType::Q8_0,
        Quant::Q4 => bail!("a calibration is stored in f32, f16 or q8_0"),
    };
    let path = recipe.path(&entry.path);
    let unusable = || format!("cannot use {}", path.display());
    let file = tandem_formats::adapter::calibration::read(&open::bytes(&path)?);
    let file = file.with_context(unusable)?;
    let calibration = Calibration::from_file(linears, &file).with_context(unusable)?;
    let corrections = pack::corrections(&calibration, kind, dtype);
    Ok(bundle::Calibration {
        name: name.to_string(),
        kind,
        corrections: corrections.with_context(unusable)?,
    })
}
