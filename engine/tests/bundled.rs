//! Parts of bundles as the engine uses them: merges on the spot, and rows of fused tensors.

#[path = "common/adapters.rs"]
#[expect(dead_code, reason = "of the shared helpers this needs some")]
mod made_up;

use std::path::Path;

use made_up::{adapter, lora};
use tandem_engine::adapters::{MergeOptions, from_bundle, merge, merge_packed};
use tandem_engine::model::MixerConfig;
use tandem_engine::{
    Adapter, AdapterType, Architecture, Compute, Config, DType, Level, Linears, Model,
    PackedAdapter, Pool, Serial, ThreadPool,
};
use tandem_formats::bundle::{
    self, Composition, Factors, Merge, MergeMethod, Parts, low_rank_type,
};
use tandem_kernels::{LowRank, encode_low_rank, encode_rows};

fn config() -> Config {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/pocket-q8_0.gguf");
    Model::open(path).unwrap().config().clone()
}

/// The linears of the model with fewer layers.
fn linears(n_layer: usize) -> Linears {
    let mut config = config();
    config.layers.truncate(n_layer);
    Linears::of(&config)
}

/// As a bundle holds it.
fn stored(adapter: &Adapter, dtype: DType) -> bundle::Adapter {
    let factors = adapter.modules().values().map(|lora| {
        let (rank, n_in, n_out) = (lora.a.n_rows, lora.a.n_cols, lora.b.n_rows);
        let layout = low_rank_type(dtype).unwrap();
        let mut a = vec![0; dtype.row_bytes(n_in).unwrap() * rank];
        encode_rows(Level::Scalar, dtype, &lora.a.values, 1.0, &mut a);
        let mut b = vec![0; layout.n_bytes(n_out, rank).unwrap()];
        encode_low_rank(Level::Scalar, layout, &lora.b.values, rank, 64.0, &mut b);
        Factors {
            linear: lora.module.clone(),
            rank,
            n_in,
            n_out,
            scale: lora.scale,
            b_scale: 1.0 / 64.0,
            a: a.into(),
            b: b.into(),
        }
    });
    bundle::Adapter {
        name: "made-up".into(),
        origin: "".into(),
        dtype,
        factors: factors.collect(),
    }
}

fn composition(method: MergeMethod) -> Composition {
    Composition {
        name: "both".into(),
        members: Vec::new(),
        merge: Merge {
            method,
            density: method.has_density().then_some(0.4),
            rank: method.has_rank().then_some(4),
            seed: method.has_seed().then_some(11),
        },
        calibration: None,
        prompt: None,
        description: None,
        merged: None,
    }
}

fn run(
    base: &Linears,
    adapters: &[bundle::Adapter],
    composition: &Composition,
    adapter_type: AdapterType,
    compute: Compute<'_>,
) -> PackedAdapter {
    let members = adapters.iter().zip([0.5, -0.25, 1.5]).zip(0..);
    let parts = Parts {
        composition,
        members: members.map(|((a, weight), sum)| (a, weight, sum)).collect(),
        merged: None,
        calibration: None,
    };
    let mut packed = from_bundle(base, &parts, adapter_type, compute).unwrap();
    assert!(packed.len() == 1 && packed[0].1 == 1.0);
    packed.remove(0).0
}

fn bytes(packed: &PackedAdapter) -> Vec<(Vec<u8>, Vec<u8>, f32)> {
    let factors = packed.factors().iter().map(|f| {
        let rows = (0..f.rank()).flat_map(|r| f.a().row(r).to_vec());
        (rows.collect(), f.b().data().to_vec(), f.scale())
    });
    factors.collect()
}

/// Whatever computes a merge, the bytes are the same, and they are those of the merge of the decoded
/// adapters.
#[test]
fn merges_on_the_spot_are_the_same_for_any_level_and_number_of_threads() {
    let base = linears(2);
    let methods = MergeMethod::ALL
        .into_iter()
        .filter(|m| *m != MergeMethod::Cat);
    for method in methods {
        let composition = composition(method);
        for dtype in [DType::F16, DType::Q8_0, DType::Q4_0] {
            if method.has_rank() && dtype != DType::Q8_0 {
                continue; // slow, and no different
            }
            let adapters: Vec<_> = (1..=3)
                .map(|seed| stored(&adapter(&base, 8, seed), dtype))
                .collect();
            let adapters = match method {
                method if method.has_rank() => &adapters[..1],
                MergeMethod::Slerp => &adapters[..2],
                _ => &adapters,
            };
            let adapter_type = AdapterType::Q8;
            let run = |level, pool: &dyn Pool| {
                run(
                    &base,
                    adapters,
                    &composition,
                    adapter_type,
                    Compute::new(level, pool),
                )
            };
            let expected = run(Level::Scalar, &Serial);
            let decoded: Vec<_> = adapters
                .iter()
                .map(|a| Adapter::from_factors(&base, a.dtype, &a.factors).unwrap())
                .collect();
            let options = MergeOptions::from(&composition.merge);
            let serial = Compute::new(Level::Scalar, &Serial);
            // Of equal magnitudes others are kept than where nothing was rounded.
            let prunes = ["ties", "magn"]
                .iter()
                .any(|p| method.name().starts_with(p));
            if !prunes || dtype == DType::F16 {
                let decoded: Vec<&Adapter> = decoded.iter().collect();
                let weights = &[0.5, -0.25, 1.5][..decoded.len()];
                let merged = merge(&base, &decoded, weights, &options, serial).unwrap();
                let packed = PackedAdapter::pack(&base, &merged, adapter_type).unwrap();
                assert!(bytes(&packed) == bytes(&expected), "{method:?} of {dtype}");
                let packed = merge_packed(&base, &decoded, weights, &options, adapter_type, serial);
                assert!(
                    bytes(&packed.unwrap()) == bytes(&expected),
                    "{method:?} of {dtype}"
                );
            }
            let level = Level::detect();
            for n_threads in [1, 2, 3] {
                let found = run(level, &ThreadPool::new(n_threads));
                assert!(bytes(&found) == bytes(&expected), "{method:?} of {dtype}");
                assert_eq!(found.id(), expected.id());
            }
            if method.has_rank() {
                continue;
            }
            for level in Level::available() {
                assert!(
                    bytes(&run(level, &Serial)) == bytes(&expected),
                    "{}",
                    level.name()
                );
            }
        }
    }
}

