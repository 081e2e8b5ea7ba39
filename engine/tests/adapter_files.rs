//! Adapters' files on a base model: read, and refused where they do not fit it.

#[path = "common/adapters.rs"]
mod made_up;

use std::path::{Path, PathBuf};

use made_up::{adapter, lora, safetensors, shape};
use tandem_engine::{Adapter, Architecture, CompositionError, DType, Linears, Model};
use tandem_formats::adapter::Lora;
use tandem_formats::{Gguf, Value, Writer};

fn pocket_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/pocket-q8_0.gguf")
}

fn pocket() -> Model {
    Model::open(pocket_path()).unwrap()
}

/// llama.cpp's file of an adapter.
fn lora_gguf(adapter: &Adapter, change: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::new();
    for (key, value) in [
        ("general.type", "adapter"),
        ("general.architecture", "llama"),
        ("adapter.type", "lora"),
    ] {
        writer.add(key, Value::Str(value)).unwrap();
    }
    change(&mut writer);
    let mut data = Vec::new();
    for (name, lora) in adapter.modules() {
        for (part, x) in [("lora_a", &lora.a), ("lora_b", &lora.b)] {
            let name = format!("{name}.weight.{part}");
            let bytes: Vec<u8> = x.values.iter().flat_map(|x| x.to_le_bytes()).collect();
            writer
                .add_tensor(&name, &[x.n_cols, x.n_rows], DType::F32)
                .unwrap();
            data.push(bytes);
        }
    }
    let data: Vec<&[u8]> = data.iter().map(|d| &d[..]).collect();
    writer.to_vec(&data).unwrap()
}

#[test]
fn llama_cpp_s_files_are_read() {
    let model = pocket();
    let base = model.linears();
    let truth = adapter(base, 4, 3);
    let read = |bytes: &[u8]| Adapter::from_gguf(base, &Gguf::parse(bytes).unwrap());
    let alpha =
        |alpha: f32| move |w: &mut Writer| w.add("adapter.lora.alpha", Value::F32(alpha)).unwrap();
    // The scale is alpha over the rank, or 1.
    for (value, scale) in [(6.0, 1.5), (0.0, 1.0)] {
        let found = read(&lora_gguf(&truth, alpha(value))).unwrap();
        assert_eq!(found.modules().len(), truth.modules().len());
        for (name, lora) in found.modules() {
            let truth = Lora {
                scale,
                ..truth.modules()[name].clone()
            };
            assert_eq!(*lora, truth);
        }
    }
    let refused = |what: &str, change: &dyn Fn(&mut Writer)| {
        let bytes = lora_gguf(&truth, |w| {
            alpha(6.0)(w);
            change(w);
        });
        let error = read(&bytes).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    refused("alora", &|w| {
        w.add_array("adapter.alora.invocation_tokens", &[1_u32, 2])
            .unwrap();
    });
    let without_alpha = read(&lora_gguf(&truth, |_| {})).unwrap();
    assert!(
        without_alpha
            .modules()
            .values()
            .all(|lora| lora.scale == 1.0)
    );
    let mut qwen = model.config().clone();
    qwen.arch = Architecture::from_name("qwen2").unwrap();
    let qwen = Linears::of(&qwen);
    let bytes = lora_gguf(&truth, alpha(6.0));
    let error = Adapter::from_gguf(&qwen, &Gguf::parse(&bytes).unwrap()).unwrap_err();
    assert!(matches!(error, CompositionError::Architecture { .. }));
    let model_file = std::fs::read(pocket_path()).unwrap();
    assert!(
        read(&model_file)
            .unwrap_err()
            .to_string()
            .contains("general.type")
    );
}

#[test]
fn what_does_not_fit_the_base_is_named() {
    let model = pocket();
    let base = model.linears();
    let q = shape(base, "blk.0.attn_q");
    let (n_ff, n_embd) = shape(base, "blk.0.ffn_up");
    for (name, shape) in [
        ("blk.6.attn_q", q),
        ("blk.00.attn_q", q),
        ("blk.+1.attn_q", q),
        ("blk.18446744073709551616.attn_q", q),
        ("blk.0.attn_norm", q),
        ("token_embd", shape(base, "output")),
        ("rope", q),
        ("blk.0.attn_q", (q.0 + 1, q.1)),
        ("blk.0.attn_q", (q.0, q.1 - 1)),
        ("blk.0.ffn_up", (2 * n_ff, n_embd + 1)),
        ("blk.0.attn_qkv", q),
    ] {
        let error = Adapter::new(base, vec![lora(name, shape, 2, 1)]).unwrap_err();
        assert!(error.to_string().contains(name), "{name}: {error}");
    }
    // Hugging Face's names, of a module that only another architecture has.
    let weights = |module: &str| {
        let names = ["A", "B"]
            .map(|part| format!("base_model.model.model.layers.0.{module}.lora_{part}.weight"));
        safetensors(&[
            (&names[0], &[1, n_embd], &vec![0.5; n_embd]),
            (&names[1], &[n_embd, 1], &vec![0.5; n_embd]),
        ])
    };
    let config = br#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1}"#;
    assert!(Adapter::from_peft(base, config, &weights("self_attn.q_proj")).is_ok());
    for module in [
        "self_attn.qkv_proj",
        "mlp.gate_up_proj",
        "input_layernorm",
        "mlp.experts",
    ] {
        let error = Adapter::from_peft(base, config, &weights(module)).unwrap_err();
        assert!(error.to_string().contains(module), "{error}");
    }
    let twice = vec![lora("output", shape(base, "output"), 2, 1); 2];
    assert!(
        Adapter::new(base, twice)
            .unwrap_err()
            .to_string()
            .contains("output")
    );
}
