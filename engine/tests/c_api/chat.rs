//! Conversations, tokens and logits.

use std::ffi::{CStr, c_char};
use std::ptr::{null, null_mut};

use tandem_engine::c_api::tandem_status::*;
use tandem_engine::c_api::*;
use tandem_engine::formats::{Gguf, Value, Writer};

use crate::calls::*;

/// The model with a chat template, which its file has not.
fn model_with_chat() -> Vec<u8> {
    let bytes = std::fs::read(fixture("pocket-q8_0.gguf")).unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let mut writer = Writer::new();
    for (key, value) in gguf.metadata() {
        writer.add(key, *value).unwrap();
    }
    let template = "{{ bos_token }}{% for m in messages %}\
                    {% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\
                    [{{ m.role }}]\n{{ m.content }}</s>{% endfor %}\
                    {% if mood is defined %}[{{ mood }}]{% endif %}\
                    {% if add_generation_prompt %}[assistant]\n{% endif %}";
    let template = Value::Str(template);
    writer.add("tokenizer.chat_template", template).unwrap();
    for t in gguf.tensors() {
        writer.add_tensor(t.name, t.shape(), t.dtype).unwrap();
    }
    let data: Vec<_> = gguf.tensors().iter().map(|t| t.data).collect();
    writer.to_vec(&data).unwrap()
}

fn said(role: &CStr, content: &CStr) -> tandem_message {
    tandem_message {
        role: role.as_ptr(),
        content: content.as_ptr(),
    }
}

#[test]
fn a_chat_is_that_of_the_rust_side() {
    let bytes = model_with_chat();
    let (mut model, mut session) = (null_mut(), null_mut());
    unsafe {
        let status = tandem_model_open_memory(bytes.as_ptr().cast(), bytes.len(), &mut model);
        assert_eq!(status, TANDEM_OK, "{}", message());
        let status = tandem_session_new(model, null(), null(), &options(), &mut session);
        assert_eq!(status, TANDEM_OK, "{}", message());
    }
    let texts = [
        (c"system", c"You are brief."),
        (c"user", c"Which library?</s>"),
        (c"assistant", c"libsoup"),
        (c"user", c"Which language?"),
    ];
    let messages = texts.map(|(role, content)| said(role, content));
    let (status, pieces, result) = chat(session, &messages, &greedy());
    assert_eq!(status, TANDEM_OK, "{}", message());

    let messages_of_rust = texts.map(|(role, content)| tandem_engine::Message {
        role: role.to_str().unwrap(),
        content: content.to_str().unwrap(),
    });
    let rust = tandem_engine::Model::from_bytes(bytes.clone()).unwrap();
    let mut rust = rust.session().threads(1).build().unwrap();
    let wanted = rust.prompt_ids(&messages_of_rust[..]).unwrap();
    assert_eq!(tokens(session)[..result.n_prompt], wanted);
    let sampling = tandem_engine::Sampling::greedy().max_tokens(32);
    let text = rust.generate(&messages_of_rust[..], &sampling).unwrap();
    let text: Vec<_> = text.map(Result::unwrap).collect();
    assert_eq!(pieces, text);

    // A conversation that goes on keeps what was evaluated; a text of one message is `user`'s.
    let (status, _, first) = chat(session, &messages[..2], &greedy());
    assert_eq!(status, TANDEM_OK);
    let known = tokens(session)[..first.n_prompt].to_vec();
    let (status, _, second) = chat(session, &messages, &greedy());
    assert_eq!(status, TANDEM_OK);
    // The assistant's turn has begun in both.
    assert!(second.n_prompt > known.len() && tokens(session).starts_with(&known));
    let (_, _, chatted) = chat(session, &messages[3..], &greedy());
    let by_chat = tokens(session)[..chatted.n_prompt].to_vec();
    let (_, _, asked) = generate(session, b"Which language?", &greedy(), |_| true);
    assert_eq!(tokens(session)[..asked.n_prompt], by_chat);

    // Wrong ones.
    let refused = |messages: &[tandem_message]| chat(session, messages, &greedy()).0;
    fails(refused(&[]), TANDEM_ARGUMENT, "no messages");
    let null_role = tandem_message {
        role: null(),
        ..messages[1]
    };
    fails(
        refused(&[messages[0], null_role]),
        TANDEM_ARGUMENT,
        "the role of message 1 is NULL",
    );
    let null_content = tandem_message {
        content: null(),
        ..messages[0]
    };
    fails(
        refused(&[null_content]),
        TANDEM_ARGUMENT,
        "the content of message 0 is NULL",
    );
    fails(refused(&[said(c"tool", c"4")]), TANDEM_TEXT, "no tools");
    fails(
        refused(&[said(c"user", c"caf\xe9")]),
        TANDEM_TEXT,
        "the content of message 0 is not UTF-8",
    );
    let status = unsafe { tandem_session_set_template_args(session, c"[1]".as_ptr()) };
    fails(status, TANDEM_ARGUMENT, "an object is wanted");
    let status = unsafe { tandem_session_set_template_args(session, c"{".as_ptr()) };
    fails(status, TANDEM_ARGUMENT, "not valid");
    let prompt = |args: *const c_char| {
        let status = unsafe { tandem_session_set_template_args(session, args) };
        assert_eq!(status, TANDEM_OK, "{}", message());
        let (_, _, result) = chat(session, &messages, &greedy());
        tokens(session)[..result.n_prompt].to_vec()
    };
    let mut args = tandem_engine::chat::TemplateArgs::new();
    args.set_text("mood", "dry");
    rust.set_template_args(args);
    let dry = rust.prompt_ids(&messages_of_rust[..]).unwrap();
    assert!(dry.len() > wanted.len());
    assert_eq!(prompt(c"{\"mood\": \"dry\"}".as_ptr()), dry);
    assert_eq!(prompt(null()), wanted);
    let raw = tandem_generate_options { raw: 1, ..greedy() };
    fails(chat(session, &messages, &raw).0, TANDEM_ARGUMENT, "raw");
    unsafe {
        let (user, none) = (null_mut(), null_mut());
        let on_text = Some(on_text as _);
        let status = tandem_chat(session, null(), 1, null(), on_text, user, none);
        fails(status, TANDEM_ARGUMENT, "messages is NULL");
        let n = usize::MAX / 8;
        let status = tandem_chat(session, messages.as_ptr(), n, null(), on_text, user, none);
        fails(status, TANDEM_ARGUMENT, "messages");
        let status = tandem_chat(session, messages.as_ptr(), 1, null(), None, user, none);
        fails(status, TANDEM_ARGUMENT, "on_text");
    }
    assert_eq!(tandem_session_free(session), TANDEM_OK);
    fails(refused(&messages), TANDEM_HANDLE, "freed");
    assert_eq!(tandem_model_free(model), TANDEM_OK);
    let without = plain(|_| ());
    let status = chat(without, &messages, &greedy()).0;
    fails(status, TANDEM_TEXT, "no chat template");
    assert_eq!(tandem_session_free(without), TANDEM_OK);
}

