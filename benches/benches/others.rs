//! The operations between the matrix products, at every level.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tandem_benches::{random, weights};
use tandem_kernels::{
    Activation, DType, DeltaStep, KvHead, Level, LowRank, LowRankInput, LowRankTerm, LowRankType,
    Q8_SUPER, Q8Super, RankScale, RopeStyle, ScanStep, TileMut, add_low_rank, add_product,
    attention, delta_step, encode_low_rank, gate, quantize_h, quantize_q8, rms_norm, rope,
    scan_step, softmax,
};

const N: usize = 8192;

fn bench(c: &mut Criterion) {
    let x = random(N);
    for level in Level::available() {
        let mut group = c.benchmark_group("others");
        group.throughput(Throughput::Elements(N as u64));
        let mut y = x.clone();
        group.bench_function(BenchmarkId::new("rms_norm", level.name()), |b| {
            b.iter(|| rms_norm(level, &x, &x, 1e-5, &mut y));
        });
        group.bench_function(BenchmarkId::new("silu_gate", level.name()), |b| {
            b.iter(|| gate(level, Activation::Silu, &mut y, &x));
        });
        group.bench_function(BenchmarkId::new("softmax", level.name()), |b| {
            b.iter(|| softmax(level, &mut y));
        });
        let (cos, sin) = (random(32), random(32));
        group.bench_function(BenchmarkId::new("rope", level.name()), |b| {
            b.iter(|| {
                y.chunks_exact_mut(64)
                    .for_each(|h| rope(level, RopeStyle::Normal, h, &cos, &sin))
            });
        });
        let mut rounded = vec![Q8Super::default(); N / Q8_SUPER];
        group.bench_function(BenchmarkId::new("quantize_q8", level.name()), |b| {
            b.iter(|| quantize_q8(level, &x, N, 0, &mut rounded));
        });
        group.finish();

        // One decode step of four query heads over a context of 8192.
        let mut group = c.benchmark_group("attention_8192");
        for dtype in [DType::F32, DType::F16, DType::Q8_0] {
            let cache = weights(dtype, 8192 * 64);
            let kv = KvHead {
                dtype,
                head_dim: 64,
                n_places: 8192,
                k: &cache,
                v: &cache,
                first: 8191,
                window: None,
                scale: 0.125,
                softcap: None,
                sinks: &[],
            };
            group.throughput(Throughput::Bytes(2 * cache.len() as u64));
            let mut y = vec![0.0; 256];
            group.bench_function(BenchmarkId::new(dtype.name(), level.name()), |b| {
                b.iter(|| attention(level, &kv, &x[..256], 256, &mut TileMut::new(&mut y, 256)));
            });
        }
        group.finish();

        // What recurrent layers do for a token: a tap of a convolution, a delta net's head of 128, and
        // Mamba-2.
        let mut group = c.benchmark_group("recurrent");
        group.throughput(Throughput::Elements(N as u64));
        group.bench_function(BenchmarkId::new("tap", level.name()), |b| {
            b.iter(|| add_product(level, &x, &x, &mut y));
        });
        let n = 128;
        group.throughput(Throughput::Elements((n * n) as u64));
        let mut state = random(n * n);
        let step = DeltaStep {
            q: &x[..n],
            k: &x[n..2 * n],
            v: &x[2 * n..3 * n],
            decay: 0.99,
            beta: 0.01,
        };
        group.bench_function(BenchmarkId::new("delta_step", level.name()), |b| {
            let state = &mut TileMut::new(&mut state, n);
            b.iter(|| delta_step(level, state, &step, &mut y[..n]));
        });
        // The same number of elements as two heads of Mamba-2.
        let step = ScanStep {
            x: &x[..n],
            b: &x[n..2 * n],
            c: &x[2 * n..3 * n],
            decay: 0.99,
            dt: 0.01,
            skip: 1.0,
        };
        group.bench_function(BenchmarkId::new("scan_step", level.name()), |b| {
            let state = &mut TileMut::new(&mut state, n);
            b.iter(|| scan_step(level, state, &step, &mut y[..n]));
        });
        group.finish();

        // A rank of 32 added to 2048 outputs of one token and of 64.
        let mut group = c.benchmark_group("low_rank_32");
        for (kind, n_tokens) in [
            (LowRankType::Q8, 1),
            (LowRankType::Q8, 64),
            (LowRankType::Q4, 1),
        ] {
            let (n_out, rank) = (2048, 32);
            let mut data = vec![0; kind.n_bytes(n_out, rank).expect("a small rank")];
            encode_low_rank(level, kind, &random(n_out * rank), rank, 1.0, &mut data);
            let b = LowRank::new(kind, n_out, rank, &data).expect("bytes as packed");
            let (mut q, mut scale) = (
                vec![0; n_tokens * rank],
                vec![RankScale::default(); n_tokens],
            );
            for (q, scale) in q.chunks_exact_mut(rank).zip(&mut scale) {
                quantize_h(level, &x[..rank], q, scale);
            }
            let h = LowRankInput::Q8 {
                q: &q,
                stride: rank,
                scale: &scale,
                scale_stride: 1,
            };
            let mut y = vec![0.0; n_tokens * n_out];
            group.throughput(Throughput::Elements((n_tokens * n_out * rank) as u64));
            let id = BenchmarkId::new(format!("{} x {n_tokens}", kind.name()), level.name());
            group.bench_function(id, |bench| {
                let y = &mut TileMut::new(&mut y, n_out);
                let term = LowRankTerm { b, h, scale: 1.0 };
                bench.iter(|| add_low_rank(level, &[term], 0..n_out, y));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
