//! Matrix products on one thread: the cores work on different examples.

use gemm::Parallelism;

/// A matrix inside a slice.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    data: &'a [f32],
    n_rows: usize,
    n_cols: usize,
    /// Elements from one row to the next, and from one column to the next.
    strides: (usize, usize),
}

impl<'a> View<'a> {
    /// `[n_rows, n_cols]`, row by row without gaps.
    pub(super) fn new(data: &'a [f32], n_rows: usize, n_cols: usize) -> View<'a> {
        View::strided(data, n_rows, n_cols, n_cols)
    }

    /// `[n_rows, n_cols]`, rows `stride` apart.
    ///
    /// # Panics
    ///
    /// If the slice is too short.
    pub(super) fn strided(
        data: &'a [f32],
        n_rows: usize,
        n_cols: usize,
        stride: usize,
    ) -> View<'a> {
        assert_inside(data.len(), n_rows, n_cols, stride);
        View {
            data,
            n_rows,
            n_cols,
            strides: (stride, 1),
        }
    }

    pub(super) fn n_rows(self) -> usize {
        self.n_rows
    }

    pub(super) fn n_cols(self) -> usize {
        self.n_cols
    }

    /// Row `r` of a view whose rows are as they lie.
    pub(super) fn row(self, r: usize) -> &'a [f32] {
        &self.data[r * self.strides.0..][..self.n_cols]
    }

    /// Rows and columns exchanged.
    pub(super) fn t(self) -> View<'a> {
        View {
            n_rows: self.n_cols,
            n_cols: self.n_rows,
            strides: (self.strides.1, self.strides.0),
            ..self
        }
    }
}

fn assert_inside(len: usize, n_rows: usize, n_cols: usize, stride: usize) {
    let last = n_rows.saturating_sub(1) * stride + n_cols;
    assert!(n_rows == 0 || n_cols == 0 || (last <= len && n_cols <= stride));
}

/// Where a product goes: rows of `y` that begin `stride` apart.
pub(super) struct Target<'a> {
    y: &'a mut [f32],
    stride: usize,
}

impl<'a> Target<'a> {
    pub(super) fn new(y: &'a mut [f32], stride: usize) -> Target<'a> {
        Target { y, stride }
    }
}

/// `y = scale a b`, or `y += scale a b` where `add` is set.
///
/// # Panics
///
/// If the shapes do not fit each other, or `y` is too short.
pub(super) fn matmul(target: Target<'_>, add: bool, scale: f32, a: View<'_>, b: View<'_>) {
    let Target { y, stride } = target;
    let (n_rows, n_cols, n_inner) = (a.n_rows, b.n_cols, a.n_cols);
    assert_eq!(n_inner, b.n_rows);
    assert_inside(y.len(), n_rows, n_cols, stride);
    if n_rows == 0 || n_cols == 0 {
        return;
    }
    let signed = |n: usize| n as isize;
    // SAFETY: the views' constructors and the assertions above keep every element inside its slice:
    // the last one is at (rows - 1) * stride + columns - 1. `y` is borrowed mutably, so it overlaps
    // neither `a` nor `b`. Strides are below the slices' lengths, which fit isize.
    unsafe {
        gemm::gemm(
            n_rows,
            n_cols,
            n_inner,
            y.as_mut_ptr(),
            1,
            signed(stride),
            add,
            a.data.as_ptr(),
            signed(a.strides.1),
            signed(a.strides.0),
            b.data.as_ptr(),
            signed(b.strides.1),
            signed(b.strides.0),
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_every_shape_and_order() {
        let values = |n: usize| {
            (0..n)
                .map(|i| ((i * 7) % 11) as f32 - 5.0)
                .collect::<Vec<_>>()
        };
        for (m, k, n) in [(1, 1, 1), (3, 5, 2), (17, 33, 9), (4, 0, 3), (0, 2, 2)] {
            let (a, b) = (values(m * k), values(k * n));
            let mut expected = vec![1.0; m * n];
            for i in 0..m {
                for j in 0..n {
                    let sum: f32 = (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
                    expected[i * n + j] += 2.0 * sum;
                }
            }
            let mut y = vec![1.0; m * n];
            matmul(
                Target::new(&mut y, n),
                true,
                2.0,
                View::new(&a, m, k),
                View::new(&b, k, n),
            );
            assert_eq!(y, expected);
            // The same with both factors stored the other way round.
            let turned = |x: &[f32], r: usize, c: usize| {
                (0..r * c).map(|i| x[i % r * c + i / r]).collect::<Vec<_>>()
            };
            let (a_t, b_t) = (turned(&a, m, k), turned(&b, k, n));
            let mut y = vec![1.0; m * n];
            let (a, b) = (View::new(&a_t, k, m).t(), View::new(&b_t, n, k).t());
            matmul(Target::new(&mut y, n), true, 2.0, a, b);
            assert_eq!(y, expected);
        }
    }
}
