//! llama.cpp's LoRA adapters: GGUF files of `general.type` `adapter`, with `<base tensor>.lora_a`
//! `[rank, n_in]` and `.lora_b` `[n_out, rank]` for each tensor of the base that they change. The
//! scale is `alpha / rank`, or 1 where alpha is 0 or missing.
//!
//! The format: `src/llama-adapter.cpp` of <https://github.com/ggml-org/llama.cpp>.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use super::{AdapterError, Floats, Lora, floats, lora};
use crate::{DType, Gguf, Value};

/// Whether a file is an adapter, and not a model.
pub fn is_adapter(gguf: &Gguf<'_>) -> bool {
    matches!(gguf.get_str("general.type"), Ok(Some("adapter")))
}

/// Reads an adapter: the architecture of its base, and the factors of the base's tensors, these
/// named without `.weight`, in the order of their names.
///
/// # Errors
///
/// What is malformed, missing or not supported, by name; every tensor that is no factor.
pub fn read<'a>(gguf: &Gguf<'a>) -> Result<(&'a str, Vec<Lora>), AdapterError> {
    let wrong = |key: &str, reason| AdapterError::Key {
        key: key.to_string(),
        reason,
    };
    let text = |key: &str| -> Result<&'a str, AdapterError> {
        gguf.get_str(key)?.ok_or_else(|| wrong(key, "is missing"))
    };
    if text("general.type")? != "adapter" {
        return Err(wrong("general.type", "is not \"adapter\""));
    }
    let architecture = text("general.architecture")?;
    let kind = text("adapter.type")?;
    if kind != "lora" {
        return Err(AdapterError::Unsupported {
            feature: format!("adapter.type {kind}"),
        });
    }
    let known = ["adapter.type", "adapter.lora.alpha"];
    for (key, value) in gguf.metadata() {
        // An adapter that is active after certain tokens only (aLoRA), a prompt to go with it, and
        // what else may come: all of it would change the result.
        let is_empty = matches!(value, Value::Array(a) if a.is_empty());
        if key.starts_with("adapter.") && !known.contains(&key) && !is_empty {
            return Err(AdapterError::Unsupported {
                feature: key.to_string(),
            });
        }
    }
    let alpha = gguf.get_f32("adapter.lora.alpha")?.unwrap_or(0.0);
    let mut modules = BTreeSet::new();
    for t in gguf.tensors() {
        let module = t.name.strip_suffix(".lora_a");
        let module = module
            .or_else(|| t.name.strip_suffix(".lora_b"))
            .and_then(|tensor| tensor.strip_suffix(".weight"));
        modules.insert(module.ok_or_else(|| AdapterError::UnknownTensor {
            name: t.name.to_string(),
        })?);
    }
    if modules.is_empty() {
        return Err(AdapterError::MissingTensor {
            name: "*.lora_a".to_string(),
        });
    }
    let read = |module: &str| {
        let name_a = format!("{module}.weight.lora_a");
        let name_b = format!("{module}.weight.lora_b");
        let (a, b) = (factor(gguf, &name_a)?, factor(gguf, &name_b)?);
        let scale = match alpha {
            0.0 => 1.0,
            alpha => alpha / a.n_rows as f32,
        };
        lora(module.to_string(), (&name_a, &name_b), a, b, scale)
    };
    let loras = modules.into_iter().map(read).collect::<Result<_, _>>()?;
    Ok((architecture, loras))
}

fn factor(gguf: &Gguf<'_>, name: &str) -> Result<Floats, AdapterError> {
    let t = gguf
        .tensor(name)
        .ok_or_else(|| AdapterError::MissingTensor {
            name: name.to_string(),
        })?;
    if !matches!(
        t.dtype,
        DType::F32 | DType::F64 | DType::F16 | DType::BF16 | DType::Q8_0
    ) {
        return Err(AdapterError::Type {
            name: name.to_string(),
            found: t.dtype.to_string(),
        });
    }
    // A dimension of 1 at the end may be left out, or be written out.
    let extra = t.shape().iter().skip(2).any(|n| *n != 1);
    if extra {
        return Err(AdapterError::Dimensions {
            name: name.to_string(),
            wanted: 2,
            found: t.shape().len(),
        });
    }
    floats(name, t.dtype, t.n_rows(), t.n_cols(), t.data)
}
