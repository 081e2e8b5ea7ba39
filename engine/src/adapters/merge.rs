//! Merging adapters into one, as PEFT's `add_weighted_adapter` does.
//!
//! With `v_i` the weight of adapter `i` times its scale, the methods that work on the factors
//! combine the `A_i` and the `B_i` apart, each times the root of `|v_i|`, and A besides times the
//! sign of `v_i`. The result depends on the factors' basis, which is arbitrary. The `dense` forms
//! combine the products, scale times `B_i A_i`, which do not, with the weights as they are, and cut
//! the result to a rank.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use tandem_formats::adapter::{Floats, Lora};
use tandem_kernels::{
    DType, Level, LowRank, Magnitudes, Pool, SharedMatrix, decode_low_rank, decode_rows,
    elected_mean, keep_largest, keep_largest_as_pytorch, keep_random, largest_magnitude, multiply,
    weighted_sum,
};

use super::calibration::{put_columns, same_shape};
use super::packed::{FactorValues, Users};
use super::svd::LowRankProduct;
use super::{
    Adapter, AdapterType, CompositionError, ContentId, PackedAdapter, PackedFactors, slerp, svd,
};
use crate::exec::Compute;
use crate::model::Linears;

/// How adapters are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MergeMethod {
    /// Factors one after the other, the ranks add up: exactly the sum of the adapters.
    Cat,
    /// The sum of the adapters, cut to a rank; PEFT's `svd`.
    Svd,
    /// The sum of the factors.
    Linear,
    /// TIES (Yadav et al., arXiv 2306.01708): of each adapter the largest values, of these the ones
    /// with the sign that is in the majority, and of these the mean.
    Ties,
    /// DARE (Yu et al., arXiv 2311.03099): random values are dropped, the others scaled up, and
    /// summed.
    DareLinear,
    /// DARE's values, combined as TIES does.
    DareTies,
    /// Of each adapter the largest values, summed.
    MagnitudePrune,
    /// Spherical interpolation (Shoemake 1985) of two adapters' products, by their shares of the weights'
    /// sum and times it; a negative weight turns its adapter round. The ranks add up. PEFT has none.
    Slerp,
}

impl MergeMethod {
    /// All methods.
    pub const ALL: [MergeMethod; 8] = [
        MergeMethod::Cat,
        MergeMethod::Svd,
        MergeMethod::Linear,
        MergeMethod::Ties,
        MergeMethod::DareLinear,
        MergeMethod::DareTies,
        MergeMethod::MagnitudePrune,
        MergeMethod::Slerp,
    ];

    /// PEFT's name, where it has the method.
    pub fn name(self) -> &'static str {
        match self {
            MergeMethod::Cat => "cat",
            MergeMethod::Svd => "svd",
            MergeMethod::Linear => "linear",
            MergeMethod::Ties => "ties",
            MergeMethod::DareLinear => "dare_linear",
            MergeMethod::DareTies => "dare_ties",
            MergeMethod::MagnitudePrune => "magnitude_prune",
            MergeMethod::Slerp => "slerp",
        }
    }

    /// The method of this name.
    pub fn from_name(name: &str) -> Option<MergeMethod> {
        MergeMethod::ALL.into_iter().find(|m| m.name() == name)
    }

    fn elects_signs(self) -> bool {
        matches!(self, MergeMethod::Ties | MergeMethod::DareTies)
    }
}

/// What a merge is to do. Start from [`MergeOptions::new`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MergeOptions {
    /// How.
    pub method: MergeMethod,
    /// Combine the products `B A` instead of the factors (PEFT's methods that end in `_svd`); for
    /// [`MergeMethod::Cat`], [`MergeMethod::Svd`] and [`MergeMethod::Slerp`], which do so anyway, it changes
    /// nothing.
    pub dense: bool,
    /// The share of values that TIES, DARE and pruning keep, above 0 and at most 1.
    pub density: f64,
    /// The rank of dense merges and of `svd`; by default the largest of the adapters'.
    pub rank: Option<usize>,
    /// Decides which values DARE drops.
    pub seed: u64,
}

