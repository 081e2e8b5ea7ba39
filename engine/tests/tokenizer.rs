//! The tokenizer against llama.cpp's ids for seven real vocabularies, the recorded prompts of the
//! pocket model, and vocabularies that are wrong in every way.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tandem_engine::tokenizer::{
    ControlTokens, EncodeOptions, TokenKind, Tokenizer, TokenizerError, Vocab,
};
use tandem_formats::gguf::{Gguf, Value, Writer};

const PLAIN: EncodeOptions = EncodeOptions {
    add_special: false,
    parse_special: false,
};
const SPECIAL: EncodeOptions = EncodeOptions {
    add_special: true,
    parse_special: true,
};

const VOCABS: [&str; 7] = [
    "deepseek-llm",
    "falcon",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "phi-3",
    "qwen2",
];

/// A path in the shared folder beside the repository, `None` (said on stderr) where it is missing.
fn shared(path: &str) -> Option<PathBuf> {
    let full = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")).join(path);
    if !full.exists() {
        eprintln!("skipped: {} is not there", full.display());
        return None;
    }
    Some(full)
}

fn read(path: PathBuf) -> Vec<u8> {
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn vocab_file(name: &str) -> Option<Vec<u8>> {
    shared(&format!("peer/vocab/ggml-vocab-{name}.gguf")).map(read)
}

/// The cases of an `.inp` file. llama.cpp's test program reads the separator with the line ends
/// around it as one string.
fn cases(name: &str) -> Vec<(Vec<u8>, Vec<u32>)> {
    let Some(base) = shared(&format!("peer/vocab/ggml-vocab-{name}.gguf.inp")) else {
        return Vec::new();
    };
    let input = read(base.clone());
    let expected = fs::read_to_string(base.with_extension("out")).unwrap();
    let separator = b"\n__ggml_vocab_test__\n";
    let mut texts = Vec::new();
    let mut start = 0;
    for at in 0..input.len() {
        if at >= start && input[at..].starts_with(separator) {
            texts.push(input[start..at].to_vec());
            start = at + separator.len();
        }
    }
    texts.push(input[start..].to_vec());
    // The file ends with a separator, after which there is no case.
    let ids: Vec<Vec<u32>> = expected
        .lines()
        .map(|l| l.split_whitespace().map(|id| id.parse().unwrap()).collect())
        .collect();
    if texts.len() == ids.len() + 1 && texts.last().is_some_and(Vec::is_empty) {
        texts.pop();
    }
    assert_eq!(texts.len(), ids.len(), "{name}");
    texts.into_iter().zip(ids).collect()
}

#[test]
fn ids_are_those_of_llama_cpp_and_decode_to_the_text() {
    for name in VOCABS {
        let Some(file) = vocab_file(name) else { return };
        let gguf = Gguf::parse(&file).unwrap();
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        let cases = cases(name);
        assert!(cases.len() >= 40, "{name}: {} cases", cases.len());
        for (text, expected) in cases {
            let shown = String::from_utf8_lossy(&text).into_owned();
            let ids = tokenizer.encode(&text, PLAIN).unwrap();
            assert_eq!(ids, expected, "{name}: {shown:?}");
            assert_decodes(tokenizer.vocab(), &ids, &text);
            let with_special = tokenizer.encode(&text, SPECIAL).unwrap();
            assert_decodes(tokenizer.vocab(), &with_special, &text);
        }
    }
}

/// Decodes at once and one by one.
fn assert_decodes(vocab: &Vocab, ids: &[u32], text: &[u8]) {
    let bytes = vocab.decode_bytes(ids, ControlTokens::Hide).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&bytes),
        String::from_utf8_lossy(text),
        "{ids:?}"
    );
    assert_eq!(bytes, text);
    assert_streams(vocab, ids);
}

fn assert_streams(vocab: &Vocab, ids: &[u32]) {
    let mut stream = vocab.stream(ControlTokens::Hide);
    let mut streamed = String::new();
    for &id in ids {
        streamed.push_str(stream.push(id).unwrap());
    }
    streamed.push_str(stream.finish());
    assert_eq!(streamed, vocab.decode(ids, ControlTokens::Hide).unwrap());
}

#[test]
fn opening_the_largest_vocabularies_is_quick() {
    for name in VOCABS {
        let Some(file) = vocab_file(name) else { return };
        let gguf = Gguf::parse(&file).unwrap();
        let start = Instant::now();
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        let opened = start.elapsed();
        tokenizer.encode("x", PLAIN).unwrap();
        let ready = start.elapsed();
        eprintln!("{name}: opened in {opened:?}, encodes after {ready:?}");
        // Far above what a release build takes, for busy machines and unoptimized builds.
        assert!(ready < Duration::from_secs(5), "{name}: {ready:?}");
    }
}

