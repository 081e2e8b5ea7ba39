//! Wrong models of every architecture, and what their files may have besides.

use super::*;

/// The peers' models of every architecture; none, said so, where they are not laid out.
fn peers() -> Vec<(&'static str, Vec<u8>)> {
    let all = common::peers::PEERS.into_iter();
    all.filter_map(|name| {
        let path = common::shared(&format!("peer/logits/{name}-f16.gguf"))?;
        Some((name, std::fs::read(path).unwrap()))
    })
    .collect()
}

/// An expert that all tokens use may be wider than all else in the model.
#[test]
fn a_wide_shared_expert_runs() {
    for name in ["granitehybridmoe", "qwen35moe"] {
        let Some(path) = common::shared(&format!("peer/logits/{name}-f16.gguf")) else {
            continue;
        };
        let bytes = std::fs::read(path).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        let wide = 4096;
        let zeros = vec![0; 1 << 21];
        let bytes = rebuilt(
            &gguf,
            |key, v| match key.ends_with("expert_shared_feed_forward_length") {
                true => Some(Value::U32(wide as u32)),
                false => Some(v),
            },
            |mut t| {
                if t.0.ends_with("_shexp.weight") && !t.0.contains("inp_shexp") {
                    let side = usize::from(!t.0.contains("down"));
                    t.1[side] = wide;
                    t.3 = &zeros[..2 * t.1.iter().product::<usize>()];
                }
                Some(t)
            },
        );
        try_to_run(&bytes).unwrap();
    }
}

/// Norms and scales that nothing would apply are not taken for used.
#[test]
fn what_a_layer_does_not_apply_is_refused() {
    for (name, extra) in [
        ("nemotron_h", "blk.0.post_ffw_norm.weight"),
        ("nemotron_h", "blk.1.post_attention_norm.weight"),
        ("gemma3n", "blk.0.layer_output_scale.weight"),
    ] {
        let Some(path) = common::shared(&format!("peer/logits/{name}-f16.gguf")) else {
            continue;
        };
        let bytes = std::fs::read(path).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        let mut writer = Writer::new();
        for (key, value) in gguf.metadata() {
            writer.add(key, *value).unwrap();
        }
        for t in gguf.tensors() {
            writer.add_tensor(t.name, t.shape(), t.dtype).unwrap();
        }
        let norm = gguf.tensor("output_norm.weight").unwrap();
        let n = match extra.contains("norm") {
            true => norm.n_elements(),
            false => 1,
        };
        writer.add_tensor(extra, &[n], DType::F32).unwrap();
        let mut data: Vec<_> = gguf.tensors().iter().map(|t| t.data).collect();
        data.push(&norm.data[..4 * n]);
        let refused = Model::from_bytes(writer.to_vec(&data).unwrap()).unwrap_err();
        assert!(chain(&refused).contains(extra), "{name}: {refused}");
    }
}

/// Layers behind the others that predict further tokens: left out where the file says that they are such.
#[test]
fn layers_that_predict_further_tokens_are_left_out() {
    let Some(path) = common::shared("peer/logits/qwen35-f16.gguf") else {
        return;
    };
    let bytes = std::fs::read(path).unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let with = |n_predict: u32| {
        let mut writer = Writer::new();
        for (key, value) in gguf.metadata() {
            let value = match key {
                "qwen35.block_count" => Value::U32(8 + n_predict),
                _ => *value,
            };
            writer.add(key, value).unwrap();
        }
        writer
            .add("qwen35.nextn_predict_layers", Value::U32(n_predict))
            .unwrap();
        for t in gguf.tensors() {
            writer.add_tensor(t.name, t.shape(), t.dtype).unwrap();
        }
        writer
            .add_tensor("blk.8.nextn.eh_proj.weight", &[1, 1], DType::F32)
            .unwrap();
        let mut data: Vec<_> = gguf.tensors().iter().map(|t| t.data).collect();
        data.push(&[0; 4]);
        Model::from_bytes(writer.to_vec(&data).unwrap())
    };
    assert_eq!(with(1).unwrap().layers().len(), 8);
    assert!(
        with(0)
            .unwrap_err()
            .to_string()
            .contains("blk.8.nextn.eh_proj")
    );
    let message = with(u32::MAX - 8).unwrap_err().to_string();
    assert!(message.contains("block_count"), "{message}");
}

