//! What learns: the parts of a calibration, or the factors of a LoRA.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{Device, Tensor, Var};
use rand_xoshiro::Xoshiro256PlusPlus;
use tandem_engine::adapters::Calibration;
use tandem_engine::adapters::calibration::Kind;
use tandem_engine::model::{ModuleName, TensorParts};
use tandem_engine::{Adapter, LinearId, Linears};
use tandem_formats::adapter::calibration::Parts;
use tandem_formats::adapter::{Floats, Lora};

use super::random::uniform;

/// What is to be learned.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Form {
    /// A calibration; `rank` counts for [`Kind::LowRank`].
    Calibration {
        kind: Kind,
        rank: usize,
        /// One for all layers.
        shared: bool,
    },
    /// A LoRA, with factors for each layer.
    Lora { rank: usize, alpha: f32 },
}

/// The name of a learned tensor: its layer, the base's tensor in a layer, the part.
pub(super) type Name = (Option<usize>, &'static str, &'static str);

/// The tensors that learn, and where the network uses them.
pub(super) struct Learned {
    form: Form,
    names: Vec<Name>,
    vars: Vec<Var>,
    users: HashMap<LinearId, User>,
}

/// Where a linear finds its term.
struct User {
    /// The first of its tensors.
    index: usize,
    /// Its rows of a tensor that may hold several linears.
    rows: Range<usize>,
    n_in: usize,
    /// For a projection, the adapters' factors `[ranks, n_in]` and `[rows, ranks]`.
    factors: Option<(Tensor, Tensor)>,
}

/// What is added to a linear.
pub(super) enum Term {
    /// `p` `[n_out]`.
    Bias(Tensor),
    /// `scale b (a x)`, `a` `[rank, n_in]`, `b` `[n_out, rank]`.
    LowRank { a: Tensor, b: Tensor, scale: f32 },
}

/// A tensor of a layer and the linears in it.
struct Place<'a> {
    layer: usize,
    tensor: &'static str,
    parts: &'a TensorParts,
}

/// The tensors of all layers that modules of these names (all, where there are none) are.
fn places<'a>(base: &'a Linears, modules: &[String]) -> Result<Vec<Place<'a>>> {
    let names = base.arch().modules();
    for wanted in modules {
        if !names.iter().any(|name| name.last() == wanted) {
            let known: Vec<_> = names.iter().map(ModuleName::last).collect();
            bail!(
                "there is no module {wanted:?}; there are {}",
                known.join(", ")
            );
        }
    }
    let is_wanted =
        |name: &&ModuleName| modules.is_empty() || modules.iter().any(|m| m == name.last());
    let mut places = Vec::new();
    for layer in 0..base.n_layer() {
        for name in names.iter().filter(is_wanted) {
            // A layer of another kind has no such module.
            if let Some(parts) = base.of_module(layer, *name) {
                let tensor = name.tensor;
                places.push(Place {
                    layer,
                    tensor,
                    parts,
                });
            }
        }
    }
    Ok(places)
}

impl Learned {
    /// Tensors as training begins with them: such that the network is still the plain merge.
    /// `members` are the adapters and their weights, between which a projection goes.
    pub(super) fn new(
        base: &Linears,
        form: Form,
        modules: &[String],
        members: &[(&Adapter, f32)],
        random: &mut Xoshiro256PlusPlus,
    ) -> Result<Learned> {
        let mut learned = Learned {
            form: form.clone(),
            names: Vec::new(),
            vars: Vec::new(),
            users: HashMap::new(),
        };
        let shared = matches!(form, Form::Calibration { shared: true, .. });
        let mut first = BTreeMap::new();
        for place in places(base, modules)? {
            let cat = match form {
                Form::Calibration {
                    kind: Kind::Projection,
                    ..
                } => match Cat::new(&place, members) {
                    Some(cat) => Some(cat),
                    None => continue, // no adapter changes it
                },
                _ => None,
            };
            let key = (shared, place.tensor);
            let index = match first.get(&key).filter(|_| shared) {
                Some(index) => *index,
                None => {
                    let layer = (!shared).then_some(place.layer);
                    let index = learned.add(layer, &place, cat.as_ref(), random)?;
                    first.insert(key, index);
                    index
                }
            };
            if let Some(cat) = &cat {
                let start = learned.vars[index].to_vec2::<f32>()?;
                ensure!(
                    !shared || start == cat.matrix(),
                    "the adapters' ranks or scales differ from layer to layer at {}: a projection \
                     cannot be shared by all layers (shared = false)",
                    place.tensor
                );
            }
            for (id, rows) in &place.parts.linears {
                let n_in = place.parts.n_in;
                let factors = cat.as_ref().map(|cat| cat.factors(n_in, rows));
                let factors = factors.transpose()?;
                let user = User {
                    index,
                    rows: rows.clone(),
                    n_in,
                    factors,
                };
                learned.users.insert(*id, user);
            }
        }
        ensure!(
            !learned.vars.is_empty(),
            "there is nothing to learn: the adapters change none of the modules"
        );
        Ok(learned)
    }

