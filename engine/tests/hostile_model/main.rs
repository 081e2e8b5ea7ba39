//! Models that are wrong: every hyperparameter, every tensor, and bytes flipped at random.

#[expect(dead_code, reason = "of the shared helpers this needs `shared` alone")]
#[path = "../common/mod.rs"]
mod common;

mod architectures;

use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;

use tandem_engine::tokenizer::{ControlTokens, EncodeOptions, Tokenizer};
use tandem_engine::{
    DType, Error as EngineError, Model, ModelError, Sampler, Sampling, Serial, Session,
    SessionOptions,
};
use tandem_formats::{Gguf, Value, Writer};

fn pocket() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/pocket-q8_0.gguf");
    std::fs::read(path).unwrap()
}

/// A tensor to be written: name, shape, type, data.
type NewTensor<'a> = (String, Vec<usize>, DType, &'a [u8]);

/// The file with metadata and tensors changed; `None` leaves an entry out.
fn rebuilt<'a>(
    gguf: &Gguf<'a>,
    mut metadata: impl FnMut(&str, Value<'a>) -> Option<Value<'a>>,
    tensor: impl FnMut(NewTensor<'a>) -> Option<NewTensor<'a>>,
) -> Vec<u8> {
    let mut writer = Writer::new();
    for (key, value) in gguf.metadata() {
        if let Some(value) = metadata(key, *value) {
            writer.add(key, value).unwrap();
        }
    }
    let tensors = gguf.tensors().iter();
    let tensors = tensors.map(|t| (t.name.to_string(), t.shape().to_vec(), t.dtype, t.data));
    let tensors: Vec<_> = tensors.filter_map(tensor).collect();
    for (name, shape, dtype, _) in &tensors {
        writer.add_tensor(name, shape, *dtype).unwrap();
    }
    let data: Vec<_> = tensors.iter().map(|t| t.3).collect();
    writer.to_vec(&data).unwrap()
}

/// An error with all of its causes.
fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

/// Uses a file's tokenizer, if it makes one, both ways.
fn try_to_tokenize(gguf: &Gguf<'_>) -> bool {
    let Ok(tokenizer) = Tokenizer::from_gguf(gguf) else {
        return false;
    };
    for special in [false, true] {
        let options = EncodeOptions {
            add_special: special,
            parse_special: special,
        };
        let text = "Hello, world's  3.14\n\n\t\u{301}\u{1f600} </s><|endoftext|>";
        if let Ok(ids) = tokenizer.encode(text, options) {
            let mut decoder = tokenizer.vocab().stream(ControlTokens::Show);
            for id in ids {
                let _ = decoder.push(id);
            }
            let _ = decoder.finish();
        }
    }
    let _ = tokenizer
        .vocab()
        .decode_bytes(&[0, 1, 2, 3, 259, u32::MAX], ControlTokens::Hide);
    true
}

/// Loads a model and runs two tokens of it, and whatever happens must be no panic.
fn try_to_run(bytes: &[u8]) -> Result<(), String> {
    let gguf = Gguf::parse(bytes).map_err(|e| chain(&e))?;
    try_to_tokenize(&gguf);
    let model = Model::from_bytes(bytes.to_vec()).map_err(|e| chain(&e))?;
    let mut options = SessionOptions::for_model(model.config());
    (options.n_ctx, options.n_batch) = (8, 2);
    let mut session = Session::new(&model, Serial, options).map_err(|e| chain(&e))?;
    let mut sampling = Sampling::greedy();
    (sampling.temperature, sampling.top_k, sampling.top_p) = (1.0, 10, 0.9);
    let mut sampler = Sampler::new(sampling, model.config().n_vocab);
    let logits = session.eval(&[1, 2]).map_err(|e| chain(&e))?;
    let id = sampler.pick(logits);
    assert!((id as usize) < model.config().n_vocab);
    Ok(())
}

/// Xorshift64* (Vigna, arXiv 1402.6246).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    /// One to three changed bytes below `reach`: what stood there.
    fn flip(&mut self, bytes: &mut [u8], reach: usize) -> Vec<(usize, u8)> {
        (0..1 + self.below(3))
            .map(|_| {
                let place = self.below(reach);
                let old = bytes[place];
                bytes[place] = match self.below(7) {
                    i @ 0..5 => [0, 1, 0x7f, 0x80, 0xff][i],
                    5 => self.below(256) as u8,
                    _ => old ^ (1 << self.below(8)),
                };
                (place, old)
            })
            .collect()
    }
}

