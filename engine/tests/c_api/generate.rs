//! Generating: answers, seeds, stops, and how a session is used.

use std::ffi::{CStr, CString, c_char};
use std::ptr::{null, null_mut};
use std::sync::mpsc;

use tandem_engine::c_api::tandem_status::*;
use tandem_engine::c_api::*;

use crate::calls::*;

#[test]
fn answers_as_the_command_does() {
    let session = session(c"summarize-fr");
    // Twice: the second time the prompt is known.
    for _ in 0..2 {
        let (status, pieces, result) = generate(session, INPUT.as_bytes(), &greedy(), |_| true);
        assert_eq!((status, pieces.concat().as_str()), (TANDEM_OK, ANSWER));
        assert!(pieces.len() > 2);
        assert_eq!((result.n_prompt, result.n_generated), (12, 7));
        assert_eq!(result.stop, tandem_stop::TANDEM_STOP_END_OF_TEXT);
    }
    let options = tandem_generate_options {
        max_tokens: 2,
        ..greedy()
    };
    let (status, _, result) = generate(session, INPUT.as_bytes(), &options, |_| true);
    assert_eq!((status, result.n_generated), (TANDEM_OK, 2));
    assert_eq!(result.stop, tandem_stop::TANDEM_STOP_MAX_TOKENS);
    // Without options, and without a place for the result.
    let mut reply = Reply {
        pieces: Vec::new(),
        go_on: &mut |_| true,
    };
    let (text, user) = (INPUT.as_ptr().cast(), (&raw mut reply).cast());
    let none = null_mut();
    let status = unsafe {
        let on_text = Some(on_text as _);
        tandem_generate(session, text, INPUT.len(), null(), on_text, user, none)
    };
    assert_eq!((status, reply.pieces.is_empty()), (TANDEM_OK, false));
    assert_eq!(tandem_session_free(session), TANDEM_OK);
}

#[test]
fn the_seed_decides() {
    // In a new session each: a known prompt's last token is computed alone, which rounds otherwise.
    let text = |seed| {
        let session = session(c"summarize-fr");
        let options = tandem_generate_options {
            temperature: 1.5,
            seed,
            ..greedy()
        };
        let (status, pieces, _) = generate(session, b"A game.", &options, |_| true);
        assert_eq!(status, TANDEM_OK, "{}", message());
        assert_eq!(tandem_session_free(session), TANDEM_OK);
        pieces.concat()
    };
    assert_eq!(text(7), text(7));
    assert_ne!(text(7), text(8));
}

/// The header promises that this much stack is enough.
#[test]
fn runs_on_a_small_stack() {
    let run = || {
        let session = session(c"summarize-fr");
        let (status, pieces, _) = generate(session, INPUT.as_bytes(), &greedy(), |_| true);
        assert_eq!((status, pieces.concat().as_str()), (TANDEM_OK, ANSWER));
        assert_eq!(tandem_session_free(session), TANDEM_OK);
    };
    let thread = std::thread::Builder::new().stack_size(512 << 10);
    thread.spawn(run).unwrap().join().unwrap();
}