/// The same for the other architectures, their keys as their files have them and those that they
/// could have.
#[test]
fn wrong_values_are_named_in_every_architecture() {
    let optional = [
        "attention.scale",
        "attention.sliding_window",
        "expert_count",
        "final_logit_softcapping",
        "rope.scale_linear",
        "rope.scaling.attn_factor",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
    ];
    for (name, bytes) in peers() {
        let gguf = Gguf::parse(&bytes).unwrap();
        let arch = gguf.get_str("general.architecture").unwrap().unwrap();
        let own = gguf.metadata().map(|(key, _)| key.to_string());
        let own = own.filter(|key| key.starts_with(arch) && !key.ends_with(".vocab_size"));
        let mut keys: BTreeSet<_> = own
            .chain(optional.map(|key| format!("{arch}.{key}")))
            .collect();
        // Without experts what else is said of them is of no use.
        if name == "granitehybrid" {
            keys.retain(|key| !key.contains(".expert_") || key.ends_with("expert_count"));
        }
        // Heads that are never turned have no use for what says whether they are; what has no heads, for all of it.
        match name {
            "nemotron_h" => drop(keys.remove("nemotron_h.rope.scaling.finetuned")),
            "mamba2" => keys.retain(|key| !key.contains(".rope.")),
            _ => {}
        }
        // Nemotron's files have both, and LayerNorm's is used.
        if name == "nemotron" {
            keys.remove("nemotron.attention.layer_norm_rms_epsilon");
        }
        // A list in any case, of what makes no difference for text.
        keys.remove(&format!("{arch}.rope.dimension_sections"));
        // Of images alone.
        keys.remove("qwen3vl.n_deepstack_layers");
        // The older of two keys for one thing is not looked at beside the newer.
        let factor = gguf.get_f32(&format!("{arch}.rope.scaling.factor"));
        if factor.unwrap().is_some_and(|factor| factor != 0.0) {
            keys.remove(&format!("{arch}.rope.scale_linear"));
        }
        assert!(keys.len() > 12, "{name}: {keys:?}");
        for key in &keys {
            // No list is a number, a text or a flag.
            let mut writer = Writer::new();
            for (k, v) in gguf.metadata().filter(|(k, _)| k != key) {
                writer.add(k, *v).unwrap();
            }
            writer.add_array(key, &[1_u32, 2, 1, 2, 1, 2, 1]).unwrap();
            for t in gguf.tensors() {
                writer.add_tensor(t.name, t.shape(), t.dtype).unwrap();
            }
            let data: Vec<_> = gguf.tensors().iter().map(|t| t.data).collect();
            let error = try_to_run(&writer.to_vec(&data).unwrap()).expect_err(key);
            assert!(error.contains(key.as_str()), "{name}, {key}: {error}");
        }
        // Numbers that are possible, but not of this model.
        let numbers = [1, 2, 3, 7, 63, 64, 513, 65_537, 1 << 24].map(Value::U32);
        for key in keys
            .iter()
            .filter(|key| gguf.get_u64(key).is_ok_and(|v| v.is_some()))
        {
            for number in numbers {
                let change = |k: &str, v| Some(if k == key { number } else { v });
                let _ = try_to_run(&rebuilt(&gguf, change, Some));
            }
        }
    }
}

/// Norms and biases that every model of an architecture has: a file without them would run and
/// give wrong results.
#[test]
fn tensors_that_an_architecture_always_has_are_missed() {
    let mut loaded = Vec::new();
    for (name, bytes) in peers() {
        let gguf = Gguf::parse(&bytes).unwrap();
        // Some models have these and others of the same architecture do not.
        let may_lack = |tensor: &str| match name {
            "stablelm" => {
                tensor.contains("attn_q") || tensor.contains("_k") || tensor.contains("_v")
            }
            "glm4" => tensor.ends_with(".bias"),
            // Its larger models have none in some layers.
            "gemma4" | "gemma4moe" => tensor.ends_with("attn_v.weight"),
            // Its last layers see the keys of others.
            "gemma3n" => {
                let of_keys = ["attn_k.weight", "attn_k_norm.weight", "attn_v.weight"];
                let is_late = (20..25).any(|i| tensor.starts_with(&format!("blk.{i}.")));
                is_late && of_keys.iter().any(|part| tensor.ends_with(part))
            }
            "llama3rope" | "exaone4" | "apertus" => tensor == "rope_freqs.weight",
            _ => false,
        };
        let tensors = gguf.tensors().iter().map(|t| t.name);
        for tensor in tensors.filter(|t| !may_lack(t) && *t != "output.weight") {
            let without = rebuilt(&gguf, |_, v| Some(v), |t| (t.0 != tensor).then_some(t));
            match Model::from_bytes(without) {
                Ok(_) => loaded.push(format!("{name} without {tensor}")),
                Err(error) => {
                    // Fused matrices are named by their parts.
                    let mut part = match name {
                        "qwen35" | "qwen35moe" => tensor.to_string(),
                        _ => tensor.replace("attn_qkv", "attn_q"),
                    };
                    part = part.replace("ffn_gate_up_exps", "ffn_gate_exps");
                    if ["phi3", "glm4"].contains(&name) {
                        part = part.replace("ffn_up", "ffn_gate");
                    }
                    assert!(error.to_string().contains(&part), "{name}: {error}");
                }
            }
        }
    }
    assert_eq!(loaded, [] as [String; 0]);
}

#[test]
fn flipped_bytes_never_panic_in_any_architecture() {
    for (name, mut bytes) in peers() {
        let n_header = {
            let gguf = Gguf::parse(&bytes).unwrap();
            gguf.tensors()[0].data.as_ptr() as usize - bytes.as_ptr() as usize
        };
        let mut random = Random(0xfeed_beef);
        let (mut n_ran, mut n_refused) = (0, 0);
        for _ in 0..1000 {
            let changes = random.flip(&mut bytes, n_header);
            match try_to_run(&bytes) {
                Ok(()) => n_ran += 1,
                Err(_) => n_refused += 1,
            }
            restore(&mut bytes, changes);
        }
        assert!(
            n_ran > 10 && n_refused > 50,
            "{name}: {n_ran} ran, {n_refused} were refused"
        );
    }
}
