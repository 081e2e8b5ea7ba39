//! One test for everything that can be wrong with a bundle, its checksums being right.

mod common;

use common::bundle::{Raw, factors, floats, sample, strings};
use tandem_formats::bundle::{Bundle, BundleError, Contents, limits};
use tandem_formats::{DType, GgufError, Value};

#[test]
fn the_sample_taken_apart_and_put_together_is_valid() {
    let file = Raw::sample().to_vec();
    let bundle = Bundle::parse(file.clone()).unwrap();
    bundle.verify().unwrap();
    assert_eq!(bundle.contents(), &sample());
}

#[test]
fn what_is_no_gguf_file() {
    let e = Bundle::parse(&b"PK\x03\x04, a zip file"[..]).unwrap_err();
    assert!(matches!(e, BundleError::Gguf(GgufError::Magic { .. })));
}

#[test]
fn a_model_or_an_adapter() {
    let e = Raw::sample().text("general.type", "adapter").error();
    assert_eq!(
        e.to_string(),
        "not an adapter bundle: general.type is \"adapter\" instead of \"adapter_bundle\""
    );
    let e = Raw::sample().without("general.type").error();
    assert_eq!(e, BundleError::NotABundle { found: None });
    let e = Raw::sample().set("general.type", Value::U8(1)).error();
    assert!(matches!(e, BundleError::Gguf(GgufError::WrongType { .. })));
}

/// Told before anything that another version might have otherwise, checksums included.
#[test]
fn another_version() {
    let mut raw = Raw::sample().set("bundle.version", Value::U32(2));
    assert_eq!(raw.error(), BundleError::Version { found: 2 });
    raw = raw.without_tensor("bundle.checksums");
    assert_eq!(raw.error(), BundleError::Version { found: 2 });
}

fn missing(key: &str) -> BundleError {
    BundleError::MissingKey {
        key: key.to_string(),
    }
}

#[test]
fn missing_keys() {
    let optional = ["general.type", "general.alignment", "bundle.base.name"];
    let mut n = 0;
    for (key, _) in Raw::sample().metadata {
        let name = key.rsplit('.').next().unwrap();
        let optional_property = ["calibration", "prompt", "description"].contains(&name);
        // Without its type there is no stored merge, and the rest of it is left over.
        let merge = key.starts_with("bundle.composition.dare.")
            && ["type", "density", "rank", "seed"].contains(&name);
        if optional.contains(&&*key) || optional_property || merge {
            continue;
        }
        assert_eq!(Raw::sample().without(&key).error(), missing(&key));
        n += 1;
    }
    assert!(n > 30, "{n} keys");
}

#[test]
fn unknown_keys() {
    for key in [
        "bundle.extra",
        "general.license",
        "bundle.adapter.one.dora",
        "x",
    ] {
        let e = Raw::sample().set(key, Value::U8(0)).error();
        assert_eq!(
            e.to_string(),
            format!("key \"{key}\" is not part of the format")
        );
    }
    let e = Raw::sample()
        .without("bundle.composition.dare.type")
        .error();
    assert!(matches!(e, BundleError::UnknownKey { .. }), "{e}");
}

#[test]
fn unknown_kinds_methods_types_and_hashes() {
    for (key, value) in [
        ("bundle.calibration.lc.kind", "high_rank"),
        ("bundle.composition.both.merge", "lerp"),
        ("bundle.adapter.one.type", "q5_0"),
        ("bundle.composition.dare.type", ""),
        ("bundle.base.structure", "0"),
        ("bundle.base.vectors", "0123456789ABCDEF0123456789ABCDEF"),
        ("bundle.base.content", "+123456789abcdef0123456789abcdef"),
    ] {
        let e = Raw::sample().text(key, value).error();
        assert!(
            matches!(&e, BundleError::Value { key: k, found, .. } if k == key && found == value),
            "{e}"
        );
    }
}

