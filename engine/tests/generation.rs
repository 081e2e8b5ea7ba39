//! Sessions as applications use them: prompts in, text out.

#[expect(dead_code, reason = "of the shared helpers this needs one")]
mod common;

use std::path::Path;

use common::pocket;
use tandem_engine::tokenizer::ControlTokens;
use tandem_engine::{
    Error, MAX_DRAFT, Message, Model, Prompt, Sampling, SessionError, StopReason, ThreadPool,
    argmax,
};
use tandem_formats::{Gguf, Value, Writer};

const TEXT: &str = "This package contains the manual.";

fn greedy(n: usize) -> Sampling {
    Sampling::greedy().max_tokens(n)
}

fn bundle(model: &Model) -> tandem_engine::Bundle {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/pocket.tandem");
    model.bundle(path).unwrap()
}

#[test]
fn an_answer_is_the_text_of_the_likeliest_tokens() {
    let model = pocket();
    let composition = bundle(&model).composition("summarize-fr").unwrap();
    let new = || model.session().threads(2).composition(&composition);
    let mut session = new().build().unwrap();
    let prompt = session.prompt_ids(TEXT).unwrap();
    let mut generation = session.generate(TEXT, &greedy(24)).unwrap();
    assert_eq!(generation.n_prompt(), prompt.len());
    let pieces: Result<Vec<String>, _> = generation.by_ref().collect();
    let pieces = pieces.unwrap();
    assert!(pieces.iter().all(|piece| !piece.is_empty()));
    assert!(generation.next().is_none());
    let (ids, stop) = (generation.tokens().to_vec(), generation.stop_reason());
    assert!(matches!(
        stop,
        Some(StopReason::EndOfText | StopReason::MaxTokens)
    ));

    // By hand, with the plainest means.
    let mut session = new().n_batch(4).build().unwrap();
    let vocab = model.tokenizer().unwrap().vocab();
    let mut picked = vec![argmax(session.eval(&prompt).unwrap())];
    while picked.len() < ids.len() {
        picked.push(argmax(session.step(picked[picked.len() - 1]).unwrap()));
    }
    assert_eq!(ids, picked);
    let mut decoder = vocab.stream_continuation(ControlTokens::Hide);
    let mut text = String::new();
    for id in &ids {
        text.push_str(decoder.push(*id).unwrap());
    }
    text.push_str(decoder.finish());
    assert_eq!(pieces.concat(), text);
}

#[test]
fn a_generation_ends_as_asked_for() {
    let model = pocket();
    let mut session = model.session().threads(1).n_ctx(48).build().unwrap();
    let prompt: Vec<u32> = (0..40).map(|i| 300 + i).collect();
    let n = session.generate(&prompt[..], &greedy(1000)).unwrap();
    // Every place of the context is used, and one token more follows from the last.
    let (n_tokens, reason) = drain(n);
    match reason {
        StopReason::ContextFull => assert_eq!(n_tokens, 9),
        other => assert_eq!(other, StopReason::EndOfText),
    }
    let (n_tokens, reason) = drain(session.generate(&prompt[..], &greedy(3)).unwrap());
    assert_eq!((n_tokens, reason), (3, StopReason::MaxTokens));
    let (n_tokens, reason) = drain(session.generate(&prompt[..], &greedy(0)).unwrap());
    assert_eq!((n_tokens, reason), (0, StopReason::MaxTokens));
    assert_eq!(session.tokens(), prompt);

    let mut generation = session.generate(&prompt[..], &greedy(8)).unwrap();
    generation.next_token().unwrap();
    generation.cancel();
    assert_eq!(generation.next_token().unwrap(), None);
    assert!(generation.next().is_none());
    assert_eq!(drain(generation), (1, StopReason::Cancelled));
}

fn drain(mut generation: tandem_engine::Generation<'_>) -> (usize, StopReason) {
    while generation.next_token().unwrap().is_some() {}
    (generation.tokens().len(), generation.stop_reason().unwrap())
}

