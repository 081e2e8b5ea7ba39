//! Going back, going on from a copy, and sequences as bytes.

use super::*;

/// A convolution remembers enough columns to go back by 32 tokens, and says so where it is more.
#[test]
fn convolutions_go_back_by_some_tokens() {
    let Some(path) = shared("peer/logits/lfm2-f16.gguf") else {
        return;
    };
    let model = Model::open(path).unwrap();
    let ids = tokens(90, 1, model.config().n_vocab);
    let new = || {
        let mut options = options(&model);
        options.n_batch = 16;
        Session::new(&model, ThreadPool::new(2), options).unwrap()
    };
    let mut session = new();
    for back in [1, 2, 3, 15, 31, 32] {
        session.eval(&ids[session.tokens().len()..]).unwrap();
        let kept = ids.len() - back;
        assert_eq!(session.rewind(kept), kept);
        let mut fresh = new();
        fresh.eval(&ids[..kept]).unwrap();
        let other = [7, 8, 9, 10];
        let again = session.eval(&other).unwrap().to_vec();
        assert_eq!(fresh.eval(&other).unwrap(), again, "{back}");
        session.rewind(0);
    }
    session.eval(&ids).unwrap();
    assert_eq!(session.rewind(ids.len() - 34), 0);
    assert!(session.tokens().is_empty());
    let mut fresh = new();
    assert_eq!(session.eval(&ids).unwrap(), fresh.eval(&ids).unwrap());
}

/// Delta nets and Mamba-2 cannot forget single tokens: they go back to before the last pass of several, and say so.
#[test]
fn recurrent_layers_go_back_to_before_the_last_pass() {
    // Without the first, which has attention alone.
    for (_, model) in &models(&["qwen35-f16", "mamba2-f16", "falcon-h1-f16"])[1..] {
        goes_back_to_before_the_last_pass(model);
    }
}

fn goes_back_to_before_the_last_pass(model: &Model) {
    let ids = tokens(90, 1, model.config().n_vocab);
    let new = || {
        let mut options = options(model);
        options.n_batch = 16;
        Session::new(model, ThreadPool::new(2), options).unwrap()
    };
    let mut session = new();
    session.eval(&ids[..40]).unwrap();
    session.eval(&ids[40..50]).unwrap();
    for token in &ids[50..53] {
        session.step(*token).unwrap();
    }
    assert_eq!(session.rewind(53), 53);
    // The tokens that are missing are told.
    assert_eq!(session.keep_prefix(&ids[..51]), &ids[40..51]);
    assert_eq!(session.tokens(), &ids[..40]);
    let again = session.eval(&ids[40..60]).unwrap().to_vec();
    let mut fresh = new();
    assert_eq!(fresh.eval(&ids[..60]).unwrap(), again);
    // Farther than that it remembers nothing.
    assert_eq!(session.rewind(30), 0);
    assert_eq!(session.eval(&ids[..60]).unwrap(), again);
}

