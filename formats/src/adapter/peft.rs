//! PEFT directories: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Factors stand under `base_model.model.<module>.lora_A.weight` `[rank, n_in]` and `.lora_B.weight`
//! `[n_out, rank]`; the scale is `alpha / rank`, with `use_rslora` `alpha / sqrt(rank)`, and both
//! numbers can be overridden by patterns, see [`read`].
//!
//! The format: <https://huggingface.co/docs/peft/developer_guides/checkpoint>.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use regex::{Regex, RegexBuilder};
use serde_json::Value;
use serde_json::value::RawValue;

use super::safetensors::{Safetensors, json_object};
use super::{AdapterError, Lora, lora};

/// Keys that change nothing about what a stored adapter computes: how it was trained, where it is
/// from, which modules it was made for (those it has factors for).
const WITHOUT_EFFECT: [&str; 19] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];

const CONFIG: &str = "adapter_config.json";

/// The most patterns of one kind: more than a large model has modules.
const MAX_PATTERNS: usize = 1024;
/// The most bytes that a compiled pattern may take, which is far more than its text: with
/// [`MAX_PATTERNS`] this bounds what a small file can ask for.
const MAX_PATTERN_BYTES: usize = 1 << 17;

/// What of the configuration decides the scales.
struct Config {
    rank: usize,
    alpha: f64,
    rank_pattern: Vec<(Regex, f64)>,
    alpha_pattern: Vec<(Regex, f64)>,
    use_rslora: bool,
}

/// Reads an adapter: `config` is the bytes of `adapter_config.json`, `weights` those of
/// `adapter_model.safetensors`. Modules are named as in the base model, without
/// `base_model.model.`; in the order of their names.
///
/// `rank_pattern` and `alpha_pattern` are regular expressions that must match the module's name as
/// `(.*\.)?(key)$` from its start, the first match wins. Look-around, back references and very
/// large patterns are refused, and more than 1024 of them.
///
/// # Errors
///
/// What is malformed, missing or not supported, by name: of the configuration every key that is
/// active and not known to be without effect, of the tensors every one that is no factor.
pub fn read(config: &[u8], weights: &[u8]) -> Result<Vec<Lora>, AdapterError> {
    let config = Config::parse(config)?;
    let tensors = Safetensors::parse(weights)?;
    let mut modules = BTreeSet::new();
    for name in tensors.names() {
        let module = name.strip_prefix("base_model.model.").and_then(|name| {
            name.strip_suffix(".lora_A.weight")
                .or_else(|| name.strip_suffix(".lora_B.weight"))
        });
        modules.insert(module.ok_or_else(|| AdapterError::UnknownTensor {
            name: name.to_string(),
        })?);
    }
    if modules.is_empty() {
        return Err(AdapterError::Safetensors {
            reason: "it has no tensors",
        });
    }
    let read = |module: &str| {
        let name_a = format!("base_model.model.{module}.lora_A.weight");
        let name_b = format!("base_model.model.{module}.lora_B.weight");
        let a = tensors.floats(&name_a, 2)?;
        let b = tensors.floats(&name_b, 2)?;
        let rank = match first_match(&config.rank_pattern, module) {
            Some(rank) => rank as usize,
            None => config.rank,
        };
        if a.n_rows != rank {
            return Err(AdapterError::Rank {
                module: module.to_string(),
                wanted: rank,
                found: a.n_rows,
            });
        }
        let alpha = first_match(&config.alpha_pattern, module).unwrap_or(config.alpha);
        let scale = match config.use_rslora {
            true => alpha / libm::sqrt(rank as f64),
            false => alpha / rank as f64,
        };
        lora(module.to_string(), (&name_a, &name_b), a, b, scale as f32)
    };
    modules.into_iter().map(read).collect()
}

fn first_match(patterns: &[(Regex, f64)], module: &str) -> Option<f64> {
    patterns
        .iter()
        .find(|(regex, _)| regex.is_match(module))
        .map(|(_, value)| *value)
}

