//! The engine's own threads: they wait for the next few microseconds' work by spinning, because a
//! token is some hundred short parallel steps, and sleep when there is none.

use core::cell::UnsafeCell;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::Pool;

/// Turns of the spin loop between looks at the clock.
const SPINS: usize = 64;
/// How long a waiting thread keeps its core; after that it offers it to others.
const SPIN_TIME: Duration = Duration::from_micros(50);
/// How long a waiting worker stays runnable; after that it sleeps until it is woken.
const YIELD_TIME: Duration = Duration::from_millis(2);

/// Threads that run numbered tasks together with the caller.
#[derive(Debug)]
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

type Task<'a> = dyn Fn(usize) + Sync + 'a;

#[derive(Debug)]
struct Shared {
    /// The job being run and the next task of it to hand out; see [`Ticket`].
    ticket: AtomicU64,
    /// The job's function. Written before its ticket is published, read only by holders of one of
    /// its tasks, and not written again before all tasks are done.
    task: UnsafeCell<Option<&'static Task<'static>>>,
    /// How many of the job's tasks start in order, by their ticket.
    n_in_order: AtomicUsize,
    /// Of the other tasks, which are still each thread's, the caller's first; see [`Part`].
    parts: Vec<AtomicU64>,
    n_done: AtomicUsize,
    panicked: AtomicBool,
    /// Whether worker `i` sleeps; the caller's thread is not counted.
    sleeps: Vec<AtomicBool>,
    stop: AtomicBool,
    /// One job at a time.
    running: Mutex<()>,
}

// SAFETY: `task` is the only field that is not Sync by itself; the comment on it says how access
// is ordered, and the function it points to is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Shared {}

/// A number of the job (12 bits), how many threads it is for (12), its number of tasks (20) and the
/// next task (20) in one atomic, so that a thread that adds 1 learns all of the same job: one that
/// comes late gets a task number past the end and touches nothing.
#[derive(Clone, Copy, PartialEq)]
struct Ticket(u64);

impl Ticket {
    const MAX_JOB: u64 = (1 << 12) - 1;
    const MAX_THREADS: usize = (1 << 12) - 1;
    const MAX_TASKS: usize = (1 << 20) - 1;

    fn new(job: u64, n_threads: usize, n_tasks: usize) -> Ticket {
        Ticket(job << 52 | (n_threads as u64) << 40 | (n_tasks as u64) << 20)
    }
    fn job(self) -> u64 {
        self.0 >> 52
    }
    fn n_threads(self) -> usize {
        (self.0 >> 40) as usize & Self::MAX_THREADS
    }
    fn n_tasks(self) -> usize {
        (self.0 >> 20) as usize & Self::MAX_TASKS
    }
    fn next(self) -> usize {
        self.0 as usize & Self::MAX_TASKS
    }
}

/// Tasks from the first (32 bits) to before the last (32), in one atomic.
#[derive(Clone, Copy)]
struct Part(u64);

impl Part {
    fn new(tasks: Range<usize>) -> Part {
        Part((tasks.start as u64) << 32 | tasks.end as u64)
    }
    fn tasks(self) -> Range<usize> {
        (self.0 >> 32) as usize..self.0 as u32 as usize
    }
}

impl Shared {
    /// The task of thread `thread`'s ticket: past those in order the next of its own part, or the last
    /// of another thread's.
    fn take(&self, ticket: Ticket, thread: usize) -> usize {
        if ticket.next() < self.n_in_order.load(Ordering::Relaxed) {
            return ticket.next();
        }
        // There are as many tasks as tickets, and parts only shrink: whoever has a ticket finds a task.
        let n = ticket.n_threads();
        let mut owner = thread;
        loop {
            let mut task = None;
            let took = |part| {
                let mut tasks = Part(part).tasks();
                task = if owner == thread {
                    tasks.next()
                } else {
                    tasks.next_back()
                };
                task.map(|_| Part::new(tasks).0)
            };
            let part = self.parts.get(owner);
            let took = part.map(|p| p.fetch_update(Ordering::Relaxed, Ordering::Relaxed, took));
            if let (Some(Ok(_)), Some(task)) = (took, task) {
                return task;
            }
            owner = if owner + 1 < n { owner + 1 } else { 0 };
        }
    }

    /// Runs tasks until none is left to hand out to thread `thread`, which is 0 for the caller's;
    /// returns the number of the job that ran dry.
    fn work(&self, thread: usize) -> u64 {
        loop {
            let ticket = Ticket(self.ticket.fetch_add(1, Ordering::AcqRel));
            if ticket.next() >= ticket.n_tasks() {
                return ticket.job();
            }
            // SAFETY: this thread holds a task of the current job that is not counted as done, so
            // `run_on` has not returned and the function is alive and not being replaced.
            let task = unsafe { *self.task.get() };
            let i = self.take(ticket, thread);
            let result = catch_unwind(AssertUnwindSafe(|| {
                if let Some(task) = task {
                    task(i);
                }
            }));
            if result.is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.n_done.fetch_add(1, Ordering::Release);
        }
    }

