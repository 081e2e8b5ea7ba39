//! Every linear of a model: its id, name, shape and input group, and what files call it.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use super::arch::{Architecture, ModuleName};
use super::config::{Config, FfnConfig, MixerConfig};
use crate::CompositionError;

/// A linear of a model: its place among all of them, layer by layer, the output last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinearId(u32);

impl LinearId {
    /// The place.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What is known of a linear without its weights.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinearInfo {
    /// Its place among all.
    pub id: LinearId,
    /// Its name: that of its tensor where it has one of its own, without `.weight`: `blk.0.attn_q`.
    pub name: String,
    /// Its layer, counted from 0; none for the output, and for what serves all layers.
    pub layer: Option<usize>,
    /// The name without the layer: `attn_q`.
    pub part: &'static str,
    /// Outputs.
    pub n_out: usize,
    /// Inputs.
    pub n_in: usize,
    /// Linears of one group have the same input, and stand beside each other.
    pub group: usize,
    /// Elements of each of the heads that its outputs are, where they are turned by positions.
    pub turned_head: Option<usize>,
    /// The heads of values among its outputs or inputs, where Hugging Face has them in another order.
    pub value_heads: Option<ValueHeads>,
}

/// Value heads, several to a key head. Files have them in turn, number `j` with key head `j % n_head_k`; Hugging
/// Face has those of a key head together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ValueHeads {
    /// Whether they are the linear's inputs instead of outputs.
    pub are_inputs: bool,
    /// Where they begin.
    pub first: usize,
    /// Elements of a head.
    pub len: usize,
    /// Key heads.
    pub n_head_k: usize,
    /// Value heads.
    pub n_head_v: usize,
}

/// A linear as the block that it belongs to declares it.
pub(crate) struct LinearSpec {
    pub part: &'static str,
    pub n_out: usize,
    pub n_in: usize,
    /// Counts the inputs of the block.
    pub group: usize,
    pub turned_head: Option<usize>,
    pub value_heads: Option<ValueHeads>,
}

impl LinearSpec {
    /// One whose outputs are not turned.
    pub(crate) fn new(part: &'static str, n_out: usize, n_in: usize, group: usize) -> LinearSpec {
        LinearSpec {
            part,
            n_out,
            n_in,
            group,
            turned_head: None,
            value_heads: None,
        }
    }
}

/// Linears that files may have in one tensor, rows one after the other.
pub(crate) struct FusedSpec {
    pub tensor: &'static str,
    pub parts: &'static [&'static str],
}

/// A tensor of a file, which may hold several linears.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorParts {
    /// The linears, each with its rows.
    pub linears: Vec<(LinearId, Range<usize>)>,
    /// The tensor's rows.
    pub n_out: usize,
    /// The tensor's columns.
    pub n_in: usize,
}

/// All linears of a model. A copy is cheap: it is another handle to the same table.
#[derive(Clone, Debug)]
pub struct Linears(Arc<Table>);

#[derive(Debug, PartialEq)]
struct Table {
    arch: &'static Architecture,
    n_layer: usize,
    all: Vec<LinearInfo>,
    /// What a tensor of this name may hold; of several possibilities the number of rows decides.
    by_tensor: BTreeMap<String, Vec<TensorParts>>,
}

