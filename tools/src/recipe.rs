//! Recipes: what a bundle is made of, in TOML.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A recipe, its paths being relative to its own folder.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    #[serde(default)]
    pub bundle: Header,
    #[serde(default)]
    pub adapter: Vec<Adapter>,
    #[serde(default)]
    pub composition: Vec<Composition>,
    /// Where it was read from.
    #[serde(skip)]
    folder: PathBuf,
}

/// What the bundle is called, and for which base model it is. A new bundle must have both; one that is
/// added to has them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    pub name: Option<String>,
    pub base: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Adapter {
    pub name: String,
    /// A PEFT directory or a LoRA file of llama.cpp.
    pub path: PathBuf,
    #[serde(default)]
    pub quant: Quant,
}

/// How factors are stored.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Quant {
    F32,
    F16,
    #[default]
    #[serde(rename = "q8_0")]
    Q8,
    #[serde(rename = "q4_0")]
    Q4,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Composition {
    pub name: String,
    pub adapters: Vec<Member>,
    #[serde(default = "cat")]
    pub merge: String,
    pub density: Option<f32>,
    pub rank: Option<u32>,
    pub seed: Option<u64>,
    pub calibration: Option<Calibration>,
    pub prompt: Option<String>,
    pub description: Option<String>,
    /// Whether the merge's result is stored; that of `cat` is the members in one.
    #[serde(default)]
    pub ready_made: bool,
    /// How it is stored.
    #[serde(default)]
    pub quant: Quant,
}

fn cat() -> String {
    "cat".to_string()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Member {
    pub name: String,
    #[serde(default = "one")]
    pub weight: f32,
}

fn one() -> f32 {
    1.0
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Calibration {
    pub kind: String,
    pub path: PathBuf,
    /// Its name in the bundle; otherwise its file's, with a number where another one has that. Compositions
    /// that name the same share it.
    pub name: Option<String>,
    /// `f32`, `f16`, or `q8_0`, which P1 alone is stored in.
    #[serde(default = "f16")]
    pub quant: Quant,
}

fn f16() -> Quant {
    Quant::F16
}

impl Calibration {
    /// Whether another entry asks for the same bytes, whatever it calls them.
    pub(crate) fn is_same(&self, other: &Calibration) -> bool {
        (&self.kind, &self.path, self.quant) == (&other.kind, &other.path, other.quant)
    }

    /// The name of its file.
    pub(crate) fn file_name(&self) -> Result<&str> {
        let stem = self.path.file_stem().and_then(|s| s.to_str());
        stem.with_context(|| format!("{} gives the calibration no name", self.path.display()))
    }
}

impl Recipe {
    /// Reads a recipe; errors tell the line.
    pub(crate) fn read(path: &Path) -> Result<Recipe> {
        let (mut recipe, folder): (Recipe, _) = read_toml(path)?;
        recipe.folder = folder;
        Ok(recipe)
    }

    /// A path of the recipe.
    pub(crate) fn path(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    /// The folder that its paths are relative to.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// What a recipe's file says, and the folder that its paths are relative to; errors tell the line.
pub(crate) fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<(T, PathBuf)> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let recipe = parse_toml(&text).with_context(|| format!("{} is no recipe", path.display()))?;
    Ok((recipe, path.parent().unwrap_or(Path::new("")).to_path_buf()))
}

/// What a TOML text says; errors begin with the line.
pub(crate) fn parse_toml<T: DeserializeOwned>(text: &str) -> Result<T> {
    toml::from_str(text).map_err(|e| {
        // The parser's own text has several lines; ours go into one.
        let line = e.span().map(|span| {
            let before = text.as_bytes().get(..span.start).unwrap_or_default();
            before.iter().filter(|b| **b == b'\n').count() + 1
        });
        let message = e.message().replace('\n', " ");
        match line {
            Some(line) => anyhow!("line {line}: {message}"),
            None => anyhow!("{message}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Recipe> {
        parse_toml(text)
    }

    const RECIPE: &str = r#"[bundle]
name = "pocket"
base = "base.gguf"

[[adapter]]
name = "summarize"
path = "adapters/summarize"

[[composition]]
name = "summarize-fr"
adapters = [{ name = "summarize", weight = 0.5 }, { name = "translate-fr" }]
calibration = { kind = "low_rank", path = "lc/sum-fr.safetensors" }
prompt = "{{ input }}\n=> "
"#;

    #[test]
    fn what_is_left_out_has_defaults() {
        let recipe = parse(RECIPE).unwrap();
        assert_eq!(recipe.adapter[0].quant, Quant::Q8);
        let c = &recipe.composition[0];
        assert_eq!((c.merge.as_str(), c.ready_made), ("cat", false));
        assert_eq!((c.adapters[0].weight, c.adapters[1].weight), (0.5, 1.0));
        let calibration = c.calibration.as_ref().unwrap();
        assert_eq!(calibration.quant, Quant::F16);
        assert_eq!(calibration.file_name().unwrap(), "sum-fr");
        assert_eq!(c.prompt.as_deref(), Some("{{ input }}\n=> "));
    }

    #[test]
    fn errors_tell_the_line_and_what_is_wrong() {
        for (from, to, line, what) in [
            ("path = \"adapters", "paht = \"adapters", 7, "paht"),
            ("weight = 0.5", "wieght = 0.5", 11, "wieght"),
            ("weight = 0.5", "weight = \"half\"", 11, "half"),
            ("kind = ", "name = \"x\", knid = ", 12, "knid"),
            ("name = \"summarize-fr\"\n", "", 9, "name"),
            (
                "path = \"adapters/summarize\"",
                "path = \"x\"\nquant = \"q5_0\"",
                8,
                "q5_0",
            ),
            ("[bundle]\n", "[bundle]\nname = \"x\"\n", 3, "duplicate key"),
            ("[bundle]", "[bundle", 1, "unclosed table"),
        ] {
            let text = RECIPE.replace(from, to);
            assert_ne!(text, RECIPE);
            let e = parse(&text).unwrap_err().to_string();
            assert!(
                e.starts_with(&format!("line {line}: ")) && e.contains(what),
                "{e}"
            );
            assert!(!e.contains('\n'));
        }
    }
}