/// A pass that is broken off behind some layers leaves a sequence as it was, whatever its layers remember.
#[test]
fn an_interrupted_pass_leaves_no_trace() {
    let peers = [
        "llama-q4_k",
        "gemma3-f16",
        "gemma4-f16",
        "gemma3n-f16",
        "lfm2-f16",
        "qwen35-f16",
        "granitehybridmoe-f16",
        "falcon-h1-f16",
        "nemotron_h-f16",
    ];
    for (name, model) in models(&peers) {
        let mut options = options(&model);
        options.n_batch = 40;
        let n_vocab = model.config().n_vocab;
        let ids = tokens(80, 1, n_vocab);
        let interrupt = Arc::new(AtomicBool::new(false));
        let mut n_broken = 0;
        // Breaks the second pass off from inside, by counting its steps.
        for n_steps in [3, 10, 20, 30] {
            let left = Arc::new(AtomicUsize::new(usize::MAX));
            let pool = Interrupting {
                interrupt: Arc::clone(&interrupt),
                n_steps: Arc::clone(&left),
            };
            let mut worker = Worker::new(&model, pool, &options).unwrap();
            worker.set_interrupt(Some(Arc::clone(&interrupt)));
            let mut sequence = Sequence::new(&model, &options).unwrap();
            let mut feed = |sequence: &mut Sequence, tokens: &[u32]| {
                let mut logits = vec![0.0; n_vocab];
                let span = Span {
                    sequence,
                    tokens,
                    logits: &mut logits,
                };
                worker.forward(&mut [span]).map(|()| logits)
            };
            feed(&mut sequence, &ids[..40]).unwrap();
            left.store(n_steps, Ordering::Relaxed);
            let broken = feed(&mut sequence, &ids[40..]);
            left.store(usize::MAX, Ordering::Relaxed);
            interrupt.store(false, Ordering::Relaxed);
            let Err(error) = broken else {
                continue; // It had no more steps.
            };
            assert_eq!(error, SessionError::Interrupted, "{name}");
            n_broken += 1;
            assert_eq!(sequence.tokens(), &ids[..40]);
            // Fewer tokens this time, so that what is there before them counts.
            let logits = feed(&mut sequence, &ids[40..42]).unwrap();
            let mut fresh = Sequence::new(&model, &options).unwrap();
            feed(&mut fresh, &ids[..40]).unwrap();
            assert!(feed(&mut fresh, &ids[40..42]).unwrap() == logits, "{name}");
        }
        assert!(n_broken >= 2, "{name}: {n_broken}");
    }
}

#[test]
fn a_fork_goes_on_like_what_it_was_made_of() {
    for (name, model) in models(&[
        "gemma3-f16",
        "gemma4-f16",
        "gemma3n-f16",
        "lfm2-f16",
        "qwen35-f16",
        "falcon-h1-f16",
        "mamba2-f16",
    ]) {
        let mut options = options(&model);
        options.n_batch = 16;
        let n_vocab = model.config().n_vocab;
        let mut worker = Worker::new(&model, ThreadPool::new(2), &options).unwrap();
        let mut feed = |sequence: &mut Sequence, ids: &[u32]| {
            let mut logits = vec![0.0; n_vocab];
            for tokens in ids.chunks(16) {
                let logits = &mut logits[..];
                worker
                    .forward(&mut [Span {
                        sequence: &mut *sequence,
                        tokens,
                        logits,
                    }])
                    .unwrap();
            }
            logits
        };
        let mut first = Sequence::new(&model, &options).unwrap();
        feed(&mut first, &tokens(50, 1, n_vocab));
        let mut second = first.fork().unwrap();
        assert_eq!(first.tokens(), second.tokens());
        // Snapshots are taken over by sequences that had something else before.
        let snapshot = first.snapshot().unwrap();
        assert_eq!(snapshot.tokens(), first.tokens());
        let mut third = Sequence::new(&model, &options).unwrap();
        feed(&mut third, &tokens(90, 2, n_vocab));
        third.restore_snapshot(&snapshot).unwrap();
        assert_eq!(snapshot.save().unwrap(), third.save().unwrap(), "{name}");
        let mut fourth = Sequence::new(&model, &options).unwrap();
        fourth.copy_from(&first).unwrap();
        let one = feed(&mut first, &[7, 8, 9]);
        assert_eq!(feed(&mut third, &[7, 8, 9]), one, "{name}");
        assert_eq!(feed(&mut fourth, &[7, 8, 9]), one, "{name}");
        let mut shorter = options;
        shorter.n_ctx -= 1;
        let mut shorter = Sequence::new(&model, &shorter).unwrap();
        assert!(shorter.restore_snapshot(&snapshot).is_err());
        // What the one does is nothing to the other.
        let other = feed(&mut second, &[10, 11]);
        assert_ne!(one, other, "{name}");
        assert_eq!(second.rewind(50), 50);
        assert_eq!(feed(&mut second, &[7, 8, 9]), one, "{name}");
    }
}