fn restore(bytes: &mut [u8], changes: Vec<(usize, u8)>) {
    // Last first: a byte may have changed twice.
    for (place, old) in changes.into_iter().rev() {
        bytes[place] = old;
    }
}

#[test]
fn the_fixture_itself_runs() {
    assert_eq!(try_to_run(&pocket()), Ok(()));
}

#[test]
fn every_wrong_hyperparameter_is_named() {
    let bytes = pocket();
    let gguf = Gguf::parse(&bytes).unwrap();
    let wrong = [
        Value::U32(0),
        Value::U32(u32::MAX),
        Value::U64(u64::MAX),
        Value::I32(-1),
        Value::F32(f32::NAN),
        Value::F32(-1.0),
        Value::Str("wrong"),
        Value::Bool(true),
    ];
    // Those without which there is no model, and those that have a default.
    for (key, is_needed) in [
        ("general.architecture", true),
        ("llama.block_count", true),
        ("llama.context_length", true),
        ("llama.embedding_length", true),
        ("llama.feed_forward_length", true),
        ("llama.attention.head_count", true),
        ("llama.attention.layer_norm_rms_epsilon", true),
        ("llama.attention.head_count_kv", false),
        ("llama.attention.key_length", false),
        ("llama.attention.value_length", false),
        ("llama.rope.dimension_count", false),
        ("llama.rope.freq_base", false),
    ] {
        let with = |new: Option<Value<'static>>| {
            let bytes = rebuilt(&gguf, |k, v| if k == key { new } else { Some(v) }, Some);
            try_to_run(&bytes)
        };
        if is_needed {
            assert!(with(None).unwrap_err().contains(key), "{key}");
        }
        for value in wrong {
            let error = with(Some(value)).expect_err(key);
            let is_other_arch = key == "general.architecture" && value == Value::Str("wrong");
            let named = match is_other_arch {
                true => "architecture \"wrong\"",
                false => key,
            };
            assert!(error.contains(named), "{key} {value:?}: {error}");
        }
    }
}