#[test]
fn arrays_of_a_e() {
    for key in [
        "bundle.adapter.one.scales",
        "bundle.adapter.one.b_scales",
        "bundle.composition.both.weights",
        "bundle.adapter.one.n_out",
    ] {
        let e = Raw::sample().set(key, strings(&["1", "2"])).error();
        assert!(
            matches!(&e, BundleError::Value { key: k, .. } if k == key),
            "{e}"
        );
    }
    for key in [
        "bundle.adapters",
        "bundle.calibration.lc.modules",
        "bundle.adapter.one.linears",
    ] {
        let e = Raw::sample().set(key, floats(&[1.0, 2.0])).error();
        assert!(
            matches!(&e, BundleError::Value { key: k, .. } if k == key),
            "{e}"
        );
    }
    let e = Raw::sample()
        .set("bundle.adapter.one.n_out", floats(&[18.0, 16.0]))
        .error();
    assert!(matches!(e, BundleError::Value { .. }), "{e}");
}

#[test]
fn arrays_that_differ_in_length() {
    for key in [
        "bundle.adapter.one.scales",
        "bundle.adapter.one.b_scales",
        "bundle.composition.both.weights",
    ] {
        let e = Raw::sample().set(key, floats(&[1.0])).error();
        let (key, found, wanted) = (key.to_string(), 1, 2);
        assert_eq!(e, BundleError::Lengths { key, found, wanted });
    }
}

#[test]
fn names_that_could_be_mistaken() {
    for name in [
        "",
        "a.b",
        "a b",
        "\u{e9}",
        "a/b",
        "\u{1b}[2J",
        &"x".repeat(65),
    ] {
        let mut c = sample();
        c.adapters[3].name = name.to_string();
        refused(&c, |e| {
            matches!(
                e,
                BundleError::Name {
                    what: "adapter",
                    ..
                }
            )
        });
        let e = Raw::sample()
            .set("bundle.adapters", strings(&["one", name]))
            .error();
        assert!(
            matches!(
                e,
                BundleError::Name {
                    what: "adapter",
                    ..
                }
            ),
            "{e}"
        );
        assert!(!e.to_string().contains('\u{1b}'));
    }
    let mut c = sample();
    c.adapters[3].factors[0].linear = "blk.0.attn q".into();
    refused(&c, |e| {
        matches!(e, BundleError::Name { what: "linear", .. })
    });
    let key = "bundle.calibration.lc.modules";
    let e = Raw::sample()
        .set(key, strings(&["\u{202e}"]))
        .tensor("calibration.lc.attn_q.p", |t| {
            t.name = "calibration.lc.\u{202e}.p".to_string()
        })
        .error();
    assert!(matches!(e, BundleError::Name { what: "module", .. }), "{e}");
}

#[test]
fn names_that_occur_twice() {
    for (key, what, names) in [
        ("bundle.adapters", "adapter", ["one", "one"]),
        ("bundle.calibrations", "calibration", ["lc", "lc"]),
        ("bundle.compositions", "composition", ["both", "both"]),
    ] {
        let e = Raw::sample().set(key, strings(&names)).error();
        let (name, within) = (names[0].to_string(), String::new());
        assert_eq!(e, BundleError::Duplicate { what, name, within });
    }
    let mut c = sample();
    c.adapters[2].factors[1] = c.adapters[2].factors[0].clone();
    refused(&c, |e| {
        matches!(e, BundleError::Duplicate { what: "linear", .. })
    });
    let mut c = sample();
    c.compositions[1].members[1].adapter = "one".into();
    refused(&c, |e| {
        matches!(
            e,
            BundleError::Duplicate {
                what: "adapter",
                ..
            }
        )
    });
}

