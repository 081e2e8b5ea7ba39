//! The models by name: the base, and each composition.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::UNIX_EPOCH;

use anyhow::{Result, bail, ensure};
use hyper::StatusCode;
use serde_json::{Value, json};
use tandem_engine::adapters::ContentId;
use tandem_engine::{AdapterType, Bundle, Composition, Level, Model, SharedPool};

use super::error::ApiError;
use super::metrics::TokenCounts;
use crate::adapters::bundle_for;

/// What is to be asked for, as the flags name it: read at the start, and anew when somebody wants it.
#[derive(Debug)]
pub(super) struct Sources {
    /// The base's name and file.
    pub base: String,
    pub file: PathBuf,
    pub bundles: Vec<PathBuf>,
    /// The composition that other flags make.
    pub made: Option<Made>,
    pub default: Option<String>,
    /// Each a name, or `name=model`.
    pub aliases: Vec<String>,
    pub how: HowToOpen,
}

/// A composition that was made when the server started.
#[derive(Debug)]
pub(super) struct Made {
    pub name: String,
    pub file: PathBuf,
    pub composition: Composition,
}

impl Sources {
    /// Reads the bundles. What is counted by model goes on where `before` has it.
    pub(super) fn read(&self, model: &Model, before: Option<&Catalog>) -> Result<Catalog> {
        let mut catalog = Catalog::new();
        let mut entries = vec![Listed {
            id: self.base.clone(),
            file: &self.file,
            source: Source::Base,
        }];
        for path in &self.bundles {
            let bundle = bundle_for(path, model)?;
            for name in bundle.compositions() {
                let source = BundleSource {
                    bundle: bundle.clone(),
                    bundle_name: bundle.file().contents().name.clone(),
                    composition: name.to_string(),
                };
                entries.push(Listed {
                    id: name.to_string(),
                    file: path,
                    source: Source::Bundle(source),
                });
            }
        }
        entries.extend(self.made.as_ref().map(|made| Listed {
            id: made.name.clone(),
            file: &made.file,
            source: Source::Composition(made.composition.clone()),
        }));
        for listed in entries {
            let known = before.and_then(|before| before.find(&listed.id));
            let counts = known.map_or_else(Arc::default, |known| Arc::clone(&known.counts));
            catalog.add(listed, counts, &self.how)?;
        }
        if let Some(default) = &self.default {
            catalog.default = catalog.place(default)?;
        }
        for alias in &self.aliases {
            match alias.split_once('=') {
                Some((name, of)) => catalog.add_alias(name, Some(of))?,
                None => catalog.add_alias(alias, None)?,
            }
        }
        Ok(catalog)
    }
}

struct Listed<'a> {
    id: String,
    file: &'a Path,
    source: Source,
}

/// All that can be asked for, the base first.
#[derive(Debug)]
pub(super) struct Catalog {
    entries: Vec<Arc<Entry>>,
    /// Other names, and the places of what they stand for.
    aliases: Vec<Alias>,
    default: usize,
}

#[derive(Debug)]
struct Alias {
    name: String,
    entry: usize,
}

/// One model by name.
#[derive(Debug)]
pub(super) struct Entry {
    pub id: String,
    /// When its file was written, in seconds since 1970.
    pub created: u64,
    /// Tokens that it had to do with.
    pub counts: Arc<TokenCounts>,
    source: Source,
    how: HowToOpen,
    opened: OnceLock<Result<Option<Composition>, String>>,
}

#[derive(Debug)]
enum Source {
    Base,
    /// Made when the server started.
    Composition(Composition),
    Bundle(BundleSource),
}

#[derive(Debug)]
struct BundleSource {
    bundle: Bundle,
    /// The bundle's name, and the composition's in it.
    bundle_name: String,
    composition: String,
}

/// What compositions are computed and stored with.
#[derive(Clone)]
pub(super) struct HowToOpen {
    pub adapter_type: AdapterType,
    pub level: Level,
    pub pool: SharedPool,
}

impl std::fmt::Debug for HowToOpen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.adapter_type.name())
    }
}

impl Catalog {
    /// Nothing yet but that `base` is the first.
    fn new() -> Catalog {
        let name = "base".to_string();
        Catalog {
            entries: Vec::new(),
            aliases: vec![Alias { name, entry: 0 }],
            default: 0,
        }
    }

    fn add(&mut self, listed: Listed<'_>, counts: Arc<TokenCounts>, how: &HowToOpen) -> Result<()> {
        let Listed { id, file, source } = listed;
        ensure!(
            self.find(&id).is_none(),
            "there are two models called {id}: names must differ (see --name-base)"
        );
        self.entries.push(Arc::new(Entry {
            id,
            created: written_at(file),
            counts,
            source,
            how: how.clone(),
            opened: OnceLock::new(),
        }));
        Ok(())
    }

    /// Adds another name for `model`, or for the default one.
    fn add_alias(&mut self, name: &str, model: Option<&str>) -> Result<()> {
        ensure!(!name.is_empty(), "an alias needs a name");
        ensure!(
            self.find(name).is_none(),
            "there is a model called {name} already"
        );
        let entry = match model {
            None => self.default,
            Some(model) => self.place(model)?,
        };
        let name = name.to_string();
        self.aliases.push(Alias { name, entry });
        Ok(())
    }

    fn place(&self, model: &str) -> Result<usize> {
        match self.position(model) {
            Some(place) => Ok(place),
            None => bail!(
                "there is no model called {model}: there are {}",
                self.names()
            ),
        }
    }

    fn find(&self, name: &str) -> Option<&Arc<Entry>> {
        self.entries.get(self.position(name)?)
    }