#[test]
fn evaluates_tokens_and_rewinds() {
    let session = plain(|options| options.n_ctx = 16);
    let mut rust = rust_session();
    let n_vocab = rust.model().config().n_vocab;
    let mut logits = vec![f32::NAN; n_vocab + 1];
    assert_eq!(eval(session, &[1, 529], &mut []), TANDEM_OK);
    assert_eq!(eval(session, &[551, 3], &mut logits), TANDEM_OK);
    rust.feed(&[1, 529]).unwrap();
    assert_eq!(logits[..n_vocab], *rust.eval(&[551, 3]).unwrap());
    assert!(logits[n_vocab].is_nan());
    assert_eq!(tokens(session), [1, 529, 551, 3]);

    // Back, and on another way.
    assert_eq!((rewind(session, 9), rewind(session, 2)), (4, 2));
    assert_eq!(tokens(session), [1, 529]);
    let first = logits.clone();
    assert_eq!(eval(session, &[4, 5], &mut logits), TANDEM_OK);
    rust.rewind(2);
    assert_eq!(logits[..n_vocab], *rust.eval(&[4, 5]).unwrap());
    assert_eq!(rewind(session, 2), 2);
    assert_eq!(eval(session, &[551, 3], &mut logits), TANDEM_OK);
    assert_eq!(logits[..n_vocab], first[..n_vocab]);
    let mut n = 0;
    let mut two = [0; 2];
    let status = unsafe { tandem_tokens(session, two.as_mut_ptr(), 2, &mut n) };
    assert_eq!((status, n, two), (TANDEM_OK, 4, [1, 529]));

    // What fails evaluates nothing.
    let (status, room) = (
        eval(session, &[7], &mut logits[..n_vocab - 1]),
        format!("{} floats", n_vocab - 1),
    );
    fails(status, TANDEM_ARGUMENT, &room);
    fails(eval(session, &[], &mut []), TANDEM_ARGUMENT, "no tokens");
    let status = eval(session, &[7, n_vocab as u32], &mut logits);
    fails(status, TANDEM_ARGUMENT, "outside the vocabulary");
    let status = eval(session, &[7; 13], &mut logits);
    fails(status, TANDEM_CONTEXT, "13 more do not fit");
    unsafe {
        let ids = [7, 8];
        let floats = logits.as_mut_ptr();
        let status = tandem_eval(session, null(), 1, null_mut(), 0);
        fails(status, TANDEM_ARGUMENT, "ids is NULL");
        let status = tandem_eval(session, ids.as_ptr(), usize::MAX, null_mut(), 0);
        fails(status, TANDEM_ARGUMENT, "ids");
        let status = tandem_eval(session, ids.as_ptr().byte_add(1), 1, null_mut(), 0);
        fails(status, TANDEM_ARGUMENT, "ids is not aligned");
        let status = tandem_eval(session, ids.as_ptr(), 2, null_mut(), n_vocab);
        fails(status, TANDEM_ARGUMENT, "logits is NULL");
        let status = tandem_eval(session, ids.as_ptr(), 2, floats, 0);
        fails(status, TANDEM_ARGUMENT, "0 floats");
        let status = tandem_eval(session, ids.as_ptr(), 2, floats, usize::MAX);
        fails(status, TANDEM_ARGUMENT, "logits");
        fails(
            tandem_rewind(session, 0, null_mut()),
            TANDEM_ARGUMENT,
            "n_left is NULL",
        );
        let status = tandem_tokens(session, null_mut(), 1, &mut n);
        fails(status, TANDEM_ARGUMENT, "ids is NULL");
        let status = tandem_tokens(session, null_mut(), 0, null_mut());
        fails(status, TANDEM_ARGUMENT, "n_ids is NULL");
    }
    assert_eq!(tokens(session), [1, 529, 551, 3]);
    assert_eq!(eval(session, &[7; 12], &mut logits), TANDEM_OK);
    fails(eval(session, &[7], &mut []), TANDEM_CONTEXT, "full");
    assert_eq!((rewind(session, 0), tandem_n_tokens(session)), (0, 0));
    assert_eq!(tandem_session_free(session), TANDEM_OK);
}

