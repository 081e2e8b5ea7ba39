//! Threads that workers share.

use alloc::sync::Arc;
use core::fmt;

use tandem_kernels::Pool;

/// A pool of threads that any number of workers use. A copy is cheap: it is another handle to the same
/// threads.
#[derive(Clone)]
pub struct SharedPool(Arc<dyn Pool + Send + Sync>);

impl SharedPool {
    /// The pool.
    pub fn get(&self) -> &dyn Pool {
        &*self.0
    }
}

impl<P: Pool + Send + Sync + 'static> From<P> for SharedPool {
    fn from(pool: P) -> SharedPool {
        SharedPool(Arc::new(pool))
    }
}

impl From<&SharedPool> for SharedPool {
    fn from(pool: &SharedPool) -> SharedPool {
        pool.clone()
    }
}

impl fmt::Debug for SharedPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedPool of {} threads", self.0.n_threads())
    }
}