impl MergeOptions {
    /// A merge of the factors that keeps all values.
    pub fn new(method: MergeMethod) -> MergeOptions {
        MergeOptions {
            method,
            dense: false,
            density: 1.0,
            rank: None,
            seed: 0,
        }
    }
}

/// Merges `adapters` with `weights`, which may be negative. A module that only some adapters have
/// is merged from these. The result's scale is 1; it is the same for any level and number of
/// threads.
///
/// # Errors
///
/// Options that make no sense, factors of different ranks for a method that combines them, and
/// results that are not finite.
pub fn merge(
    base: &Linears,
    adapters: &[&Adapter],
    weights: &[f32],
    options: &MergeOptions,
    compute: Compute<'_>,
) -> Result<Adapter, CompositionError> {
    let loras = merge_modules(
        &modules(adapters, weights)?,
        options,
        compute,
        &|name, a, b| {
            Ok(Lora {
                module: name.to_string(),
                a: a.clone(),
                b: b.clone(),
                scale: 1.0,
            })
        },
    )?;
    Adapter::new(base, loras)
}

/// The same, packed at once, which is faster than doing one after the other. The result's
/// [`ContentId`] is another than [`PackedAdapter::pack`] makes.
///
/// # Errors
///
/// Those of [`merge`].
pub fn merge_packed(
    base: &Linears,
    adapters: &[&Adapter],
    weights: &[f32],
    options: &MergeOptions,
    adapter_type: AdapterType,
    compute: Compute<'_>,
) -> Result<PackedAdapter, CompositionError> {
    let modules = modules(adapters, weights)?;
    merge_and_pack(base, &modules, options, adapter_type, compute, None)
}

fn modules<'a>(adapters: &[&'a Adapter], weights: &[f32]) -> Result<Modules<'a>, CompositionError> {
    if adapters.len() != weights.len() {
        return Err(CompositionError::Option {
            reason: "a merge needs a weight for each adapter",
        });
    }
    let mut modules = Modules::new();
    for (i, (adapter, weight)) in adapters.iter().zip(weights).enumerate() {
        for (name, lora) in adapter.modules() {
            let member = Member::of(lora, i, *weight);
            modules.entry(name).or_default().push(member);
        }
    }
    Ok(modules)
}

/// Merges and packs module by module. Without `content`, which tells the result's factors apart
/// from any others, they are hashed.
pub(super) fn merge_and_pack(
    base: &Linears,
    modules: &Modules<'_>,
    options: &MergeOptions,
    adapter_type: AdapterType,
    compute: Compute<'_>,
    content: Option<ContentId>,
) -> Result<PackedAdapter, CompositionError> {
    let packed = merge_modules(modules, options, compute, &|name, a, b| {
        let parts = base.of_tensor(name, b.n_rows)?.linears.iter();
        parts
            .map(|(id, rows)| {
                let values = FactorValues {
                    a: &a.values,
                    b: &b.values[rows.start * b.n_cols..rows.end * b.n_cols],
                    rank: a.n_rows,
                    scale: 1.0,
                };
                let packed = PackedFactors::pack(compute.level, values, adapter_type);
                let packed = packed.ok_or_else(|| CompositionError::NotFinite {
                    name: name.to_string(),
                })?;
                let hash = content.is_none().then(|| packed.hash_of_factors());
                Ok((*id, packed, hash))
            })
            .collect::<Result<Vec<_>, _>>()
    })?;
    let mut factors = Users::new();
    let mut hasher = blake3::Hasher::new();
    for (id, packed, hash) in packed.into_iter().flatten() {
        factors.add(packed, [id]);
        hash.iter().for_each(|hash| {
            hasher.update(hash.as_bytes());
        });
    }
    let content = content.unwrap_or_else(|| ContentId(*hasher.finalize().as_bytes()));
    PackedAdapter::new(base, factors, Users::new(), Some(content))
}

/// What there is to merge, by the base's tensor.
pub(super) type Modules<'a> = BTreeMap<&'a str, Vec<Member<'a>>>;

/// A tensor's factors in one of the adapters.
#[derive(Clone, Copy)]
pub(super) struct Member<'a> {
    /// Which adapter.
    pub i: usize,
    /// Outputs, rank, inputs.
    pub shape: (usize, usize, usize),
    pub a: Stored<'a>,
    pub b: Stored<'a>,
    /// What `b (a x)` is multiplied with: alpha by rank.
    pub scale: f32,
    /// That of the adapter.
    pub weight: f32,
}