#[test]
fn a_saved_sequence_goes_on_as_if_nothing_had_happened() {
    for (name, model) in models(&[
        "gemma3-f16",
        "llama-q4_k",
        "gemma4-f16",
        "gemma3n-f16",
        "lfm2moe-f16",
        "qwen35-f16",
        "granitehybridmoe-f16",
        "falcon-h1-f16",
        "nemotron_h-f16",
    ]) {
        let composition = compositions(&model, AdapterType::Q8).swap_remove(1);
        let mut options = options(&model);
        options.n_batch = 16;
        let new = || {
            let mut session = Session::new(&model, ThreadPool::new(2), options).unwrap();
            session.set_composition(composition.as_ref()).unwrap();
            session
        };
        let ids = tokens(60, 1, model.config().n_vocab);
        let mut session = new();
        session.eval(&ids).unwrap();
        let saved = session.sequence_mut().save().unwrap();
        let mut restored = new();
        restored.eval(&ids[..5]).unwrap();
        restored.sequence_mut().restore(&saved).unwrap();
        assert_eq!(restored.tokens(), ids, "{name}");
        assert_eq!(restored.sequence_mut().save().unwrap(), saved, "{name}");
        for token in [3, 4, 5] {
            let wanted = session.step(token).unwrap();
            assert_eq!(restored.step(token).unwrap(), wanted, "{name}");
        }
        // An empty one, too.
        let empty = new().sequence_mut().save().unwrap();
        restored.sequence_mut().restore(&empty).unwrap();
        assert!(restored.tokens().is_empty());
    }
}

#[test]
fn a_saved_sequence_is_refused_where_it_does_not_fit() {
    let model = pocket();
    let options = options(&model);
    let with = |composition: &Option<Composition>, options: SessionOptions| {
        let mut session = Session::new(&model, ThreadPool::new(1), options).unwrap();
        session.set_composition(composition.as_ref()).unwrap();
        session
    };
    let compositions = compositions(&model, AdapterType::Q8);
    let mut session = with(&compositions[1], options);
    session
        .eval(&tokens(20, 1, model.config().n_vocab))
        .unwrap();
    let saved = session.sequence_mut().save().unwrap();
    let refuse = |session: &mut Session, saved: &[u8]| {
        session.eval(&[1, 2]).unwrap();
        let error = session.sequence_mut().restore(saved).unwrap_err();
        assert!(matches!(error, SessionError::Saved { .. }), "{error}");
        // It is empty then, and of use.
        assert!(session.tokens().is_empty());
        session.eval(&[1, 2]).unwrap();
        error.to_string()
    };
    for other in [&compositions[0], &compositions[2]] {
        assert!(refuse(&mut with(other, options), &saved).contains("composition"));
    }
    let mut other = options;
    other.kv_type = DType::F32;
    assert!(refuse(&mut with(&compositions[1], other), &saved).contains("cache"));
    other = options;
    other.n_ctx = 80;
    assert!(refuse(&mut with(&compositions[1], other), &saved).contains("cache"));
    let step = (saved.len() / 64).max(1);
    for place in (0..saved.len()).step_by(step).chain(0..80) {
        let mut changed = saved.clone();
        changed[place] ^= 1 << (place % 8);
        refuse(&mut session, &changed);
        refuse(&mut session, &saved[..place]);
    }
    refuse(&mut session, &[&saved[..], &[0]].concat());
    refuse(&mut session, b"");

    // With a hash that is right: the numbers of tokens, and of positions that a layer has seen.
    let forge = |at: usize, n: u64| {
        let mut forged = saved.clone();
        forged[at..at + 8].copy_from_slice(&n.to_le_bytes());
        let hash = *blake3::hash(&forged[40..]).as_bytes();
        forged[8..40].copy_from_slice(&hash);
        forged
    };
    let (n_tokens, n_seen) = (72, 80 + 20 * 4);
    for wrong in [0, 19, 21, 97, u64::from(u32::MAX), 1 << 62, u64::MAX] {
        refuse(&mut session, &forge(n_tokens, wrong));
        // As many groups of keys as there are is no damage, but what was rewound.
        if wrong != 21 {
            refuse(&mut session, &forge(n_seen, wrong));
        }
    }
    // An id outside the vocabulary.
    refuse(&mut session, &forge(80, u64::MAX));
    session.sequence_mut().restore(&saved).unwrap();
    assert_eq!(session.tokens().len(), 20);
}