#[test]
fn special_tokens_and_defaults() {
    let Some(file) = vocab_file("llama-bpe") else {
        return;
    };
    let gguf = Gguf::parse(&file).unwrap();
    let llama3 = Tokenizer::from_gguf(&gguf).unwrap();
    let text = "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>";
    let ids = llama3.encode(text, SPECIAL).unwrap();
    assert_eq!(ids, [128000, 128006, 882, 128007, 271, 13347, 128009]);
    let vocab = llama3.vocab();
    assert!(vocab.is_end_of_generation(128009) && vocab.is_end_of_generation(128001));
    assert!(!vocab.is_end_of_generation(128000) && !vocab.is_end_of_generation(u32::MAX));
    assert_eq!(
        vocab.decode(&ids, ControlTokens::Hide).unwrap(),
        "user\n\nHi"
    );
    let shown = vocab.decode(&ids[1..], ControlTokens::Show).unwrap();
    assert_eq!(shown, text);
    // Without leave to, nobody can write a control token.
    let plain = llama3.encode(text, PLAIN).unwrap();
    assert!(plain.iter().all(|id| *id < 128000));
    assert_decodes(vocab, &plain, text.as_bytes());

    let file = vocab_file("phi-3").unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    let phi3 = Tokenizer::from_gguf(&gguf).unwrap();
    // llama.cpp: BOS; "<|user|>", which takes the line end; "_Hello"; "<|end|>".
    let ids = phi3.encode("<|user|>\nHello<|end|>", SPECIAL).unwrap();
    assert_eq!(ids, [1, 32010, 15043, 32007]);
    assert!(phi3.vocab().is_end_of_generation(32007));
    assert!(phi3.vocab().is_end_of_generation(32000));

    let file = vocab_file("qwen2").unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    let qwen2 = Tokenizer::from_gguf(&gguf).unwrap();
    let ids = qwen2
        .encode("<|im_start|>user\nHi<|im_end|>\n", SPECIAL)
        .unwrap();
    assert_eq!(ids, [151644, 872, 198, 13048, 151645, 198]);
    assert!(qwen2.vocab().is_end_of_generation(151645));
}

#[test]
fn the_pocket_models_prompts() {
    let (Some(model), Some(goldens), Some(data)) = (
        shared("models/pocket/base-f32.gguf"),
        shared("models/pocket/greedy-f32.json"),
        shared("data/debian"),
    ) else {
        return;
    };
    let file = read(model);
    let gguf = Gguf::parse(&file).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let goldens: serde_json::Value = serde_json::from_slice(&read(goldens)).unwrap();
    let mut n_prompts = 0;
    for (name, cases) in goldens.as_object().unwrap() {
        // "tr-fr/translate-fr" is the task and what was added to the base model.
        let task = match name.split('/').next() {
            Some("base") | None => "sum",
            Some(task) => task,
        };
        let lines = fs::read_to_string(data.join(format!("{task}.test.jsonl"))).unwrap();
        for (case, line) in cases.as_array().unwrap().iter().zip(lines.lines()) {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let input = line["input"].as_str().unwrap();
            assert_eq!(case["input"].as_str(), Some(input), "{name}");
            let expected: Vec<u32> = serde_json::from_value(case["prompt_ids"].clone()).unwrap();
            let prompt = format!("{input}\n=> ");
            let options = EncodeOptions {
                add_special: true,
                parse_special: false,
            };
            let ids = tokenizer.encode(&prompt, options).unwrap();
            assert_eq!(ids, expected, "{name}: {prompt:?}");
            assert_decodes(tokenizer.vocab(), &ids, prompt.as_bytes());
            n_prompts += 1;
        }
    }
    assert!(n_prompts >= 100, "{n_prompts} prompts");
}

/// xorshift64*: the same texts in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }
}

#[test]
fn random_texts_come_back_and_random_ids_never_panic() {
    const PARTS: [&str; 24] = [
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "\u{A0}",
        "\u{3000}",
        "a",
        "Ab",
        "'ll",
        "'",
        "12345",
        "\u{E9}",
        "e\u{301}",
        "\u{4E2D}\u{6587}",
        "\u{1F680}",
        "\u{FFFD}",
        "\u{10FFFF}",
        "<|im_end|>",
        "<s>",
        "<0x0A>",
        "!?.",
        "\0",
        "\u{130}",
    ];
    let mut random = Random(0x5EED);
    for name in VOCABS {
        let Some(file) = vocab_file(name) else { return };
        let gguf = Gguf::parse(&file).unwrap();
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        let vocab = tokenizer.vocab();
        for round in 0..400 {
            let mut text = Vec::new();
            for _ in 0..random.below(40) {
                match round % 2 {
                    0 => text.extend_from_slice(PARTS[random.below(PARTS.len())].as_bytes()),
                    _ => text.push(random.below(256) as u8),
                }
            }
            tokenizer.encode(&text, SPECIAL).unwrap();
            let ids = tokenizer.encode(&text, PLAIN).unwrap();
            assert_streams(vocab, &ids);
            let bytes = vocab.decode_bytes(&ids, ControlTokens::Show).unwrap();
            match name {
                // Has no tokens for the bytes that UTF-8 never uses.
                "deepseek-llm" => assert_eq!(
                    String::from_utf8_lossy(&bytes),
                    String::from_utf8_lossy(&text)
                ),
                // Lacks control characters as well, and leaves them out.
                "falcon" => {}
                _ => assert_eq!(bytes, text, "{name}"),
            }
            let n_ids = random.below(30);
            let ids: Vec<u32> = (0..n_ids)
                .map(|_| random.below(vocab.n_tokens()) as u32)
                .collect();
            assert_streams(vocab, &ids);
        }
    }
}

#[test]
fn long_texts_take_linear_time() {
    for name in ["llama-bpe", "llama-spm", "falcon"] {
        let Some(file) = vocab_file(name) else { return };
        let gguf = Gguf::parse(&file).unwrap();
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        for unit in ["a", " ", "\n", "ab", "\u{1F680}", "<|", "1"] {
            let text = unit.repeat(200_000 / unit.len());
            let start = Instant::now();
            let ids = tokenizer.encode(&text, SPECIAL).unwrap();
            let took = start.elapsed();
            assert_decodes(tokenizer.vocab(), &ids, text.as_bytes());
            assert!(took < Duration::from_secs(10), "{name} {unit:?}: {took:?}");
        }
    }
}

// Vocabularies made for the purpose.

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
