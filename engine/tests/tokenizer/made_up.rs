//! Made-up vocabularies, most of them wrong in some way.

use super::*;

fn spm() -> Writer {
    let mut w = Writer::new();
    w.add("tokenizer.ggml.model", Value::Str("llama")).unwrap();
    w
}

fn spm_tokens(w: &mut Writer, tokens: &[(&str, i32)]) {
    let texts: Vec<&str> = tokens.iter().map(|t| t.0).collect();
    let kinds: Vec<i32> = tokens.iter().map(|t| t.1).collect();
    let scores: Vec<f32> = (0..tokens.len()).map(|i| -(i as f32)).collect();
    w.add_strings("tokenizer.ggml.tokens", &texts).unwrap();
    w.add_array("tokenizer.ggml.scores", &scores).unwrap();
    w.add_array("tokenizer.ggml.token_type", &kinds).unwrap();
}

fn bpe(tokens: &[&str], merges: &[&str]) -> Writer {
    let mut w = Writer::new();
    w.add("tokenizer.ggml.model", Value::Str("gpt2")).unwrap();
    w.add_strings("tokenizer.ggml.tokens", tokens).unwrap();
    w.add_strings("tokenizer.ggml.merges", merges).unwrap();
    w
}

#[test]
fn a_byte_without_a_token() {
    let mut w = Writer::new();
    w.add("tokenizer.ggml.model", Value::Str("llama")).unwrap();
    w.add("tokenizer.ggml.add_bos_token", Value::Bool(false))
        .unwrap();
    w.add("tokenizer.ggml.add_space_prefix", Value::Bool(false))
        .unwrap();
    spm_tokens(&mut w, &[("<unk>", 2), ("a", 1)]);
    let file = w.to_vec(&[]).unwrap();
    let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&file).unwrap()).unwrap();
    assert_eq!(tokenizer.encode("ab\u{E9}", SPECIAL).unwrap(), [1, 0, 0, 0]);
}

/// The error of opening, or of a first encoding.
fn error(w: &Writer) -> TokenizerError {
    let file = w.to_vec(&[]).unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    match Tokenizer::from_gguf(&gguf) {
        Err(e) => e,
        Ok(tokenizer) => tokenizer.encode("ab", SPECIAL).unwrap_err(),
    }
}

#[test]
fn no_tokenizer_and_unknown_ones() {
    assert_eq!(error(&Writer::new()), TokenizerError::NoTokenizer);
    let mut w = Writer::new();
    w.add("tokenizer.ggml.model", Value::Str("none")).unwrap();
    assert_eq!(error(&w).to_string(), "the file has no tokenizer");
    let mut w = Writer::new();
    w.add("tokenizer.ggml.model", Value::Str("bert")).unwrap();
    assert!(error(&w).to_string().contains("\"bert\""));
    let mut w = bpe(&["a"], &[]);
    w.add("tokenizer.ggml.pre", Value::Str("nope")).unwrap();
    assert!(error(&w).to_string().contains("\"nope\""));
    let mut w = Writer::new();
    w.add("tokenizer.ggml.model", Value::U32(1)).unwrap();
    assert!(matches!(error(&w), TokenizerError::Gguf(_)));
}

#[test]
fn arrays_missing_of_wrong_type_or_length() {
    assert!(matches!(error(&spm()), TokenizerError::MissingKey { .. }));
    let mut w = spm();
    w.add_array("tokenizer.ggml.tokens", &[1u32]).unwrap();
    assert!(matches!(error(&w), TokenizerError::ElementType { .. }));
    let mut w = spm();
    spm_tokens(&mut w, &[]);
    assert_eq!(error(&w), TokenizerError::NoTokens);
    let mut w = spm();
    w.add_strings("tokenizer.ggml.tokens", ["a", "b"]).unwrap();
    w.add_array("tokenizer.ggml.scores", &[0.0f32]).unwrap();
    assert!(matches!(
        error(&w),
        TokenizerError::Count {
            wanted: 2,
            found: 1,
            ..
        }
    ));
    let mut w = spm();
    w.add_strings("tokenizer.ggml.tokens", ["a", "b"]).unwrap();
    w.add_strings("tokenizer.ggml.scores", ["0", "1"]).unwrap();
    assert!(matches!(error(&w), TokenizerError::ElementType { .. }));
    let mut w = bpe(&["a"], &[]);
    w.add_array("tokenizer.ggml.token_type", &[1.0f32]).unwrap();
    assert!(matches!(error(&w), TokenizerError::ElementType { .. }));
    let mut w = bpe(&["a"], &[]);
    w.add_array("tokenizer.ggml.token_type", &[7i32]).unwrap();
    assert_eq!(error(&w), TokenizerError::UnknownKind { id: 0, found: 7 });
    let mut w = Writer::new();
    w.add("tokenizer.ggml.model", Value::Str("gpt2")).unwrap();
    w.add_strings("tokenizer.ggml.tokens", ["a"]).unwrap();
    assert!(matches!(error(&w), TokenizerError::MissingKey { .. }));
    w.add_array("tokenizer.ggml.merges", &[true]).unwrap();
    assert!(matches!(error(&w), TokenizerError::ElementType { .. }));
}

