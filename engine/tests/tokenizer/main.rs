//! The tokenizer against llama.cpp's ids for seven real vocabularies, the recorded prompts of the
//! pocket model, and vocabularies that are wrong in every way.

mod made_up;

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
