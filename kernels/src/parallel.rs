//! Splitting work over threads: the pool's interface, a pool of one, and outputs that several
//! threads fill.

use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// The most tiles of a [`SharedMatrix`].
const MAX_TILES: usize = 1024;

/// Runs numbered tasks, possibly on several threads.
pub trait Pool: Sync {
    /// Threads that may run tasks, the caller's included.
    fn n_threads(&self) -> usize;

    /// Calls `task(i)` once for every `i` in `0..n_tasks`, on the caller's thread and at most
    /// `n_threads - 1` others, and returns when all have returned. Threads that are left out stay
    /// asleep.
    ///
    /// Tasks are started in ascending order: when `task(i)` is called, every lower task has been
    /// given to a thread that runs nothing else before it. So a task may wait, by
    /// [`Pool::wait_while`], for lower ones that do not wait themselves.
    fn run_on(&self, n_threads: usize, n_tasks: usize, task: &(dyn Fn(usize) + Sync));

    /// As [`Pool::run_on`], but only the first `n_first` tasks start in ascending order, after which
    /// the others may wait for them. Of the others each thread takes some that follow each other: what
    /// one reads last lies before what the next reads first. (A pool need not care for that.)
    fn run_apart(
        &self,
        n_threads: usize,
        n_first: usize,
        n_tasks: usize,
        task: &(dyn Fn(usize) + Sync),
    ) {
        assert!(n_first <= n_tasks);
        self.run_on(n_threads, n_tasks, task);
    }

    /// [`Pool::run_on`] all threads.
    fn run(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.run_on(self.n_threads(), n_tasks, task);
    }

    /// Waits inside a task while `condition` holds.
    fn wait_while(&self, condition: &dyn Fn() -> bool) {
        while condition() {
            core::hint::spin_loop();
        }
    }
}

/// A pool that runs every task on the caller's thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Pool for Serial {
    fn n_threads(&self) -> usize {
        1
    }

    fn run_on(&self, _n_threads: usize, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..n_tasks).for_each(task);
    }
}

/// Some threads of a pool: what memory limits is often fastest on fewer than it has.
#[derive(Clone, Copy)]
pub struct Limited<'a> {
    pool: &'a dyn Pool,
    n_threads: usize,
}

impl<'a> Limited<'a> {
    /// At most `n_threads` threads of `pool`, and at least the caller's.
    pub fn new(pool: &'a dyn Pool, n_threads: usize) -> Limited<'a> {
        Limited {
            pool,
            n_threads: n_threads.clamp(1, pool.n_threads()),
        }
    }
}

impl Pool for Limited<'_> {
    fn n_threads(&self) -> usize {
        self.n_threads
    }

    fn run_on(&self, n_threads: usize, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.pool
            .run_on(n_threads.min(self.n_threads), n_tasks, task);
    }

    fn run_apart(
        &self,
        n_threads: usize,
        n_first: usize,
        n_tasks: usize,
        task: &(dyn Fn(usize) + Sync),
    ) {
        let n_threads = n_threads.min(self.n_threads);
        self.pool.run_apart(n_threads, n_first, n_tasks, task);
    }

    fn wait_while(&self, condition: &dyn Fn() -> bool) {
        self.pool.wait_while(condition);
    }
}

/// A matrix `[n_rows, n_cols]` that several threads fill, each task its own tile.
///
/// Tiles lie on a grid of `tile_rows` by `tile_cols`; each can be taken once, which is what makes
/// the sharing safe.
#[derive(Debug)]
pub struct SharedMatrix<'a, T = f32> {
    data: *mut T,
    n_rows: usize,
    n_cols: usize,
    tile_rows: usize,
    tile_cols: usize,
    taken: [AtomicU64; MAX_TILES / 64],
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: `tile` is the only access to `data` and hands out every tile at most once, so no two
// threads reach the same element, and an element may move between threads.
unsafe impl<T: Send> Sync for SharedMatrix<'_, T> {}
// SAFETY: it stands for a `&mut [T]`, which is Send.
unsafe impl<T: Send> Send for SharedMatrix<'_, T> {}

impl<'a, T> SharedMatrix<'a, T> {
    /// The most tiles of a matrix.
    pub const MAX_TILES: usize = MAX_TILES;

