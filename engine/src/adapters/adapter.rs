//! An adapter in the terms of a base model.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tandem_formats::adapter::{Floats, Lora, lora_gguf, peft};
use tandem_formats::{AdapterError, Gguf};
use tandem_kernels::MAX_RANK;

use super::CompositionError;
use super::linear_id::{from_file_order, hf_name, linears, tensor_name, to_file_order};
use crate::Config;

/// Low-rank factors of some of a base model's linears, in float32.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// By the base's tensor, without `.weight`: `blk.0.attn_q`. Shapes are those of the base, rows
    /// in the base's order.
    modules: BTreeMap<String, Lora>,
}

impl Adapter {
    /// Reads a PEFT directory's `adapter_config.json` and `adapter_model.safetensors`; see
    /// [`peft::read`].
    ///
    /// # Errors
    ///
    /// What is malformed or not supported, or does not fit the base, by name.
    pub fn from_peft(
        base: &Config,
        config: &[u8],
        weights: &[u8],
    ) -> Result<Adapter, CompositionError> {
        let mut modules = Vec::new();
        for mut lora in peft::read(config, weights)? {
            let name =
                tensor_name(base, &lora.module).ok_or_else(|| CompositionError::UnknownModule {
                    name: lora.module.clone(),
                })?;
            // Checked before rows are moved by it.
            check(base, &name, &lora)?;
            to_file_order(base, &name, &mut lora.b.values, lora.b.n_cols);
            lora.module = name;
            modules.push(lora);
        }
        Adapter::new(base, modules)
    }

    /// Reads llama.cpp's LoRA file; see [`lora_gguf::read`].
    ///
    /// # Errors
    ///
    /// What is malformed or not supported, or does not fit the base, by name.
    pub fn from_gguf(base: &Config, gguf: &Gguf<'_>) -> Result<Adapter, CompositionError> {
        let (architecture, modules) = lora_gguf::read(gguf)?;
        if architecture != base.arch.name() {
            return Err(CompositionError::Architecture {
                adapter: architecture.to_string(),
                base: base.arch.name(),
            });
        }
        Adapter::new(base, modules)
    }

    /// An adapter of factors that are named, shaped and ordered as the base's tensors.
    ///
    /// # Errors
    ///
    /// A tensor that the base lacks or has in another shape, or that is there twice; factors that
    /// do not fit each other, or of a rank of 0 or above 65536.
    pub fn new(base: &Config, loras: Vec<Lora>) -> Result<Adapter, CompositionError> {
        let mut modules = BTreeMap::new();
        for lora in loras {
            check(base, &lora.module, &lora)?;
            let name = lora.module.clone();
            if modules.insert(name.clone(), lora).is_some() {
                return Err(AdapterError::Duplicate { name }.into());
            }
        }
        Ok(Adapter { modules })
    }

    /// The factors under the names of Hugging Face's modules and in its order of rows, as PEFT has
    /// them: the inverse of what [`Adapter::from_peft`] does.
    pub fn to_peft(&self, base: &Config) -> Vec<Lora> {
        let turn = |(name, lora): (&String, &Lora)| {
            let mut lora = lora.clone();
            from_file_order(base, name, &mut lora.b.values, lora.b.n_cols);
            lora.module = hf_name(base, name).unwrap_or_else(|| name.clone());
            lora
        };
        self.modules.iter().map(turn).collect()
    }

    /// The factors, by the name of the base's tensor.
    pub fn modules(&self) -> &BTreeMap<String, Lora> {
        &self.modules
    }
}

/// Checks that the factors fit each other, and a tensor `name` of the base.
fn check(base: &Config, name: &str, lora: &Lora) -> Result<(), CompositionError> {
    let (Lora { a, b, .. }, rank) = (lora, lora.a.n_rows);
    let is_whole = |x: &Floats| x.n_rows.checked_mul(x.n_cols) == Some(x.values.len());
    if rank == 0 || rank > MAX_RANK || b.n_cols != rank || !is_whole(a) || !is_whole(b) {
        return Err(AdapterError::Ranks {
            a: format!("{name}.lora_a"),
            b: format!("{name}.lora_b"),
            found: ((rank, a.n_cols), (b.n_rows, b.n_cols)),
        }
        .into());
    }
    check_shape(base, name, (b.n_rows, a.n_cols))
}

/// Checks that a tensor `name` of the base has as many outputs and inputs.
pub(super) fn check_shape(
    base: &Config,
    name: &str,
    (n_out, n_in): (usize, usize),
) -> Result<(), CompositionError> {
    let wanted = linears(base, name, n_out)?.n_in;
    match wanted == n_in {
        true => Ok(()),
        false => Err(CompositionError::Shape {
            name: name.to_string(),
            wanted: (n_out, wanted),
            found: (n_out, n_in),
        }),
    }
}