impl PartialEq for Linears {
    fn eq(&self, other: &Linears) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

/// The linear that gives the logits.
const OUTPUT: &str = "output";

impl Linears {
    /// Those of a model with these hyperparameters.
    pub fn of(config: &Config) -> Linears {
        let mut table = Table {
            arch: config.arch,
            n_layer: config.layers.len(),
            all: Vec::new(),
            by_tensor: BTreeMap::new(),
        };
        for (i, layer) in config.layers.iter().enumerate() {
            match &layer.mixer {
                MixerConfig::Attention(c) => table.add(i, &c.linears(config.n_embd), c.fused()),
                MixerConfig::ShortConv(c) => table.add(i, &c.linears(config.n_embd), &[]),
                MixerConfig::DeltaNet(c) => table.add(i, &c.linears(config.n_embd), &[]),
                MixerConfig::Mamba(c) => table.add(i, &c.linears(config.n_embd), c.fused()),
                MixerConfig::AttentionAndMamba(c) => {
                    let (attention, mamba) = (&c.attention, &c.mamba);
                    table.add(i, &attention.linears(config.n_embd), attention.fused());
                    table.add(i, &mamba.linears(config.n_embd), mamba.fused());
                }
                MixerConfig::None => {}
            }
            match &layer.ffn {
                FfnConfig::Gated(c) => table.add(i, &c.linears(config.n_embd), c.fused()),
                FfnConfig::Mlp(c) => table.add(i, &c.linears(config.n_embd), &[]),
                FfnConfig::Experts(c) => {
                    if let Some(shared) = &c.shared {
                        table.add(i, &shared.linears(config.n_embd), shared.fused());
                    }
                }
                FfnConfig::DenseAndExperts(c) => {
                    table.add(i, &c.dense.linears(config.n_embd), c.dense.fused());
                }
                FfnConfig::None => {}
            }
            if let Some(c) = &config.per_layer {
                table.add(i, &c.linears(config.n_embd), &[]);
            }
            if let Some(c) = &config.altup {
                table.add(i, &c.linears(config.n_embd), &[]);
            }
        }
        if let Some(c) = &config.per_layer {
            let proj = c.model_proj(config.n_embd, config.layers.len());
            table.add_one(None, &proj, table.next_group());
        }
        let output = LinearSpec::new(OUTPUT, config.n_vocab, config.n_embd, 0);
        table.add_one(None, &output, table.next_group());
        Linears(Arc::new(table))
    }

    /// The linears, by their ids.
    pub fn iter(&self) -> core::slice::Iter<'_, LinearInfo> {
        self.0.all.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.all.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.all.is_empty()
    }

    /// A linear; `None` for an id of another model that is past the end.
    pub fn get(&self, id: LinearId) -> Option<&LinearInfo> {
        self.0.all.get(id.index())
    }

    /// The name of a linear, for messages.
    pub fn name(&self, id: LinearId) -> &str {
        self.get(id).map_or("?", |linear| &linear.name)
    }

    /// The linear of this name: `blk.0.attn_q`, `output`.
    pub fn by_name(&self, name: &str) -> Option<&LinearInfo> {
        let mut parts = self.0.by_tensor.get(name)?.iter().flat_map(|p| &p.linears);
        parts.find_map(|(id, _)| self.get(*id).filter(|linear| linear.name == name))
    }

    /// The linear that gives the logits. Where it is tied to the embeddings these do not change with
    /// it.
    pub fn output(&self) -> LinearId {
        LinearId(self.0.all.len().saturating_sub(1) as u32)
    }