    fn position(&self, name: &str) -> Option<usize> {
        let by_id = self.entries.iter().position(|entry| entry.id == name);
        let alias = || self.aliases.iter().find(|alias| alias.name == name);
        by_id.or_else(|| alias().map(|alias| alias.entry))
    }

    fn names(&self) -> String {
        self.ids().collect::<Vec<_>>().join(", ")
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| &*entry.id)
    }

    pub(super) fn entries(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    /// The model itself.
    pub(super) fn base(&self) -> &Entry {
        &self.entries[0]
    }

    /// The model that a request asks for; `None` is the default.
    pub(super) fn choose(&self, name: Option<&str>) -> Result<&Arc<Entry>, ApiError> {
        let Some(name) = name else {
            return Ok(&self.entries[self.default]);
        };
        self.find(name).ok_or_else(|| {
            let name: String = name.chars().take(200).collect();
            let message = format!(
                "there is no model called {name:?}: there are {}",
                self.names()
            );
            ApiError {
                param: Some("model".to_string()),
                ..ApiError::new(StatusCode::NOT_FOUND, message).code("model_not_found")
            }
        })
    }
}

impl Entry {
    /// The composition of a model, none for the base. When it is first asked for it is opened, which may take
    /// seconds where a merge is to be computed.
    pub(super) fn composition(&self) -> Result<Option<&Composition>, ApiError> {
        let opened = self.opened.get_or_init(|| self.open());
        match opened {
            Ok(composition) => Ok(composition.as_ref()),
            Err(reason) => {
                let message = format!("{} cannot be used: {reason}", self.id);
                let error = ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message);
                Err(error.code("composition_failed"))
            }
        }
    }

    /// Whether a model was used already.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.source, Source::Base) || self.opened.get().is_some()
    }

    /// The entry of a list of models, of which `base` is the first.
    pub(super) fn to_json(&self, base: &Entry, model: &Model, n_ctx: usize) -> Value {
        let is_base = matches!(self.source, Source::Base);
        let mut out = json!({
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "tandem",
            "root": base.id,
            "parent": if is_base { Value::Null } else { base.id.as_str().into() },
            "max_model_len": n_ctx,
        });
        if is_base {
            let config = model.config();
            out["meta"] = json!({
                "n_ctx": n_ctx,
                "n_ctx_train": config.n_ctx_train,
                "n_vocab": config.n_vocab,
                "n_embd": config.n_embd,
                "n_params": n_params(model),
                "size": model.n_bytes(),
            });
        }
        match &self.source {
            Source::Base => {}
            Source::Composition(composition) => {
                out["composition"] = json!({ "has_prompt": composition.prompt().is_some() });
            }
            Source::Bundle(source) => {
                let contents = source.bundle.file().contents();
                let mut all = contents.compositions.iter();
                if let Some(found) = all.find(|c| c.name == source.composition) {
                    out["description"] = found.description.clone().into();
                    let adapters: Vec<_> = found
                        .members
                        .iter()
                        .map(|member| json!({"name": member.adapter, "weight": member.weight}))
                        .collect();
                    out["composition"] = json!({
                        "bundle": source.bundle_name,
                        "adapters": adapters,
                        "merge": found.merge.method.name(),
                        "calibration": found.calibration,
                        "has_prompt": found.prompt.is_some(),
                        "prompt": found.prompt,
                    });
                }
            }
        }
        if let Some(Err(reason)) = self.opened.get() {
            out["error"] = reason.clone().into();
        }
        out
    }

    fn open(&self) -> Result<Option<Composition>, String> {
        let how = &self.how;
        match &self.source {
            Source::Base => Ok(None),
            Source::Composition(composition) => Ok(Some(composition.clone())),
            Source::Bundle(source) => {
                let compute = tandem_engine::Compute::new(how.level, how.pool.get());
                let opened =
                    source
                        .bundle
                        .composition_as(&source.composition, how.adapter_type, compute);
                opened.map(Some).map_err(|error| error.to_string())
            }
        }
    }
}

/// What tells a composition's content from others'; `None` is the base.
pub(super) fn content_id(composition: Option<&Composition>) -> Option<ContentId> {
    composition.map(Composition::id)
}

/// Elements of all the file's tensors.
fn n_params(model: &Model) -> u64 {
    let Ok(gguf) = model.gguf() else { return 0 };
    let sizes = gguf
        .tensors()
        .iter()
        .map(|tensor| tensor.n_elements() as u64);
    sizes.sum()
}

fn written_at(file: &Path) -> u64 {
    let modified = std::fs::metadata(file).and_then(|metadata| metadata.modified());
    let since = modified
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |time| time.as_secs())
}

/// What the base is called where nobody says: its file's name without ending and number of the part.
pub(super) fn base_name(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let mut name = stem.as_ref();
    // model-00001-of-00003
    if let Some((front, total)) = name.rsplit_once("-of-")
        && let Some((front, part)) = front.rsplit_once('-')
        && [total, part]
            .iter()
            .all(|n| n.len() == 5 && n.bytes().all(|b| b.is_ascii_digit()))
    {
        name = front;
    }
    match name.is_empty() {
        true => "base".to_string(),
        false => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_bases() {
        let name = |file| base_name(Path::new(file));
        assert_eq!(name("/models/SmolLM2-135M.Q4_1.gguf"), "SmolLM2-135M.Q4_1");
        assert_eq!(name("big-00001-of-00003.gguf"), "big");
        assert_eq!(name("one-of-them.gguf"), "one-of-them");
        assert_eq!(name(""), "base");
    }
}