/// Guesses change nothing: the same tokens, reasons to stop and states of the session, whatever is picked how.
#[test]
fn guessed_tokens_change_no_text() {
    let model = pocket();
    let composition = bundle(&model).composition("summarize-fr").unwrap();
    let mut n_accepted = 0;
    for composition in [None, Some(&composition)] {
        for (temperature, repeat_penalty) in [(0.0, 1.0), (0.0, 1.1), (0.3, 1.0), (1.0, 1.2)] {
            // What repeats itself is guessed; what does not, too, and in vain.
            for prompt in [
                (0..60).map(|i| 300 + i % 7).collect::<Vec<u32>>(),
                (0..60).map(|i| 300 + (i * i) % 11).collect(),
            ] {
                let answer = |max_draft: usize, n_ctx: usize, n: usize| {
                    let mut session = model.session().threads(2).n_ctx(n_ctx).build().unwrap();
                    session.set_composition(composition).unwrap();
                    let mut sampling = greedy(n).seed(5).max_draft(max_draft);
                    sampling.temperature = temperature;
                    sampling.repeat_penalty = repeat_penalty;
                    let mut generation = session.generate(&prompt[..], &sampling).unwrap();
                    let text: Result<String, _> = generation.by_ref().collect();
                    let counts = generation.draft_counts();
                    let reason = generation.stop_reason();
                    let ids = generation.tokens().to_vec();
                    drop(generation);
                    let evaluated = session.tokens().to_vec();
                    let next = session.step(7).map(|logits| logits.to_vec()).ok();
                    ((text.unwrap(), ids, reason, evaluated, next), counts)
                };
                for (n_ctx, n) in [(200, 100), (200, 17), (90, 1000)] {
                    let (plain, counts) = answer(0, n_ctx, n);
                    assert_eq!((counts.drafted, counts.accepted), (0, 0));
                    for max_draft in [1, 4, MAX_DRAFT] {
                        let (drafted, counts) = answer(max_draft, n_ctx, n);
                        assert!(drafted == plain, "{temperature} {max_draft} {n_ctx}");
                        assert!(counts.accepted <= counts.drafted);
                        n_accepted += counts.accepted;
                    }
                }
            }
        }
    }
    assert!(n_accepted > 100, "{n_accepted}");
}