/// What a result depends on changes the hash, though no byte of the result is read for it.
#[test]
fn every_part_of_a_merge_counts_for_its_hash() {
    let base = linears(1);
    let adapters = [1, 2].map(|seed| stored(&adapter(&base, 4, seed), DType::Q8_0));
    let id_of = |adapters: &[bundle::Adapter; 2],
                 composition: &Composition,
                 weights: [f32; 2],
                 sums: [u128; 2],
                 kept| {
        let [a, b] = adapters;
        let parts = Parts {
            composition,
            members: vec![(a, weights[0], sums[0]), (b, weights[1], sums[1])],
            merged: None,
            calibration: None,
        };
        let compute = Compute::new(Level::detect(), &Serial);
        from_bundle(&base, &parts, kept, compute).unwrap()[0].0.id()
    };
    let id = |composition: &Composition, weights, sums, kept| {
        id_of(&adapters, composition, weights, sums, kept)
    };
    // The same bytes and the same product of the scales, divided otherwise.
    let mut divided = adapters.clone();
    divided[0].factors[0].scale *= 4.0;
    divided[0].factors[0].b_scale /= 4.0;
    let svd = |rank| {
        let mut svd = composition(MergeMethod::Svd);
        svd.merge.rank = Some(rank);
        id(&svd, [0.5, 0.5], [1, 2], AdapterType::Q8)
    };
    let dare = composition(MergeMethod::DareLinear);
    let changed = |change: fn(&mut Merge)| {
        let mut changed = dare.clone();
        change(&mut changed.merge);
        id(&changed, [0.5, 0.5], [1, 2], AdapterType::Q8)
    };
    let mut ids = vec![
        changed(|_| {}),
        changed(|m| m.seed = Some(12)),
        changed(|m| m.density = Some(0.41)),
        changed(|m| m.method = MergeMethod::DareTies),
        id(&dare, [0.5, 0.25], [1, 2], AdapterType::Q8),
        id(&dare, [0.5, 0.5], [1, 3], AdapterType::Q8),
        id(&dare, [0.5, 0.5], [2, 1], AdapterType::Q8),
        id(&dare, [0.5, 0.5], [1, 2], AdapterType::Q4),
        id_of(&divided, &dare, [0.5, 0.5], [1, 2], AdapterType::Q8),
        svd(3),
        svd(4),
    ];
    let n = ids.len();
    assert_eq!(ids[0], changed(|_| {}));
    ids.sort_by_key(|id| id.0);
    ids.dedup();
    assert_eq!(ids.len(), n);
}

/// Fused tensors whose linears begin inside a tile of B.
#[test]
fn rows_that_begin_inside_a_tile_are_used() {
    let mut config = config();
    config.layers.truncate(1);
    config.arch = Architecture::from_name("phi3").unwrap();
    let MixerConfig::Attention(attention) = &mut config.layers[0].mixer else {
        panic!("no attention");
    };
    (attention.n_head, attention.n_head_kv, attention.head_dim) = (3, 1, 10);
    let (n_q, n_kv) = (attention.n_q(), attention.n_kv());
    let base = Linears::of(&config);
    assert!(!n_q.is_multiple_of(16) && !(n_q + n_kv).is_multiple_of(16));
    let n_out = n_q + 2 * n_kv;
    let lora = lora("blk.0.attn_qkv", (n_out, config.n_embd), 12, 5);
    let adapter = Adapter::new(&base, vec![lora]).unwrap();
    for dtype in bundle::FACTOR_TYPES {
        let stored = stored(&adapter, dtype);
        let f = &stored.factors[0];
        let whole = LowRank::new(low_rank_type(dtype).unwrap(), n_out, 12, &f.b).unwrap();
        let composition = composition(MergeMethod::Cat);
        let compute = Compute::new(Level::detect(), &Serial);
        let parts = Parts {
            composition: &composition,
            members: vec![(&stored, 1.0, 1)],
            merged: None,
            calibration: None,
        };
        let packed = from_bundle(&base, &parts, AdapterType::F32, compute).unwrap();
        let factors = packed[0].0.factors();
        assert_eq!(factors.len(), 3);
        let mut o = 0;
        for factors in factors {
            let rows = factors.b();
            for i in 0..rows.n_out() {
                let (mut found, mut expected) = ([0.0; 12], [0.0; 12]);
                rows.row(i, &mut found);
                whole.row(o, &mut expected);
                assert_eq!(found, expected, "{dtype}");
                o += 1;
            }
        }
        assert_eq!(o, n_out);
    }
}