    /// The architecture.
    pub fn arch(&self) -> &'static Architecture {
        self.0.arch
    }

    /// Layers of the model.
    pub fn n_layer(&self) -> usize {
        self.0.n_layer
    }

    /// What the tensor of this name (without `.weight`) and `n_out` rows consists of.
    ///
    /// # Errors
    ///
    /// A name that the model lacks or that adapters cannot change; a number of rows that it does not
    /// have.
    pub fn of_tensor(&self, name: &str, n_out: usize) -> Result<&TensorParts, CompositionError> {
        let possible = self.0.by_tensor.get(name);
        let possible = possible.ok_or_else(|| CompositionError::UnknownModule {
            name: name.to_string(),
        })?;
        let found = possible.iter().find(|parts| parts.n_out == n_out);
        let (wanted_out, n_in) = possible.first().map_or((0, 0), |p| (p.n_out, p.n_in));
        found.ok_or_else(|| CompositionError::Shape {
            name: name.to_string(),
            wanted: (wanted_out, n_in),
            found: (n_out, n_in),
        })
    }

    /// What a layer's module, as the architecture's files have it, consists of.
    pub fn of_module(&self, layer: usize, module: ModuleName) -> Option<&TensorParts> {
        let possible = self
            .0
            .by_tensor
            .get(&format!("blk.{layer}.{}", module.tensor))?;
        // Linears that have no tensor of their own are in this one.
        let is_whole = |parts: &&TensorParts| {
            let mut others = parts.linears.iter().filter_map(|(id, _)| self.get(*id));
            others.all(|l| l.part == module.tensor || !self.has_module(l.part))
        };
        possible
            .iter()
            .filter(is_whole)
            .max_by_key(|parts| parts.linears.len())
    }

    /// What the tensor of this name, without layer and `.weight`, may hold in a layer.
    pub(crate) fn of_layer(&self, layer: usize, tensor: &str) -> Option<&[TensorParts]> {
        let possible = self.0.by_tensor.get(&format!("blk.{layer}.{tensor}"))?;
        Some(possible)
    }

    fn has_module(&self, tensor: &str) -> bool {
        self.arch().modules().iter().any(|m| m.tensor == tensor)
    }

    /// The tensor (without `.weight`) that a module of Hugging Face's model became.
    pub(crate) fn tensor_name(&self, module: &str) -> Option<String> {
        if module == "lm_head" {
            return Some(OUTPUT.to_string());
        }
        let (layer, module) = module.strip_prefix("model.layers.")?.split_once('.')?;
        let tensor = self.arch().tensor_of(module)?;
        Some(format!("blk.{layer}.{tensor}"))
    }

    /// The tensor in a layer for a module's last name, such as `q_proj`.
    pub(crate) fn short_name(&self, module: &str) -> Option<&'static str> {
        let mut modules = self.arch().modules().iter();
        let found = modules.find(|m| m.hf.contains('.') && m.last() == module);
        found.map(|m| m.tensor)
    }

    /// The module of Hugging Face's model that became the tensor (without `.weight`).
    pub(crate) fn hf_name(&self, tensor: &str) -> Option<String> {
        if tensor == OUTPUT {
            return Some("lm_head".to_string());
        }
        let (layer, tensor) = tensor.strip_prefix("blk.")?.split_once('.')?;
        let found = self.arch().modules().iter().find(|m| m.tensor == tensor)?;
        Some(format!("{}.{layer}.{}", self.arch().hf_layers(), found.hf))
    }

    /// Puts rows of Hugging Face's order into the file's. `rows` is `[n_out, n_cols]` of the tensor
    /// `name`, with or without its layer.
    pub(crate) fn to_file_order(&self, name: &str, rows: &mut [f32], n_cols: usize) {
        self.reorder(name, rows, n_cols, |row, half| row % 2 * half + row / 2);
        if let Some(heads) = self.value_heads(name).filter(|heads| !heads.are_inputs) {
            heads.reorder(rows, n_cols, |j, k, per_k| j % k * per_k + j / k);
        }
    }

    /// The inverse of [`Linears::to_file_order`].
    pub(crate) fn to_hf_order(&self, name: &str, rows: &mut [f32], n_cols: usize) {
        self.reorder(name, rows, n_cols, |row, half| row % half * 2 + row / half);
        if let Some(heads) = self.value_heads(name).filter(|heads| !heads.are_inputs) {
            heads.reorder(rows, n_cols, |j, k, per_k| j % per_k * k + j / per_k);
        }
    }

    /// As [`Linears::to_file_order`] for the columns of rows `[n_rows, n_in]`.
    pub(crate) fn inputs_to_file_order(&self, name: &str, rows: &mut [f32], n_in: usize) {
        if let Some(heads) = self.value_heads(name).filter(|heads| heads.are_inputs) {
            for row in rows.chunks_exact_mut(n_in.max(1)) {
                heads.reorder(row, 1, |j, k, per_k| j % k * per_k + j / k);
            }
        }
    }

    /// The inverse of [`Linears::inputs_to_file_order`].
    pub(crate) fn inputs_to_hf_order(&self, name: &str, rows: &mut [f32], n_in: usize) {
        if let Some(heads) = self.value_heads(name).filter(|heads| heads.are_inputs) {
            for row in rows.chunks_exact_mut(n_in.max(1)) {
                heads.reorder(row, 1, |j, k, per_k| j % per_k * k + j / per_k);
            }
        }
    }

    fn value_heads(&self, name: &str) -> Option<ValueHeads> {
        let mut all = self.iter();
        let linear = all.find(|linear| linear.name == name || linear.part == name);
        linear.and_then(|linear| linear.value_heads)
    }

    /// Row `row` of every head becomes what `from(row, half a head)` was, where the tensor's rows are
    /// in another order than Hugging Face's at all.
    fn reorder(
        &self,
        name: &str,
        rows: &mut [f32],
        n_cols: usize,
        from: impl Fn(usize, usize) -> usize,
    ) {
        let mut all = self.iter();
        let linear = all.find(|linear| linear.name == name || linear.part == name);
        let head_dim = linear.and_then(|linear| linear.turned_head);
        // A matrix without columns, which its user refuses, has nothing to turn.
        let Some(head_dim) = head_dim.filter(|_| self.arch().turns_rows() && n_cols > 0) else {
            return;
        };
        let mut head = vec![0.0; head_dim * n_cols];
        for rows in rows.chunks_exact_mut(head_dim * n_cols) {
            for (row, to) in head.chunks_exact_mut(n_cols).enumerate() {
                to.copy_from_slice(&rows[from(row, head_dim / 2) * n_cols..][..n_cols]);
            }
            rows.copy_from_slice(&head);
        }
    }
}

