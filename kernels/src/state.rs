//! What a token does to the state of a recurrent layer's head, delta net or Mamba-2.

use crate::TileMut;
use crate::simd::Lanes;

/// A token's step on a state `h` `[n_rows, n_columns]`, of which it reads columns: `h = decay h + to taken^T`,
/// `y = y + h^T from`.
pub(crate) struct Update<'a> {
    pub decay: f32,
    /// `[n_rows]`.
    pub to: &'a [f32],
    /// `[n_rows]`.
    pub from: &'a [f32],
}

impl Update<'_> {
    /// The 16 `N` columns from `start` on: takes `taken` up, and adds what is found to `sums`.
    ///
    /// # Safety
    ///
    /// The CPU has the level's features, with which the caller is compiled.
    #[inline(always)]
    pub(crate) unsafe fn columns<S: Lanes, const N: usize>(
        &self,
        h: &mut TileMut<'_>,
        start: usize,
        taken: &[S::Floats; N],
        sums: &mut [S::Floats; N],
    ) {
        // SAFETY: the caller's; 16 N elements are in each slice.
        unsafe {
            let decay = S::splat_float(self.decay);
            for (i, (to, from)) in self.to.iter().zip(self.from).enumerate() {
                let row = h.row(i)[start..][..16 * N].as_mut_ptr();
                let (to, from) = (S::splat_float(*to), S::splat_float(*from));
                for (j, sum) in sums.iter_mut().enumerate() {
                    let old = S::mul(decay, S::floats(row.add(16 * j)));
                    let new = S::mul_add(to, taken[j], old);
                    S::store(new, row.add(16 * j));
                    *sum = S::mul_add(new, from, *sum);
                }
            }
        }
    }

    /// Column `j` alone: `sum` and what is found.
    pub(crate) fn column(&self, h: &mut TileMut<'_>, j: usize, taken: f32, sum: f32) -> f32 {
        let mut sum = sum;
        for (i, (to, from)) in self.to.iter().zip(self.from).enumerate() {
            let h = &mut h.row(i)[j];
            *h = self.decay * *h + to * taken;
            sum += *h * from;
        }
        sum
    }
}