    /// Adds the tensors of one place and returns the index of the first.
    fn add(
        &mut self,
        layer: Option<usize>,
        place: &Place<'_>,
        cat: Option<&Cat<'_>>,
        random: &mut Xoshiro256PlusPlus,
    ) -> Result<usize> {
        let index = self.vars.len();
        let mut push = |part, shape: &[usize], values: Vec<f32>| -> Result<()> {
            self.names.push((layer, place.tensor, part));
            self.vars.push(Var::from_vec(values, shape, &Device::Cpu)?);
            Ok(())
        };
        let TensorParts { n_out, n_in, .. } = *place.parts;
        // As PEFT begins with A.
        let bound = 1.0 / (n_in as f32).sqrt();
        let mut small = |n: usize| (0..n).map(|_| bound * uniform(random)).collect();
        match self.form {
            Form::Calibration { kind, rank, .. } => match kind {
                Kind::OutputBias | Kind::WeightBias => push("p", &[n_out], vec![0.0; n_out])?,
                Kind::LowRank => {
                    push("P1", &[rank, n_in], small(rank * n_in))?;
                    push("P2", &[n_out, rank], vec![0.0; n_out * rank])?;
                }
                Kind::Projection => {
                    let matrix = cat.context("a projection goes between adapters")?.matrix();
                    let n = matrix.len();
                    push("M", &[n, n], matrix.concat())?;
                }
            },
            Form::Lora { rank, .. } => {
                push("A", &[rank, n_in], small(rank * n_in))?;
                push("B", &[n_out, rank], vec![0.0; n_out * rank])?;
            }
        }
        Ok(index)
    }

    /// The tensors that learn.
    pub(super) fn vars(&self) -> &[Var] {
        &self.vars
    }

    /// Their names, as checkpoints have them.
    pub(super) fn names(&self) -> Vec<String> {
        let name = |(layer, tensor, part): &Name| match layer {
            Some(layer) => format!("blk.{layer}.{tensor}.{part}"),
            None => format!("{tensor}.{part}"),
        };
        self.names.iter().map(name).collect()
    }

    /// How many numbers learn.
    pub(super) fn n_parameters(&self) -> usize {
        self.vars.iter().map(|v| v.elem_count()).sum()
    }

    /// Their values now.
    pub(super) fn values(&self) -> candle_core::Result<Vec<Vec<f32>>> {
        self.vars
            .iter()
            .map(|v| v.flatten_all()?.to_vec1())
            .collect()
    }

    /// Gives them other values, of the same sizes.
    pub(super) fn set(&self, values: &[Vec<f32>]) -> candle_core::Result<()> {
        for (var, values) in self.vars.iter().zip(values) {
            var.set(&Tensor::from_slice(values, var.shape(), &Device::Cpu)?)?;
        }
        Ok(())
    }

    /// What is learned for a linear, if anything.
    pub(super) fn term(&self, id: LinearId) -> candle_core::Result<Option<Term>> {
        let Some(User {
            index,
            rows,
            n_in,
            factors,
        }) = self.users.get(&id)
        else {
            return Ok(None);
        };
        let own_rows = |var: &Var| match var.dim(0)? == rows.len() {
            true => Ok(var.as_tensor().clone()),
            false => var.narrow(0, rows.start, rows.len()),
        };
        let first = &self.vars[*index];
        let low_rank = |scale| -> candle_core::Result<Term> {
            Ok(Term::LowRank {
                a: first.as_tensor().clone(),
                b: own_rows(&self.vars[index + 1])?,
                scale,
            })
        };
        Ok(Some(match self.form {
            Form::Calibration { kind, .. } => match kind {
                Kind::OutputBias => Term::Bias(own_rows(first)?),
                Kind::WeightBias => Term::LowRank {
                    a: Tensor::ones((1, *n_in), candle_core::DType::F32, &Device::Cpu)?,
                    b: own_rows(first)?.reshape((rows.len(), 1))?,
                    scale: 1.0,
                },
                Kind::LowRank => low_rank(1.0)?,
                Kind::Projection => match factors {
                    Some((a, b)) => Term::LowRank {
                        a: first.matmul(a)?,
                        b: b.clone(),
                        scale: 1.0,
                    },
                    None => return Ok(None),
                },
            },
            Form::Lora { rank, alpha } => low_rank(alpha / rank as f32)?,
        }))
    }

