//! Linears whose weights do not learn, with what does learn beside them.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use tandem_kernels::{
    DType, Input, Level, Matrix, Q8_BLOCK, Q8_SUPER, Q8Rows, Q8Super, TileMut, quant, quantize_q8,
};

use super::super::gemm::{Target, View, matmul};
use super::{like, read, values};

/// A low-rank term of the weights: `B A`, scales in it.
pub(in super::super) struct Delta {
    pub rank: usize,
    /// `[rank, n_in]`.
    pub a: Vec<f32>,
    /// `[n_out, rank]`.
    pub b: Vec<f32>,
}

/// `y = (W + sum B A) x + bias` with nothing in it that learns.
pub(in super::super) struct Frozen {
    pub n_out: usize,
    pub n_in: usize,
    weights: Weights,
    /// What is added to the weights; none where they are floats, which have taken it up.
    terms: Vec<Delta>,
    /// `[n_out]` or empty.
    bias: Vec<f32>,
}

enum Weights {
    /// `[n_out, n_in]`.
    Floats(Vec<f32>),
    /// As the file stores them; decoded for each use and no longer.
    Packed(DType, Vec<u8>),
    /// As the file stores them, and what the way back is computed with. Both ways inputs are rounded to int8, as
    /// the engine does.
    Integers(DType, Vec<u8>, Vec<Transposed>),
}

/// The weights of some outputs, outputs and inputs exchanged: `[n_in, n]` in Q8_0.
struct Transposed {
    /// Which outputs.
    outputs: Range<usize>,
    bytes: Vec<u8>,
}

/// Outputs of a [`Transposed`]: the gradients of some hundred tokens by so many fit the cache.
const OUTPUTS: usize = 2048;

impl Frozen {
    /// Weights of the base with terms. Float32 weights take them up once and for all, others stay as they are
    /// stored. Where `exact`, no input is rounded, and the model takes no more memory than its file.
    pub(in super::super) fn new(
        w: &Matrix<'_>,
        bias: &[f32],
        terms: Vec<Delta>,
        exact: bool,
    ) -> Frozen {
        let (n_out, n_in) = (w.n_rows(), w.n_cols());
        let bytes: Vec<u8> = (0..n_out).flat_map(|r| w.row(r)).copied().collect();
        let fits = n_in.is_multiple_of(Q8_BLOCK) && n_out.is_multiple_of(Q8_BLOCK);
        let weights = match w.dtype().is_quantized() && fits && !exact {
            true => Weights::Integers(w.dtype(), bytes, transposed(w)),
            false => Weights::Packed(w.dtype(), bytes),
        };
        let mut frozen = Frozen {
            n_out,
            n_in,
            weights,
            terms,
            bias: bias.to_vec(),
        };
        if w.dtype() == DType::F32 {
            let mut w = frozen.weights().into_owned();
            for Delta { rank, a, b } in frozen.terms.drain(..) {
                let b = View::new(&b, n_out, rank);
                let a = View::new(&a, rank, n_in);
                matmul(Target::new(&mut w, n_in), true, 1.0, b, a);
            }
            frozen.weights = Weights::Floats(w);
        }
        frozen
    }

    /// `[n_out, n_in]`, without terms.
    fn weights(&self) -> Cow<'_, [f32]> {
        match &self.weights {
            Weights::Floats(w) => Cow::Borrowed(w),
            Weights::Packed(dtype, bytes) | Weights::Integers(dtype, bytes, _) => {
                let mut w = vec![0.0; self.n_out * self.n_in];
                quant::dequantize(*dtype, bytes, &mut w);
                Cow::Owned(w)
            }
        }
    }

    /// Row `r` of weights without terms: a token's embedding.
    pub(in super::super) fn row(&self, r: usize, out: &mut [f32]) {
        match &self.weights {
            Weights::Floats(w) => out.copy_from_slice(&w[r * self.n_in..][..self.n_in]),
            Weights::Packed(dtype, bytes) | Weights::Integers(dtype, bytes, _) => {
                let n = bytes.len() / self.n_out;
                quant::dequantize(*dtype, &bytes[r * n..][..n], out);
            }
        }
    }

    /// `x` `[n, n_in]` to `y` `[n, n_out]`.
    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let (n, x_view) = (x.len() / self.n_in, rows(x, self.n_in));
        let mut y = vec![0.0; n * self.n_out];
        match &self.weights {
            Weights::Integers(dtype, bytes, _) => {
                let w = Matrix::new(*dtype, self.n_out, self.n_in, bytes);
                rounded_product(&w.expect("the file's matrix"), x, &mut y);
            }
            Weights::Floats(_) | Weights::Packed(..) => {
                let w = self.weights();
                let w = View::new(&w, self.n_out, self.n_in);
                matmul(Target::new(&mut y, self.n_out), false, 1.0, x_view, w.t());
            }
        }
        for Delta { rank, a, b } in &self.terms {
            let (a, b) = (
                View::new(a, *rank, self.n_in),
                View::new(b, self.n_out, *rank),
            );
            let h = product(x_view, a.t());
            let h = View::new(&h, n, *rank);
            matmul(Target::new(&mut y, self.n_out), true, 1.0, h, b.t());
        }
        if !self.bias.is_empty() {
            add_rows(&mut y, &self.bias);
        }
        y
    }

    /// The gradient of `x` `[n, n_in]` from that of `y` `[n, n_out]`.
    fn backward(&self, grad: &[f32]) -> Vec<f32> {
        let (n, grad_view) = (grad.len() / self.n_out, rows(grad, self.n_out));
        let mut grad_x = vec![0.0; n * self.n_in];
        match &self.weights {
            Weights::Integers(.., parts) => {
                for part in parts {
                    part.add_product(grad_view, &mut grad_x);
                }
            }
            Weights::Floats(_) | Weights::Packed(..) => {
                let w = self.weights();
                let w = View::new(&w, self.n_out, self.n_in);
                matmul(
                    Target::new(&mut grad_x, self.n_in),
                    false,
                    1.0,
                    grad_view,
                    w,
                );
            }
        }
        for Delta { rank, a, b } in &self.terms {
            let (a, b) = (
                View::new(a, *rank, self.n_in),
                View::new(b, self.n_out, *rank),
            );
            let h = product(grad_view, b);
            let h = View::new(&h, n, *rank);
            matmul(Target::new(&mut grad_x, self.n_in), true, 1.0, h, a);
        }
        grad_x
    }
}

