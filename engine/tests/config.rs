//! Hyperparameters as files give them.

use tandem_engine::Config;
use tandem_engine::model::MixerConfig;
use tandem_formats::{DType, Gguf, Value, Writer};

/// Metadata of a made-up Gemma 3 of 6 layers, with a change.
fn gemma3(change: impl FnOnce(&mut Writer)) -> Result<Config, String> {
    let mut w = Writer::new();
    w.add("general.architecture", Value::Str("gemma3")).unwrap();
    for (key, value) in [
        ("embedding_length", 64),
        ("block_count", 6),
        ("context_length", 128),
        ("attention.sliding_window", 16),
        ("attention.key_length", 16),
        ("attention.value_length", 16),
        ("attention.head_count", 4),
    ] {
        w.add(&format!("gemma3.{key}"), Value::U32(value)).unwrap();
    }
    let eps = "gemma3.attention.layer_norm_rms_epsilon";
    w.add(eps, Value::F32(1e-6)).unwrap();
    change(&mut w);
    w.add_tensor("token_embd.weight", &[64, 8], DType::F16)
        .unwrap();
    let file = w.to_vec(&[&[0; 2 * 64 * 8]]).unwrap();
    Config::from_gguf(&Gguf::parse(&file).unwrap()).map_err(|error| error.to_string())
}

/// Which layers have a window.
fn windows(config: &Config) -> Vec<bool> {
    let window = |layer: &tandem_engine::model::LayerConfig| match &layer.mixer {
        MixerConfig::Attention(attention) => attention.window.is_some(),
        _ => false,
    };
    config.layers.iter().map(window).collect()
}

const N_FF: &str = "gemma3.feed_forward_length";
const N_HEAD_KV: &str = "gemma3.attention.head_count_kv";
const PATTERN: &str = "gemma3.attention.sliding_window_pattern";

#[test]
fn files_may_say_which_layers_have_a_window() {
    let with = |pattern: Option<Value<'_>>| {
        gemma3(|w| {
            w.add(N_FF, Value::U32(32)).unwrap();
            if let Some(pattern) = pattern {
                w.add(PATTERN, pattern).unwrap();
            }
        })
    };
    let y = true;
    assert_eq!(windows(&with(None).unwrap()), [y, y, y, y, y, !y]);
    assert_eq!(
        windows(&with(Some(Value::U32(3))).unwrap()),
        [y, y, !y, y, y, !y]
    );
    assert_eq!(windows(&with(Some(Value::U32(1))).unwrap()), [!y; 6]);
    assert_eq!(windows(&with(Some(Value::U32(0))).unwrap()), [y; 6]);
    let listed = |layers: &[bool]| {
        gemma3(|w| {
            w.add(N_FF, Value::U32(32)).unwrap();
            w.add_array(PATTERN, layers).unwrap();
        })
    };
    let layers = [!y, y, !y, y, y, y];
    assert_eq!(windows(&listed(&layers).unwrap()), layers);
    for wrong in [
        listed(&layers[..5]),
        with(Some(Value::Str("3"))),
        with(Some(Value::I32(-1))),
    ] {
        assert!(wrong.unwrap_err().contains("sliding_window_pattern"));
    }
}

#[test]
fn a_list_with_the_same_for_all_layers_is_as_good_as_a_number() {
    let listed = |n_ff: &[u32], n_head_kv: &[u32]| {
        gemma3(|w| {
            w.add_array(N_FF, n_ff).unwrap();
            w.add_array(N_HEAD_KV, n_head_kv).unwrap();
        })
    };
    let config = listed(&[32; 6], &[2; 6]).unwrap();
    assert!(config.layers.iter().all(|layer| layer.ffn.n_ff() == 32));
    assert!(
        config
            .attentions()
            .all(|attention| attention.n_head_kv == 2)
    );
    let wrong = listed(&[32; 6], &[2, 2, 2, 1, 2, 2]).unwrap_err();
    assert!(
        wrong.contains("head_count_kv") && wrong.contains("differ"),
        "{wrong}"
    );
    assert!(listed(&[], &[2; 6]).unwrap_err().contains("empty"));
}
