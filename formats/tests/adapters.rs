//! Adapters and calibrations that are malformed, unsupported, or fine.

use tandem_formats::AdapterError;
use tandem_formats::adapter::{calibration, peft};

const CONFIG: &str = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none"}"#;
const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        data,
    ]
    .concat()
}

/// Float32 tensors of these names, rows and columns, counting up from 1.
fn tensors(list: &[(&str, &[usize])]) -> Vec<u8> {
    let (mut header, mut data) = (String::from("{"), Vec::new());
    for (name, shape) in list {
        let start = data.len();
        let n: usize = shape.iter().product();
        data.extend((0..n).flat_map(|i| (i as f32 + 1.0).to_le_bytes()));
        let comma = if header.len() > 1 { "," } else { "" };
        header += &format!(
            r#"{comma}"{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{}]}}"#,
            data.len()
        );
    }
    file(&(header + "}"), &data)
}

fn adapter() -> Vec<u8> {
    tensors(&[(A, &[2, 3]), (B, &[4, 2])])
}

/// The configuration with more keys.
fn config(more: &str) -> String {
    CONFIG.replace('}', &format!(", {more}}}"))
}

/// The error's text, for files that must not be accepted.
fn refused(config: &str, weights: &[u8]) -> String {
    peft::read(config.as_bytes(), weights)
        .expect_err("refused")
        .to_string()
}

#[track_caller]
fn names(error: &str, what: &str) {
    assert!(error.contains(what), "{what:?} not in: {error}");
}

