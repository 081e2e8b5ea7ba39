//! The models by name: the base, and each composition.

use std::path::Path;
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use anyhow::{Result, bail, ensure};
use hyper::StatusCode;
use serde_json::{Value, json};
use tandem_engine::adapters::ContentId;
use tandem_engine::{AdapterType, Bundle, Composition, Level, Model, SharedPool};

use super::error::ApiError;

/// All that can be asked for, the base first.
#[derive(Debug)]
pub(super) struct Catalog {
    entries: Vec<Entry>,
    /// Other names, and the places of what they stand for.
    aliases: Vec<Alias>,
    default: usize,
    pub how: HowToOpen,
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
    source: Source,
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
    /// The base alone, called `id`, and always `base`.
    pub(super) fn new(id: String, file: &Path, how: HowToOpen) -> Catalog {
        let base = Entry {
            id,
            created: written_at(file),
            source: Source::Base,
            opened: OnceLock::new(),
        };
        let name = "base".to_string();
        Catalog {
            entries: vec![base],
            aliases: vec![Alias { name, entry: 0 }],
            default: 0,
            how,
        }
    }

    /// Adds every composition of a bundle.
    pub(super) fn add_bundle(&mut self, file: &Path, bundle: &Bundle) -> Result<()> {
        for name in bundle.compositions() {
            let source = BundleSource {
                bundle: bundle.clone(),
                bundle_name: bundle.file().contents().name.clone(),
                composition: name.to_string(),
            };
            self.add(name, file, Source::Bundle(source))?;
        }
        Ok(())
    }

    /// Adds a composition that was made already.
    pub(super) fn add_composition(
        &mut self,
        name: &str,
        file: &Path,
        composition: Composition,
    ) -> Result<()> {
        self.add(name, file, Source::Composition(composition))
    }

    fn add(&mut self, id: &str, file: &Path, source: Source) -> Result<()> {
        ensure!(
            self.find(id).is_none(),
            "there are two models called {id}: names must differ (see --name-base)"
        );
        self.entries.push(Entry {
            id: id.to_string(),
            created: written_at(file),
            source,
            opened: OnceLock::new(),
        });
        Ok(())
    }

    /// Adds another name for `model`, or for the default one.
    pub(super) fn add_alias(&mut self, name: &str, model: Option<&str>) -> Result<()> {
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

    /// What a request gets that names no model.
    pub(super) fn set_default(&mut self, model: &str) -> Result<()> {
        self.default = self.place(model)?;
        Ok(())
    }

    fn place(&self, model: &str) -> Result<usize> {
        match self.find(model) {
            Some(place) => Ok(place),
            None => bail!(
                "there is no model called {model}: there are {}",
                self.names()
            ),
        }
    }

    fn find(&self, name: &str) -> Option<usize> {
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

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The place of the model that a request asks for; `None` is the default.
    pub(super) fn choose(&self, name: Option<&str>) -> Result<usize, ApiError> {
        let Some(name) = name else {
            return Ok(self.default);
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

    /// The composition of a model, none for the base. When it is first asked for it is opened, which may take
    /// seconds where a merge is to be computed.
    pub(super) fn composition(&self, place: usize) -> Result<Option<&Composition>, ApiError> {
        let entry = &self.entries[place];
        let opened = entry.opened.get_or_init(|| entry.open(&self.how));
        match opened {
            Ok(composition) => Ok(composition.as_ref()),
            Err(reason) => {
                let message = format!("{} cannot be used: {reason}", entry.id);
                let error = ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message);
                Err(error.code("composition_failed"))
            }
        }
    }

    /// Whether a model was used already.
    pub(super) fn is_open(&self, place: usize) -> bool {
        self.entries[place].opened.get().is_some()
    }

    /// The entry of a list of models.
    pub(super) fn to_json(&self, place: usize, model: &Model, n_ctx: usize) -> Value {
        let entry = &self.entries[place];
        let base = &self.entries[0].id;
        let mut out = json!({
            "id": entry.id,
            "object": "model",
            "created": entry.created,
            "owned_by": "tandem",
            "root": base,
            "parent": if place == 0 { Value::Null } else { base.as_str().into() },
            "max_model_len": n_ctx,
        });
        if place == 0 {
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
        match &entry.source {
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
        if let Some(Err(reason)) = entry.opened.get() {
            out["error"] = reason.clone().into();
        }
        out
    }
}

impl Entry {
    fn open(&self, how: &HowToOpen) -> Result<Option<Composition>, String> {
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