#[test]
fn tokens_that_contradict_each_other() {
    let mut w = spm();
    spm_tokens(&mut w, &[("<0xZZ>", 6)]);
    assert_eq!(error(&w), TokenizerError::ByteToken { id: 0 });
    let mut w = spm();
    spm_tokens(&mut w, &[("\u{2581}", 1), (&"x".repeat(300), 4)]);
    assert_eq!(
        error(&w),
        TokenizerError::SpecialLength {
            id: 1,
            n_bytes: 300
        }
    );
    // One token: BOS, which texts begin with by default, cannot be number 1.
    let mut w = spm();
    spm_tokens(&mut w, &[("a", 1)]);
    assert!(matches!(error(&w), TokenizerError::NoSpecial { .. }));
    // No token for a byte, and no unknown one: left out, or refused, by the model's kind.
    let file = bpe(&["a"], &[]).to_vec(&[]).unwrap();
    let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&file).unwrap()).unwrap();
    assert_eq!(tokenizer.encode("abba", PLAIN).unwrap(), [0, 0]);
    let error = tokenizer.vocab().decode(&[1], ControlTokens::Hide);
    assert_eq!(
        error,
        Err(TokenizerError::IdOutOfRange { id: 1, n_tokens: 1 })
    );
}

/// As llama.cpp takes them: what a vocabulary says of tokens that are not there is passed over.
#[test]
fn metadata_that_means_nothing_stops_nobody() {
    let tokens = [
        ("<unk>", 2),
        ("<s>", 3),
        ("</s>", 3),
        ("a", 1),
        ("b", 1),
        ("a", 1),
        ("\u{2581}", 1),
    ];
    let read = |change: &dyn Fn(&mut Writer)| {
        let mut w = spm();
        spm_tokens(&mut w, &tokens);
        change(&mut w);
        let file = w.to_vec(&[]).unwrap();
        Tokenizer::from_gguf(&Gguf::parse(&file).unwrap()).unwrap()
    };
    // Of equal texts the last counts.
    assert_eq!(read(&|_| {}).encode("ab", PLAIN).unwrap(), [6, 5, 4]);
    for key in ["bos", "eos", "unknown", "padding", "eot"] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        for value in [
            Value::U32(7),
            Value::I32(-1),
            Value::U64(u64::MAX),
            Value::Str("x"),
        ] {
            let tokenizer = read(&|w| w.add(&key, value).unwrap());
            let vocab = tokenizer.vocab();
            assert_eq!(
                (vocab.bos(), vocab.eos(), vocab.unknown()),
                (Some(1), Some(2), Some(0))
            );
            assert_eq!((vocab.padding(), vocab.eot()), (None, None));
        }
    }
    // A name in Latin-1.
    let name = Value::Bytes(b"caf\xe9");
    let tokenizer = read(&|w| w.add("general.name", name).unwrap());
    assert_eq!(tokenizer.encode("b", PLAIN).unwrap(), [6, 4]);

    // Without scores all are equal, and of pairs the first is joined.
    let mut w = Writer::new();
    w.add("tokenizer.ggml.model", Value::Str("llama")).unwrap();
    let texts = ["<unk>", "<s>", "</s>", "\u{2581}", "a", "aa"];
    w.add_strings("tokenizer.ggml.tokens", texts).unwrap();
    w.add_array("tokenizer.ggml.token_type", &[2, 3, 3, 1, 1, 1])
        .unwrap();
    let file = w.to_vec(&[]).unwrap();
    let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&file).unwrap()).unwrap();
    assert_eq!(tokenizer.encode("aaa", PLAIN).unwrap(), [3, 5, 4]);
}

