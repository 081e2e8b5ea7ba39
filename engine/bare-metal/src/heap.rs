//! The heap: a fixed piece of memory, given out by `talc`, with an account of how much was in use.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::mem::MaybeUninit;

use talc::TalcCell;
use talc::source::Claim;

/// Bytes of memory to give out. An allocation beyond them fails.
const N_BYTES: usize = 4 << 20;

static mut ARENA: [MaybeUninit<u8>; N_BYTES] = [MaybeUninit::uninit(); N_BYTES];

#[global_allocator]
static HEAP: Heap = Heap {
    // SAFETY: nothing else names the arena.
    talc: TalcCell::new(unsafe { Claim::array(&raw mut ARENA) }),
    live: Cell::new(0),
    peak: Cell::new(0),
};

/// The most bytes that were in use at a time, as they were asked for.
pub(crate) fn peak() -> usize {
    HEAP.peak.get()
}

struct Heap {
    talc: TalcCell<Claim>,
    live: Cell<usize>,
    peak: Cell<usize>,
}

// SAFETY: one core runs, and no interrupt: nothing is ever called while another call is at work.
unsafe impl Sync for Heap {}

impl Heap {
    /// Notes that a piece of `old` bytes is now of `new`.
    fn note(&self, old: usize, new: usize) {
        let live = self.live.get() - old + new;
        self.live.set(live);
        self.peak.set(self.peak.get().max(live));
    }
}

// SAFETY: all is done by `talc`, which keeps the promises.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        let piece = unsafe { self.talc.alloc(layout) };
        if !piece.is_null() {
            self.note(0, layout.size());
        }
        piece
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { self.talc.dealloc(piece, layout) };
        self.note(layout.size(), 0);
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, n_bytes: usize) -> *mut u8 {
        // SAFETY: as the caller promises.
        let moved = unsafe { self.talc.realloc(piece, layout, n_bytes) };
        if !moved.is_null() {
            self.note(layout.size(), n_bytes);
        }
        moved
    }
}