#[test]
fn factors_and_scales_are_read() {
    let loras = peft::read(CONFIG.as_bytes(), &adapter()).unwrap();
    assert_eq!(loras.len(), 1);
    assert_eq!(loras[0].module, "model.layers.0.self_attn.q_proj");
    assert_eq!(loras[0].scale, 4.0);
    assert_eq!(loras[0].a.values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!((loras[0].b.n_rows, loras[0].b.n_cols), (4, 2));
    let scale = |more: &str| {
        let config = config(more);
        peft::read(config.as_bytes(), &adapter()).unwrap()[0].scale
    };
    assert_eq!(
        scale(r#""use_rslora": true"#),
        (8.0_f64 / 2.0_f64.sqrt()) as f32
    );
    // The first pattern that matches wins, in the file's order, from the start of a name's part.
    for (patterns, expected) in [
        (r#"{"q_proj": 2}"#, 1.0),
        (r#"{"proj": 2}"#, 4.0),
        (r#"{"_proj": 2, "q_proj": 6}"#, 3.0),
        (r#"{"self_attn.q_proj": 10, "q_proj": 2}"#, 5.0),
        (r#"{"q_proj": 2, "self_attn.q_proj": 10}"#, 1.0),
        (r#"{"layers\\.\\d+\\.self_attn\\.[qk]_proj": 12}"#, 6.0),
        (r#"{"k_proj|q_proj": 14}"#, 7.0),
        (r#"{"layers.0": 2}"#, 4.0),
        ("null", 4.0),
    ] {
        assert_eq!(scale(&format!(r#""alpha_pattern": {patterns}"#)), expected);
    }
    // A pattern's rank is checked against the factors.
    let ranked = config(r#""use_rslora": false, "rank_pattern": {"q_proj": 2}"#)
        .replace("\"r\": 2", "\"r\": 16");
    assert_eq!(
        peft::read(ranked.as_bytes(), &adapter()).unwrap()[0].scale,
        4.0
    );
}

/// As PEFT and others name them: with the adapter's name, without a beginning, of a model with other modes
/// or without its head.
#[test]
fn modules_have_their_plain_names() {
    let layer = "layers.0.self_attn.q_proj";
    let plain = format!("model.{layer}");
    for (prefix, suffix) in [
        ("base_model.model.model.", ""),
        ("base_model.model.", ""),
        ("base_model.model.model.language_model.", ""),
        ("base_model.model.language_model.model.", ""),
        ("base_model.model.language_model.", ""),
        ("base_model.model.backbone.", ""),
        ("language_model.", ".default"),
        ("model.", ""),
        ("", ""),
        ("base_model.model.model.", ".default"),
    ] {
        let name = |factor: &str| format!("{prefix}{layer}.lora_{factor}{suffix}.weight");
        let weights = tensors(&[(&name("A"), &[2, 3]), (&name("B"), &[4, 2])]);
        let loras = peft::read(CONFIG.as_bytes(), &weights).unwrap();
        assert_eq!(loras[0].module, plain, "{prefix}");
    }
    // Other towers than the language model's are not taken for it.
    let vision = "base_model.model.model.vision_tower.layers.0.self_attn.q_proj.lora_";
    let names_of = [format!("{vision}A.weight"), format!("{vision}B.weight")];
    let weights = tensors(&[(&names_of[0], &[2, 3]), (&names_of[1], &[4, 2])]);
    let loras = peft::read(CONFIG.as_bytes(), &weights).unwrap();
    assert_eq!(
        loras[0].module,
        "model.vision_tower.layers.0.self_attn.q_proj"
    );
    // The same module under two names.
    let twice = ["base_model.model.model.", "base_model.model."]
        .map(|prefix| ["A", "B"].map(|factor| format!("{prefix}{layer}.lora_{factor}.weight")));
    let [[a, b], [c, d]] = &twice;
    let weights = tensors(&[(a, &[2, 3]), (b, &[4, 2]), (c, &[2, 3]), (d, &[4, 2])]);
    names(&refused(CONFIG, &weights), &plain);
    // What PEFT saves beside the factors of the output, and of nothing else.
    let head = |rest: &str| format!("base_model.model.lm_head.{rest}.weight");
    let (a, b, copy) = (head("lora_A"), head("lora_B"), head("base_layer"));
    let weights = tensors(&[(&a, &[2, 3]), (&b, &[4, 2]), (&copy, &[4, 3])]);
    let loras = peft::read(CONFIG.as_bytes(), &weights).unwrap();
    assert_eq!((loras.len(), &*loras[0].module), (1, "lm_head"));
    let weights = tensors(&[(A, &[2, 3]), (B, &[4, 2]), (&copy, &[4, 3])]);
    names(&refused(CONFIG, &weights), &copy);
}

#[test]
fn doubles_are_read() {
    let entry = |shape, start: usize| {
        let end = start + 16;
        format!(r#"{{"dtype":"F64","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let header = format!(
        r#"{{"{A}":{},"{B}":{}}}"#,
        entry("[2,1]", 0),
        entry("[1,2]", 16)
    );
    let data = 1.5_f64.to_le_bytes().repeat(4);
    let loras = peft::read(CONFIG.as_bytes(), &file(&header, &data)).unwrap();
    assert_eq!(loras[0].b.values, [1.5, 1.5]);
}

#[test]
fn half_floats_are_read() {
    for (dtype, one) in [("F16", 0x3c00_u16), ("BF16", 0x3f80)] {
        let entry = |shape, end: usize| {
            format!(
                r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{},{end}]}}"#,
                end - 4
            )
        };
        let header = format!(
            r#"{{"__metadata__":{{"format":"pt"}},"{A}":{},"{B}":{}}}"#,
            entry("[2,1]", 4),
            entry("[1,2]", 8)
        );
        let loras = peft::read(
            CONFIG.as_bytes(),
            &file(&header, &one.to_le_bytes().repeat(4)),
        );
        assert_eq!(loras.unwrap()[0].a.values, [1.0, 1.0]);
    }
}

#[test]
fn what_would_change_the_result_is_refused_by_name() {
    for key in [
        r#""use_dora": true"#,
        r#""lora_bias": true"#,
        r#""modules_to_save": ["lm_head"]"#,
        r#""layer_replication": [[0, 2], [1, 3]]"#,
        r#""alora_invocation_tokens": [1, 2]"#,
        r#""trainable_token_indices": [5]"#,
        r#""target_parameters": ["experts"]"#,
        r#""use_qalora": true"#,
        r#""arrow_config": {"top_k": 2}"#,
        r#""loftq_config": {"loftq_bits": 4}"#,
        r#""lora_gain_of_next_year": 1"#,
        r#""use_what_comes": true"#,
        r#""init_lora_weights": "pissa""#,
        r#""alpha_pattern": {"(?<=x)q_proj": 2}"#,
    ] {
        let name = key.split('"').nth(1).unwrap();
        names(&refused(&config(key), &adapter()), name);
    }
    let bias = CONFIG.replace("none", "all");
    names(&refused(&bias, &adapter()), "bias");
    names(
        &refused(&CONFIG.replace("LORA", "LOHA"), &adapter()),
        "LOHA",
    );
    names(
        &refused(r#"{"r": 2, "lora_alpha": 8}"#, &adapter()),
        "peft_type",
    );
    let mlx = r#"{"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 2}}"#;
    names(&refused(mlx, &adapter()), "MLX");
    for name in [
        "base_model.model.lm_head.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "model.layers.0.self_attn.q_proj.base_layer.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.other.weight",
        "",
    ] {
        let weights = tensors(&[(A, &[2, 3]), (B, &[4, 2]), (name, &[1, 1])]);
        names(&refused(CONFIG, &weights), name);
    }
    // What has no effect, or is switched off, is fine.
    for key in [
        r#""use_dora": false, "modules_to_save": null, "layer_replication": []"#,
        r#""lora_dropout": 0.1, "peft_version": "0.21.2", "target_modules": ["q_proj"]"#,
        r#""init_lora_weights": "gaussian", "loftq_config": {}, "invented": null"#,
        r#""use_rslora": null, "rank_pattern": null, "alpha_pattern": null, "fan_in_fan_out": true"#,
        r#""unsloth_version": "2026.1", "learning_rate": 1e-4, "epochs": 3, "_comment": "a", "run": {}"#,
    ] {
        assert!(peft::read(config(key).as_bytes(), &adapter()).is_ok());
    }
}

#[test]
fn malformed_configurations_are_refused() {
    for (from, to, what) in [
        ("\"r\": 2", "\"r\": 0", "\"r\""),
        ("\"r\": 2", "\"r\": -2", "\"r\""),
        ("\"r\": 2", "\"r\": 1e99", "\"r\""),
        ("\"r\": 2", "\"r\": 3", "rank 2"),
        ("\"r\": 2", "\"r\": 2, \"r\": 2", "twice"),
        ("\"r\": 2,", "", "\"r\""),
        ("8", "\"8\"", "lora_alpha"),
        ("8", "1e300", "infinite"),
        ("{", "[", "adapter_config.json"),
        ("}", "", "adapter_config.json"),
        (
            "\"bias\"",
            "\"rank_pattern\": {\"q_proj\": 1.5}, \"bias\"",
            "rank_pattern",
        ),
        (
            "\"bias\"",
            "\"rank_pattern\": {\"q_proj\": []}, \"bias\"",
            "adapter_config.json",
        ),
        (
            "\"bias\"",
            "\"use_rslora\": \"yes\", \"bias\"",
            "use_rslora",
        ),
    ] {
        names(&refused(&CONFIG.replacen(from, to, 1), &adapter()), what);
    }
    let nested = format!("{{\"x\": {}1{}}}", "[".repeat(9999), "]".repeat(9999));
    names(&refused(&nested, &adapter()), "adapter_config.json");
    let slow = config(r#""alpha_pattern": {"(((((a{999}){999}){999}){999})": 1}"#);
    names(&refused(&slow, &adapter()), "alpha_pattern");
    // Many small patterns take much more memory than their text.
    let many: Vec<_> = (0..1025).map(|i| format!(r#""m{i}": 1"#)).collect();
    let many = config(&format!(r#""rank_pattern": {{{}}}"#, many.join(",")));
    names(&refused(&many, &adapter()), "more than 1024 patterns");
}

#[test]
fn malformed_safetensors_are_refused() {
    let entry = |shape: &str, from: u64, to: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let pair = |a: String, b: String| format!(r#"{{"{A}":{a},"{B}":{b}}}"#);
    let good = pair(entry("[2,1]", 0, 8), entry("[1,2]", 8, 16));
    assert!(peft::read(CONFIG.as_bytes(), &file(&good, &[0; 16])).is_ok());
    let huge = 1 << 61;
    for (header, n_bytes, what) in [
        // Past the end, a gap, an overlap, backwards, not of the shape's size, bytes left over.
        (pair(entry("[2,1]", 0, 8), entry("[1,2]", 8, 16)), 15, B),
        (pair(entry("[2,1]", 0, 8), entry("[1,2]", 9, 17)), 17, B),
        (pair(entry("[2,1]", 0, 8), entry("[1,2]", 4, 12)), 12, B),
        (pair(entry("[2,1]", 8, 0), entry("[1,2]", 8, 16)), 16, A),
        (pair(entry("[2,2]", 0, 8), entry("[1,2]", 8, 16)), 16, A),
        (
            pair(entry("[2,1]", 0, 8), entry("[1,2]", 8, 16)),
            17,
            "after its last",
        ),
        // Promises that overflow, alone and summed up.
        (
            pair(
                entry("[4294967296,4294967296]", 0, 8),
                entry("[1,2]", 8, 16),
            ),
            16,
            A,
        ),
        (
            pair(entry("[2,1]", 0, 8), entry("[1,2]", 8, u64::MAX)),
            16,
            B,
        ),
        (
            pair(
                entry(&format!("[{huge},1]"), 0, 4 * huge - 8),
                entry("[1,2]", 8, 16),
            ),
            16,
            A,
        ),
        // Ranks that differ, empty factors, other dimensions.
        (
            pair(entry("[2,1]", 0, 8), entry("[2,1]", 8, 16)),
            16,
            "do not fit",
        ),
        (
            pair(entry("[2,0]", 0, 0), entry("[2,2]", 0, 16)),
            16,
            "do not fit",
        ),
        (
            pair(entry("[2]", 0, 8), entry("[1,2]", 8, 16)),
            16,
            "1 dimensions",
        ),
        (
            pair(entry("[2,1,1]", 0, 8), entry("[1,2]", 8, 16)),
            16,
            "3 dimensions",
        ),
        (
            pair(
                entry("[2,1]", 0, 8).replace("F32", "I32"),
                entry("[1,2]", 8, 16),
            ),
            16,
            "I32",
        ),
        (
            pair(
                entry("[2,1]", 0, 8).replace("F32", "F3"),
                entry("[1,2]", 8, 16),
            ),
            16,
            "F3",
        ),
        (pair(entry("[2,-1]", 0, 8), entry("[1,2]", 8, 16)), 16, A),
        (
            pair(
                entry("[2,1]", 0, 8).replace("shape", "form"),
                entry("[1,2]", 8, 16),
            ),
            16,
            A,
        ),
        (pair("7".to_string(), entry("[1,2]", 0, 8)), 8, A),
        (format!(r#"{{"{A}":{}}}"#, entry("[2,1]", 0, 8)), 8, B),
        ("{}".to_string(), 0, "no factors"),
        ("[]".to_string(), 0, "header"),
        (good.replace('}', ""), 16, "header"),
        (
            format!(r#"{{"{A}":{0},"{A}":{0}}}"#, entry("[2,0]", 0, 0)),
            0,
            "twice",
        ),
    ] {
        names(&refused(CONFIG, &file(&header, &vec![0; n_bytes])), what);
    }
    let nan = [0.0, f32::NAN, 0.0, 0.0].map(f32::to_le_bytes).concat();
    names(&refused(CONFIG, &file(&good, &nan)), A);
    for (bytes, what) in [
        (vec![], "8 bytes"),
        (vec![1; 7], "8 bytes"),
        (vec![0xff; 16], "8 MiB"),
        (100_u64.to_le_bytes().to_vec(), "inside its header"),
        ([&2_u64.to_le_bytes()[..], &[0xff, 0xfe]].concat(), "header"),
    ] {
        names(&refused(CONFIG, &bytes), what);
    }
}

/// Every prefix, and some thousand changes of a few bytes: no panic, and never half an adapter.
#[test]
fn truncated_and_changed_files_never_panic() {
    let good = adapter();
    let patterned = config(r#""alpha_pattern": {"q_proj": 3}, "use_rslora": true"#);
    for n in 0..good.len() {
        assert!(peft::read(patterned.as_bytes(), &good[..n]).is_err(), "{n}");
    }
    for n in 0..patterned.len() {
        assert!(
            peft::read(&patterned.as_bytes()[..n], &good).is_err(),
            "{n}"
        );
    }
    let mut state = 1_u64;
    let mut below = |n: usize| {
        // Xorshift64* (Vigna, arXiv 1402.6246).
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    };
    let mut n_read = 0;
    for round in 0..20_000 {
        let (mut config, mut weights) = (patterned.clone().into_bytes(), good.clone());
        let target = if round % 2 == 0 {
            &mut config
        } else {
            &mut weights
        };
        for _ in 0..1 + below(3) {
            let at = below(target.len());
            target[at] = match below(3) {
                0 => b"0123456789\"{}[],:.-e"[below(20)],
                1 => below(256) as u8,
                _ => target[at] ^ 1 << below(8),
            };
        }
        let Ok(loras) = peft::read(&config, &weights) else {
            continue;
        };
        n_read += 1;
        for lora in loras {
            assert_eq!(lora.a.values.len(), lora.a.n_rows * lora.a.n_cols);
            assert_eq!(lora.b.values.len(), lora.b.n_rows * lora.a.n_rows);
            assert!(lora.scale.is_finite());
        }
    }
    // Changes of values and names that do not matter leave a file that can be read.
    assert!(n_read > 100, "{n_read}");
}

#[test]
fn calibrations_are_read_and_their_keys_checked() {
    let read = |list: &[(&str, &[usize])]| calibration::read(&tensors(list));
    let file = read(&[
        ("q_proj.p", &[3]),
        ("q_proj.P1", &[2, 4]),
        ("q_proj.P2", &[3, 2]),
        ("layers.12.down_proj.M", &[2, 2]),
    ])
    .unwrap();
    let q = &file[&(None, "q_proj".to_string())];
    assert_eq!(q.p.as_ref().unwrap().values, [1.0, 2.0, 3.0]);
    assert_eq!(q.p1.as_ref().unwrap().n_cols, 4);
    assert!(q.p2.is_some() && q.m.is_none());
    assert!(file[&(Some(12), "down_proj".to_string())].m.is_some());
    for name in [
        "p",
        "q_proj",
        "q_proj.P3",
        "layers.x.q_proj.p",
        "layers.1.p",
    ] {
        let error = read(&[(name, &[3])]).unwrap_err();
        assert_eq!(error, AdapterError::UnknownTensor { name: name.into() });
    }
    let twice: [(&str, &[usize]); 2] = [("layers.1.q_proj.p", &[3]), ("layers.01.q_proj.p", &[3])];
    assert!(matches!(read(&twice), Err(AdapterError::Duplicate { .. })));
    let error = read(&[("q_proj.p", &[3, 1])]).unwrap_err();
    assert!(matches!(error, AdapterError::Dimensions { .. }));
}
