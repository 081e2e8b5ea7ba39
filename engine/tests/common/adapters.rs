//! Adapters made up for a model, and files of them.

use tandem_engine::{Adapter, Linears};
use tandem_formats::adapter::{Floats, Lora};

/// Numbers from -1 to 1, the same in every run: splitmix64 (Steele, Lea, Flood 2014).
pub(crate) fn random(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

pub(crate) fn floats(n_rows: usize, n_cols: usize, mut next: impl FnMut() -> f32) -> Floats {
    Floats {
        n_rows,
        n_cols,
        values: (0..n_rows * n_cols).map(|_| next()).collect(),
    }
}

/// Factors of one tensor of the base, large enough to matter.
pub(crate) fn lora(name: &str, (n_out, n_in): (usize, usize), rank: usize, seed: u64) -> Lora {
    let mut next = random(seed);
    let size = 1.0 / (n_in as f32).sqrt();
    let a = floats(rank, n_in, || next() * size);
    Lora {
        module: name.to_string(),
        a,
        b: floats(n_out, rank, || next() * 0.3),
        scale: 1.5,
    }
}

/// An adapter for all linears of all layers.
pub(crate) fn adapter(base: &Linears, rank: usize, seed: u64) -> Adapter {
    let in_layers = base.iter().filter(|linear| linear.layer.is_some());
    let loras = in_layers.zip(seed..).map(|(linear, seed)| {
        let shape = (linear.n_out, linear.n_in);
        lora(&linear.name, shape, rank, seed)
    });
    Adapter::new(base, loras.collect()).unwrap()
}

/// Outputs and inputs of the linear of this name.
pub(crate) fn shape(base: &Linears, name: &str) -> (usize, usize) {
    let linear = base.by_name(name).unwrap();
    (linear.n_out, linear.n_in)
}

/// A safetensors file of float32 tensors.
pub(crate) fn safetensors(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape, values) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        let entry = serde_json::json!({
            "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()],
        });
        header.insert(name.to_string(), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes(), &header[..], &data].concat()
}