    /// The life of worker `i`. (One that is left out of 4096 jobs may take the next for its last and
    /// miss it: the others do its tasks.)
    fn serve(&self, i: usize) {
        let mut done = 0;
        while !self.stop.load(Ordering::Acquire) {
            // A job that is not for this worker is none to it. One may come between this look and
            // the next ticket; that costs a core for a moment, and nothing else.
            let is_idle = || {
                let ticket = Ticket(self.ticket.load(Ordering::SeqCst));
                (ticket.job() == done || ticket.n_threads() <= i + 1)
                    && !self.stop.load(Ordering::SeqCst)
            };
            if !spin_while(is_idle, Some(YIELD_TIME)) {
                // Announce, look again, sleep: `run_on` publishes, then looks for sleepers.
                self.sleeps[i].store(true, Ordering::SeqCst);
                while is_idle() {
                    thread::park();
                }
                self.sleeps[i].store(false, Ordering::SeqCst);
            }
            done = self.work(i + 1);
        }
    }
}

/// Waits while `condition` holds, at most for `limit`; whether it ended before that.
fn spin_while(condition: impl Fn() -> bool, limit: Option<Duration>) -> bool {
    let mut start = None;
    loop {
        for _ in 0..SPINS {
            if !condition() {
                return true;
            }
            core::hint::spin_loop();
        }
        let waited = start.get_or_insert_with(Instant::now).elapsed();
        if limit.is_some_and(|limit| waited > limit) {
            return false;
        }
        if waited > SPIN_TIME {
            thread::yield_now();
        }
    }
}

impl ThreadPool {
    /// A pool of `n_threads` threads, the caller's included, but never more than the machine has
    /// cores: threads that wait for a core that another one spins on would be slower than none.
    /// Where the system refuses a thread, the pool is smaller.
    pub fn new(n_threads: usize) -> ThreadPool {
        let n_cores = thread::available_parallelism().map_or(1, usize::from);
        let n_workers = n_threads.min(n_cores).clamp(1, Ticket::MAX_THREADS) - 1;
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            task: UnsafeCell::new(None),
            n_in_order: AtomicUsize::new(0),
            parts: (0..=n_workers).map(|_| AtomicU64::new(0)).collect(),
            n_done: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            sleeps: (0..n_workers).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            running: Mutex::new(()),
        });
        let workers = (0..n_workers)
            .map_while(|i| {
                let shared = Arc::clone(&shared);
                let name = format!("tandem-{}", i + 1);
                thread::Builder::new()
                    .name(name)
                    .spawn(move || shared.serve(i))
                    .ok()
            })
            .collect();
        ThreadPool { shared, workers }
    }

    fn wake(&self, n_workers: usize) {
        let workers = self.workers.iter().zip(&self.shared.sleeps);
        for (worker, sleeps) in workers.take(n_workers) {
            if sleeps.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }
}

impl Pool for ThreadPool {
    fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// # Panics
    ///
    /// If a task panics (after all others have run), or there are 2^20 tasks. A task must not run
    /// another job on the same pool: it would wait for itself.
    ///
    /// Tasks start in ascending order, as a ticket is one higher than the last one handed out and
    /// whoever draws it runs its task at once.
    fn run_on(&self, n_threads: usize, n_tasks: usize, task: &Task<'_>) {
        self.run_apart(n_threads, n_tasks, n_tasks, task);
    }

