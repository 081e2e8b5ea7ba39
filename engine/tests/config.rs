//! Hyperparameters as files give them.

#[expect(dead_code, reason = "of the shared helpers this needs some")]
mod common;

use tandem_engine::Config;
use tandem_engine::model::MixerConfig;
use tandem_formats::{DType, Gguf, Value, Writer};
use tandem_kernels::RopeScaling;

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
fn a_list_has_a_number_for_each_layer() {
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
    let differ = listed(&[32, 32, 32, 32, 48, 48], &[2, 2, 2, 1, 2, 2]).unwrap();
    let n_ff: Vec<_> = differ.layers.iter().map(|layer| layer.ffn.n_ff()).collect();
    assert_eq!(n_ff, [32, 32, 32, 32, 48, 48]);
    let n_head_kv: Vec<_> = differ.attentions().map(|a| a.n_head_kv).collect();
    assert_eq!(n_head_kv, [2, 2, 2, 1, 2, 2]);
    for (n_ff, n_head_kv, key) in [
        (&[][..], &[2; 6][..], "feed_forward_length"),
        (&[32; 7], &[2; 6], "feed_forward_length"),
        (&[32; 6], &[2; 5], "head_count_kv"),
        (&[32; 6], &[2, 2, 3, 2, 2, 2], "head_count_kv"),
        (&[32; 6], &[2, 2, 0, 2, 2, 2], "head_count_kv"),
    ] {
        let wrong = listed(n_ff, n_head_kv).unwrap_err();
        assert!(wrong.contains(key), "{wrong}");
    }
}

/// What a peer's model says with one key more, or with another value of it; the model is none if it is not here.
fn changed(name: &str, key: &str, value: Option<Value<'_>>) -> Option<Result<Config, String>> {
    let path = common::shared(&format!("peer/logits/{name}-f16.gguf"))?;
    let bytes = std::fs::read(path).unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let mut writer = Writer::new();
    for (k, v) in gguf.metadata().filter(|(k, _)| *k != key) {
        writer.add(k, *v).unwrap();
    }
    match value {
        Some(Value::U64(sections)) => {
            writer.add_array(key, &[sections as u32, 4, 4, 0]).unwrap();
        }
        Some(value) => writer.add(key, value).unwrap(),
        None => {}
    }
    for t in gguf.tensors() {
        writer.add_tensor(t.name, t.shape(), t.dtype).unwrap();
    }
    let data: Vec<_> = gguf.tensors().iter().map(|t| t.data).collect();
    let bytes = writer.to_vec(&data).unwrap();
    let config = Config::from_gguf(&Gguf::parse(&bytes).unwrap());
    Some(config.map_err(|error| error.to_string()))
}