#[test]
fn more_than_the_limits() {
    let names: Vec<String> = (0..=limits::MAX_ADAPTERS)
        .map(|i| format!("n{i}"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for key in [
        "bundle.adapters",
        "bundle.calibrations",
        "bundle.compositions",
    ] {
        let e = Raw::sample().set(key, strings(&names)).error();
        assert!(
            matches!(
                e,
                BundleError::TooMany {
                    found: 257,
                    max: 256,
                    ..
                }
            ),
            "{e}"
        );
    }
    let key = "bundle.composition.both.adapters";
    let e = Raw::sample()
        .set(key, strings(&names[..=limits::MAX_MEMBERS]))
        .error();
    assert!(
        matches!(
            e,
            BundleError::TooMany {
                found: 17,
                max: 16,
                ..
            }
        ),
        "{e}"
    );
    let long = "x".repeat(limits::MAX_TEXT_BYTES + 1).leak();
    let e = Raw::sample()
        .text("bundle.adapter.one.origin", long)
        .error();
    assert!(
        matches!(
            e,
            BundleError::TextTooLong {
                what: "origin",
                found: 65_537
            }
        ),
        "{e}"
    );
}

#[test]
fn adapters_calibrations_and_compositions_of_nothing() {
    let mut c = sample();
    c.adapters[3].factors.clear();
    refused(&c, |e| {
        matches!(
            e,
            BundleError::Empty {
                what: "adapter",
                ..
            }
        )
    });
    let mut c = sample();
    c.calibrations[1].corrections.clear();
    refused(&c, |e| {
        matches!(
            e,
            BundleError::Empty {
                what: "calibration",
                ..
            }
        )
    });
    let mut c = sample();
    c.compositions[0].members.clear();
    refused(&c, |e| {
        matches!(
            e,
            BundleError::Empty {
                what: "composition",
                ..
            }
        )
    });
    let e = Raw::sample()
        .set("bundle.composition.both.adapters", strings(&[]))
        .set("bundle.composition.both.weights", floats(&[]))
        .error();
    assert!(
        matches!(
            e,
            BundleError::Empty {
                what: "composition",
                ..
            }
        ),
        "{e}"
    );
}

#[test]
fn missing_and_unknown_tensors() {
    for t in Raw::sample().tensors {
        let e = Raw::sample().without_tensor(&t.name).error();
        assert_eq!(e, BundleError::MissingTensor { name: t.name });
    }
    let name = "adapter.one.blk.0.attn_k.lora_a".to_string();
    let mut raw = Raw::sample();
    let mut extra = raw.tensors[0].clone();
    extra.name.clone_from(&name);
    raw.tensors.insert(1, extra);
    assert_eq!(raw.error(), BundleError::UnknownTensor { name });
}

#[test]
fn tensors_of_a_wrong_type() {
    for (tensor, dtype, shape, n_bytes) in [
        (
            "adapter.one.blk.0.attn_q.lora_a",
            DType::F32,
            vec![32, 3],
            384,
        ),
        (
            "adapter.one.blk.0.attn_q.lora_b",
            DType::F32,
            vec![3, 18],
            216,
        ),
        (
            "adapter.three.blk.0.attn_q.lora_b",
            DType::F32,
            vec![3, 18],
            216,
        ),
        ("calibration.lc.attn_q.p", DType::I16, vec![18, 1], 36),
    ] {
        let raw = Raw::sample().tensor(tensor, |t| {
            t.dtype = dtype;
            t.shape = shape;
            t.data = vec![0; n_bytes];
        });
        let e = raw.error();
        assert!(
            matches!(&e, BundleError::TensorType { name, .. } if name == tensor),
            "{e}"
        );
    }
}

#[test]
fn tensors_of_a_wrong_shape() {
    for (tensor, shape) in [
        ("adapter.one.blk.0.attn_q.lora_a", vec![32, 3, 1]),
        ("adapter.one.blk.0.attn_q.lora_b", vec![192, 1]),
        ("adapter.one.blk.0.attn_q.lora_b", vec![96, 2, 1]),
        ("adapter.three.blk.0.attn_q.lora_b", vec![18, 3]),
        ("calibration.lc.attn_q.p", vec![18]),
    ] {
        let e = Raw::sample().tensor(tensor, |t| t.shape = shape).error();
        assert!(
            matches!(&e, BundleError::TensorShape { name, .. } if name == tensor),
            "{e}"
        );
    }
}

#[test]
fn a_section_out_of_place() {
    let mut raw = Raw::sample();
    raw.tensors.swap(0, 4);
    assert!(matches!(raw.error(), BundleError::TensorOrder { .. }));
    // Two tensors of one section: its bytes are the same then, but mean something else.
    let mut raw = Raw::sample();
    raw.tensors.swap(0, 1);
    assert!(matches!(raw.error(), BundleError::TensorOrder { .. }));
    // The checksums first.
    let mut raw = Raw::sample();
    raw.tensors.rotate_right(1);
    assert!(matches!(raw.error(), BundleError::TensorOrder { .. }));
}

#[test]
fn bytes_after_the_end() {
    let file = Raw::sample().to_vec();
    for extra in [vec![0; 64], vec![0, 0, 1]] {
        let e = Bundle::parse([&file[..], &extra].concat()).unwrap_err();
        assert!(matches!(e, BundleError::Trailing { .. }), "{e}");
    }
}

#[test]
fn checksums_too_few_or_too_many() {
    let file = Raw::sample().to_vec();
    let header = |file: &[u8]| {
        let gguf = tandem_formats::Gguf::parse(file).unwrap();
        gguf.tensors()[0].data.as_ptr() as usize - file.as_ptr() as usize
    };
    for n_hashes in [1, 9, 11, 40] {
        // The number of rows in the table's entry, then the header's hash anew.
        let mut file = file.clone();
        let name = file
            .windows(16)
            .position(|w| w == b"bundle.checksums")
            .unwrap();
        let rows = name + 16 + 4 + 8;
        assert_eq!(file[rows], 10);
        file[rows] = n_hashes;
        file.resize(file.len() + 16 * 40, 0);
        let n_header = header(&file);
        let gguf = tandem_formats::Gguf::parse(&file).unwrap();
        let table = gguf.tensor("bundle.checksums").unwrap().data;
        let table = table.as_ptr() as usize - file.as_ptr() as usize;
        let hash = xxhash_rust::xxh3::xxh3_128(&file[..n_header]);
        file[table..table + 16].copy_from_slice(&hash.to_be_bytes());
        file.truncate(table + 16 * n_hashes as usize);
        let e = Bundle::parse(file.clone()).unwrap_err();
        let wrong = |e: &BundleError| matches!(e, BundleError::Lengths { wanted: 10, .. });
        assert!(wrong(&e), "{n_hashes}: {e}");
    }
}

#[test]
fn numbers_that_are_none() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let e = Raw::sample()
            .set("bundle.adapter.one.scales", floats(&[1.0, bad]))
            .error();
        assert!(
            matches!(e, BundleError::NotFinite { what: "scale", .. }),
            "{e}"
        );
        let e = Raw::sample()
            .set("bundle.composition.both.weights", floats(&[1.0, bad]))
            .error();
        assert!(
            matches!(e, BundleError::NotFinite { what: "weight", .. }),
            "{e}"
        );
    }
}

