use super::*;

/// The definition, in f64, for queries, keys and values of float32.
fn naive(kv: &KvHead<'_>, k: &[f32], v: &[f32], q: &[f32], t: usize) -> Vec<f64> {
    let n = kv.head_dim;
    let end = kv.first + t + 1;
    let start = kv.window.map_or(0, |w| end.saturating_sub(w));
    let dot = |p: usize| -> f64 {
        let k = &k[p * n..][..n];
        q.iter()
            .zip(k)
            .map(|(q, k)| f64::from(*q) * f64::from(*k))
            .sum()
    };
    let capped = |score: f64| match kv.softcap {
        Some(cap) => f64::from(cap) * (score / f64::from(cap)).tanh(),
        None => score,
    };
    let weights: Vec<f64> = (start..end)
        .map(|p| capped(f64::from(kv.scale) * dot(p)).exp())
        .collect();
    let sinks: f64 = kv
        .sinks
        .iter()
        .take(1)
        .map(|sink| f64::from(*sink).exp())
        .sum();
    let sum: f64 = weights.iter().sum::<f64>() + sinks;
    (0..n)
        .map(|i| {
            let rows = weights.iter().zip(start..end);
            rows.map(|(w, p)| w * f64::from(v[p * n + i])).sum::<f64>() / sum
        })
        .collect()
}

#[test]
fn agrees_with_the_definition_at_every_level() {
    let wave = |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin()).collect::<Vec<_>>();
    for (n, group, first, n_tokens, window) in [
        (64, 4, 0, 1, None),
        (64, 4, 150, 1, None),
        (32, 2, 60, 70, None),
        (16, 3, 5, 130, Some(7)),
        (512, 1, 40, 3, Some(33)),
        (20, 64, 63, 2, None),
    ] {
        let n_positions = first + n_tokens;
        let (k, v) = (wave(n_positions * n, 0.37), wave(n_positions * n, 0.73));
        let mut keys = vec![0xff; n_positions.next_multiple_of(KEY_GROUP) * n * 4];
        for (p, k) in k.chunks_exact(n).enumerate() {
            store_key(DType::F32, k, p, &mut keys);
        }
        let q_stride = group * n + 5;
        let q = wave(n_tokens * q_stride, 1.1);
        let mut sinks = wave(group, 2.3);
        sinks.iter_mut().for_each(|sink| *sink *= 6.0);
        let kv = KvHead {
            dtype: DType::F32,
            head_dim: n,
            n_places: n_positions.next_multiple_of(KEY_GROUP),
            k: &keys,
            v: bytemuck::cast_slice(&v),
            first,
            window,
            scale: 0.3,
            softcap: (n == 16).then_some(1.5),
            sinks: if n < 100 { &sinks } else { &[] },
        };
        for level in Level::available() {
            let mut y = vec![f32::NAN; n_tokens * group * n];
            attention(
                level,
                &kv,
                &q,
                q_stride,
                &mut TileMut::new(&mut y, group * n),
            );
            for (t, y) in y.chunks_exact(group * n).enumerate() {
                for (h, y) in y.chunks_exact(n).enumerate() {
                    let q = &q[t * q_stride + h * n..][..n];
                    let sinks = kv.sinks.get(h..h + 1).unwrap_or_default();
                    let kv = KvHead { sinks, ..kv };
                    for (y, truth) in y.iter().zip(naive(&kv, &k, &v, q, t)) {
                        assert!((f64::from(*y) - truth).abs() < 1e-5, "{y} {truth}");
                    }
                }
            }
        }
    }
}

#[test]
fn rounded_caches_agree_with_what_they_hold() {
    let wave = |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin()).collect::<Vec<_>>();
    let (n, n_positions) = (64, 83);
    let (k, v) = (wave(n_positions * n, 0.37), wave(n_positions * n, 0.73));
    let q = wave(2 * n, 1.1);
    for dtype in [DType::F16, DType::Q8_0] {
        let n_bytes = n / dtype.block_len() * dtype.block_bytes();
        let mut keys = vec![0; n_positions.next_multiple_of(KEY_GROUP) * n_bytes];
        let (mut values, mut row) = (vec![0; n_positions * n_bytes], vec![0; n_bytes]);
        let (mut k_held, mut v_held) = (k.clone(), v.clone());
        for (p, (k, k_held)) in k
            .chunks_exact(n)
            .zip(k_held.chunks_exact_mut(n))
            .enumerate()
        {
            store_key(dtype, k, p, &mut keys);
            quant::quantize(dtype, k, &mut row);
            quant::dequantize(dtype, &row, k_held);
        }
        quant::quantize(dtype, &v, &mut values);
        quant::dequantize(dtype, &values, &mut v_held);
        let kv = KvHead {
            dtype,
            head_dim: n,
            n_places: n_positions.next_multiple_of(KEY_GROUP),
            k: &keys,
            v: &values,
            first: n_positions - 1,
            window: None,
            scale: 0.3,
            softcap: None,
            sinks: &[],
        };
        for level in Level::available() {
            let mut y = vec![f32::NAN; 2 * n];
            attention(level, &kv, &q, 2 * n, &mut TileMut::new(&mut y, 2 * n));
            for (q, y) in q.chunks_exact(n).zip(y.chunks_exact(n)) {
                for (y, truth) in y.iter().zip(naive(&kv, &k_held, &v_held, q, 0)) {
                    assert!((f64::from(*y) - truth).abs() < 1e-5, "{y} {truth}");
                }
            }
        }
    }
}

/// A window's keys and values in few places give the bits that they give in one for each position.
#[test]
fn a_ring_of_places_is_the_same_to_the_bit() {
    let wave = |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin()).collect::<Vec<_>>();
    let (n, window, n_positions) = (32, 21, 203);
    let (k, v) = (wave(n_positions * n, 0.37), wave(n_positions * n, 0.73));
    for (n_tokens, n_ring) in [(1, 32), (9, 32), (12, 48), (60, 80), (60, 96)] {
        for dtype in [DType::F32, DType::F16, DType::Q8_0] {
            let first = n_positions - n_tokens;
            let q = wave(n_tokens * n, 1.1);
            let run = |n_places: usize, level| {
                let row_bytes = n / dtype.block_len() * dtype.block_bytes();
                let mut keys = vec![0; n_places * row_bytes];
                let mut values = keys.clone();
                for (p, (k, v)) in k.chunks_exact(n).zip(v.chunks_exact(n)).enumerate() {
                    store_key(dtype, k, p % n_places, &mut keys);
                    let at = p % n_places * row_bytes;
                    quant::quantize(dtype, v, &mut values[at..at + row_bytes]);
                }
                let kv = KvHead {
                    dtype,
                    head_dim: n,
                    n_places,
                    k: &keys,
                    v: &values,
                    first,
                    window: Some(window),
                    scale: 0.3,
                    softcap: None,
                    sinks: &[],
                };
                let mut y = vec![f32::NAN; n_tokens * n];
                attention(level, &kv, &q, n, &mut TileMut::new(&mut y, n));
                y
            };
            for level in Level::available() {
                let whole = run(n_positions.next_multiple_of(KEY_GROUP), level);
                assert_eq!(run(n_ring, level), whole, "{n_tokens} {n_ring} {dtype}");
            }
        }
    }
}