/// By the rules of llama.cpp's `llama-vocab.cpp`.
#[test]
fn tokens_that_end_a_reply() {
    let ending = |texts: &[&str]| {
        let mut w = Writer::new();
        w.add("tokenizer.ggml.model", Value::Str("gpt2")).unwrap();
        w.add_strings("tokenizer.ggml.tokens", texts).unwrap();
        w.add_strings("tokenizer.ggml.merges", [""; 0]).unwrap();
        let file = w.to_vec(&[]).unwrap();
        let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&file).unwrap()).unwrap();
        let vocab = tokenizer.vocab();
        let ends = |(id, text): (usize, &&str)| {
            vocab
                .is_end_of_generation(id as u32)
                .then(|| text.to_string())
        };
        texts
            .iter()
            .enumerate()
            .filter_map(ends)
            .collect::<Vec<_>>()
    };
    let all = [
        "<|im_end|>",
        "<|eot_id|>",
        "[EOS]",
        "</s>",
        "<eos>",
        "<turn|>",
        "[e~[",
        "<|return|>",
        "<end_of_turn>",
    ];
    assert_eq!(ending(&all), all);
    assert_eq!(
        ending(&["a", "<|fim_prefix|>", "<|fim_suffix|>", "<|im_start|>"]),
        [""; 0]
    );
    // One of each row: padding, repository, file.
    let fill_in = [
        "<|fim_pad|>",
        "[PAD]",
        "<|repo_name|>",
        "<reponame>",
        "<|file_sep|>",
    ];
    assert_eq!(
        ending(&fill_in),
        ["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"]
    );
    // A message's end is no reply's end in the harmony format and in Solar's, and Gemma 4 has a plain </s>.
    assert_eq!(
        ending(&["<|end|>", "<|return|>"]),
        ["<|end|>", "<|return|>"]
    );
    assert_eq!(
        ending(&["<|end|>", "<|return|>", "<|call|>"]),
        ["<|return|>", "<|call|>"]
    );
    assert_eq!(
        ending(&["<|end|>", "<|flush|>", "<|calls|>"]),
        ["<|flush|>", "<|calls|>"]
    );
    assert_eq!(ending(&["</s>", "<|tool_response>"]), ["<|tool_response>"]);
}

#[test]
fn merges_that_fit_nothing() {
    for merge in ["ab", "a", "", " ", " b", "a ", "a b c"] {
        let w = bpe(&["a", "b", "ab"], &["a b", merge]);
        assert_eq!(error(&w), TokenizerError::Merge { index: 1 }, "{merge:?}");
    }
    for (tokens, merge) in [(["a", "ab"], "a b"), (["a", "b"], "a b")] {
        let e = error(&bpe(&tokens, &[merge]));
        assert!(matches!(e, TokenizerError::MergeToken { .. }), "{e}");
    }
    let mut w = Writer::new();
    w.add("tokenizer.ggml.model", Value::Str("gpt2")).unwrap();
    w.add_strings("tokenizer.ggml.tokens", [b"\xFF"]).unwrap();
    w.add_strings("tokenizer.ggml.merges", [""; 0]).unwrap();
    assert_eq!(error(&w), TokenizerError::TokenUtf8 { id: 0 });
    // Of a merge given twice, the first rank counts.
    let w = bpe(&["a", "b", "c", "ab", "bc"], &["a b", "b c", "a b"]);
    let file = w.to_vec(&[]).unwrap();
    let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&file).unwrap()).unwrap();
    assert_eq!(tokenizer.encode("abc", PLAIN).unwrap(), [3, 2]);
}