#[test]
fn linears_that_disagree() {
    // Adapters for two bases in one bundle.
    let mut c = sample();
    c.adapters[3].factors[0] = factors("blk.0.attn_q", DType::F32, 3, 48, 18);
    refused(&c, |e| {
        matches!(
            e,
            BundleError::Disagree {
                what: "adapter",
                ..
            }
        )
    });
    // Calibrations for another output, input, rank.
    for (i, matrix, n_cols) in [(0, 0, 17), (2, 0, 31), (3, 0, 5)] {
        let mut c = sample();
        let m = &mut c.calibrations[i].corrections[0].matrices[matrix];
        m.n_cols = n_cols;
        if i == 3 {
            m.n_rows = n_cols;
        }
        m.data = vec![0; m.n_rows * m.dtype.row_bytes(n_cols).unwrap()].into();
        refused(&c, |e| {
            matches!(
                e,
                BundleError::Disagree {
                    what: "calibration",
                    ..
                }
            )
        });
    }
    // P1 and P2 of different ranks; a projection that is not square; a bias of two rows.
    for (i, n_rows) in [(2, 3), (3, 5), (0, 2)] {
        let mut c = sample();
        let m = &mut c.calibrations[i].corrections[0].matrices[0];
        m.n_rows = n_rows;
        m.data = vec![0; n_rows * m.dtype.row_bytes(m.n_cols).unwrap()].into();
        refused(&c, |e| {
            matches!(
                e,
                BundleError::Disagree {
                    what: "calibration",
                    ..
                }
            )
        });
    }
}

#[test]
fn properties_that_the_merge_does_not_have_or_needs() {
    let dare = "bundle.composition.dare";
    for option in ["density", "rank", "seed"] {
        let e = Raw::sample().without(&format!("{dare}.{option}")).error();
        assert!(
            e.to_string().ends_with(&format!("{option} is missing")),
            "{e}"
        );
        let value = if option == "density" {
            Value::F32(0.5)
        } else {
            Value::U32(2)
        };
        let e = Raw::sample()
            .set(&format!("bundle.composition.both.{option}"), value)
            .error();
        assert!(e.to_string().ends_with("is not used by this method"), "{e}");
    }
    for density in [0.0, -0.5, 1.01, f32::NAN] {
        let e = Raw::sample()
            .set(&format!("{dare}.density"), Value::F32(density))
            .error();
        assert!(
            matches!(
                e,
                BundleError::MergeOption {
                    option: "density",
                    ..
                }
            ),
            "{e}"
        );
    }
    for rank in [0, 4097, u32::MAX] {
        let e = Raw::sample()
            .set(&format!("{dare}.rank"), Value::U32(rank))
            .error();
        assert!(
            matches!(e, BundleError::MergeOption { option: "rank", .. }),
            "{e}"
        );
    }
    // The members side by side may be stored, but not where a projection stands between their factors.
    let mut c = sample();
    c.compositions[1].merged = c.compositions[3].merged.clone();
    c.check().unwrap();
    c.compositions[2].merged = c.compositions[3].merged.take();
    refused(&c, |e| {
        matches!(
            e,
            BundleError::MergeOption {
                option: "merged",
                ..
            }
        )
    });
}