#[test]
fn every_missing_misshapen_or_unknown_tensor_is_named() {
    let bytes = pocket();
    let gguf = Gguf::parse(&bytes).unwrap();
    let load = |bytes: &[u8]| match Model::from_bytes(bytes.to_vec()).unwrap_err() {
        EngineError::Model(error) => error,
        other => panic!("{other}"),
    };
    let names = gguf
        .tensors()
        .iter()
        .map(|t| t.name)
        .filter(|n| !n.starts_with("blk.") || n.starts_with("blk.3."));
    for name in names {
        let missing = rebuilt(&gguf, |_, v| Some(v), |t| (t.0 != name).then_some(t));
        assert_eq!(
            load(&missing),
            ModelError::MissingTensor {
                name: name.to_string()
            }
        );
        // The same bytes as one row; the vocabulary's size follows from the embeddings.
        let flat = rebuilt(
            &gguf,
            |_, v| Some(v),
            |mut t| {
                if t.0 == name {
                    t.1 = if t.1.len() == 1 {
                        vec![32, t.1[0] / 32]
                    } else {
                        vec![t.1.iter().product()]
                    };
                }
                Some(t)
            },
        );
        assert!(
            matches!(load(&flat), ModelError::Shape { name: n, .. } if n == name),
            "{name}"
        );
        let zeros = vec![0; 1 << 20];
        let integers = rebuilt(
            &gguf,
            |_, v| Some(v),
            |mut t| {
                if t.0 == name {
                    (t.2, t.3) = (DType::I8, &zeros[..t.1.iter().product()]);
                }
                Some(t)
            },
        );
        assert!(
            matches!(load(&integers), ModelError::Type { name: n, .. } if n == name),
            "{name}"
        );
        let doubled = rebuilt(
            &gguf,
            |_, v| Some(v),
            |mut t| {
                if t.0 == name {
                    t.0 = format!("{name}.extra");
                }
                Some(t)
            },
        );
        assert!(load(&doubled).to_string().contains(name));
    }
    let mut extra = gguf
        .tensors()
        .iter()
        .map(|t| (t.name.to_string(), t.shape().to_vec(), t.dtype, t.data))
        .collect::<Vec<_>>();
    let norm = extra
        .iter()
        .find(|t| t.0 == "output_norm.weight")
        .unwrap()
        .clone();
    extra.push((
        "blk.0.attn_sinks.weight".to_string(),
        norm.1,
        norm.2,
        norm.3,
    ));
    let mut writer = Writer::new();
    for (key, value) in gguf.metadata() {
        writer.add(key, *value).unwrap();
    }
    for (name, shape, dtype, _) in &extra {
        writer.add_tensor(name, shape, *dtype).unwrap();
    }
    let bytes = writer
        .to_vec(&extra.iter().map(|t| t.3).collect::<Vec<_>>())
        .unwrap();
    let unused = ModelError::UnusedTensor {
        name: "blk.0.attn_sinks.weight".to_string(),
    };
    assert_eq!(load(&bytes), unused);
}