#[test]
fn deep_forms_run_on_a_small_stack() {
    let nested = |open: &str| open.repeat(120) + "{}" + &"}".repeat(120);
    let chain = |n: usize| {
        let link = |i| format!(r##""d{i}": {{"$ref": "#/$defs/d{}"}}, "##, i + 1);
        let links: String = (0..n).map(link).collect();
        let end = format!(r#""d{n}": {{"type": "array"}}"#);
        format!(r##"{{"$ref": "#/$defs/d0", "$defs": {{{links}{end}}}}}"##)
    };
    // Names that a pointer would read otherwise, with shallow ones in the place where it would look.
    let hidden = {
        let part = |i: usize| {
            let rest = format!(r##"{{"$ref": "#/$defs/a~1b{}"}}"##, i + 1);
            let deep = r#"{"type": "array", "items": "#.repeat(110) + &rest + &"}".repeat(110);
            format!(r#""a/b{i}": true, "a~1b{i}": {deep}, "#)
        };
        let parts: String = (0..60).map(part).collect();
        format!(r##"{{"$ref": "#/$defs/a~1b0", "$defs": {{{parts}"a~1b60": true}}}}"##)
    };
    let schemas = [
        (nested(r#"{"type": "array", "items": "#), true),
        (
            nested(r#"{"type": "object", "additionalProperties": "#),
            true,
        ),
        (nested(r#"{"allOf": [{"type": "array"}], "items": "#), true),
        (chain(700), true),
        (chain(3000), false),
        (hidden, false),
    ];
    let groups = |n: usize| "(".repeat(n) + "a" + &")".repeat(n);
    let regexes = [
        (groups(240), true),
        (groups(100_000), false),
        ("(a|b".repeat(60) + &")*".repeat(60), true),
    ];
    let run = || {
        let session = session(c"summarize-fr");
        let is_taken = |options: tandem_generate_options| {
            let options = tandem_generate_options {
                max_tokens: 8,
                ..options
            };
            generate(session, INPUT.as_bytes(), &options, |_| true).0 == TANDEM_OK
        };
        for (schema, wanted) in schemas {
            let schema = CString::new(schema).unwrap();
            let options = tandem_generate_options {
                json_schema: schema.as_ptr(),
                ..greedy()
            };
            assert_eq!(is_taken(options), wanted, "{}", message());
        }
        for (regex, wanted) in regexes {
            let regex = CString::new(regex).unwrap();
            let options = tandem_generate_options {
                regex: regex.as_ptr(),
                ..greedy()
            };
            assert_eq!(is_taken(options), wanted, "{}", message());
        }
        assert_eq!(tandem_session_free(session), TANDEM_OK);
    };
    let thread = std::thread::Builder::new().stack_size(512 << 10);
    thread.spawn(run).unwrap().join().unwrap();
}

#[test]
fn runs_from_memory_and_without_a_bundle() {
    let read = |name| -> &'static [u8] { std::fs::read(fixture(name)).unwrap().leak() };
    let bytes = read("pocket-q8_0.gguf");
    let (mut model, mut bundle) = (null_mut(), null_mut());
    let status =
        unsafe { tandem_model_open_memory(bytes.as_ptr().cast(), bytes.len(), &mut model) };
    assert_eq!(status, TANDEM_OK, "{}", message());
    let bytes = read("pocket.tandem");
    let status =
        unsafe { tandem_bundle_open_memory(bytes.as_ptr().cast(), bytes.len(), &mut bundle) };
    assert_eq!(status, TANDEM_OK, "{}", message());
    assert!(tandem_bundle_n_compositions(bundle) > 4);
    let name = unsafe { CStr::from_ptr(tandem_bundle_composition(bundle, 0)) };
    assert_eq!(name, c"summarize");
    assert!(tandem_bundle_composition(bundle, 1000).is_null());

    let answer = |bundle: *mut tandem_bundle, name: *const c_char| {
        let mut session = null_mut();
        let status = unsafe { tandem_session_new(model, bundle, name, null(), &mut session) };
        assert_eq!(status, TANDEM_OK, "{}", message());
        let (status, pieces, _) = generate(session, INPUT.as_bytes(), &greedy(), |_| true);
        assert_eq!(status, TANDEM_OK);
        assert_eq!(tandem_session_free(session), TANDEM_OK);
        pieces.concat()
    };
    assert_eq!(answer(bundle, c"summarize-fr".as_ptr()), ANSWER);
    assert_ne!(answer(null_mut(), null()), ANSWER);

    let (mut ids, mut n_ids) = ([0; 4], 0);
    let mut tokenize = |capacity| {
        let (text, n) = (INPUT.as_ptr().cast(), INPUT.len());
        let ids = ids.as_mut_ptr();
        let status = unsafe { tandem_tokenize(model, text, n, 0, ids, capacity, &mut n_ids) };
        assert_eq!(status, TANDEM_OK);
        n_ids
    };
    assert_eq!((tokenize(0), tokenize(3)), (8, 8));
    assert_eq!(ids, [1, 529, 551, 0]);
    assert_eq!(tandem_bundle_free(bundle), TANDEM_OK);
    assert_eq!(tandem_model_free(model), TANDEM_OK);
}

#[test]
fn stop_strings_end_the_answer() {
    let session = session(c"summarize-fr");
    // From the middle of a word on, across its tokens.
    let stop = &ANSWER[ANSWER.len() - 9..ANSWER.len() - 2];
    let text = std::ffi::CString::new(stop).unwrap();
    let texts = [c"never".as_ptr(), text.as_ptr()];
    let options = tandem_generate_options {
        n_stop: 2,
        stop: texts.as_ptr(),
        ..greedy()
    };
    let (status, pieces, result) = generate(session, INPUT.as_bytes(), &options, |_| true);
    assert_eq!(
        (status, pieces.concat().as_str()),
        (TANDEM_OK, &ANSWER[..ANSWER.len() - 9])
    );
    assert_eq!(result.stop, tandem_stop::TANDEM_STOP_STRING);
    let refused = |texts: &[*const c_char], n| {
        let options = tandem_generate_options {
            n_stop: n,
            stop: match texts {
                [] => null(),
                texts => texts.as_ptr(),
            },
            ..greedy()
        };
        generate(session, INPUT.as_bytes(), &options, |_| true).0
    };
    fails(refused(&[], 1), TANDEM_ARGUMENT, "stop is NULL");
    fails(
        refused(&[null()], 1),
        TANDEM_ARGUMENT,
        "stop string 0 is NULL",
    );
    fails(
        refused(&[c"".as_ptr()], 1),
        TANDEM_ARGUMENT,
        "a stop string is empty",
    );
    fails(refused(&[c"\xff".as_ptr()], 1), TANDEM_TEXT, "not UTF-8");
    assert_eq!(tandem_session_free(session), TANDEM_OK);
}

#[test]
fn stops_when_told() {
    let session = session(c"summarize-fr");
    // By the callback's value.
    let (status, pieces, result) = generate(session, INPUT.as_bytes(), &greedy(), |n| n < 2);
    assert_eq!((status, pieces.len()), (TANDEM_OK, 2));
    assert_eq!(result.stop, tandem_stop::TANDEM_STOP_CANCELLED);

    // From another thread, while the callback waits for that to have happened.
    let handle = session.addr();
    let (begun, may_cancel) = mpsc::channel();
    let (cancelled, done) = mpsc::channel();
    let other = std::thread::spawn(move || {
        may_cancel.recv().unwrap();
        let session = std::ptr::without_provenance(handle);
        assert_eq!(tandem_cancel(session), TANDEM_OK);
        cancelled.send(()).unwrap();
    });
    let (status, pieces, result) = generate(session, INPUT.as_bytes(), &greedy(), |_| {
        begun.send(()).unwrap();
        done.recv().unwrap();
        true
    });
    other.join().unwrap();
    assert_eq!((status, pieces.len()), (TANDEM_OK, 1));
    assert_eq!(result.stop, tandem_stop::TANDEM_STOP_CANCELLED);

    // What came too late stops nothing.
    assert_eq!(tandem_cancel(session), TANDEM_OK);
    let (status, pieces, _) = generate(session, INPUT.as_bytes(), &greedy(), |_| true);
    assert_eq!((status, pieces.concat().as_str()), (TANDEM_OK, ANSWER));
    assert_eq!(tandem_session_free(session), TANDEM_OK);
}

#[test]
fn a_session_runs_one_generation_at_a_time() {
    let session = session(c"summarize-fr");
    let mut inner = Vec::new();
    let (status, pieces, _) = generate(session, INPUT.as_bytes(), &greedy(), |n| {
        if n == 1 {
            inner.push(generate(session, b"again", &greedy(), |_| true).0);
            // Freed at work, it ends its work first.
            inner.push(tandem_session_free(session));
            inner.push(tandem_session_free(session));
        }
        true
    });
    assert_eq!((status, pieces.concat().as_str()), (TANDEM_OK, ANSWER));
    assert_eq!(inner, [TANDEM_BUSY, TANDEM_OK, TANDEM_HANDLE]);
}

#[test]
fn answers_are_held_to_schemas_and_regular_expressions() {
    let schema = cr#"{"type": "object", "properties": {"count": {"type": "integer"}, "kind": {"enum": ["a", "b"]}},
        "required": ["count", "kind"], "additionalProperties": false}"#;
    let session = session(c"summarize-fr");
    let held = |json_schema: *const c_char, regex: *const c_char| {
        let options = tandem_generate_options {
            max_tokens: 200,
            json_schema,
            regex,
            ..greedy()
        };
        let (status, pieces, result) = generate(session, INPUT.as_bytes(), &options, |_| true);
        (status, pieces.concat(), result)
    };
    // Twice: the second time the grammar is kept.
    for _ in 0..2 {
        let (status, text, result) = held(schema.as_ptr(), null());
        assert_eq!(status, TANDEM_OK, "{}", message());
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(value["count"].is_i64() && ["a", "b"].contains(&value["kind"].as_str().unwrap()));
        assert_eq!(result.stop, tandem_stop::TANDEM_STOP_COMPLETE);
    }
    let (status, text, _) = held(null(), c"(yes|no), [0-9]{3}".as_ptr());
    assert_eq!(
        (status, text.len()),
        (TANDEM_OK, text.find(", ").unwrap() + 5)
    );
    assert!(
        text.starts_with("yes, ") || text.starts_with("no, "),
        "{text}"
    );
    // The next answer is free again.
    let (status, pieces, result) = generate(session, INPUT.as_bytes(), &greedy(), |_| true);
    assert_eq!((status, pieces.concat().as_str()), (TANDEM_OK, ANSWER));
    assert_eq!(result.stop, tandem_stop::TANDEM_STOP_END_OF_TEXT);

    for (schema, regex, why) in [
        (c"{", null(), "it is no JSON"),
        (c"3", null(), "an object is wanted"),
        (cr#"{"type": "nonsense"}"#, null(), "cannot be enforced"),
        (c"{}", c"a".as_ptr(), "both"),
    ] {
        let (status, text, _) = held(schema.as_ptr(), regex);
        assert_eq!((status, &*text), (TANDEM_ARGUMENT, ""));
        assert!(message().contains(why), "{}", message());
    }
    assert_eq!(held(null(), c"(a".as_ptr()).0, TANDEM_ARGUMENT);
    assert_eq!(tandem_session_free(session), TANDEM_OK);
}