    /// # Panics
    ///
    /// As [`ThreadPool::run_on`](Pool::run_on).
    fn run_apart(&self, n_threads: usize, n_first: usize, n_tasks: usize, task: &Task<'_>) {
        assert!(n_first <= n_tasks);
        assert!(n_tasks < Ticket::MAX_TASKS - self.n_threads());
        let n_threads = n_threads.min(self.n_threads());
        if n_threads <= 1 || n_tasks <= 1 {
            return (0..n_tasks).for_each(task);
        }
        let shared = &*self.shared;
        let _running = shared
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // SAFETY: only the lifetime changes. `run_on` returns after every task is done, and `work`
        // reads the function only for a task that is not.
        let task = unsafe { core::mem::transmute::<&Task<'_>, &'static Task<'static>>(task) };
        // SAFETY: the last job is done and its ticket hands out no more tasks, so nobody reads.
        unsafe { *shared.task.get() = Some(task) };
        shared.n_done.store(0, Ordering::Relaxed);
        shared.n_in_order.store(n_first, Ordering::Relaxed);
        let start = |thread| n_first + thread * (n_tasks - n_first) / n_threads;
        for (thread, part) in shared.parts[..n_threads].iter().enumerate() {
            let tasks = start(thread)..start(thread + 1);
            part.store(Part::new(tasks).0, Ordering::Relaxed);
        }
        let job = Ticket(shared.ticket.load(Ordering::Relaxed))
            .job()
            .wrapping_add(1)
            & Ticket::MAX_JOB;
        shared
            .ticket
            .store(Ticket::new(job, n_threads, n_tasks).0, Ordering::SeqCst);
        self.wake(n_threads - 1);
        shared.work(0);
        spin_while(|| shared.n_done.load(Ordering::Acquire) < n_tasks, None);
        if shared.panicked.swap(false, Ordering::Relaxed) {
            panic!("a task of the thread pool panicked");
        }
    }

    /// Offers the core to others after a while: the thread that is waited for may need it.
    fn wait_while(&self, condition: &dyn Fn() -> bool) {
        spin_while(condition, None);
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches its tasks' panics; there is nothing to report here.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limited;

    #[test]
    fn every_task_runs_once_per_job() {
        let pool = ThreadPool::new(8);
        for n_tasks in [0, 1, 2, 7, 100] {
            for _ in 0..500 {
                let counts: Vec<_> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n_tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn tasks_apart_run_once_after_the_first_and_beside_each_other() {
        let pool = ThreadPool::new(8);
        let n_threads = pool.n_threads();
        for (n_first, n_tasks) in [(0, 1), (0, 7), (3, 3), (5, 100), (1, 2 * n_threads + 1)] {
            for _ in 0..200 {
                let order = Mutex::new(Vec::new());
                let n_started = AtomicUsize::new(0);
                pool.run_apart(n_threads, n_first, n_tasks, &|i| {
                    // Those in order are handed out before any other.
                    let before = n_started.fetch_add(1, Ordering::SeqCst);
                    assert!(i < n_first || before + n_threads > n_first);
                    order.lock().unwrap().push((i, thread::current().id()));
                });
                let order = order.into_inner().unwrap();
                let mut tasks: Vec<_> = order.iter().map(|(i, _)| *i).collect();
                tasks.sort();
                assert!(tasks.into_iter().eq(0..n_tasks));
            }
        }
        if n_threads == 1 {
            return;
        }
        // Two threads that take turns, while all others sleep: each has one half, from its start on.
        thread::sleep(YIELD_TIME * 3);
        let turn = AtomicUsize::new(0);
        let of = [Mutex::new(Vec::new()), Mutex::new(Vec::new())];
        let caller = thread::current().id();
        pool.run_apart(2, 0, 8, &|i| {
            let me = usize::from(thread::current().id() != caller);
            of[me].lock().unwrap().push(i);
            let n = turn.fetch_add(1, Ordering::SeqCst);
            // Until the other one has done as many.
            while turn.load(Ordering::SeqCst) < (n / 2 + 1) * 2 {
                thread::yield_now();
            }
        });
        let [mine, others] = of.map(|tasks| tasks.into_inner().unwrap());
        assert_eq!((mine, others), (vec![0, 1, 2, 3], vec![4, 5, 6, 7]));
    }

    #[test]
    fn threads_beyond_the_limit_run_nothing_and_sleep() {
        let pool = ThreadPool::new(8);
        // Tasks that wait for each other need a thread each.
        let meet = |n_threads: usize| {
            let all_here = std::sync::Barrier::new(n_threads);
            Limited::new(&pool, n_threads).run(n_threads, &|_| {
                all_here.wait();
            });
        };
        let n_used = |n_threads: usize| {
            let ids = Mutex::new(std::collections::BTreeSet::new());
            Limited::new(&pool, n_threads).run(100, &|_| {
                ids.lock()
                    .unwrap()
                    .insert(format!("{:?}", thread::current().id()));
                thread::sleep(Duration::from_micros(50));
            });
            ids.into_inner().unwrap().len()
        };
        for n_threads in [1, 2, pool.n_threads()] {
            let n_threads = n_threads.min(pool.n_threads());
            meet(pool.n_threads());
            meet(n_threads);
            thread::sleep(YIELD_TIME * 3);
            assert!(n_used(n_threads) <= n_threads);
            let mut left_out = pool.shared.sleeps.iter().skip(n_threads - 1);
            assert!(left_out.all(|sleeps| sleeps.load(Ordering::SeqCst)));
        }
    }

    #[test]
    fn wakes_after_sleeping() {
        let pool = ThreadPool::new(2);
        for _ in 0..5 {
            thread::sleep(YIELD_TIME * 3);
            let sum = AtomicUsize::new(0);
            pool.run(10, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = ThreadPool::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(10, &|i| assert_ne!(i, 3));
        }));
        assert!(result.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(4, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 6);
    }

    #[test]
    fn late_tasks_wait_for_early_ones_and_see_their_panics() {
        let pool = ThreadPool::new(2);
        for round in 0..200 {
            let mut data = [0; 8];
            let handover = crate::Handover::new(&mut data, 1, 1, 1);
            let n_last = AtomicUsize::new(0);
            pool.run(24, &|i| match i {
                0..8 => {
                    let is_last = handover.fill(i, 0, |tile| tile.fill(round + i));
                    n_last.fetch_add(usize::from(is_last), Ordering::Relaxed);
                }
                _ => assert_eq!(handover.wait(&pool)[i % 8], round + i % 8),
            });
            assert_eq!(n_last.into_inner(), 1);
        }
        let mut data = [0; 8];
        let handover = crate::Handover::new(&mut data, 1, 1, 1);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(24, &|i| match i {
                0..8 => drop(handover.fill(i, 0, |_| assert_ne!(i, 3))),
                _ => drop(handover.wait(&pool).len()),
            });
        }));
        assert!(result.is_err());
    }
}
