//! PEFT directories: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Factors stand under `base_model.model.<module>.lora_A.weight` `[rank, n_in]` and `.lora_B.weight`
//! `[n_out, rank]`, in files by others also without the beginning or as `.lora_A.default.weight`; the scale is `alpha / rank`, with `use_rslora` `alpha / sqrt(rank)`, and both
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
const WITHOUT_EFFECT: [&str; 22] = [
    "auto_mapping",
    "base_model_class",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    // Of the base's matrices: the factors are stored the same way.
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "lora_ga_config",
    "loraplus_lr_ratio",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];

/// Keys that change what an adapter computes where they are active, and that are not supported. Others
/// that are not known are looked at by [`may_matter`].
const UNSUPPORTED: [&str; 12] = [
    "alora_invocation_string",
    "alora_invocation_tokens",
    "arrow_config",
    "bias",
    "layer_replication",
    "loftq_config",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "velora_config",
];

/// What stands before the names of a language model's modules: in classes of several modes, in Mamba's and
/// Nemotron-H's, and in the model without its head. The longest first.
const PREFIXES: [&str; 6] = [
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "backbone.",
    "model.",
    "",
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
        if let Some(module) = Factor::parse(name) {
            modules.insert(module);
        } else if !is_copy_of_base(name, &tensors) {
            return Err(AdapterError::UnknownTensor {
                name: name.to_string(),
            });
        }
    }
    if modules.is_empty() {
        return Err(AdapterError::Safetensors {
            reason: "it has no factors of an adapter",
        });
    }
    let read = |factor: Factor<'_>| {
        let (name_a, name_b) = (factor.name("lora_A"), factor.name("lora_B"));
        let a = tensors.floats(&name_a, 2)?;
        let b = tensors.floats(&name_b, 2)?;
        let rank = match first_match(&config.rank_pattern, factor.module) {
            Some(rank) => rank as usize,
            None => config.rank,
        };
        if a.n_rows != rank {
            return Err(AdapterError::Rank {
                module: factor.module.to_string(),
                wanted: rank,
                found: a.n_rows,
            });
        }
        let alpha = first_match(&config.alpha_pattern, factor.module).unwrap_or(config.alpha);
        let scale = match config.use_rslora {
            true => alpha / libm::sqrt(rank as f64),
            false => alpha / rank as f64,
        };
        let module = plain_name(factor.module);
        lora(module, (&name_a, &name_b), a, b, scale as f32)
    };
    let loras: Vec<Lora> = modules.into_iter().map(read).collect::<Result<_, _>>()?;
    let mut names = BTreeSet::new();
    match loras.iter().find(|lora| !names.insert(&lora.module)) {
        Some(twice) => Err(AdapterError::Duplicate {
            name: twice.module.clone(),
        }),
        None => Ok(loras),
    }
}

/// A module that a file has factors for, and how their names are made of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Factor<'n> {
    module: &'n str,
    /// `base_model.model.`, or nothing.
    head: &'n str,
    /// `.weight`, or `.default.weight` where the name of the adapter is in it.
    tail: &'n str,
}

impl<'n> Factor<'n> {
    /// What a tensor's name says, if it is a factor's.
    fn parse(name: &'n str) -> Option<Factor<'n>> {
        let at = name.find(".lora_A.").or_else(|| name.find(".lora_B."))?;
        let (module, tail) = (&name[..at], &name[at + ".lora_A".len()..]);
        let head = "base_model.model.";
        let (head, module) = match module.strip_prefix(head) {
            Some(module) => (&name[..head.len()], module),
            None => ("", module),
        };
        matches!(tail, ".weight" | ".default.weight").then_some(Factor { module, head, tail })
    }

    fn name(&self, factor: &str) -> String {
        format!("{}{}.{factor}{}", self.head, self.module, self.tail)
    }
}

/// A module's name as that of the plain language model: `model.layers.0.self_attn.q_proj`, `lm_head`.
/// Others stay as they are, and are then found in no base.
fn plain_name(module: &str) -> String {
    for prefix in PREFIXES {
        if let Some(rest) = module.strip_prefix(prefix) {
            if rest.starts_with("layers.") || rest.starts_with("embed_tokens") {
                return format!("model.{rest}");
            }
            if rest == "lm_head" {
                return rest.to_string();
            }
        }
    }
    module.to_string()
}

/// Whether a tensor is a copy of the base's own matrix beside factors: PEFT saves such of the embeddings and
/// the output unasked, and it changes nothing.
fn is_copy_of_base(name: &str, tensors: &Safetensors<'_>) -> bool {
    let Some(module) = name.strip_suffix(".base_layer.weight") else {
        return false;
    };
    let mut factors = tensors.names().filter_map(Factor::parse);
    factors.any(|factor| format!("{}{}", factor.head, factor.module) == module)
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
        let has = |name: &str| entries.iter().any(|(key, _)| key == name);
        if has("lora_parameters") && !has("peft_type") {
            return Err(AdapterError::Unsupported {
                feature: "lora_parameters (the form of MLX)".to_string(),
            });
        }
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
                    let value = if value.is_null() {
                        Value::Bool(false)
                    } else {
                        value
                    };
                    use_rslora = value
                        .as_bool()
                        .ok_or_else(|| wrong(key, "is neither true nor false"))?;
                }
                "rank_pattern" => rank_pattern = patterns(key, raw)?,
                "alpha_pattern" => alpha_pattern = patterns(key, raw)?,
                "init_lora_weights" => check_init(&value)?,
                "use_dora" if !is_inactive(&value) => {
                    return Err(AdapterError::Unsupported {
                        feature: "DoRA (use_dora)".to_string(),
                    });
                }
                key if WITHOUT_EFFECT.contains(&key) || is_inactive(&value) => {}
                key if UNSUPPORTED.contains(&key) || may_matter(key) => {
                    return Err(AdapterError::Unsupported {
                        feature: key.to_string(),
                    });
                }
                // What other trainers note down: versions, rates, comments.
                _ => {}
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

/// Whether a key that is not known sounds like one of an adapter's form, as later versions of PEFT may have.
fn may_matter(key: &str) -> bool {
    let speaks_of = [
        "lora", "rank", "alpha", "scale", "scaling", "dora", "adapter", "module", "layer",
    ];
    let is_of_trainer =
        key.contains("lora_dropout") || key.contains("version") || key.contains("path");
    let is_switch = key.starts_with("use_");
    !is_of_trainer && (is_switch || speaks_of.iter().any(|word| key.contains(word)))
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
