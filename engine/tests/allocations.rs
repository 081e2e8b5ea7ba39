//! A step of a session allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use tandem_engine::{
    AdapterType, Composition, Model, PackedAdapter, Sequence, Session, SessionOptions, SharedPool,
    Span, ThreadPool, Worker,
};

#[expect(dead_code, reason = "of the helpers this needs one")]
#[path = "common/adapters.rs"]
mod made_up;

struct Counting;

static N_ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        N_ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's conditions are the system's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_step_allocates_nothing() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/pocket-q8_0.gguf");
    let model = Model::open(path).unwrap();
    let pool = SharedPool::from(ThreadPool::new(2));
    let options = SessionOptions::for_model(model.config());
    let mut session = Session::new(&model, &pool, options).unwrap();
    session.step(1).unwrap();
    // A thread that starts late allocates when it does: all have run something after this.
    // A machine with one core has one.
    let all = Barrier::new(pool.get().n_threads());
    pool.get().run(pool.get().n_threads(), &|_| {
        all.wait();
    });
    // With a composition, too: of adapters of different ranks.
    let base = model.linears();
    let packed = [4, 9].map(|rank| {
        let adapter = made_up::adapter(base, rank, 1);
        PackedAdapter::pack(base, &adapter, AdapterType::Q8).unwrap()
    });
    let composition = Composition::new(base, &[(&packed[0], 1.0), (&packed[1], 0.5)]).unwrap();
    let mut composed = Session::new(&model, &pool, options).unwrap();
    composed.set_composition(Some(&composition)).unwrap();
    let before = N_ALLOCATIONS.load(Ordering::Relaxed);
    for session in [&mut session, &mut composed] {
        for token in 2..40 {
            session.step(token).unwrap();
        }
        session.eval(&[5, 6, 7, 8, 9, 10, 11, 12, 13]).unwrap();
    }
    assert_eq!(N_ALLOCATIONS.load(Ordering::Relaxed), before);

    // Nor does a pass of several sequences, once there has been one.
    let mut worker = Worker::new(&model, &pool, &options).unwrap();
    let mut sequences = [(); 3].map(|()| Sequence::new(&model, &options).unwrap());
    sequences[1].set_composition(Some(&composition)).unwrap();
    let mut logits = vec![0.0; 3 * model.config().n_vocab];
    let mut pass = |tokens: &[u32]| {
        let [a, b, c] = &mut sequences;
        let mut rows = logits.chunks_exact_mut(model.config().n_vocab);
        let mut span = |sequence| Span {
            sequence,
            tokens,
            logits: rows.next().unwrap(),
        };
        let mut spans = [span(a), span(b), span(c)];
        worker.forward(&mut spans).unwrap();
    };
    pass(&[1, 2, 3, 4, 5]);
    let before = N_ALLOCATIONS.load(Ordering::Relaxed);
    for token in 2..20 {
        pass(&[token]);
    }
    assert_eq!(N_ALLOCATIONS.load(Ordering::Relaxed), before);
}