#[test]
fn an_arc_between_more_than_two() {
    let both = "bundle.composition.both";
    let merge = format!("{both}.merge");
    let raw = Raw::sample().set(&merge, Value::Str("slerp"));
    Bundle::parse(raw.to_vec()).unwrap();
    let e = Raw::sample()
        .set(&merge, Value::Str("slerp"))
        .set(
            &format!("{both}.adapters"),
            strings(&["one", "two", "three"]),
        )
        .set(&format!("{both}.weights"), floats(&[0.5, -0.5, 1.0]))
        .error();
    assert!(e.to_string().ends_with("adapters are more than two"), "{e}");
}

#[test]
fn references_to_nothing() {
    let e = Raw::sample()
        .set(
            "bundle.composition.both.adapters",
            strings(&["one", "five"]),
        )
        .error();
    assert_eq!(
        e.to_string(),
        "composition \"both\" needs adapter \"five\", which the bundle does not hold"
    );
    let e = Raw::sample()
        .text("bundle.composition.both.calibration", "none")
        .error();
    assert_eq!(
        e.to_string(),
        "composition \"both\" needs calibration \"none\", which the bundle does not hold"
    );
}

#[test]
fn a_projection_without_concatenation() {
    let e = Raw::sample()
        .text("bundle.composition.dare.calibration", "project")
        .error();
    assert!(matches!(e, BundleError::ProjectionWithoutCat { .. }), "{e}");
}

#[test]
fn prompts_without_a_place_for_the_input_or_with_more() {
    for prompt in [
        "",
        "Summarize this:",
        "{{input}}",
        "{{ input }}{{ x }}",
        "{% if a %}{{ input }}",
    ] {
        let e = Raw::sample()
            .text("bundle.composition.both.prompt", prompt)
            .error();
        assert!(matches!(e, BundleError::Prompt { .. }), "{prompt}: {e}");
    }
}

/// What only a writer can be given.
#[test]
fn matrices_of_a_wrong_size_or_type() {
    let mut c = sample();
    let b = &mut c.adapters[0].factors[0].b;
    b.truncate(b.len() - 1);
    refused(&c, |e| matches!(e, BundleError::MatrixSize { .. }));
    let mut c = sample();
    let data = &mut c.calibrations[0].corrections[0].matrices[0].data;
    *data = [&data[..], &[0]].concat().into();
    refused(&c, |e| matches!(e, BundleError::MatrixSize { .. }));
    let mut c = sample();
    c.calibrations[0].corrections[0].matrices[0].dtype = DType::BF16;
    refused(&c, |e| matches!(e, BundleError::MatrixSize { .. }));
    let mut c = sample();
    c.adapters[0].dtype = DType::Q4_K;
    refused(&c, |e| matches!(e, BundleError::FactorType { .. }));
    let mut c = sample();
    c.adapters[0].factors[0].n_in = 40;
    refused(&c, |e| {
        e.to_string()
            == "\"one\", \"blk.0.attn_q\": an input of 40 elements is no whole number of Q8_0 blocks of 32; use F16"
    });
    for (rank, n_out) in [(0, 18), (4097, 18), (3, 0)] {
        let mut c = sample();
        let f = &mut c.adapters[0].factors[0];
        (f.rank, f.n_out) = (rank, n_out);
        refused(&c, |e| matches!(e, BundleError::FactorShape { .. }));
    }
}

/// Refused by the writer. The reader makes the same check of what it has read.
fn refused(contents: &Contents, is_it: impl Fn(&BundleError) -> bool) {
    let e = contents.to_vec().unwrap_err();
    assert!(is_it(&e), "{e}");
}
