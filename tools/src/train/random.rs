//! Random numbers that a seed decides.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

/// A generator for one of several uses of a seed, such as an epoch's order.
pub(super) fn generator(seed: u64, purpose: u64) -> Xoshiro256PlusPlus {
    // The seeding hashes, so that neighbours give unrelated streams.
    Xoshiro256PlusPlus::seed_from_u64(seed.rotate_left(32) ^ purpose)
}

/// From -1 to 1.
pub(super) fn uniform(random: &mut Xoshiro256PlusPlus) -> f32 {
    (random.next_u64() >> 40) as f32 / (1 << 23) as f32 - 1.0
}

/// Puts elements into a random order (Fisher and Yates).
pub(super) fn shuffle<T>(random: &mut Xoshiro256PlusPlus, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        // 53 bits are far more than there are items: the bias is nothing.
        let j = ((random.next_u64() >> 11) as u128 * (i as u128 + 1)) >> 53;
        items.swap(i, j as usize);
    }
}
