//! Probabilities of tokens, as clients are told them.

/// A token with the natural logarithm of its probability, and the most likely ones.
#[derive(Clone, Debug)]
pub(super) struct Logprob {
    pub token: u32,
    pub logprob: f32,
    pub top: Vec<Likely>,
}

/// One of the most likely tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Likely {
    pub token: u32,
    pub logprob: f32,
}

/// The logarithm of a token's probability, with the `n_top` most likely ones.
pub(super) fn logprob(logits: &[f32], token: u32, n_top: usize) -> Logprob {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - max).exp())
        .sum();
    let log_sum = f64::from(max) + sum.ln();
    // JSON has no infinity.
    let of = |logit: f32| ((f64::from(logit) - log_sum) as f32).max(-9999.0);
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let n_top = n_top.min(order.len());
    let falling = |a: &u32, b: &u32| {
        logits[*b as usize]
            .total_cmp(&logits[*a as usize])
            .then(a.cmp(b))
    };
    if n_top > 0 && n_top < order.len() {
        order.select_nth_unstable_by(n_top - 1, falling);
    }
    order.truncate(n_top);
    order.sort_by(falling);
    Logprob {
        token,
        logprob: of(logits
            .get(token as usize)
            .copied()
            .unwrap_or(f32::NEG_INFINITY)),
        top: order
            .into_iter()
            .map(|token| Likely {
                token,
                logprob: of(logits[token as usize]),
            })
            .collect(),
    }
}