#[test]
fn continues_tokens() {
    let session = session(c"summarize-fr");
    let (_, _, result) = generate(session, INPUT.as_bytes(), &greedy(), |_| true);
    let prompt = tokens(session)[..result.n_prompt].to_vec();
    assert_eq!(rewind(session, 0), 0);
    let (status, pieces, result) = generate_tokens(session, &prompt);
    assert_eq!((status, pieces.concat().as_str()), (TANDEM_OK, ANSWER));
    assert_eq!((result.n_prompt, result.n_generated), (12, 7));

    let refused = |ids: &[u32]| generate_tokens(session, ids).0;
    fails(refused(&[]), TANDEM_ARGUMENT, "no tokens");
    fails(refused(&[1, u32::MAX]), TANDEM_ARGUMENT, "vocabulary");
    fails(refused(&[1; 513]), TANDEM_CONTEXT, "512");
    unsafe {
        let (user, none) = (null_mut(), null_mut());
        let on_text = Some(on_text as _);
        let status = tandem_generate_tokens(session, null(), 1, null(), on_text, user, none);
        fails(status, TANDEM_ARGUMENT, "ids is NULL");
        let ids = prompt.as_ptr();
        let status = tandem_generate_tokens(session, ids, 1, null(), None, user, none);
        fails(status, TANDEM_ARGUMENT, "on_text");
    }
    let (_, pieces, _) = generate_tokens(session, &prompt);
    assert_eq!(pieces.concat(), ANSWER);
    assert_eq!(tandem_session_free(session), TANDEM_OK);
    fails(refused(&prompt), TANDEM_HANDLE, "freed");
}