/// Gemma 4's kind: merges by rank over characters, spaces as U+2581, ends of lines apart, other characters in
/// bytes.
#[test]
fn characters_merge_by_rank_within_a_line() {
    let mut tokens: Vec<(String, i32)> = ["<pad>", "<eos>", "<bos>", "<unk>"]
        .map(|text| (text.to_string(), 3))
        .to_vec();
    tokens.extend((0..256).map(|byte| (format!("<0x{byte:02X}>"), 6)));
    let pieces = [
        "\u{2581}",
        "a",
        "b",
        "c",
        "\n",
        "\u{E9}",
        "ab",
        "bc",
        "\u{2581}a",
        "\u{2581}ab",
        "\n\n\n",
        "a\n",
        "\u{2581}\u{2581}",
    ];
    tokens.extend(pieces.map(|text| (text.to_string(), 1)));
    let texts: Vec<&str> = tokens.iter().map(|(text, _)| &text[..]).collect();
    let kinds: Vec<i32> = tokens.iter().map(|(_, kind)| *kind).collect();
    let writer = |texts: &[&str]| {
        let mut w = Writer::new();
        w.add("tokenizer.ggml.model", Value::Str("gemma4")).unwrap();
        w.add("tokenizer.ggml.add_bos_token", Value::Bool(false))
            .unwrap();
        for (key, id) in [("eos", 1), ("bos", 2), ("unknown", 3)] {
            let key = format!("tokenizer.ggml.{key}_token_id");
            w.add(&key, Value::U32(id)).unwrap();
        }
        w.add_strings("tokenizer.ggml.tokens", texts).unwrap();
        w.add_array("tokenizer.ggml.token_type", &kinds).unwrap();
        let merges = [
            "b c",
            "a b",
            "\u{2581} a",
            "\u{2581} ab",
            "\u{2581} \u{2581}",
            "a \n",
        ];
        w.add_strings("tokenizer.ggml.merges", merges).unwrap();
        w.to_vec(&[]).unwrap()
    };
    let file = writer(&texts);
    let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&file).unwrap()).unwrap();
    let id = |text: &str| texts.iter().position(|t| *t == text).unwrap() as u32;
    let ids = |all: &[&str]| all.iter().map(|text| id(text)).collect::<Vec<_>>();
    for (text, expected) in [
        // "b c" goes before "a b", and "a b" before the space.
        ("abc", &["a", "bc"][..]),
        (" ab a", &["\u{2581}ab", "\u{2581}a"]),
        ("  a", &["\u{2581}", "\u{2581}a"]),
        ("a\nb", &["a", "\n", "b"]),
        // Whole runs of line ends where they are a token, without a merge that makes them.
        ("a\n\n\nb", &["a", "\n\n\n", "b"]),
        ("\n\n", &["\n", "\n"]),
        ("\u{E9}\u{E8}", &["\u{E9}", "<0xC3>", "<0xA8>"]),
        ("", &[]),
    ] {
        let found = tokenizer.encode(text, PLAIN).unwrap();
        assert_eq!(found, ids(expected), "{text:?}");
        assert_decodes(tokenizer.vocab(), &found, text.as_bytes());
    }
    let found = tokenizer.encode(b"a\xFF", PLAIN).unwrap();
    assert_eq!(found, ids(&["a", "<0xFF>"]));
    // Texts begin with BOS, whatever the file says.
    assert_eq!(
        tokenizer.encode("a", SPECIAL).unwrap(),
        ids(&["<bos>", "a"])
    );

    let spoilt: Vec<&str> = texts
        .iter()
        .map(|text| if *text == "ab" { "xy" } else { text })
        .collect();
    let file = writer(&spoilt);
    let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&file).unwrap()).unwrap();
    let error = tokenizer.encode("a", PLAIN).unwrap_err();
    assert!(
        matches!(error, TokenizerError::MergeToken { .. }),
        "{error}"
    );
}

#[test]
fn user_defined_tokens_are_found_first_and_the_longest_of_them() {
    let mut w = spm();
    spm_tokens(
        &mut w,
        &[
            ("<unk>", 2),
            ("<s>", 3),
            ("</s>", 3),
            ("<t>", 4),
            ("<t><t>", 4),
            ("a", 1),
            ("\u{2581}", 1),
            ("\u{2581}a", 1),
            ("<pad>", 5),
        ],
    );
    let file = w.to_vec(&[]).unwrap();
    let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&file).unwrap()).unwrap();
    assert_eq!(tokenizer.encode("<t><t><t>a", PLAIN).unwrap(), [4, 3, 7]);
    assert_eq!(tokenizer.encode("a</s>a", SPECIAL).unwrap(), [1, 7, 2, 7]);
    assert_eq!(tokenizer.encode("", SPECIAL).unwrap(), [1]);
    assert!(tokenizer.encode("", PLAIN).unwrap().is_empty());
    let vocab = tokenizer.vocab();
    assert_eq!(vocab.kind(8), Some(TokenKind::Unused));
    assert_eq!(
        vocab.decode(&[1, 7, 8, 7], ControlTokens::Hide).unwrap(),
        "a a"
    );
    let mut stream = vocab.stream_continuation(ControlTokens::Show);
    assert_eq!(stream.push(7).unwrap(), " a");
    assert_eq!(stream.push(2).unwrap(), "</s>");
    assert!(stream.push(9).is_err());
    assert_eq!(stream.finish(), "");
}

#[test]
fn a_stream_holds_back_unfinished_characters() {
    let mut w = spm();
    let tokens = [("<0xE2>", 6), ("<0x82>", 6), ("<0xAC>", 6), ("a", 1)];
    spm_tokens(&mut w, &tokens);
    let file = w.to_vec(&[]).unwrap();
    let vocab = Vocab::from_gguf(&Gguf::parse(&file).unwrap()).unwrap();
    let mut stream = vocab.stream(ControlTokens::Hide);
    let mut pieces = Vec::new();
    for id in [0, 1, 2, 3, 0, 1, 3, 2, 0] {
        pieces.push(stream.push(id).unwrap().to_string());
    }
    pieces.push(stream.finish().to_string());
    let expected = [
        "",
        "",
        "\u{20AC}",
        "a",
        "",
        "",
        "\u{FFFD}a",
        "\u{FFFD}",
        "",
        "\u{FFFD}",
    ];
    assert_eq!(pieces, expected);
}
