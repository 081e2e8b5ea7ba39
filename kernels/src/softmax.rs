//! Softmax.

/// `x[i] = exp(x[i] - max) / sum_j exp(x[j] - max)` in place. An empty slice stays empty.
pub fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in x.iter_mut() {
        *x = libm::expf(*x - max);
        sum += *x;
    }
    for x in x.iter_mut() {
        *x /= sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_to_one_and_survives_large_values() {
        let mut x = [1000.0, 1001.0, f32::NEG_INFINITY];
        softmax(&mut x);
        let e = core::f32::consts::E;
        assert!((x[1] - e / (1.0 + e)).abs() < 1e-6 && x[2] == 0.0);
        softmax(&mut []);
    }
}