#[test]
fn tokens_become_text() {
    let model = model();
    let n_vocab = tandem_n_vocab(model);
    assert_eq!(n_vocab, rust_session().model().config().n_vocab);
    assert_eq!((tandem_n_vocab(null()), tandem_n_vocab(2 as _)), (0, 0));
    let text = "caf\u{e9} \u{1f980}\n";
    let (mut ids, mut n_ids) = ([0; 32], 0);
    let status = unsafe {
        let (text, n) = (text.as_ptr().cast(), text.len());
        tandem_tokenize(model, text, n, 0, ids.as_mut_ptr(), 32, &mut n_ids)
    };
    assert_eq!(status, TANDEM_OK);
    let ids = &ids[..n_ids];

    let detokenize = |ids: &[u32], show, buffer: &mut [u8]| {
        let mut n = usize::MAX;
        let place = buffer.as_mut_ptr().cast();
        let (room, ids, n_ids) = (buffer.len(), ids.as_ptr(), ids.len());
        let status = unsafe { tandem_detokenize(model, ids, n_ids, show, place, room, &mut n) };
        (status, n)
    };
    let mut buffer = [b'#'; 64];
    assert_eq!(detokenize(ids, 0, &mut buffer), (TANDEM_OK, text.len()));
    assert_eq!(buffer[..text.len()], *text.as_bytes());
    assert_eq!(buffer[text.len()], b'#');
    // With too little room what fits, and how much there is.
    let mut little = [b'#'; 3];
    assert_eq!(detokenize(ids, 0, &mut little), (TANDEM_OK, text.len()));
    assert_eq!(&little, b"caf");
    assert_eq!(detokenize(ids, 0, &mut []), (TANDEM_OK, text.len()));
    // The BOS is seen where that is wanted.
    let (status, n) = detokenize(ids, 1, &mut buffer);
    assert_eq!((status, &buffer[..4]), (TANDEM_OK, &b"<s> "[..]));
    assert!(n > text.len());
    assert_eq!(detokenize(&[], 0, &mut buffer), (TANDEM_OK, 0));

    let (status, _) = detokenize(&[1, n_vocab as u32], 0, &mut buffer);
    fails(status, TANDEM_ARGUMENT, &n_vocab.to_string());
    unsafe {
        let (mut n, one) = (0, ids.as_ptr());
        let status = tandem_detokenize(model, null(), 1, 0, null_mut(), 0, &mut n);
        fails(status, TANDEM_ARGUMENT, "ids is NULL");
        let status = tandem_detokenize(model, one, usize::MAX, 0, null_mut(), 0, &mut n);
        fails(status, TANDEM_ARGUMENT, "ids");
        let status = tandem_detokenize(model, one, 1, 0, null_mut(), 1, &mut n);
        fails(status, TANDEM_ARGUMENT, "buffer is NULL");
        let status = tandem_detokenize(model, one, 1, 0, null_mut(), 0, null_mut());
        fails(status, TANDEM_ARGUMENT, "n_bytes is NULL");
        assert_eq!(tandem_model_free(model), TANDEM_OK);
        let status = tandem_detokenize(model, one, 1, 0, null_mut(), 0, &mut n);
        fails(status, TANDEM_HANDLE, "freed");
    }
}

#[test]
fn a_session_at_work_is_busy_for_all_calls() {
    let (session, bundle) = (session(c"summarize-fr"), bundle());
    let mut found = Vec::new();
    let (status, pieces, _) = generate(session, INPUT.as_bytes(), &greedy(), |n| {
        if n == 1 {
            let mut n = 7;
            found.extend([
                set_composition(session, bundle, Some(c"summarize")),
                eval(session, &[1], &mut []),
                generate_tokens(session, &[1]).0,
                chat(session, &[said(c"user", c"x")], &greedy()).0,
            ]);
            unsafe {
                found.push(tandem_rewind(session, 0, &mut n));
                found.push(tandem_tokens(session, null_mut(), 0, &mut n));
            }
            assert_eq!((n, tandem_n_tokens(session)), (7, 0));
            assert!(message().contains("at work"));
        }
        true
    });
    assert_eq!((status, pieces.concat().as_str()), (TANDEM_OK, ANSWER));
    assert_eq!(found, [TANDEM_BUSY; 6]);
    assert_eq!(answer(session), ANSWER);
    assert_eq!(tandem_bundle_free(bundle), TANDEM_OK);
    assert_eq!(tandem_session_free(session), TANDEM_OK);
}
