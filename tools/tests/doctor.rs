//! `tandem doctor`: on this machine, and on copies of what others tell of themselves.

#[expect(dead_code, reason = "of the shared helpers this needs some")]
mod common;

use std::fs;
use std::path::Path;

use common::{fixture, tandem};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with these files.
fn tree(files: &[(&str, &str)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn report(root: &Path) -> Value {
    tandem!("doctor", "--json", "--root", root).ok().json()
}

fn text(root: &Path) -> String {
    tandem!("doctor", "--root", root).ok().text()
}

/// `/proc/cpuinfo` of `n` equal Arm cores.
fn cpuinfo(n: usize, implementer: &str, part: &str, features: &str) -> String {
    let core = |i| {
        format!(
            "processor\t: {i}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\n\
             CPU implementer\t: {implementer}\nCPU architecture: 8\nCPU variant\t: 0x4\n\
             CPU part\t: {part}\nCPU revision\t: 1\n\n"
        )
    };
    (0..n).map(core).collect()
}

/// An auxiliary vector that tells the size of pages.
fn auxv(page_bytes: u64) -> Vec<u8> {
    let words = [16_u64, 0xff, 6, page_bytes, 0, 0];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

const PI5_FEATURES: &str = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp";

#[test]
fn this_machine_is_measured_and_runs_its_best_level() {
    let model = fixture("pocket-q8_0.gguf");
    let here = tandem!("doctor", "--json", "--model", model).ok().json();
    assert_eq!(here["level"], tandem_kernels::Level::detect().name());
    // What Linux lists leads to the same level as asking the CPU does.
    let listed = report(Path::new("/proc/self/root"));
    assert_eq!(listed["level"], here["level"]);
    assert_eq!(listed["bandwidth"], json!([]));
    assert_eq!(listed["decode_threads"], Value::Null);

    let n_threads = here["threads"].as_u64().unwrap();
    let rows = here["bandwidth"].as_array().unwrap();
    assert_eq!(rows[0]["threads"], 1);
    let counts = tandem_engine::threads::counts(n_threads as usize);
    let tried: Vec<_> = rows
        .iter()
        .map(|row| row["threads"].as_u64().unwrap() as usize)
        .collect();
    assert_eq!(tried, counts);
    let of = |threads: &Value| {
        let row = rows.iter().find(|row| row["threads"] == *threads).unwrap();
        row["bytes_per_second"].as_f64().unwrap()
    };
    let fit = &here["model"];
    assert_eq!(fit["verdict"], "fits");
    assert_eq!(fit["weight_bytes"], 6_235_584);
    assert_eq!(fit["ctx"], 512);
    let bytes = fit["bytes_per_token"].as_f64().unwrap();
    let empty = fit["max_tokens_per_second"][0].as_f64().unwrap();
    assert!((empty * bytes / of(&fit["decode_threads"]) - 1.0).abs() < 1e-9);
    assert!(fit["max_tokens_per_second"][1].as_f64().unwrap() < empty);
    assert!(here["page_bytes"].as_u64().unwrap() >= 4096);
    assert!(here["memory"]["total"].as_u64() > here["memory"]["available"].as_u64());
}

#[test]
fn a_lower_level_and_a_composition_may_be_chosen() {
    let scalar = tandem!("doctor", "--json", "--cpu", "scalar").ok().json();
    assert_eq!(scalar["level"], "scalar");
    let (model, bundle) = (fixture("pocket-q8_0.gguf"), fixture("pocket.tandem"));
    let tokens = |flags: &[&std::ffi::OsStr]| {
        let all = ["doctor", "--json", "--threads", "1", "--model"].map(std::ffi::OsStr::new);
        let run = common::run(&[&all[..], &[model.as_os_str()], flags].concat(), b"");
        run.ok().json()["model"]["bytes_per_token"]
            .as_u64()
            .unwrap()
    };
    let flags = [
        "--compose".as_ref(),
        "summarize-fr".as_ref(),
        "--bundle".as_ref(),
        bundle.as_os_str(),
    ];
    assert!(tokens(&flags) > tokens(&[]));
}

#[test]
fn a_raspberry_pi_5_is_described() {
    let cpus = cpuinfo(4, "0x41", "0xd0b", PI5_FEATURES) + "Revision\t: d04170\nModel\t\t: x\n";
    let mut files = vec![
        ("proc/cpuinfo".to_string(), cpus),
        (
            "proc/device-tree/model".into(),
            "Raspberry Pi 5 Model B Rev 1.0\0".into(),
        ),
        (
            "proc/meminfo".into(),
            "MemTotal:  8255696 kB\nMemFree: 1 kB\nMemAvailable:  7000000 kB\n".into(),
        ),
        (
            "proc/swaps".into(),
            "Filename Type Size Used Priority\n/dev/zram0 partition 2097152 16 100\n".into(),
        ),
        (
            "proc/self/cgroup".into(),
            "0::/user.slice/a.service\n".into(),
        ),
        (
            "sys/fs/cgroup/user.slice/memory.max".into(),
            "1000000\n".into(),
        ),
        (
            "sys/fs/cgroup/user.slice/memory.current".into(),
            "400000\n".into(),
        ),
        (
            "sys/fs/cgroup/user.slice/a.service/memory.max".into(),
            "max\n".into(),
        ),
        (
            "etc/os-release".into(),
            "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n".into(),
        ),
        (
            "proc/sys/kernel/osrelease".into(),
            "6.6.20+rpt-rpi-2712\n".into(),
        ),
        (
            "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled".into(),
            "50005\n".into(),
        ),
        (
            "sys/class/thermal/thermal_zone0/type".into(),
            "cpu-thermal\n".into(),
        ),
        (
            "sys/class/thermal/thermal_zone0/temp".into(),
            "61234\n".into(),
        ),
        (
            "sys/class/thermal/thermal_zone0/trip_point_0_type".into(),
            "critical\n".into(),
        ),
        (
            "sys/class/thermal/thermal_zone0/trip_point_0_temp".into(),
            "110000\n".into(),
        ),
        (
            "sys/class/thermal/thermal_zone0/trip_point_1_type".into(),
            "passive\n".into(),
        ),
        (
            "sys/class/thermal/thermal_zone0/trip_point_1_temp".into(),
            "80000\n".into(),
        ),
    ];
    for i in 0..4 {
        let folder = format!("sys/devices/system/cpu/cpu{i}");
        files.push((
            format!("{folder}/cpufreq/cpuinfo_max_freq"),
            "2400000\n".into(),
        ));
        files.push((
            format!("{folder}/cpufreq/scaling_max_freq"),
            "2400000\n".into(),
        ));
        files.push((
            format!("{folder}/cpufreq/scaling_governor"),
            "ondemand\n".into(),
        ));
    }
    let files: Vec<_> = files
        .iter()
        .map(|(p, t)| (p.as_str(), t.as_str()))
        .collect();
    let root = tree(&files);
    fs::write(root.path().join("proc/self/auxv"), auxv(16384)).unwrap();
    let pi = report(root.path());
    assert_eq!(pi["board"], "Raspberry Pi 5 Model B Rev 1.0");
    assert_eq!(pi["os"], "Debian GNU/Linux 12 (bookworm)");
    assert_eq!(pi["level"], "dotprod");
    assert_eq!(pi["page_bytes"], 16384);
    let cores = json!([{"name": "Cortex-A76", "cpus": [0, 1, 2, 3], "capacity": null,
        "max_mhz": 2400, "capped_mhz": null, "governor": "ondemand"}]);
    assert_eq!(pi["cores"], cores);
    assert_eq!(pi["memory"]["total"], 8_255_696_u64 * 1024);
    assert_eq!(
        (&pi["memory"]["limit"], &pi["memory"]["limit_left"]),
        (&json!(1_000_000), &json!(600_000))
    );
    assert_eq!(
        pi["memory"]["swap"][0],
        json!({"name": "/dev/zram0", "bytes": 2_147_483_648_u64, "used": 16384})
    );
    assert_eq!(
        pi["power"]["limits_now"],
        json!(["under-voltage", "throttled"])
    );
    assert_eq!(
        pi["power"]["limits_before"],
        json!(["under-voltage", "throttled"])
    );
    assert_eq!(
        pi["temperatures"],
        json!([{"zone": "cpu-thermal", "celsius": 61.234, "slows_at": 80.0}])
    );
    assert!(pi["notes"][0].as_str().unwrap().contains("power supply"));
    let text = text(root.path());
    for part in [
        "4 x Cortex-A76, up to 2400 MHz",
        "pages of 16 KiB",
        "under-voltage",
        "/dev/zram0",
    ] {
        assert!(text.contains(part), "{part} not in {text}");
    }

    // 600 kB are left: the model's cache and buffers take more.
    let model = fixture("pocket-q8_0.gguf");
    let fit = |available: &str| {
        let meminfo = format!("MemAvailable: {available} kB\n");
        fs::write(root.path().join("proc/meminfo"), meminfo).unwrap();
        let args = tandem!("doctor", "--json", "--root", root.path(), "--model", model);
        args.ok().json()
    };
    let small = fit("7000000");
    assert_eq!(small["model"]["verdict"], "does_not_fit");
    assert!(
        small["notes"].to_string().contains("smaller model"),
        "{}",
        small["notes"]
    );
    fs::remove_file(root.path().join("sys/fs/cgroup/user.slice/memory.max")).unwrap();
    assert_eq!(fit("7000000")["model"]["verdict"], "fits");
    let tight = fit("8000");
    assert_eq!(tight["model"]["verdict"], "weights_do_not_stay");
    // 10.0 MB hold 6.2 of weights, 2.3 of buffers, and a part of the cache.
    let n_ctx = fit("9800")["model"]["max_ctx"].as_u64().unwrap();
    assert!((1..512).contains(&n_ctx), "{n_ctx}");
}

#[test]
fn a_raspberry_pi_4_is_described() {
    let cpus = cpuinfo(4, "0x41", "0xd08", "fp asimd evtstrm crc32 cpuid");
    let root = tree(&[
        ("proc/cpuinfo", &cpus),
        ("proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.5\0"),
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "0\n"),
    ]);
    let pi = report(root.path());
    assert_eq!(
        (&pi["level"], &pi["cores"][0]["name"]),
        (&json!("neon"), &json!("Cortex-A72"))
    );
    assert_eq!(pi["power"]["limits_now"], json!([]));
    assert_eq!(pi["notes"], json!([]));
    // Where the firmware's flags are not shown, the voltage sensor may be.
    let root = tree(&[
        ("sys/class/hwmon/hwmon1/name", "rpi_volt\n"),
        ("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n"),
    ]);
    assert_eq!(
        report(root.path())["power"]["limits_now"],
        json!(["under-voltage"])
    );
}

#[test]
fn a_jetson_is_described() {
    let cpus = cpuinfo(
        4,
        "0x4e",
        "0x004",
        "fp asimd evtstrm aes atomics fphp asimdhp cpuid asimdrdm dcpop",
    );
    let root = tree(&[
        ("proc/cpuinfo", &cpus),
        (
            "proc/device-tree/model",
            "NVIDIA Jetson Xavier NX Developer Kit\0",
        ),
        (
            "etc/nv_tegra_release",
            "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref\n",
        ),
        ("var/lib/nvpmodel/status", "pmode:0002\n"),
        (
            "etc/nvpmodel.conf",
            "< POWER_MODEL ID=0 NAME=MODE_15W_2CORE >\n< POWER_MODEL ID=2 NAME=MODE_15W_6CORE >\n",
        ),
        ("sys/devices/system/cpu/offline", "4-5\n"),
        // A group of control groups' first version.
        ("proc/self/cgroup", "4:memory:/docker/abc\n0::/\n"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
        ("sys/fs/cgroup/memory/memory.usage_in_bytes", "36870912\n"),
    ]);
    let jetson = report(root.path());
    assert_eq!(jetson["cores"][0]["name"], "Carmel");
    // Armv8.2 with half floats, but no dot products.
    assert_eq!(jetson["level"], "neon");
    assert_eq!(jetson["power"]["jetson_mode"], "MODE_15W_6CORE");
    assert_eq!(jetson["l4t"], "R35 (release), REVISION: 4.1");
    assert_eq!(jetson["offline"], "4-5");
    assert_eq!(jetson["memory"]["limit_left"], 500_000_000);
}

#[test]
fn big_and_little_cores_are_told_apart() {
    let little = cpuinfo(2, "0x41", "0xd05", PI5_FEATURES);
    let big = cpuinfo(4, "0x41", "0xd0b", PI5_FEATURES);
    let big = &big[big.find("processor\t: 2").unwrap()..];
    let root = tree(&[
        ("proc/cpuinfo", &(little + big)),
        ("sys/devices/system/cpu/cpu0/cpu_capacity", "381\n"),
        ("sys/devices/system/cpu/cpu1/cpu_capacity", "381\n"),
        ("sys/devices/system/cpu/cpu2/cpu_capacity", "1024\n"),
        ("sys/devices/system/cpu/cpu3/cpu_capacity", "1024\n"),
    ]);
    let cores = &report(root.path())["cores"];
    assert_eq!(
        (&cores[0]["name"], &cores[0]["cpus"]),
        (&json!("Cortex-A76"), &json!([2, 3]))
    );
    assert_eq!(
        (&cores[1]["name"], &cores[1]["cpus"]),
        (&json!("Cortex-A55"), &json!([0, 1]))
    );
}

#[test]
fn what_is_missing_is_unknown() {
    let root = tempfile::tempdir().unwrap();
    let nothing = report(root.path());
    for key in [
        "board",
        "os",
        "kernel",
        "page_bytes",
        "offline",
        "decode_threads",
    ] {
        assert_eq!(nothing[key], Value::Null, "{key}");
    }
    assert_eq!(nothing["cores"], json!([]));
    assert_eq!(nothing["level"], "scalar");
    let text = text(root.path());
    assert!(
        text.contains("board     unknown") && text.contains("memory    unknown"),
        "{text}"
    );
}

#[test]
fn nonsense_is_survived() {
    let nonsense = [
        "",
        "\0",
        ":",
        ":::::\n::\n",
        "-1",
        "99999999999999999999999999",
        "-9223372036854775808",
        "9223372036854775807",
        "throttled=0xffffffffff",
        "processor : 4294967296\n\nprocessor : 1\nCPU part : 0xzz\nCPU implementer : 0x\nFeatures : \n",
        "processor : 1\n\nprocessor : 1\n\nprocessor : 1",
        "MemTotal: 18446744073709551615 kB\nMemAvailable: -3 kB\n",
        "a b c d e f\nx y 99999999999999999999 1\nx y 18446744073709551615 18446744073709551615\n",
        "0::/../../../etc\n0::relative\n1:memory\n:memory:\n",
        "pmode:99999999999",
        "pmode:0\n< POWER_MODEL\n< POWER_MODEL ID NAME >\n",
        "\u{1b}[2J\u{202e}red",
        "ää\u{ffff}",
    ];
    let paths = [
        "proc/cpuinfo",
        "proc/meminfo",
        "proc/swaps",
        "proc/self/cgroup",
        "proc/self/auxv",
        "proc/device-tree/model",
        "proc/sys/kernel/osrelease",
        "etc/os-release",
        "etc/nv_tegra_release",
        "etc/nvpmodel.conf",
        "var/lib/nvpmodel/status",
        "sys/devices/platform/soc/soc:firmware/get_throttled",
        "sys/devices/system/cpu/offline",
        "sys/devices/system/cpu/cpu1/cpu_capacity",
        "sys/devices/system/cpu/cpu1/cpufreq/cpuinfo_max_freq",
        "sys/fs/cgroup/memory.max",
        "sys/class/thermal/thermal_zone0/temp",
        "sys/class/thermal/thermal_zone0/trip_point_0_temp",
        "sys/class/hwmon/hwmon0/in0_lcrit_alarm",
    ];
    for text in nonsense {
        let files: Vec<_> = paths.iter().map(|path| (*path, text)).collect();
        let root = tree(&files);
        tandem!("doctor", "--json", "--root", root.path())
            .ok()
            .json();
        let shown = tandem!("doctor", "--root", root.path()).ok().text();
        assert!(
            !shown.contains('\u{1b}') && !shown.contains('\u{202e}'),
            "{shown}"
        );
    }
    // Bytes that are no text, and folders where files should be.
    let root = tree(&[("proc/swaps/x", ""), ("sys/class/thermal", "")]);
    for path in ["cpuinfo", "meminfo"] {
        fs::write(root.path().join("proc").join(path), [0xff, 0xfe, 0, 1, 2]).unwrap();
    }
    report(root.path());
}

#[test]
fn bad_flags_are_refused() {
    tandem!("doctor", "--root", "/nonexistent").fails(1, "no folder");
    tandem!("doctor", "--lora", "x").fails(1, "--model");
    tandem!("doctor", "--cpu", "dotprod9").fails(2, "this CPU has");
    tandem!("doctor", "--model", "/nonexistent").fails(1, "/nonexistent");
    let model = fixture("pocket-q8_0.gguf");
    tandem!(
        "doctor",
        "-t1",
        "--model",
        model,
        "--ctx",
        "99999999999999999"
    )
    .fails(1, "too large");
}