/// A factor where it lies.
#[derive(Clone, Copy)]
pub(super) enum Stored<'a> {
    Floats(&'a [f32]),
    /// Rows of A.
    Rows(DType, &'a [u8]),
    /// B, and what its values are multiplied with.
    LowRank(LowRank<'a>, f32),
}

impl Stored<'_> {
    fn decode(self, level: Level, values: &mut [f32]) {
        match self {
            Stored::Floats(floats) => values.copy_from_slice(floats),
            Stored::Rows(dtype, bytes) => decode_rows(level, dtype, bytes, 1.0, values),
            Stored::LowRank(b, scale) => decode_low_rank(level, &b, scale, values),
        }
    }

    /// Whether the values are those that the adapter was trained to, or at most rounded to 16 bits.
    fn is_original(self) -> bool {
        match self {
            Stored::Floats(_) => true,
            Stored::Rows(dtype, _) => !dtype.is_quantized(),
            Stored::LowRank(b, _) => !b.kind().is_quantized(),
        }
    }
}

impl<'a> Member<'a> {
    fn of(lora: &'a Lora, i: usize, weight: f32) -> Member<'a> {
        Member {
            i,
            shape: (lora.b.n_rows, lora.a.n_rows, lora.a.n_cols),
            a: Stored::Floats(&lora.a.values),
            b: Stored::Floats(&lora.b.values),
            scale: lora.scale,
            weight,
        }
    }
}

/// The members' factors beside each other, with weights and scales times the columns of B. `values` is
/// scratch.
fn join(level: Level, members: &[Member<'_>], values: &mut Vec<f32>, joined: &mut LowRankProduct) {
    let (n_out, _, n_in) = members.first().map_or((0, 0, 0), |m| m.shape);
    let rank = members.iter().map(|m| m.shape.1).sum();
    joined.a.reshape(rank, n_in);
    joined.b.reshape(n_out, rank);
    let mut first = 0;
    for member in members {
        let ranks = first..first + member.shape.1;
        let rows = &mut joined.a.values[ranks.start * n_in..ranks.end * n_in];
        member.a.decode(level, rows);
        let part = room(values, n_out * ranks.len());
        member.b.decode(level, part);
        let scale = member.weight * member.scale;
        put_columns(part, scale, ranks.clone(), &mut joined.b);
        first = ranks.end;
    }
}

/// The first `n` values of so many buffers.
fn rooms(buffers: &mut [Vec<f32>], n_buffers: usize, n: usize) -> Vec<&mut [f32]> {
    let buffers = buffers.iter_mut().take(n_buffers);
    buffers.map(|buffer| room(buffer, n)).collect()
}

/// The first `n` of the buffer's values, whatever they are.
fn room<T: Clone + Default>(buffer: &mut Vec<T>, n: usize) -> &mut [T] {
    buffer.resize(n.max(buffer.len()), T::default());
    &mut buffer[..n]
}

/// Merges each module and gives its A and B to `keep`; the results are in the order of the modules.
/// One module after the other, so that what is worked on stays in a core's cache.
pub(super) fn merge_modules<T: Send>(
    modules: &Modules<'_>,
    options: &MergeOptions,
    compute: Compute<'_>,
    keep: &(dyn Fn(&str, &Floats, &Floats) -> Result<T, CompositionError> + Sync),
) -> Result<Vec<T>, CompositionError> {
    let refuse = |reason| Err(CompositionError::Option { reason });
    if modules.is_empty() {
        return refuse("a merge needs adapters");
    }
    let mut members = modules.values().flatten();
    if !members.all(|member| member.weight.is_finite()) {
        return refuse("a weight is not finite");
    }
    if !(options.density > 0.0 && options.density <= 1.0) {
        return refuse("the density must be above 0 and at most 1");
    }
    if options.rank == Some(0) {
        return refuse("the rank must be at least 1");
    }
    let mut shapes = modules.values().flatten().map(|member| member.shape);
    let is_countable = |n: usize, m: usize| {
        n.checked_mul(m)
            .is_some_and(|n| n as u64 <= u64::from(u32::MAX))
    };
    if !shapes.all(|(n_out, rank, n_in)| {
        is_countable(rank, n_in.max(n_out)) && (!options.dense || is_countable(n_out, n_in))
    }) {
        return refuse("matrices of 2^32 values or more are not merged");
    }
    if options.method == MergeMethod::Slerp {
        let mut members = modules.values().flatten();
        if !members.all(|m| m.i < 2) {
            return refuse("slerp goes between two adapters");
        }
    }
    for (name, members) in modules {
        same_shape(name, members.iter().map(|m| (m.shape.0, m.shape.2)))?;
    }
    let modules: Vec<_> = modules.iter().collect();
    let mut results: Vec<Option<Result<T, CompositionError>>> = Vec::new();
    results.resize_with(modules.len(), || None);
    let n_at_once = modules.len().div_ceil(SharedMatrix::<()>::MAX_TILES);
    let n_tasks = modules.len().div_ceil(n_at_once);
    let shared = SharedMatrix::new(&mut results, 1, n_at_once, 1);
    let next = AtomicUsize::new(0);
    let work = |_| {
        let mut scratch = Scratch::default();
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= n_tasks {
                break;
            }
            let mut tile = shared.tile(task, 0);
            for row in 0..tile.n_rows() {
                let i = task * n_at_once + row;
                let (name, members) = modules[i];
                let module = Module { i, name, members };
                let merged = module.merge(options, compute, &mut scratch);
                let kept = merged.and_then(|merged| keep(name, &merged.a, &merged.b));
                tile.row(row)[0] = Some(kept);
            }
        }
    };
    match options.dense {
        // Whole products of factors: one at a time is large enough, and uses the threads itself.
        true => work(0),
        false => compute.pool.run(compute.pool.n_threads(), &work),
    }
    results.into_iter().flatten().collect()
}

/// What a thread uses for one module after the other.
#[derive(Default)]
struct Scratch {
    /// One factor, or the product of both, of each adapter.
    values: Vec<Vec<f32>>,
    /// Both factors of one adapter, or those of all joined.
    factors: LowRankProduct,
    merged: LowRankProduct,
    pruning: Pruning,
}

#[derive(Default)]
struct Pruning {
    magnitudes: Option<Box<Magnitudes>>,
    few: Vec<u32>,
    order: Vec<u64>,
}

/// A module to be merged.
struct Module<'m> {
    /// Its number among all.
    i: usize,
    name: &'m str,
    members: &'m [Member<'m>],
}

