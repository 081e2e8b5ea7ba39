//! What belongs to the process that made it: threads are not there in one that was forked from it, and its locks
//! may be held by nobody.

use std::mem::ManuallyDrop;

use crate::error::{Failure, Result};

/// Something that only the process that made it may use, or drop.
pub(crate) struct OfProcess<T> {
    id: u32,
    value: ManuallyDrop<T>,
}

impl<T> OfProcess<T> {
    pub(crate) fn new(value: T) -> OfProcess<T> {
        OfProcess {
            id: std::process::id(),
            value: ManuallyDrop::new(value),
        }
    }

    pub(crate) fn get(&self) -> Result<&T> {
        match self.id == std::process::id() {
            true => Ok(&self.value),
            false => Err(Failure::Forked),
        }
    }
}

impl<T> Drop for OfProcess<T> {
    fn drop(&mut self) {
        if self.id == std::process::id() {
            // SAFETY: it is dropped here only, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}
