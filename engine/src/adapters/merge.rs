//! Merging adapters into one, as PEFT's `add_weighted_adapter` does.
//!
//! With `v_i` the weight of adapter `i` times its scale, the methods that work on the factors
//! combine the `A_i` and the `B_i` apart, each times the root of `|v_i|`, and A besides times the
//! sign of `v_i`. The result depends on the factors' basis, which is arbitrary. The `dense` forms
//! combine the products, scale times `B_i A_i`, which do not, with the weights as they are, and cut
//! the result to a rank.

use alloc::collections::BTreeSet;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use tandem_formats::adapter::{Floats, Lora};

use super::calibration::cat;
use super::{Adapter, CompositionError, svd};
use crate::Config;

/// How adapters are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

impl MergeMethod {
    /// All methods.
    pub const ALL: [MergeMethod; 7] = [
        MergeMethod::Cat,
        MergeMethod::Svd,
        MergeMethod::Linear,
        MergeMethod::Ties,
        MergeMethod::DareLinear,
        MergeMethod::DareTies,
        MergeMethod::MagnitudePrune,
    ];

    /// PEFT's name.
    pub fn name(self) -> &'static str {
        match self {
            MergeMethod::Cat => "cat",
            MergeMethod::Svd => "svd",
            MergeMethod::Linear => "linear",
            MergeMethod::Ties => "ties",
            MergeMethod::DareLinear => "dare_linear",
            MergeMethod::DareTies => "dare_ties",
            MergeMethod::MagnitudePrune => "magnitude_prune",
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

/// What a merge is to do.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeOptions {
    /// How.
    pub method: MergeMethod,
    /// Combine the products `B A` instead of the factors (PEFT's methods that end in `_svd`); for
    /// [`MergeMethod::Cat`] and [`MergeMethod::Svd`], which are exact, it changes nothing.
    pub dense: bool,
    /// The share of values that TIES, DARE and pruning keep, above 0 and at most 1.
    pub density: f64,
    /// The rank of dense merges and of `svd`; by default the largest of the adapters'.
    pub rank: Option<usize>,
    /// Decides which values DARE drops.
    pub seed: u64,
}

/// Merges `adapters` with `weights`, which may be negative. A module that only some adapters have
/// is merged from these. The result's scale is 1.
///
/// # Errors
///
/// Options that make no sense, factors of different ranks for a method that combines them, and
/// results that are not finite.
pub fn merge(
    base: &Config,
    adapters: &[&Adapter],
    weights: &[f32],
    options: &MergeOptions,
) -> Result<Adapter, CompositionError> {
    let refuse = |reason| Err(CompositionError::Option { reason });
    if adapters.is_empty() || adapters.len() != weights.len() {
        return refuse("a merge needs adapters, and a weight for each");
    }
    if !weights.iter().all(|w| w.is_finite()) {
        return refuse("a weight is not finite");
    }
    if !(options.density > 0.0 && options.density <= 1.0) {
        return refuse("the density must be above 0 and at most 1");
    }
    if options.rank == Some(0) {
        return refuse("the rank must be at least 1");
    }
    let names: BTreeSet<_> = adapters.iter().flat_map(|a| a.modules().keys()).collect();
    let mut random = Xoshiro256PlusPlus::seed_from_u64(options.seed);
    let mut loras = Vec::new();
    for name in names {
        let parts = adapters.iter().zip(weights);
        let parts: Vec<(&Lora, f32)> = parts
            .filter_map(|(adapter, weight)| Some((adapter.modules().get(name)?, *weight)))
            .collect();
        let lora = merge_module(name, &parts, options, &mut random)?;
        let values = lora.a.values.iter().chain(&lora.b.values);
        if !values.into_iter().all(|x| x.is_finite()) {
            return Err(CompositionError::NotFinite { name: name.clone() });
        }
        loras.push(lora);
    }
    Adapter::new(base, loras)
}

fn merge_module(
    name: &str,
    parts: &[(&Lora, f32)],
    options: &MergeOptions,
    random: &mut Xoshiro256PlusPlus,
) -> Result<Lora, CompositionError> {
    let ranks = || parts.iter().map(|(lora, _)| lora.a.n_rows);
    let rank = options.rank.or(ranks().max()).unwrap_or(1);
    let no_svd = || CompositionError::NotFinite {
        name: name.to_string(),
    };
    let (a, b) = match options.method {
        MergeMethod::Cat => return Ok(cat(name, parts, true)),
        MergeMethod::Svd => svd::cut_product(&cat(name, parts, true), rank).ok_or_else(no_svd)?,
        _ if options.dense => {
            let products: Vec<Floats> = parts.iter().map(|(lora, _)| product(lora)).collect();
            let products: Vec<&Floats> = products.iter().collect();
            let weights: Vec<f32> = parts.iter().map(|(_, weight)| *weight).collect();
            svd::cut_dense(&combine(&products, &weights, options, random), rank)
                .ok_or_else(no_svd)?
        }
        _ => {
            let first = ranks().next().unwrap_or(1);
            if let Some(other) = ranks().find(|rank| *rank != first) {
                return Err(CompositionError::Ranks {
                    name: name.to_string(),
                    found: (first, other),
                });
            }
            let values = parts.iter().map(|(lora, w)| f64::from(w * lora.scale));
            let roots: Vec<f64> = values.clone().map(|v| libm::sqrt(libm::fabs(v))).collect();
            let signed = values.zip(&roots).map(|(v, root)| libm::copysign(*root, v));
            let signed: Vec<f32> = signed.map(|w| w as f32).collect();
            let roots: Vec<f32> = roots.iter().map(|w| *w as f32).collect();
            let a: Vec<&Floats> = parts.iter().map(|(lora, _)| &lora.a).collect();
            let b: Vec<&Floats> = parts.iter().map(|(lora, _)| &lora.b).collect();
            let a = combine(&a, &signed, options, random);
            (a, combine(&b, &roots, options, random))
        }
    };
    Ok(Lora {
        module: name.to_string(),
        a,
        b,
        scale: 1.0,
    })
}

/// `scale b a`.
fn product(lora: &Lora) -> Floats {
    let (n_out, rank, n_in) = (lora.b.n_rows, lora.b.n_cols, lora.a.n_cols);
    let mut values = vec![0.0; n_out * n_in];
    let rows = values.chunks_exact_mut(n_in);
    for (row, b) in rows.zip(lora.b.values.chunks_exact(rank)) {
        for (b, a) in b.iter().zip(lora.a.values.chunks_exact(n_in)) {
            let b = lora.scale * b;
            row.iter_mut().zip(a).for_each(|(x, a)| *x += b * a);
        }
    }
    Floats {
        n_rows: n_out,
        n_cols: n_in,
        values,
    }
}

/// One value from each tensor's, all of one shape: weighted, after pruning.
fn combine(
    tensors: &[&Floats],
    weights: &[f32],
    options: &MergeOptions,
    random: &mut Xoshiro256PlusPlus,
) -> Floats {
    let pruned: Vec<Vec<f32>> = tensors
        .iter()
        .map(|tensor| {
            let mut values = tensor.values.clone();
            match options.method {
                MergeMethod::Ties | MergeMethod::MagnitudePrune => {
                    keep_largest(&mut values, options.density)
                }
                MergeMethod::DareLinear | MergeMethod::DareTies => {
                    keep_random(&mut values, options.density, random)
                }
                MergeMethod::Linear | MergeMethod::Cat | MergeMethod::Svd => {}
            }
            values
        })
        .collect();
    let n = tensors.first().map_or(0, |t| t.values.len());
    let value = |i: usize| {
        let values = pruned.iter().map(|tensor| tensor[i]).zip(weights);
        if !options.method.elects_signs() {
            return values.map(|(x, w)| x * w).sum::<f32>();
        }
        let total: f32 = pruned.iter().map(|tensor| tensor[i]).sum();
        let is_elected = |x: f32| match total >= 0.0 {
            true => x > 0.0,
            false => x < 0.0,
        };
        let elected = values.filter(|(x, _)| is_elected(*x));
        let (sum, n) = elected.fold((0.0, 0), |(sum, n), (x, w)| (sum + x * w, n + 1));
        sum / n.max(1) as f32
    };
    Floats {
        n_rows: tensors.first().map_or(0, |t| t.n_rows),
        n_cols: tensors.first().map_or(0, |t| t.n_cols),
        values: (0..n).map(value).collect(),
    }
}

/// Sets all but the largest magnitudes to zero, `density` of the values being kept, rounded down.
fn keep_largest(values: &mut [f32], density: f64) {
    let n_kept = (density * values.len() as f64) as usize;
    if n_kept >= values.len() {
        return;
    }
    let mut order: Vec<(f32, usize)> = values.iter().map(|x| x.abs()).zip(0..).collect();
    select_largest(&mut order, n_kept);
    for (_, i) in &order[n_kept..] {
        values[*i] = 0.0;
    }
}

/// Brings the `n` largest before the others.
///
/// Adapters trained in 16 bits have many equal magnitudes, and which of them are kept changes the
/// result. PyTorch leaves that to C++'s `nth_element`; so this goes step by step as the one of
/// libstdc++ does, for results that are PEFT's.
fn select_largest(x: &mut [(f32, usize)], n: usize) {
    if n == 0 {
        return;
    }
    let comes_first = |a: &(f32, usize), b: &(f32, usize)| a.0 > b.0;
    let (mut first, mut last) = (0, x.len());
    let mut turns_left = 2 * x.len().ilog2();
    while last - first > 3 {
        if turns_left == 0 {
            // Where the pivots are bad the time would be too long; equal values are rare enough.
            x[first..last].select_nth_unstable_by(n - 1 - first, |a, b| b.0.total_cmp(&a.0));
            return;
        }
        turns_left -= 1;
        // The median of three becomes the pivot, at the front.
        let (a, b, c) = (first + 1, first + (last - first) / 2, last - 1);
        let median = match (
            comes_first(&x[a], &x[b]),
            comes_first(&x[b], &x[c]),
            comes_first(&x[a], &x[c]),
        ) {
            (true, true, _) | (false, false, false) => b,
            (true, false, true) | (false, true, false) => c,
            (true, false, false) | (false, _, true) => a,
        };
        x.swap(first, median);
        let pivot = x[first];
        let (mut low, mut high) = (first + 1, last);
        loop {
            while comes_first(&x[low], &pivot) {
                low += 1;
            }
            high -= 1;
            while comes_first(&pivot, &x[high]) {
                high -= 1;
            }
            if low >= high {
                break;
            }
            x.swap(low, high);
            low += 1;
        }
        match low < n {
            true => first = low,
            false => last = low,
        }
    }
    x[first..last].sort_by(|a, b| b.0.total_cmp(&a.0));
}

/// Keeps each value with the probability `density`, divided by that, and sets the others to zero.
fn keep_random(values: &mut [f32], density: f64, random: &mut Xoshiro256PlusPlus) {
    if density >= 1.0 {
        return;
    }
    for value in values {
        // 53 bits: a number from 0 to below 1.
        let drawn = (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        *value = match drawn < density {
            true => (f64::from(*value) / density) as f32,
            false => 0.0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_selected_among_many_equal_ones() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
        for n in [1, 2, 3, 4, 5, 10, 100, 1000] {
            for n_values in [1, 2, 7, 1_000_000] {
                let values: Vec<f32> = (0..n)
                    .map(|_| (random.next_u32() % n_values) as f32)
                    .collect();
                for n_kept in [1, n / 3, n / 2, n - 1] {
                    let mut order: Vec<(f32, usize)> = values.iter().copied().zip(0..).collect();
                    select_largest(&mut order, n_kept);
                    let least = order[..n_kept].iter().map(|x| x.0).fold(f32::MAX, f32::min);
                    assert!(order[n_kept..].iter().all(|x| x.0 <= least));
                    let mut places: Vec<usize> = order.iter().map(|x| x.1).collect();
                    places.sort();
                    assert!(places.into_iter().eq(0..n));
                }
            }
        }
    }

    #[test]
    fn dropped_values_leave_the_mean_as_it_is() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut values = vec![1.0_f32; 20_000];
        keep_random(&mut values, 0.3, &mut random);
        let n_kept = values.iter().filter(|x| **x != 0.0).count();
        assert!(n_kept.abs_diff(6000) < 300, "{n_kept}");
        assert!(
            values
                .iter()
                .all(|x| *x == 0.0 || (x * 0.3 - 1.0).abs() < 1e-6)
        );
    }

    #[test]
    fn pruning_keeps_the_largest_magnitudes() {
        let mut values = [0.5, -3.0, 2.0, -0.1, 1.0];
        keep_largest(&mut values, 0.5);
        assert_eq!(values, [0.0, -3.0, 2.0, 0.0, 0.0]);
        keep_largest(&mut values, 1.0);
        assert_eq!(values, [0.0, -3.0, 2.0, 0.0, 0.0]);
    }
}