    /// Whether the adapters' own terms of a linear are part of what is learned.
    pub(super) fn replaces(&self, id: LinearId) -> bool {
        self.users
            .get(&id)
            .is_some_and(|user| user.factors.is_some())
    }

    /// Whether that is so of any.
    pub(super) fn replaces_any(&self) -> bool {
        self.users.values().any(|user| user.factors.is_some())
    }

    /// The calibration that the tensors are.
    pub(super) fn calibration(&self, base: &Linears) -> Result<Calibration> {
        let mut modules: BTreeMap<_, Parts> = BTreeMap::new();
        for ((layer, tensor, part), floats) in self.names.iter().zip(self.floats()?) {
            let parts = modules.entry((*layer, tensor.to_string())).or_default();
            let place = match *part {
                "p" => &mut parts.p,
                "P1" => &mut parts.p1,
                "P2" => &mut parts.p2,
                _ => &mut parts.m,
            };
            *place = Some(floats);
        }
        Ok(Calibration::new(base, modules)?)
    }

    /// The adapter that the tensors are.
    pub(super) fn adapter(&self, base: &Linears) -> Result<Adapter> {
        let scale = match self.form {
            Form::Lora { rank, alpha } => alpha / rank as f32,
            Form::Calibration { .. } => bail!("a calibration is no adapter"),
        };
        let floats = self.floats()?;
        let mut loras = Vec::new();
        for (names, parts) in self.names.chunks_exact(2).zip(floats.chunks_exact(2)) {
            let (layer, tensor, _) = names[0];
            loras.push(Lora {
                module: format!("blk.{}.{tensor}", layer.unwrap_or(0)),
                a: parts[0].clone(),
                b: parts[1].clone(),
                scale,
            });
        }
        Ok(Adapter::new(base, loras)?)
    }

    /// What was learned, which a last step too far may have made infinite.
    fn floats(&self) -> Result<Vec<Floats>> {
        let floats = |(name, var): (String, &Var)| {
            let values: Vec<f32> = var.flatten_all()?.to_vec1()?;
            ensure!(
                values.iter().all(|x| x.is_finite()),
                "{name} holds numbers that are not finite: try a lower learning rate; nothing was \
                 written"
            );
            Ok(Floats {
                n_rows: var.dim(0)?,
                n_cols: if var.rank() == 1 { 1 } else { var.dim(1)? },
                values,
            })
        };
        self.names()
            .into_iter()
            .zip(&self.vars)
            .map(floats)
            .collect()
    }
}

/// The factors of all adapters for one tensor, one after the other.
struct Cat<'a> {
    loras: Vec<(&'a Lora, f32)>,
    n_ranks: usize,
}

impl<'a> Cat<'a> {
    /// `None` where no adapter changes the tensor.
    fn new(place: &Place<'_>, members: &[(&'a Adapter, f32)]) -> Option<Cat<'a>> {
        let name = format!("blk.{}.{}", place.layer, place.tensor);
        let find =
            |(adapter, weight): &(&'a Adapter, f32)| Some((adapter.modules().get(&name)?, *weight));
        let loras: Vec<_> = members.iter().filter_map(find).collect();
        let n_ranks = loras.iter().map(|(lora, _)| lora.b.n_cols).sum();
        (n_ranks > 0).then_some(Cat { loras, n_ranks })
    }

    /// The projection that is the plain merge: weights and scales on the diagonal.
    fn matrix(&self) -> Vec<Vec<f32>> {
        let scales = self
            .loras
            .iter()
            .flat_map(|(lora, weight)| std::iter::repeat_n(weight * lora.scale, lora.b.n_cols));
        let row = |(i, scale)| {
            let mut row = vec![0.0; self.n_ranks];
            row[i] = scale;
            row
        };
        scales.enumerate().map(row).collect()
    }

    /// `A_cat` `[ranks, n_in]` and rows of `B_cat` `[rows, ranks]`, without scales.
    fn factors(&self, n_in: usize, rows: &Range<usize>) -> Result<(Tensor, Tensor)> {
        let a = self.loras.iter().flat_map(|(lora, _)| &lora.a.values);
        let mut b = Vec::with_capacity(rows.len() * self.n_ranks);
        for row in rows.clone() {
            for (lora, _) in &self.loras {
                let n = lora.b.n_cols;
                b.extend_from_slice(&lora.b.values[row * n..][..n]);
            }
        }
        let a: Vec<f32> = a.copied().collect();
        Ok((
            Tensor::from_vec(a, (self.n_ranks, n_in), &Device::Cpu)?,
            Tensor::from_vec(b, (rows.len(), self.n_ranks), &Device::Cpu)?,
        ))
    }
}