/// A peer's model with a vocabulary, which it lacks.
fn with_vocabulary(name: &str) -> Option<Model> {
    let bytes = std::fs::read(common::shared(&format!("peer/logits/{name}-f16.gguf"))?).unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let mut writer = Writer::new();
    for (key, value) in gguf
        .metadata()
        .filter(|(key, _)| !key.starts_with("tokenizer"))
    {
        writer.add(key, *value).unwrap();
    }
    let n = gguf.tensor("token_embd.weight").unwrap().n_rows();
    let texts: Vec<String> = (0..n).map(|i| format!("t{i} ")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    writer
        .add("tokenizer.ggml.model", Value::Str("llama"))
        .unwrap();
    writer.add_strings("tokenizer.ggml.tokens", &texts).unwrap();
    for t in gguf.tensors() {
        writer.add_tensor(t.name, t.shape(), t.dtype).unwrap();
    }
    let data: Vec<_> = gguf.tensors().iter().map(|t| t.data).collect();
    Some(Model::from_bytes(writer.to_vec(&data).unwrap()).unwrap())
}

/// The same for all that layers remember: windows, shared caches, convolutions, delta nets and Mamba-2, which
/// cannot forget single tokens.
#[test]
fn guessed_tokens_change_no_text_whatever_layers_remember() {
    for name in [
        "gemma3",
        "gemma4",
        "lfm2",
        "qwen35",
        "qwen3moe",
        "granitehybrid",
        "falcon-h1",
    ] {
        let Some(model) = with_vocabulary(name) else {
            continue;
        };
        let prompt: Vec<u32> = (0..60).map(|i| 300 + i % 7).collect();
        let mut n_failed = 0;
        for temperature in [0.0, 0.5, 1.5] {
            let answer = |max_draft: usize, n_ctx: usize| {
                let mut session = model.session().threads(2).n_ctx(n_ctx).build().unwrap();
                let mut sampling = greedy(100).seed(5).max_draft(max_draft);
                sampling.temperature = temperature;
                let mut generation = session.generate(&prompt[..], &sampling).unwrap();
                let text: Result<String, _> = generation.by_ref().collect();
                let counts = generation.draft_counts();
                let ids = generation.tokens().to_vec();
                let reason = generation.stop_reason();
                drop(generation);
                // What is left of it goes on alike.
                let mut known = [&prompt[..], &ids[..]].concat();
                known.truncate(n_ctx);
                let rest = session.keep_prefix(&known);
                let next = session.eval(rest).unwrap().to_vec();
                ((text.unwrap(), ids, reason, next), counts)
            };
            // With room for all, and with a context that gets full.
            for n_ctx in [200, 90] {
                let (plain, _) = answer(0, n_ctx);
                for max_draft in [1, 5, MAX_DRAFT] {
                    let (drafted, counts) = answer(max_draft, n_ctx);
                    assert!(drafted == plain, "{name} {temperature} {max_draft}");
                    n_failed += counts.drafted - counts.accepted;
                }
            }
        }
        println!("{name}: {n_failed} guesses failed");
        assert!(n_failed > 0, "{name}");
    }
}

/// Whoever breaks off in the middle of a guess finds the session as if there had been none.
#[test]
fn a_text_broken_off_leaves_no_guesses() {
    let model = pocket();
    let prompt: Vec<u32> = (0..60).map(|i| 300 + i % 5).collect();
    let mut session = model.session().threads(1).build().unwrap();
    for n in 1..40 {
        let mut generation = session.generate(&prompt[..], &greedy(100)).unwrap();
        for _ in 0..n {
            generation.next_token().unwrap();
        }
        let ids = generation.tokens().to_vec();
        drop(generation);
        assert_eq!(
            session.tokens(),
            [&prompt[..], &ids[..ids.len() - 1]].concat()
        );
    }
}

#[test]
fn a_prompt_is_evaluated_piece_by_piece_and_only_what_is_new_of_it() {
    let model = pocket();
    let mut session = model.session().threads(1).n_batch(10).build().unwrap();
    let mut prompt: Vec<u32> = (0..35).map(|i| 300 + i).collect();
    let mut generation = session.generate(&prompt[..], &greedy(4)).unwrap();
    assert_eq!(generation.n_left(), 35);
    let left: Vec<usize> = (0..5).map(|_| generation.prefill().unwrap()).collect();
    assert_eq!(left, [25, 15, 5, 5, 5]);
    let first = generation.next_token().unwrap();
    assert_eq!(generation.n_left(), 0);
    drop(generation);
    // The same once more: only the last token, for its logits.
    let mut again = session.generate(&prompt[..], &greedy(4)).unwrap();
    assert_eq!((again.n_left(), again.n_prompt()), (1, 35));
    assert_eq!(again.next_token().unwrap(), first);
    drop(again);
    prompt[30] = 5;
    let changed = session.generate(&prompt[..], &greedy(4)).unwrap();
    assert_eq!(changed.n_left(), 5);
}

#[test]
fn the_seed_decides_and_the_default_is_the_command_s() {
    let model = pocket();
    let mut session = model.session().threads(1).build().unwrap();
    let mut ids = |seed| {
        let sampling = Sampling::default().seed(seed).max_tokens(16);
        let mut generation = session.generate(TEXT, &sampling).unwrap();
        while generation.next_token().unwrap().is_some() {}
        generation.tokens().to_vec()
    };
    assert_eq!(ids(7), ids(7));
    assert!((0..5).any(|seed| ids(seed) != ids(7)));
}

#[test]
fn prompts_that_cannot_be_are_errors() {
    let model = pocket();
    let mut session = model.session().threads(1).n_ctx(8).build().unwrap();
    let error = session.generate(&[][..] as &[u32], &greedy(1)).unwrap_err();
    assert!(
        matches!(error, Error::Session(SessionError::Empty)),
        "{error}"
    );
    let error = session.generate(&[5_u32; 9][..], &greedy(1)).unwrap_err();
    let too_long = SessionError::PromptTooLong {
        n_prompt: 9,
        n_ctx: 8,
    };
    assert!(
        matches!(&error, Error::Session(e) if *e == too_long),
        "{error}"
    );
    let id = model.config().n_vocab as u32;
    session.eval(&[5, 6]).unwrap();
    let error = session.generate(&[5, id][..], &greedy(1)).unwrap_err();
    assert!(error.to_string().contains(&id.to_string()), "{error}");
    assert_eq!(session.tokens(), [5, 6]);
    let composition = bundle(&model).composition("summarize-fr").unwrap();
    session.set_composition(Some(&composition)).unwrap();
    let no_text = Prompt::Input(b"\xff\xfe");
    let error = session.generate(no_text, &greedy(1)).unwrap_err();
    assert!(error.to_string().contains("UTF-8"), "{error}");
    // The fixture has no chat template to write a conversation by.
    let messages = [Message::user("hello")];
    let error = session.generate(&messages[..], &greedy(1)).unwrap_err();
    assert!(error.to_string().contains("chat template"), "{error}");
}

#[test]
fn sessions_share_threads_and_models_outlive_them() {
    let pool = tandem_engine::SharedPool::from(ThreadPool::new(2));
    let sessions: Vec<_> = {
        let model = pocket();
        let new = |_| model.session().pool(&pool).threads(2).build().unwrap();
        (0..2).map(new).collect()
    };
    // On threads of their own, which takes what is `Send`.
    let answers: Vec<_> = sessions
        .into_iter()
        .map(|mut session| {
            std::thread::spawn(move || {
                let generation = session.generate(TEXT, &greedy(8)).unwrap();
                generation.map(Result::unwrap).collect::<String>()
            })
        })
        .map(|thread| thread.join().unwrap())
        .collect();
    assert!(!answers[0].is_empty());
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let model = pocket();
    assert!(model.session().n_ctx(0).build().is_err());
    assert!(model.session().n_batch(0).build().is_err());
    assert!(
        model
            .session()
            .kv_type(tandem_engine::DType::Q4_0)
            .build()
            .is_err()
    );
    let error = model.session().n_ctx(1 << 40).build().unwrap_err();
    assert!(
        matches!(error, Error::Session(SessionError::TooLarge { .. })),
        "{error}"
    );
    let error = Model::open("no-such-file.gguf").unwrap_err().to_string();
    assert!(error.contains("no-such-file.gguf"), "{error}");
}

/// A model that has learned its positions knows none behind them.
#[test]
fn a_context_longer_than_the_learned_positions_is_refused() {
    let Some(path) = common::shared("peer/logits/gpt2-f16.gguf") else {
        return;
    };
    let model = Model::open(path).unwrap();
    let n = model.position_embd().unwrap().n_rows();
    assert!(model.session().threads(1).n_ctx(n).build().is_ok());
    let refused = model.session().threads(1).n_ctx(n + 1).build();
    let message = refused.err().unwrap().to_string();
    assert!(message.contains("positions"), "{message}");
}
