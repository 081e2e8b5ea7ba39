//! Matrix products of every format at every level: decode (`matvec`, bytes of weights a second) and
//! prefill (`matmul`, multiply-adds a second).

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tandem_benches::{random, rounded, weights};
use tandem_kernels::{DType, Input, Level, Matrix, Q8Rows, TileMut, matmul, quant};

/// A layer's worth of rows and columns, small enough for a second-level cache.
const N_ROWS: usize = 256;
const N_COLS: usize = 2048;

fn bench(c: &mut Criterion) {
    for (kind, n_tokens) in [("matvec", 1), ("matmul", 64)] {
        let mut group = c.benchmark_group(kind);
        for dtype in DType::ALL.into_iter().filter(|t| quant::can_encode(*t)) {
            let bytes = weights(dtype, N_ROWS * N_COLS);
            let w = Matrix::new(dtype, N_ROWS, N_COLS, &bytes).expect("the bytes of a matrix");
            let floats = random(n_tokens * N_COLS);
            let rounded = rounded(n_tokens, N_COLS);
            let x = match dtype.is_quantized() {
                true => Input::Q8(Q8Rows::new(&rounded, n_tokens)),
                false => Input::F32(&floats),
            };
            group.throughput(match kind {
                "matvec" => Throughput::Bytes(bytes.len() as u64),
                _ => Throughput::Elements((n_tokens * N_ROWS * N_COLS) as u64),
            });
            for level in Level::available() {
                let mut y = vec![0.0; n_tokens * N_ROWS];
                group.bench_function(BenchmarkId::new(dtype.name(), level.name()), |b| {
                    b.iter(|| matmul(level, &w, 0..N_ROWS, &x, &mut TileMut::new(&mut y, N_ROWS)));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