fn wrong(key: &str, reason: &'static str) -> AdapterError {
    AdapterError::Key {
        key: key.to_string(),
        reason,
    }
}

impl Config {
    fn parse(bytes: &[u8]) -> Result<Config, AdapterError> {
        let entries: Vec<(String, Box<RawValue>)> = json_object(CONFIG, bytes)?;
        let mut keys = BTreeSet::new();
        let (mut kind, mut rank, mut alpha) = (Value::Null, None, None);
        let (mut rank_pattern, mut alpha_pattern) = (Vec::new(), Vec::new());
        let mut use_rslora = false;
        for (key, raw) in &entries {
            if !keys.insert(key.as_str()) {
                return Err(AdapterError::Duplicate { name: key.clone() });
            }
            let value: Value =
                serde_json::from_str(raw.get()).map_err(|error| AdapterError::Json {
                    what: CONFIG,
                    reason: error.to_string(),
                })?;
            match key.as_str() {
                "peft_type" => kind = value,
                "r" => rank = value.as_u64().and_then(|r| usize::try_from(r).ok()),
                "lora_alpha" => alpha = value.as_f64(),
                "use_rslora" => {
                    use_rslora = value
                        .as_bool()
                        .ok_or_else(|| wrong(key, "is neither true nor false"))?;
                }
                "rank_pattern" => rank_pattern = patterns(key, raw)?,
                "alpha_pattern" => alpha_pattern = patterns(key, raw)?,
                "init_lora_weights" => check_init(&value)?,
                key if WITHOUT_EFFECT.contains(&key) || is_inactive(&value) => {}
                key => {
                    return Err(AdapterError::Unsupported {
                        feature: key.to_string(),
                    });
                }
            }
        }
        match kind.as_str() {
            Some("LORA") => {}
            Some(other) => {
                return Err(AdapterError::Unsupported {
                    feature: format!("peft_type {other}"),
                });
            }
            None => return Err(wrong("peft_type", "is missing")),
        }
        let is_rank = |(_, rank): &(Regex, f64)| *rank >= 1.0 && *rank == libm::trunc(*rank);
        if !rank_pattern.iter().all(is_rank) {
            return Err(wrong(
                "rank_pattern",
                "has a rank that is no positive integer",
            ));
        }
        Ok(Config {
            rank: rank
                .filter(|r| *r > 0)
                .ok_or_else(|| wrong("r", "is no positive integer"))?,
            alpha: alpha.ok_or_else(|| wrong("lora_alpha", "is no number"))?,
            rank_pattern,
            alpha_pattern,
            use_rslora,
        })
    }
}

/// Nothing, in one of the ways that PEFT writes it.
fn is_inactive(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s == "none",
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

/// Some ways of initialization change the base model, too, and the adapter holds the difference to
/// that.
fn check_init(value: &Value) -> Result<(), AdapterError> {
    match value {
        Value::Bool(_) | Value::Null => Ok(()),
        Value::String(s) if ["gaussian", "eva", "orthogonal"].contains(&s.as_str()) => Ok(()),
        other => Err(AdapterError::Unsupported {
            feature: format!("init_lora_weights {other}"),
        }),
    }
}

/// Patterns and their numbers, in the file's order.
fn patterns(key: &str, value: &RawValue) -> Result<Vec<(Regex, f64)>, AdapterError> {
    if value.get() == "null" {
        return Ok(Vec::new());
    }
    let numbers: Vec<(String, f64)> = json_object(CONFIG, value.get().as_bytes())?;
    if numbers.len() > MAX_PATTERNS {
        return Err(wrong(key, "has more than 1024 patterns"));
    }
    let pattern = |(pattern, number): (String, f64)| {
        let regex = RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
            .size_limit(MAX_PATTERN_BYTES)
            .build();
        let regex = regex.map_err(|_| AdapterError::Unsupported {
            feature: format!("{key} {pattern}"),
        })?;
        Ok((regex, number))
    };
    numbers.into_iter().map(pattern).collect()
}
