//! Buffers that may not fit the memory.

use alloc::vec::Vec;

use bytemuck::Zeroable;

use crate::SessionError;

/// A buffer of zeros, or the error that there is no memory for it.
pub(crate) fn zeroed<T: Zeroable + Clone>(n: usize) -> Result<Vec<T>, SessionError> {
    let mut buffer = Vec::new();
    buffer
        .try_reserve_exact(n)
        .map_err(|_| SessionError::OutOfMemory {
            n_bytes: n.saturating_mul(size_of::<T>()),
        })?;
    // Written, not only asked for: a system that overcommits would else give what it does not have,
    // and kill the process later.
    buffer.resize(n, T::zeroed());
    Ok(buffer)
}