impl ValueHeads {
    /// Head `j` becomes what head `from(j, n_head_k, heads to a key head)` was; `rows` `[n, n_cols]` has one for
    /// each output or input.
    fn reorder(
        &self,
        rows: &mut [f32],
        n_cols: usize,
        from: impl Fn(usize, usize, usize) -> usize,
    ) {
        let head = self.len * n_cols;
        let heads =
            rows.get_mut(self.first * n_cols..(self.first + self.n_head_v * self.len) * n_cols);
        let Some(heads) = heads.filter(|_| head > 0) else {
            return;
        };
        let old = heads.to_vec();
        for (j, to) in heads.chunks_exact_mut(head).enumerate() {
            let j = from(j, self.n_head_k, self.n_head_v / self.n_head_k);
            to.copy_from_slice(&old[j * head..][..head]);
        }
    }
}

impl<'a> IntoIterator for &'a Linears {
    type Item = &'a LinearInfo;
    type IntoIter = core::slice::Iter<'a, LinearInfo>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Table {
    fn next_group(&self) -> usize {
        self.all.last().map_or(0, |linear| linear.group + 1)
    }

    /// Adds the linears of a block of layer `i`, and what files may have instead of them.
    fn add(&mut self, i: usize, linears: &[LinearSpec], fused: &[FusedSpec]) {
        let (first, first_group) = (self.all.len(), self.next_group());
        for spec in linears {
            self.add_one(Some(i), spec, first_group + spec.group);
        }
        for FusedSpec { tensor, parts } in fused {
            let mut whole = TensorParts {
                linears: Vec::new(),
                n_out: 0,
                n_in: 0,
            };
            for linear in &self.all[first..] {
                if parts.contains(&linear.part) {
                    let end = whole.n_out + linear.n_out;
                    whole.linears.push((linear.id, whole.n_out..end));
                    (whole.n_out, whole.n_in) = (end, linear.n_in);
                }
            }
            let possible = self.by_tensor.entry(format!("blk.{i}.{tensor}"));
            possible.or_default().push(whole);
        }
    }

    fn add_one(&mut self, layer: Option<usize>, spec: &LinearSpec, group: usize) {
        let id = LinearId(self.all.len() as u32);
        let LinearSpec {
            part, n_out, n_in, ..
        } = *spec;
        let name = match layer {
            Some(i) => format!("blk.{i}.{part}"),
            None => part.to_string(),
        };
        let whole = TensorParts {
            linears: vec![(id, 0..n_out)],
            n_out,
            n_in,
        };
        let possible = self.by_tensor.entry(name.clone());
        possible.or_default().push(whole);
        self.all.push(LinearInfo {
            id,
            name,
            layer,
            part,
            n_out,
            n_in,
            group,
            turned_head: spec.turned_head,
            value_heads: spec.value_heads,
        });
    }
}