/// Weights of every bit pattern: where the logits are no numbers, an error says so. A sampler that is given
/// such all the same picks a token.
#[test]
fn garbage_weights_are_an_error_or_a_token() {
    let bytes = pocket();
    let gguf = Gguf::parse(&bytes).unwrap();
    let mut random = Random(7);
    let noise: Vec<u8> = (0..1 << 21).map(|_| random.below(256) as u8).collect();
    for fill in [
        noise,
        vec![0; 1 << 21],
        vec![0xff; 1 << 21],
        vec![0x7c; 1 << 21],
    ] {
        let mut writer = Writer::new();
        for (key, value) in gguf.metadata() {
            writer.add(key, *value).unwrap();
        }
        for t in gguf.tensors() {
            writer.add_tensor(t.name, t.shape(), t.dtype).unwrap();
        }
        let data = gguf.tensors().iter().map(|t| &fill[..t.data.len()]);
        let data: Vec<_> = data.collect();
        let is_zero = fill[0] == 0 && fill[1] == 0;
        match try_to_run(&writer.to_vec(&data).unwrap()) {
            Ok(()) => assert!(is_zero),
            Err(error) => assert!(!is_zero && error.contains("no finite numbers"), "{error}"),
        }
    }
    // What a sampler may be given at worst, by every way of picking.
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    for logits in [
        [nan; 4],
        [inf; 4],
        [-inf; 4],
        [nan, 1.0, inf, -inf],
        [f32::MAX, f32::MIN, 0.0, nan],
    ] {
        for temperature in [0.0, 1e-30, 1.0, 1e30] {
            for (top_k, p) in [(0, 1.0), (1, 0.5), (3, 0.0), (99, 0.9)] {
                let mut options = Sampling::greedy();
                (options.temperature, options.top_k) = (temperature, top_k);
                (options.top_p, options.min_p, options.typical_p) = (p, 1.0 - p, p);
                (options.repeat_penalty, options.frequency_penalty) = (1.3, -1.0);
                options.presence_penalty = 1.0;
                let mut sampler = Sampler::new(options.clone(), 4);
                sampler.accept_all(&[0, 1, 1]);
                for _ in 0..4 {
                    let mut logits = logits;
                    assert!(sampler.pick(&mut logits) < 4, "{logits:?} {options:?}");
                }
            }
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = pocket();
    let n_header = {
        let gguf = Gguf::parse(&bytes).unwrap();
        gguf.tensors()[0].data.as_ptr() as usize - bytes.as_ptr() as usize
    };
    let tail = [n_header - 1, n_header, n_header + 1, bytes.len() - 1];
    let near = (0..3000).chain(n_header - 3000..n_header);
    let far = (3000..bytes.len()).step_by(9973);
    for len in near.chain(far).chain(tail) {
        assert!(try_to_run(&bytes[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let mut bytes = pocket();
    let mut random = Random(0x0123_4567_89ab_cdef);
    let (mut n_ran, mut n_refused) = (0, 0);
    for round in 0..4000 {
        // Metadata and tensor entries lie in the first 110 kB, most of it the vocabulary; the keys
        // before that are hit more often.
        let reach = if round % 2 == 0 { 1200 } else { 110_000 };
        let changes = random.flip(&mut bytes, reach);
        match try_to_run(&bytes) {
            Ok(()) => n_ran += 1,
            Err(_) => n_refused += 1,
        }
        restore(&mut bytes, changes);
    }
    assert!(
        n_ran > 50 && n_refused > 50,
        "{n_ran} ran, {n_refused} were refused"
    );
    assert_eq!(bytes, pocket());
}

/// A byte-level BPE vocabulary of a real one's first tokens, small enough to be read thousands of
/// times.
fn small_bpe(pre: &str) -> Option<Vec<u8>> {
    let path = common::shared("peer/vocab/ggml-vocab-gpt-2.gguf")?;
    let bytes = std::fs::read(path).unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let strings = |key: &str, n: usize| -> Vec<Vec<u8>> {
        let array = gguf.get_array(key).unwrap().unwrap();
        let strings = array.iter_str().unwrap();
        strings.take(n).map(<[u8]>::to_vec).collect()
    };
    // GPT-2's first 256 tokens are the bytes; each merge makes the next one.
    let (n_tokens, n_merges) = (700, 700 - 256);
    let mut tokens = strings("tokenizer.ggml.tokens", n_tokens);
    tokens.push(b"<|endoftext|>".to_vec());
    let mut kinds = vec![1_i32; n_tokens];
    kinds.push(3);
    let mut writer = Writer::new();
    for (key, text) in [
        ("general.architecture", "qwen2"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", pre),
    ] {
        writer.add(key, Value::Str(text)).unwrap();
    }
    writer
        .add_strings("tokenizer.ggml.tokens", &tokens)
        .unwrap();
    let merges = strings("tokenizer.ggml.merges", n_merges);
    writer
        .add_strings("tokenizer.ggml.merges", &merges)
        .unwrap();
    writer
        .add_array("tokenizer.ggml.token_type", &kinds)
        .unwrap();
    let eos = Value::U32(n_tokens as u32);
    writer.add("tokenizer.ggml.eos_token_id", eos).unwrap();
    Some(writer.to_vec(&[]).unwrap())
}

#[test]
fn flipped_bytes_of_a_byte_level_vocabulary_never_panic() {
    for (pre, seed) in [
        ("gpt-2", 1),
        ("llama-bpe", 2),
        ("qwen2", 3),
        ("deepseek-llm", 4),
    ] {
        let Some(mut bytes) = small_bpe(pre) else {
            return;
        };
        assert!(try_to_tokenize(&Gguf::parse(&bytes).unwrap()), "{pre}");
        let mut random = Random(seed);
        let (mut n_made, mut n_refused) = (0, 0);
        for round in 0..800 {
            let reach = if round % 2 == 0 { 300 } else { bytes.len() };
            let changes = random.flip(&mut bytes, reach);
            match Gguf::parse(&bytes).is_ok_and(|gguf| try_to_tokenize(&gguf)) {
                true => n_made += 1,
                false => n_refused += 1,
            }
            restore(&mut bytes, changes);
        }
        assert!(
            n_made > 10 && n_refused > 50,
            "{pre}: {n_made} made, {n_refused} refused"
        );
    }
}
