//! The state of training in a file, to go on from.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};

use super::optimizer::Moments;
use super::output::{safetensors, write};

/// Everything that changes in training.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    /// What is learned, now.
    pub values: Vec<Vec<f32>>,
    pub moments: Moments,
    /// As it was at the best validation.
    pub best: Option<Vec<Vec<f32>>>,
    pub course: Course,
}

/// How training went so far.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Course {
    /// The loss of each step done, a token.
    pub losses: Vec<f32>,
    /// Validations: steps done, the loss a token.
    pub validations: Vec<(usize, f32)>,
    /// Validations since the best.
    pub n_worse: usize,
}

impl Course {
    /// The best validation.
    pub(super) fn best(&self) -> Option<(usize, f32)> {
        let validations = self.validations.iter().copied();
        validations.min_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// The key of the file's free text.
const KEY: &str = "tandem";

#[derive(Deserialize, Serialize)]
struct Metadata {
    /// What decides the course besides the state: another recipe cannot go on from here.
    fingerprint: String,
    course: Course,
}

/// Writes a checkpoint. `names` are those of the tensors.
pub(super) fn save(path: &Path, names: &[String], fingerprint: &str, state: &State) -> Result<()> {
    let metadata = serde_json::to_string(&Metadata {
        fingerprint: fingerprint.to_string(),
        course: state.course.clone(),
    })?;
    let sets = sets(state);
    let mut tensors = Vec::new();
    for (set, values) in &sets {
        for (name, values) in names.iter().zip(*values) {
            tensors.push((
                format!("{set}.{name}"),
                vec![values.len()],
                values.as_slice(),
            ));
        }
    }
    let bytes = safetensors(&tensors, Some((KEY, metadata)))?;
    write(path, &bytes)
}

fn sets(state: &State) -> Vec<(&'static str, &Vec<Vec<f32>>)> {
    let mut sets = vec![
        ("now", &state.values),
        ("first", &state.moments.first),
        ("second", &state.moments.second),
    ];
    sets.extend(state.best.as_ref().map(|best| ("best", best)));
    sets
}

/// Reads a checkpoint of tensors with these names and the sizes of `values`.
pub(super) fn load(
    path: &Path,
    names: &[String],
    fingerprint: &str,
    values: &[Vec<f32>],
) -> Result<State> {
    let unusable = || format!("cannot go on from {}", path.display());
    let bytes = std::fs::read(path).with_context(unusable)?;
    read(&bytes, names, fingerprint, values).with_context(unusable)
}

fn read(bytes: &[u8], names: &[String], fingerprint: &str, values: &[Vec<f32>]) -> Result<State> {
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let text = header.metadata().as_ref().and_then(|m| m.get(KEY));
    let text = text.context("it is no checkpoint")?;
    let metadata: Metadata = serde_json::from_str(text)?;
    if metadata.fingerprint != fingerprint {
        bail!(
            "it is of another recipe or other data: {} there, {fingerprint} here",
            metadata.fingerprint
        );
    }
    let tensors = SafeTensors::deserialize(bytes)?;
    let set = |set: &str| -> Result<Vec<Vec<f32>>> {
        let read = |(name, like): (&String, &Vec<f32>)| {
            let name = format!("{set}.{name}");
            let view = tensors.tensor(&name)?;
            let floats = view
                .data()
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b));
            let floats: Vec<f32> = floats.collect();
            ensure!(
                view.dtype() == Dtype::F32 && floats.len() == like.len(),
                "tensor {name} is of another type or size"
            );
            Ok(floats)
        };
        names.iter().zip(values).map(read).collect()
    };
    Ok(State {
        values: set("now")?,
        moments: Moments {
            first: set("first")?,
            second: set("second")?,
        },
        best: match metadata.course.validations.is_empty() {
            true => None,
            false => Some(set("best")?),
        },
        course: metadata.course,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let values = vec![vec![1.0, -0.5], vec![f32::MIN_POSITIVE]];
        State {
            moments: Moments {
                first: vec![vec![0.1, 0.2], vec![0.3]],
                second: vec![vec![0.4, 0.5], vec![0.6]],
            },
            best: Some(vec![vec![2.0, 3.0], vec![4.0]]),
            course: Course {
                losses: vec![3.25, 0.1],
                validations: vec![(1, 3.5), (2, 0.7)],
                n_worse: 0,
            },
            values,
        }
    }

    #[test]
    fn comes_back_as_it_was_and_for_its_recipe_only() {
        let names = ["a".to_string(), "b".to_string()];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.checkpoint");
        let state = state();
        save(&path, &names, "one", &state).unwrap();
        assert_eq!(load(&path, &names, "one", &state.values).unwrap(), state);
        let error = |recipe, values: &[Vec<f32>]| {
            format!("{:#}", load(&path, &names, recipe, values).unwrap_err())
        };
        assert!(error("two", &state.values).contains("another recipe"));
        assert!(error("one", &[vec![0.0; 2], vec![0.0; 2]]).contains("now.b"));
        std::fs::write(&path, b"nonsense").unwrap();
        assert!(error("one", &state.values).contains("cannot go on from"));
    }
}