impl Module<'_> {
    /// The merged factors.
    fn merge<'s>(
        &self,
        options: &MergeOptions,
        compute: Compute<'_>,
        scratch: &'s mut Scratch,
    ) -> Result<&'s LowRankProduct, CompositionError> {
        let level = compute.level;
        let not_finite = || CompositionError::NotFinite {
            name: self.name.to_string(),
        };
        let n_values = self.members.len().max(scratch.values.len());
        scratch.values.resize_with(n_values, Vec::new);
        match options.method {
            MergeMethod::Cat => {
                join(
                    level,
                    self.members,
                    &mut scratch.values[0],
                    &mut scratch.merged,
                );
            }
            MergeMethod::Slerp => {
                let members = self.on_the_arc(level, scratch);
                let values = &mut scratch.values[0];
                join(level, &members, values, &mut scratch.merged);
            }
            MergeMethod::Svd => {
                let joined = &mut scratch.factors;
                join(level, self.members, &mut scratch.values[0], joined);
                svd::cut_product(level, joined, self.rank(options), &mut scratch.merged)
                    .ok_or_else(not_finite)?;
            }
            _ if options.dense => {
                let mut dense = self.merge_products(options, level, scratch);
                svd::cut_dense(compute, &mut dense, self.rank(options), &mut scratch.merged)
                    .ok_or_else(not_finite)?;
            }
            _ => self.merge_factors(options, level, scratch)?,
        }
        let merged = &scratch.merged;
        for factor in [&merged.a, &merged.b] {
            let mut largest = 0.0;
            largest_magnitude(level, &factor.values, &mut largest);
            if !largest.is_finite() {
                return Err(not_finite());
            }
        }
        Ok(merged)
    }

    /// The rank of a result that is cut to one.
    fn rank(&self, options: &MergeOptions) -> usize {
        let ranks = self.members.iter().map(|member| member.shape.1);
        options.rank.or(ranks.max()).unwrap_or(1)
    }

    /// The members with the weights of a spherical interpolation; one alone keeps its own.
    fn on_the_arc(&self, level: Level, scratch: &mut Scratch) -> Vec<Member<'_>> {
        let mut members = self.members.to_vec();
        let [first, second] = &mut members[..] else {
            return members;
        };
        let plain = [*first, *second].map(|m| Member { weight: 1.0, ..m });
        let joined = &mut scratch.factors;
        join(level, &plain, &mut scratch.values[0], joined);
        let weights = [first.weight, second.weight];
        let inner_products = joined.inner_products(level, first.shape.1);
        [first.weight, second.weight] = slerp::weights(inner_products, weights);
        members
    }

    /// Of each member the random numbers' stream for one factor: those of all modules differ, for each
    /// adapter.
    fn streams(&self, is_b: bool) -> Vec<u64> {
        let factor = 2 * self.i as u64 + u64::from(is_b);
        let streams = self.members.iter().map(|m| ((m.i as u64) << 32) | factor);
        streams.collect()
    }

    /// The members' products `b a`, combined.
    fn merge_products(
        &self,
        options: &MergeOptions,
        level: Level,
        scratch: &mut Scratch,
    ) -> Floats {
        let Scratch {
            values,
            factors,
            pruning,
            ..
        } = scratch;
        let (n_out, _, n_in) = self.members.first().map_or((0, 0, 0), |m| m.shape);
        let mut dense = Floats::default();
        dense.reshape(n_out, n_in);
        let mut products = rooms(values, self.members.len(), dense.values.len());
        for (member, product) in self.members.iter().zip(&mut products) {
            let rank = member.shape.1;
            let a = room(&mut factors.a.values, rank * n_in);
            let b = room(&mut factors.b.values, n_out * rank);
            member.a.decode(level, a);
            member.b.decode(level, b);
            multiply(level, b, a, rank, product);
            product.iter_mut().for_each(|x| *x *= member.scale);
        }
        let weights: Vec<f32> = self.members.iter().map(|member| member.weight).collect();
        let mut stored = self.members.iter().flat_map(|m| [m.a, m.b]);
        let combine = Combine {
            options,
            level,
            is_original: stored.all(Stored::is_original),
        };
        let streams = self.streams(false);
        combine.run(products, &weights, &streams, pruning, &mut dense.values);
        dense
    }

    /// The members' factors, each combined for itself, which they can be where they have one rank.
    fn merge_factors(
        &self,
        options: &MergeOptions,
        level: Level,
        scratch: &mut Scratch,
    ) -> Result<(), CompositionError> {
        let (n_out, rank, n_in) = self.members.first().map_or((0, 1, 0), |m| m.shape);
        let ranks = self.members.iter().map(|member| member.shape.1);
        if let Some(other) = ranks.into_iter().find(|other| *other != rank) {
            return Err(CompositionError::Ranks {
                name: self.name.to_string(),
                found: (rank, other),
            });
        }
        let weight = |m: &Member<'_>| f64::from(m.weight * m.scale);
        let root = |m: &Member<'_>| libm::sqrt(libm::fabs(weight(m)));
        let signed = |m: &Member<'_>| libm::copysign(root(m), weight(m)) as f32;
        let Scratch {
            values,
            merged,
            pruning,
            ..
        } = scratch;
        merged.a.reshape(rank, n_in);
        merged.b.reshape(n_out, rank);
        for is_b in [false, true] {
            let merged = if is_b { &mut merged.b } else { &mut merged.a };
            let stored = self.members.iter().map(|m| if is_b { m.b } else { m.a });
            let mut values = rooms(values, self.members.len(), merged.values.len());
            for (stored, values) in stored.clone().zip(&mut values) {
                stored.decode(level, values);
            }
            // The sign goes to one of both.
            let weights: Vec<f32> = match is_b {
                false => self.members.iter().map(signed).collect(),
                true => self.members.iter().map(|m| root(m) as f32).collect(),
            };
            let combine = Combine {
                options,
                level,
                is_original: stored.clone().all(Stored::is_original),
            };
            let streams = self.streams(is_b);
            combine.run(values, &weights, &streams, pruning, &mut merged.values);
        }
        Ok(())
    }
}

