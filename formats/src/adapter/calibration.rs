//! Learned corrections of a composition, in safetensors.
//!
//! A key is `<module>.<part>`, which holds for that module in all layers, or
//! `layers.<layer>.<module>.<part>`, which holds in one layer and there takes the place of the
//! other. Modules are named as Hugging Face's: `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`,
//! `up_proj`, `down_proj`. Parts are `p` `[n_out]`; `P1` `[rank, n_in]` and `P2` `[n_out, rank]`;
//! `M` `[rank, rank]`.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};

use super::safetensors::Safetensors;
use super::{AdapterError, Floats};

/// The parts of one module; which of them are used is the composition's choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parts {
    /// `[n_out]`: a bias of the outputs, or of the weights' columns.
    pub p: Option<Floats>,
    /// `[rank, n_in]`, with [`Parts::p2`] a low-rank term.
    pub p1: Option<Floats>,
    /// `[n_out, rank]`.
    pub p2: Option<Floats>,
    /// `[rank, rank]`, between the concatenated factors of all adapters.
    pub m: Option<Floats>,
}

/// A module, by name, of one layer or of all.
pub type Module = (Option<usize>, String);

/// Reads a calibration.
///
/// # Errors
///
/// What is malformed, by name; every tensor whose key is not of the form above.
pub fn read(bytes: &[u8]) -> Result<BTreeMap<Module, Parts>, AdapterError> {
    let tensors = Safetensors::parse(bytes)?;
    let mut modules: BTreeMap<Module, Parts> = BTreeMap::new();
    for name in tensors.names() {
        let unknown = || AdapterError::UnknownTensor {
            name: name.to_string(),
        };
        let (module, part) = name.rsplit_once('.').ok_or_else(unknown)?;
        let module = match module.strip_prefix("layers.") {
            Some(rest) => {
                let (layer, module) = rest.split_once('.').ok_or_else(unknown)?;
                (Some(layer.parse().map_err(|_| unknown())?), module)
            }
            None => (None, module),
        };
        let parts = modules.entry((module.0, module.1.to_string())).or_default();
        let (part, n_dims) = match part {
            "p" => (&mut parts.p, 1),
            "P1" => (&mut parts.p1, 2),
            "P2" => (&mut parts.p2, 2),
            "M" => (&mut parts.m, 2),
            _ => return Err(unknown()),
        };
        // `layers.1.x` and `layers.01.x` name one layer.
        if part.replace(tensors.floats(name, n_dims)?).is_some() {
            return Err(AdapterError::Duplicate {
                name: name.to_string(),
            });
        }
    }
    Ok(modules)
}