    /// Shares `data`, rows of `n_cols`, in tiles of `tile_rows` by `tile_cols` (smaller at the
    /// edges).
    ///
    /// # Panics
    ///
    /// If `data` is no whole number of rows, a tile is empty, or there are more than
    /// [`Self::MAX_TILES`] tiles.
    pub fn new(data: &'a mut [T], n_cols: usize, tile_rows: usize, tile_cols: usize) -> Self {
        assert!(n_cols > 0 && tile_rows > 0 && tile_cols > 0);
        assert!(data.len().is_multiple_of(n_cols));
        let n_rows = data.len() / n_cols;
        assert!(n_rows.div_ceil(tile_rows) * n_cols.div_ceil(tile_cols) <= Self::MAX_TILES);
        SharedMatrix {
            data: data.as_mut_ptr(),
            n_rows,
            n_cols,
            tile_rows,
            tile_cols,
            taken: [const { AtomicU64::new(0) }; MAX_TILES / 64],
            lifetime: PhantomData,
        }
    }

    /// Takes the tile in grid row `i` and grid column `j`.
    ///
    /// # Panics
    ///
    /// If there is no such tile or it was taken before.
    pub fn tile(&self, i: usize, j: usize) -> TileMut<'_, T> {
        let n_grid_cols = self.n_cols.div_ceil(self.tile_cols);
        assert!(i < self.n_rows.div_ceil(self.tile_rows) && j < n_grid_cols);
        let bit = i * n_grid_cols + j;
        let before = self.taken[bit / 64].fetch_or(1 << (bit % 64), Ordering::Relaxed);
        assert!(
            before & (1 << (bit % 64)) == 0,
            "tile ({i}, {j}) taken twice"
        );
        let (row, col) = (i * self.tile_rows, j * self.tile_cols);
        TileMut {
            // SAFETY: `row < n_rows` and `col < n_cols` by the assertion on `i` and `j`.
            data: unsafe { self.data.add(row * self.n_cols + col) },
            n_rows: self.tile_rows.min(self.n_rows - row),
            n_cols: self.tile_cols.min(self.n_cols - col),
            stride: self.n_cols,
            lifetime: PhantomData,
        }
    }
}

/// A rectangle `[n_rows, n_cols]` of a larger matrix, to be written.
#[derive(Debug)]
pub struct TileMut<'a, T = f32> {
    data: *mut T,
    n_rows: usize,
    n_cols: usize,
    stride: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for `&mut` to elements that nothing else reaches.
unsafe impl<T: Send> Send for TileMut<'_, T> {}

impl<'a, T> TileMut<'a, T> {
    /// All of `data`, rows of `n_cols`.
    ///
    /// # Panics
    ///
    /// If `data` is no whole number of rows.
    pub fn new(data: &'a mut [T], n_cols: usize) -> Self {
        assert!(n_cols > 0 && data.len().is_multiple_of(n_cols));
        TileMut {
            data: data.as_mut_ptr(),
            n_rows: data.len() / n_cols,
            n_cols,
            stride: n_cols,
            lifetime: PhantomData,
        }
    }

    /// Rows: tokens.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Columns: outputs.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Row `i`, `[n_cols]`.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    pub fn row(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.n_rows);
        // SAFETY: row `i` exists by the assertion, lies inside the matrix the tile was cut from,
        // and is borrowed from `self` alone.
        unsafe { core::slice::from_raw_parts_mut(self.data.add(i * self.stride), self.n_cols) }
    }

    /// Where row 0 begins, and the elements from one row to the next.
    pub(crate) fn parts(&mut self) -> (*mut T, usize) {
        (self.data, self.stride)
    }

    /// All of a tile whose rows lie together: one as wide as the matrix.
    ///
    /// # Panics
    ///
    /// If it is narrower.
    pub fn all(&mut self) -> &mut [T] {
        assert_eq!(self.n_cols, self.stride);
        // SAFETY: the rows exist, and nothing lies between them; all is borrowed from `self` alone.
        unsafe { core::slice::from_raw_parts_mut(self.data, self.n_rows * self.n_cols) }
    }

    /// The columns `cols` alone.
    ///
    /// # Panics
    ///
    /// If there are no such columns.
    pub fn cols(&mut self, cols: Range<usize>) -> TileMut<'_, T> {
        assert!(cols.start <= cols.end && cols.end <= self.n_cols);
        TileMut {
            data: self.data.wrapping_add(cols.start), // of no rows there is no such element
            n_cols: cols.len(),
            lifetime: PhantomData,
            ..*self
        }
    }

    /// The rows `rows` alone.
    ///
    /// # Panics
    ///
    /// If there are no such rows.
    pub fn rows(&mut self, rows: Range<usize>) -> TileMut<'_, T> {
        assert!(rows.start <= rows.end && rows.end <= self.n_rows);
        TileMut {
            data: self.data.wrapping_add(rows.start * self.stride), // no rows may be past the end
            n_rows: rows.len(),
            lifetime: PhantomData,
            ..*self
        }
    }

    /// Sets every element.
    pub fn fill(&mut self, value: T)
    where
        T: Copy,
    {
        for i in 0..self.n_rows {
            self.row(i).fill(value);
        }
    }
}