/// How one tensor is made of several.
struct Combine<'o> {
    options: &'o MergeOptions,
    level: Level,
    /// Whether the values are those that PEFT would merge, so that its result is wanted to the last
    /// of equal magnitudes; what was rounded to few bits gives no such.
    is_original: bool,
}

impl Combine<'_> {
    /// Prunes `values`, a tensor of each adapter's, and combines them with `weights` to `y`.
    /// `streams` tells the random numbers of each apart.
    fn run(
        &self,
        mut values: Vec<&mut [f32]>,
        weights: &[f32],
        streams: &[u64],
        pruning: &mut Pruning,
        y: &mut [f32],
    ) {
        let MergeOptions { density, seed, .. } = *self.options;
        let mut weights = Cow::Borrowed(weights);
        match self.options.method {
            MergeMethod::Ties | MergeMethod::MagnitudePrune => {
                for values in &mut values {
                    self.keep_largest(values, pruning);
                }
            }
            MergeMethod::DareLinear | MergeMethod::DareTies => {
                for (values, stream) in values.iter_mut().zip(streams) {
                    keep_random(self.level, density, seed, *stream, values);
                }
                // What is kept makes up for what is dropped.
                for weight in weights.to_mut() {
                    *weight = (f64::from(*weight) / density) as f32;
                }
            }
            MergeMethod::Linear | MergeMethod::Cat | MergeMethod::Svd | MergeMethod::Slerp => {}
        }
        let values: Vec<&[f32]> = values.iter().map(|values| &**values).collect();
        match self.options.method.elects_signs() {
            true => elected_mean(self.level, &values, &weights, y),
            false => weighted_sum(self.level, &values, &weights, y),
        }
    }

    /// Sets all but the largest magnitudes to zero, `density` of the values being kept, rounded
    /// down.
    fn keep_largest(&self, values: &mut [f32], pruning: &mut Pruning) {
        let n_kept = (self.options.density * values.len() as f64) as usize;
        if n_kept >= values.len() {
            return;
        }
        if n_kept == 0 {
            return values.fill(0.0);
        }
        let Pruning {
            magnitudes,
            few,
            order,
        } = pruning;
        // Of numbers of 16 bits many are equal, as a rule.
        let is_16_bit = |x: &f32| x.to_bits() & 0x1fff == 0;
        let is_ambiguous = self.is_original && values.iter().take(256).all(is_16_bit);
        if !is_ambiguous {
            let few = room(few, values.len());
            let magnitudes = magnitudes.get_or_insert_with(|| Box::new(Magnitudes::EMPTY));
            let largest = magnitudes.largest(values, n_kept, few);
            if !(largest.is_ambiguous && self.is_original) {
                return keep_largest(self.level, &largest, values);
            }
        }
        let order = room(order, values.len());
        keep_largest_as_pytorch(self.level, n_kept, order, values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pruning_keeps_the_largest_magnitudes() {
        for is_original in [false, true] {
            let keep = |density, values: &mut [f32]| {
                let options = MergeOptions {
                    method: MergeMethod::Ties,
                    dense: false,
                    density,
                    rank: None,
                    seed: 0,
                };
                let combine = Combine {
                    options: &options,
                    level: Level::detect(),
                    is_original,
                };
                combine.keep_largest(values, &mut Pruning::default());
            };
            let mut values = [0.5, -3.0, 2.0, -0.1, 1.0];
            keep(0.5, &mut values);
            assert_eq!(values, [0.0, -3.0, 2.0, 0.0, 0.0]);
            keep(1.0, &mut values);
            assert_eq!(values, [0.0, -3.0, 2.0, 0.0, 0.0]);
            keep(0.1, &mut values);
            assert_eq!(values, [0.0; 5]);
        }
    }
}