#[test]
fn keys_that_change_the_result_are_honoured_or_refused() {
    let refused = |name: &str, key: &str, value: Option<Value<'_>>, what: &str| {
        if let Some(config) = changed(name, key, value) {
            let error = config.unwrap_err();
            assert!(error.contains(what), "{name} {key}: {error}");
        }
    };
    for key in [
        "gemma2.attention.sliding_window",
        "gemma2.attn_logit_softcapping",
        "gemma2.final_logit_softcapping",
    ] {
        refused("gemma2", key, None, key);
    }
    let recurrent = "qwen35.attention.recurrent_layers";
    refused("qwen35", recurrent, Some(Value::U32(1)), recurrent);
    let inner = "qwen35.ssm.inner_size";
    refused("qwen35", inner, Some(Value::U32(65)), inner);
    let heads = "qwen35.ssm.group_count";
    refused("qwen35", heads, Some(Value::U32(3)), heads);
    // Without the list every fourth layer is full attention, as it says.
    if let Some(config) = changed("qwen35", recurrent, None) {
        let config = config.unwrap();
        let is_full = |i: &usize| matches!(config.layers[*i].mixer, MixerConfig::Attention(_));
        let full: Vec<usize> = (0..config.layers.len()).filter(is_full).collect();
        assert_eq!(full, [3, 7]);
    }
    refused(
        "lfm2moe",
        "lfm2moe.expert_gating_func",
        None,
        "expert_gating_func",
    );
    let causal = Some(Value::Bool(false));
    refused("gemma3", "gemma3.attention.causal", causal, "later tokens");
    // Granite's files may say that heads are not turned.
    let turns = "rope.scaling.finetuned";
    for (name, value, is_turned) in [
        ("granite", Some(Value::Bool(false)), false),
        ("granite", Some(Value::Bool(true)), true),
        ("granitehybrid", None, true),
        ("granitehybrid", Some(Value::Bool(false)), false),
    ] {
        if let Some(config) = changed(name, &format!("{name}.{turns}"), value) {
            let config = config.unwrap();
            assert!(config.attentions().all(|c| c.rope.is_some() == is_turned));
        }
    }
    for (key, value) in [
        ("ssm.inner_size", 129),
        ("ssm.inner_size", u32::MAX),
        ("ssm.time_step_rank", 1 << 12),
        ("ssm.group_count", 3),
        ("ssm.state_size", 1 << 23),
        ("ssm.conv_kernel", 1 << 20),
        ("ssm.conv_kernel", 0),
    ] {
        let key = format!("mamba2.{key}");
        let what = key.trim_end_matches("inner_size");
        refused(
            "mamba2",
            &key,
            Some(Value::U32(value)),
            what.trim_end_matches('.'),
        );
    }
    let ranks = "qwen35.ssm.time_step_rank";
    refused("qwen35", ranks, Some(Value::U32(1 << 12)), ranks);
    let n_ff = "mamba2.feed_forward_length";
    refused("mamba2", n_ff, Some(Value::U32(64)), n_ff);
    // Published files have a float, and nothing of what bounds logits.
    let shared = "gemma3n.attention.shared_kv_layers";
    refused("gemma3n", shared, Some(Value::F32(5.5)), shared);
    refused("gemma3n", shared, Some(Value::F32(-1.0)), shared);
    if let Some(config) = changed("gemma3n", shared, Some(Value::F32(5.0))) {
        let shared = config.unwrap();
        let shared = shared.attentions().filter(|c| c.shared_kv.is_some());
        assert_eq!(shared.count(), 5);
    }
    if let Some(config) = changed("gemma3n", "gemma3n.final_logit_softcapping", None) {
        assert_eq!(config.unwrap().logit_softcap, Some(30.0));
    }
    let kv = "nemotron_h.attention.head_count_kv";
    refused("nemotron_h", kv, Some(Value::U32(2)), kv);
    let heads = "nemotron_h.attention.head_count";
    refused("nemotron_h", heads, Some(Value::U32(0)), kv);
    // A list, see `changed`.
    let sections = Some(Value::U64(4));
    refused(
        "glm4",
        "glm4.rope.dimension_sections",
        sections,
        "several dimensions",
    );
    assert!(
        changed("qwen3vl", "qwen3vl.rope.dimension_sections", sections).is_none_or(|c| c.is_ok())
    );
    // Converters write 0 for "none".
    let temperature = "mistral3.attention.temperature_scale";
    if let Some(config) = changed("mistral3", temperature, Some(Value::F32(0.0))) {
        assert!(
            config
                .unwrap()
                .attentions()
                .all(|c| c.temperature.is_none())
        );
    }
    let multiplier = "mistral3.rope.scaling.yarn_log_multiplier";
    if let Some(config) = changed("mistral3", multiplier, Some(Value::F32(0.0))) {
        let scaling = config.unwrap().ropes[0].scaling;
        assert!(matches!(
            scaling,
            RopeScaling::Yarn {
                attn_factor: 1.0,
                ..
            }
        ));
    }
    // OLMo 3: three of four layers have a window, and a rope that is not scaled.
    let window = changed(
        "olmo2",
        "olmo2.attention.sliding_window",
        Some(Value::U32(64)),
    );
    if let Some(config) = window {
        let config = config.unwrap();
        let layers: Vec<_> = config.attentions().map(|c| (c.window, c.rope)).collect();
        let (near, far) = ((Some(64), Some(1)), (None, Some(0)));
        assert_eq!(layers[..4], [near, near, near, far]);
        assert_eq!(config.ropes[1].scaling, RopeScaling::None);
        assert_eq!(config.ropes[1].base, config.ropes[0].base);
    }
}