/// `x w`.
fn product(x: View<'_>, w: View<'_>) -> Vec<f32> {
    let mut y = vec![0.0; x.n_rows() * w.n_cols()];
    matmul(Target::new(&mut y, w.n_cols()), false, 1.0, x, w);
    y
}

/// Rows of `n_cols`.
fn rows(x: &[f32], n_cols: usize) -> View<'_> {
    View::new(x, x.len() / n_cols, n_cols)
}

/// `y = x W^T`, the rows of `x` rounded to int8.
fn rounded_product(w: &Matrix<'_>, x: &[f32], y: &mut [f32]) {
    let (n_in, n_out) = (w.n_cols(), w.n_rows());
    let n = x.len() / n_in;
    let level = Level::detect();
    let mut supers = vec![Q8Super::default(); n * n_in.div_ceil(Q8_SUPER)];
    quantize_q8(level, x, n_in, 0, &mut supers);
    let x = Input::Q8(Q8Rows::new(&supers, n));
    tandem_kernels::matmul(level, w, 0..n_out, &x, &mut TileMut::new(y, n_out));
}

/// The weights with rows and columns exchanged.
fn transposed(w: &Matrix<'_>) -> Vec<Transposed> {
    let (n_out, n_in) = (w.n_rows(), w.n_cols());
    let part = |first: usize| {
        let outputs = first..n_out.min(first + OUTPUTS);
        let n = outputs.len();
        let mut row = vec![0.0; n_in];
        let mut turned = vec![0.0; n_in * n];
        for (i, r) in outputs.clone().enumerate() {
            quant::dequantize(w.dtype(), w.row(r), &mut row);
            for (c, x) in row.iter().enumerate() {
                turned[c * n + i] = *x;
            }
        }
        let n_bytes = DType::Q8_0.row_bytes(n).expect("whole blocks");
        let mut bytes = vec![0; n_in * n_bytes];
        for (row, bytes) in turned.chunks_exact(n).zip(bytes.chunks_exact_mut(n_bytes)) {
            quant::quantize(DType::Q8_0, row, bytes);
        }
        Transposed { outputs, bytes }
    };
    (0..n_out).step_by(OUTPUTS).map(part).collect()
}

impl Transposed {
    /// Adds what the gradients `[n, n_out]` of these outputs make of the inputs' `[n, n_in]`.
    fn add_product(&self, grad: View<'_>, grad_x: &mut [f32]) {
        let (n, n_part) = (grad.n_rows(), self.outputs.len());
        let n_in = grad_x.len() / n;
        let mut own = Vec::with_capacity(n * n_part);
        for t in 0..n {
            own.extend_from_slice(&grad.row(t)[self.outputs.clone()]);
        }
        let w = Matrix::new(DType::Q8_0, n_in, n_part, &self.bytes);
        let mut product = vec![0.0; n * n_in];
        rounded_product(&w.expect("whole rows"), &own, &mut product);
        grad_x.iter_mut().zip(&product).for_each(|(x, p)| *x += p);
    }
}

fn add_rows(y: &mut [f32], row: &[f32]) {
    for y in y.chunks_exact_mut(row.len()) {
        y.iter_mut().zip(row).for_each(|(y, p)| *y += p);
    }
}

