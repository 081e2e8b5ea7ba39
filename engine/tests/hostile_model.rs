//! Models that are wrong: every hyperparameter, every tensor, and bytes flipped at random.

use std::path::Path;

use tandem_engine::tokenizer::Tokenizer;
use tandem_engine::{
    DType, Model, ModelError, Sampler, SamplerOptions, Serial, Session, SessionOptions,
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

/// Loads a model and runs two tokens of it, and whatever happens must be no panic.
fn try_to_run(bytes: &[u8]) -> Result<(), String> {
    let gguf = Gguf::parse(bytes).map_err(|e| e.to_string())?;
    if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) {
        let options = tandem_engine::tokenizer::EncodeOptions {
            add_special: true,
            parse_special: true,
        };
        let _ = tokenizer.encode("Hello, world", options);
    }
    let model = Model::load(&gguf).map_err(|e| e.to_string())?;
    let options = SessionOptions {
        n_ctx: 8,
        ..SessionOptions::for_model(&model.config)
    };
    let mut session = Session::new(&model, &Serial, options).map_err(|e| e.to_string())?;
    let options = SamplerOptions {
        temperature: 1.0,
        top_k: 10,
        top_p: 0.9,
        ..SamplerOptions::default()
    };
    let mut sampler = Sampler::new(options, model.config.n_vocab);
    let logits = session.eval(&[1, 2]).map_err(|e| e.to_string())?;
    sampler.pick(logits);
    Ok(())
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
            // A base or an epsilon may be a number; nothing else of these may be.
            let is_float = key.ends_with("epsilon") || key.ends_with("freq_base");
            let error = with(Some(value)).expect_err(key);
            if !is_float || !matches!(value, Value::U32(_) | Value::U64(_) | Value::I32(_)) {
                let names = [key, "architecture", "metadata", "tensor"];
                assert!(
                    names.iter().any(|n| error.contains(n)),
                    "{key} {value:?}: {error}"
                );
            }
        }
    }
}

#[test]
fn every_missing_misshapen_or_unknown_tensor_is_named() {
    let bytes = pocket();
    let gguf = Gguf::parse(&bytes).unwrap();
    let load = |bytes: &[u8]| {
        Model::load(&Gguf::parse(bytes).unwrap())
            .map(|_| ())
            .unwrap_err()
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

#[test]
fn flipped_bytes_never_panic() {
    let original = pocket();
    let mut state = 0x0123_4567_89ab_cdef_u64;
    let mut random = |n: usize| {
        // Xorshift64* (Vigna, arXiv 1402.6246).
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    };
    let mut bytes = original.clone();
    let (mut n_ran, mut n_refused) = (0, 0);
    for round in 0..1500 {
        // Metadata and tensor entries lie in the first 110 kB, most of it the vocabulary; the keys
        // before that are hit more often.
        let reach = if round % 2 == 0 { 1200 } else { 110_000 };
        let places: Vec<_> = (0..1 + random(3)).map(|_| random(reach)).collect();
        for place in &places {
            bytes[*place] = [0, 1, 0x7f, 0x80, 0xff, random(256) as u8][random(6)];
        }
        match try_to_run(&bytes) {
            Ok(()) => n_ran += 1,
            Err(_) => n_refused += 1,
        }
        for place in places {
            bytes[place] = original[place];
        }
    }
    assert!(
        n_ran > 50 && n_refused > 50,
        "{n_ran} ran, {n_refused} were refused"
    );
}
