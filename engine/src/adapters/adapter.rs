//! An adapter in the terms of a base model.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tandem_formats::adapter::{Floats, Lora, lora_gguf, peft};
use tandem_formats::{AdapterError, Gguf};
use tandem_kernels::MAX_RANK;

use super::CompositionError;
use crate::model::Linears;

/// Low-rank factors of some of a base model's linears, in float32.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// By the base's tensor, without `.weight`: `blk.0.attn_q`. Shapes are those of the base, rows
    /// in the base's order.
    modules: BTreeMap<String, Lora>,
}

impl Adapter {
    /// Reads a PEFT directory or a llama.cpp LoRA file.
    ///
    /// # Errors
    ///
    /// What cannot be read, is not supported, or does not fit the base, by name.
    #[cfg(feature = "std")]
    pub fn open(base: &Linears, path: &std::path::Path) -> Result<Adapter, crate::Error> {
        use tandem_formats::{FileError, Mapping};

        let io = |path: &std::path::Path, source| FileError::Io {
            path: path.to_path_buf(),
            source,
        };
        if !path.is_dir() {
            let mapping = Mapping::open(path).map_err(|source| io(path, source))?;
            if !mapping.starts_with(b"GGUF") {
                let extension = path.extension().and_then(|extension| extension.to_str());
                return Err(match extension {
                    Some("safetensors") => CompositionError::NotTheFolder.into(),
                    _ => CompositionError::NoAdapter.into(),
                });
            }
            let gguf = Gguf::parse(&mapping).map_err(AdapterError::from);
            let gguf = gguf.map_err(CompositionError::from)?;
            return Ok(Adapter::from_gguf(base, &gguf)?);
        }
        let read = |name: &str| {
            let path = path.join(name);
            std::fs::read(&path).map_err(|source| io(&path, source))
        };
        let has = |name: &str| path.join(name).exists();
        if !has("adapter_model.safetensors") {
            // What it is instead, where that is known.
            if has("adapters.safetensors") || has("adapters.npz") {
                return Err(CompositionError::Mlx.into());
            }
            if has("adapter_model.bin") {
                return Err(CompositionError::Pickle.into());
            }
            let weights = [
                "model.safetensors",
                "model.safetensors.index.json",
                "pytorch_model.bin",
            ];
            if weights.into_iter().any(has) {
                return Err(CompositionError::FullModel.into());
            }
        }
        let config = read("adapter_config.json")?;
        let weights = read("adapter_model.safetensors")?;
        Ok(Adapter::from_peft(base, &config, &weights)?)
    }

    /// Reads a PEFT directory's `adapter_config.json` and `adapter_model.safetensors`; see
    /// [`peft::read`].
    ///
    /// # Errors
    ///
    /// What is malformed or not supported, or does not fit the base, by name.
    pub fn from_peft(
        base: &Linears,
        config: &[u8],
        weights: &[u8],
    ) -> Result<Adapter, CompositionError> {
        let mut modules = Vec::new();
        for mut lora in peft::read(config, weights)? {
            let name =
                base.tensor_name(&lora.module)
                    .ok_or_else(|| CompositionError::UnknownModule {
                        name: lora.module.clone(),
                    })?;
            // Checked before rows are moved by it.
            check(base, &name, &lora)?;
            base.to_file_order(&name, &mut lora.b.values, lora.b.n_cols);
            base.inputs_to_file_order(&name, &mut lora.a.values, lora.a.n_cols);
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
    pub fn from_gguf(base: &Linears, gguf: &Gguf<'_>) -> Result<Adapter, CompositionError> {
        let (architecture, modules) = lora_gguf::read(gguf)?;
        if architecture != base.arch().name() {
            return Err(CompositionError::Architecture {
                adapter: architecture.to_string(),
                base: base.arch().name(),
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
    pub fn new(base: &Linears, loras: Vec<Lora>) -> Result<Adapter, CompositionError> {
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
    pub fn to_peft(&self, base: &Linears) -> Vec<Lora> {
        let turn = |(name, lora): (&String, &Lora)| {
            let mut lora = lora.clone();
            base.to_hf_order(name, &mut lora.b.values, lora.b.n_cols);
            base.inputs_to_hf_order(name, &mut lora.a.values, lora.a.n_cols);
            lora.module = base.hf_name(name).unwrap_or_else(|| name.clone());
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
fn check(base: &Linears, name: &str, lora: &Lora) -> Result<(), CompositionError> {
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
    let wanted = base.of_tensor(name, b.n_rows)?.n_in;
    match wanted == a.n_cols {
        true => Ok(()),
        false => Err(CompositionError::Shape {
            name: name.to_string(),
            wanted: (b.n_rows, wanted),
            found: (b.n_rows, a.n_cols),
        }),
    }
}