/// A matrix that the first tasks of a run fill, tile by tile, and that later tasks of the same run, or
/// whoever fills the last tile, read.
#[derive(Debug)]
pub struct Handover<'a, T = f32> {
    matrix: SharedMatrix<'a, T>,
    n_tiles: usize,
    /// Tiles filled.
    n_done: AtomicUsize,
    /// Whether a task panicked while it filled one.
    panicked: AtomicBool,
}

impl<'a, T> Handover<'a, T> {
    /// Shares `data` as [`SharedMatrix::new`] does.
    ///
    /// # Panics
    ///
    /// As [`SharedMatrix::new`].
    pub fn new(data: &'a mut [T], n_cols: usize, tile_rows: usize, tile_cols: usize) -> Self {
        let matrix = SharedMatrix::new(data, n_cols, tile_rows, tile_cols);
        Handover {
            n_tiles: matrix.n_rows.div_ceil(tile_rows) * n_cols.div_ceil(tile_cols),
            matrix,
            n_done: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
        }
    }

    /// Lets `fill` fill the tile in grid row `i` and grid column `j`. Returns whether it was the last:
    /// of all calls for a matrix one returns true, unless a tile's panics.
    ///
    /// # Panics
    ///
    /// If there is no such tile or it was filled before, and if `fill` panics; then whoever waits
    /// for the matrix panics, too.
    pub fn fill(&self, i: usize, j: usize, fill: impl FnOnce(&mut TileMut<'_, T>)) -> bool {
        /// Counts the tile also when `fill` unwinds, lest others wait forever.
        struct Unwinding<'a> {
            n_done: &'a AtomicUsize,
            panicked: &'a AtomicBool,
        }
        impl Drop for Unwinding<'_> {
            fn drop(&mut self) {
                self.panicked.store(true, Ordering::Relaxed);
                self.n_done.fetch_add(1, Ordering::Release);
            }
        }
        let mut tile = self.matrix.tile(i, j);
        let unwinding = Unwinding {
            n_done: &self.n_done,
            panicked: &self.panicked,
        };
        fill(&mut tile);
        core::mem::forget(unwinding);
        self.n_done.fetch_add(1, Ordering::Release) + 1 == self.n_tiles
    }

    /// Whether every tile is filled, so that no one need wait.
    #[inline]
    fn is_filled(&self) -> bool {
        self.n_done.load(Ordering::Acquire) >= self.n_tiles
    }

    /// Waits until every tile is filled, and reads them.
    ///
    /// # Panics
    ///
    /// If filling one panicked.
    #[inline]
    pub fn wait(&self, pool: &dyn Pool) -> &[T] {
        if !self.is_filled() {
            pool.wait_while(&|| !self.is_filled());
        }
        assert!(
            !self.panicked.load(Ordering::Relaxed),
            "another task panicked"
        );
        // SAFETY: every tile was taken, and `fill` counts one only after its last write, which the
        // acquiring load above makes visible; a tile is taken once, so nothing writes any more.
        // The matrix is `n_rows` rows of `n_cols`, by `SharedMatrix::new`.
        unsafe {
            core::slice::from_raw_parts(self.matrix.data, self.matrix.n_rows * self.matrix.n_cols)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_the_matrix_once() {
        let mut data = [0.0; 5 * 7];
        let shared = SharedMatrix::new(&mut data, 7, 2, 3);
        Serial.run(9, &|i| {
            let mut tile = shared.tile(i / 3, i % 3);
            for r in 0..tile.n_rows() {
                tile.row(r).iter_mut().for_each(|x| *x += 1.0 + i as f32);
            }
        });
        for (i, x) in data.iter().enumerate() {
            assert_eq!(*x, 1.0 + (i / 7 / 2 * 3 + i % 7 / 3) as f32);
        }
    }

    #[test]
    #[should_panic(expected = "taken twice")]
    fn a_tile_is_taken_once() {
        let mut data = [0.0; 4];
        let shared = SharedMatrix::new(&mut data, 2, 1, 2);
        let _first = shared.tile(1, 0);
        let _second = shared.tile(1, 0);
    }

    #[test]
    fn what_early_tasks_fill_late_tasks_read() {
        let mut data = [0.0; 6 * 4];
        let handover = Handover::new(&mut data, 4, 2, 3);
        Serial.run(8, &|i| match i {
            0..6 => {
                let is_last = handover.fill(i / 2, i % 2, |tile| tile.fill(i as f32));
                assert_eq!(is_last, i == 5);
            }
            _ => {
                let all = handover.wait(&Serial);
                assert_eq!(all[..8], [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
                assert_eq!(all[20..], [4.0, 4.0, 4.0, 5.0]);
            }
        });
    }
}