/// A linear alone.
pub(in super::super) struct Linear(pub Arc<Frozen>);

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.0.forward(values(x, layout)?);
        let n = y.len() / self.0.n_out;
        Ok((CpuStorage::F32(y), (n, self.0.n_out).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (storage, layout) = grad.storage_and_layout();
        let grad_x = self.0.backward(read(&storage, layout)?);
        like(x, grad_x).map(Some)
    }
}

/// A linear with a learned vector `p` `[n_out]`: `y = W x + p`.
pub(in super::super) struct BiasedLinear(pub Arc<Frozen>);

impl CustomOp2 for BiasedLinear {
    fn name(&self) -> &'static str {
        "biased linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        p: &CpuStorage,
        p_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut y = self.0.forward(values(x, x_layout)?);
        add_rows(&mut y, values(p, p_layout)?);
        let n = y.len() / self.0.n_out;
        Ok((CpuStorage::F32(y), (n, self.0.n_out).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        p: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (storage, layout) = grad.storage_and_layout();
        let grad = read(&storage, layout)?;
        let mut grad_p = vec![0.0; self.0.n_out];
        for row in grad.chunks_exact(self.0.n_out) {
            grad_p.iter_mut().zip(row).for_each(|(sum, g)| *sum += g);
        }
        let grad_x = match x.track_op() {
            true => Some(like(x, self.0.backward(grad))?),
            false => None,
        };
        Ok((grad_x, Some(like(p, grad_p)?)))
    }
}

/// A linear with a low-rank term, `a` `[rank, n_in]` and `b` `[n_out, rank]`, of which either or
/// both learn: `y = W x + scale b (a x)`.
pub(in super::super) struct LowRankLinear {
    pub linear: Arc<Frozen>,
    pub scale: f32,
}

impl LowRankLinear {
    /// `a x`, `[n, rank]`.
    fn ranks(&self, x: &[f32], a: &[f32]) -> Vec<f32> {
        let n_in = self.linear.n_in;
        product(rows(x, n_in), rows(a, n_in).t())
    }
}

impl CustomOp3 for LowRankLinear {
    fn name(&self) -> &'static str {
        "linear with a low-rank term"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Frozen { n_out, n_in, .. } = *self.linear;
        let x = values(x, x_layout)?;
        let (a, b) = (values(a, a_layout)?, values(b, b_layout)?);
        let (n, rank) = (x.len() / n_in, a.len() / n_in);
        let mut y = self.linear.forward(x);
        let h = self.ranks(x, a);
        let b = View::new(b, n_out, rank);
        matmul(
            Target::new(&mut y, n_out),
            true,
            self.scale,
            View::new(&h, n, rank),
            b.t(),
        );
        Ok((CpuStorage::F32(y), (n, n_out).into()))
    }

    fn bwd(
        &self,
        x_tensor: &Tensor,
        a_tensor: &Tensor,
        b_tensor: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Frozen { n_out, n_in, .. } = *self.linear;
        let (x, a, b) = (
            x_tensor.storage_and_layout(),
            a_tensor.storage_and_layout(),
            b_tensor.storage_and_layout(),
        );
        let (x, a, b) = (read(&x.0, x.1)?, read(&a.0, a.1)?, read(&b.0, b.1)?);
        let (storage, layout) = grad.storage_and_layout();
        let grad = read(&storage, layout)?;
        let (n, rank) = (x.len() / n_in, a.len() / n_in);
        let (grad_view, x_view) = (View::new(grad, n, n_out), View::new(x, n, n_in));

        // b gets grad^T h, with h = a x
        let grad_b = match b_tensor.track_op() {
            true => {
                let h = self.ranks(x, a);
                let mut grad_b = vec![0.0; n_out * rank];
                let h = View::new(&h, n, rank);
                matmul(
                    Target::new(&mut grad_b, rank),
                    false,
                    self.scale,
                    grad_view.t(),
                    h,
                );
                Some(like(b_tensor, grad_b)?)
            }
            false => None,
        };
        // h gets grad b, and passes it on to a and x
        let mut grad_h = vec![0.0; n * rank];
        let b = View::new(b, n_out, rank);
        matmul(
            Target::new(&mut grad_h, rank),
            false,
            self.scale,
            grad_view,
            b,
        );
        let grad_h = View::new(&grad_h, n, rank);
        let grad_a = match a_tensor.track_op() {
            true => {
                let mut grad_a = vec![0.0; rank * n_in];
                matmul(
                    Target::new(&mut grad_a, n_in),
                    false,
                    1.0,
                    grad_h.t(),
                    x_view,
                );
                Some(like(a_tensor, grad_a)?)
            }
            false => None,
        };
        let grad_x = match x_tensor.track_op() {
            true => {
                let mut grad_x = self.linear.backward(grad);
                matmul(
                    Target::new(&mut grad_x, n_in),
                    true,
                    1.0,
                    grad_h,
                    View::new(a, rank, n_in),
                );
                Some(like(x_tensor, grad_x)?)
            }
            false => None,
        };
        Ok((grad_x, grad_a, grad_b))
    }
}
