//! The cores, and what they can do.

use serde::Serialize;

use super::root::{Root, field};

/// Features that a level needs, or that tell CPUs apart, as Linux names them.
const FEATURES: [&str; 20] = [
    "neon",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
    "sse4_2",
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512dq",
    "avx512_vnni",
    "amx_int8",
];

/// The levels of `tandem_kernels::Level`, highest first, and the features they need.
const LEVELS: [(&str, &[&str]); 6] = [
    ("i8mm", &["asimd", "asimddp", "i8mm"]),
    ("dotprod", &["asimd", "asimddp"]),
    ("neon", &["asimd"]),
    (
        "avx512",
        &[
            "avx2",
            "fma",
            "f16c",
            "avx512f",
            "avx512bw",
            "avx512vl",
            "avx512dq",
            "avx512_vnni",
        ],
    ),
    ("avxvnni", &["avx2", "fma", "f16c", "avx_vnni"]),
    ("avx2", &["avx2", "fma", "f16c"]),
];

/// The name of an Arm core by the numbers of its implementer and part (`MIDR_EL1`).
fn core_name(implementer: u32, part: u32) -> Option<&'static str> {
    Some(match (implementer, part) {
        (0x41, 0xc07) => "Cortex-A7",
        (0x41, 0xd03) => "Cortex-A53",
        (0x41, 0xd04) => "Cortex-A35",
        (0x41, 0xd05) => "Cortex-A55",
        (0x41, 0xd07) => "Cortex-A57",
        (0x41, 0xd08) => "Cortex-A72",
        (0x41, 0xd09) => "Cortex-A73",
        (0x41, 0xd0a) => "Cortex-A75",
        (0x41, 0xd0b) => "Cortex-A76",
        (0x41, 0xd0c) => "Neoverse-N1",
        (0x41, 0xd0d) => "Cortex-A77",
        (0x41, 0xd40) => "Neoverse-V1",
        (0x41, 0xd41) => "Cortex-A78",
        (0x41, 0xd42) => "Cortex-A78AE",
        (0x41, 0xd44) => "Cortex-X1",
        (0x41, 0xd46) => "Cortex-A510",
        (0x41, 0xd47) => "Cortex-A710",
        (0x41, 0xd48) => "Cortex-X2",
        (0x41, 0xd49) => "Neoverse-N2",
        (0x41, 0xd4b) => "Cortex-A78C",
        (0x41, 0xd4d) => "Cortex-A715",
        (0x41, 0xd4e) => "Cortex-X3",
        (0x41, 0xd4f) => "Neoverse-V2",
        (0x41, 0xd80) => "Cortex-A520",
        (0x41, 0xd81) => "Cortex-A720",
        (0x41, 0xd82) => "Cortex-X4",
        (0x4e, 0x003) => "Denver 2",
        (0x4e, 0x004) => "Carmel",
        _ => return None,
    })
}

/// Cores that are alike.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Cores {
    pub name: String,
    /// Their numbers.
    pub cpus: Vec<u32>,
    /// Speed beside the machine's fastest core, which has 1024, where the kernel tells.
    pub capacity: Option<i64>,
    pub max_mhz: Option<i64>,
    /// The frequency that is allowed now, where it is below `max_mhz`.
    pub capped_mhz: Option<i64>,
    pub governor: Option<String>,
}

/// All that `/proc/cpuinfo` and `/sys/devices/system/cpu` tell.
#[derive(Serialize)]
pub(super) struct Cpu {
    /// Groups of cores, the fastest first.
    pub cores: Vec<Cores>,
    /// Cores that are switched off, as the kernel lists them.
    pub offline: Option<String>,
    pub features: Vec<&'static str>,
}

impl Cpu {
    pub(super) fn read(root: &Root<'_>) -> Cpu {
        let cpuinfo = root.text("/proc/cpuinfo").unwrap_or_default();
        let mut cores: Vec<Cores> = Vec::new();
        // 32-bit kernels and x86 have further fields before, after or between the blocks; a block
        // without the number of a processor is none.
        for block in cpuinfo.split("\n\n") {
            let Some(id) = field(block, "processor").and_then(|id| id.parse().ok()) else {
                continue;
            };
            let core = Cores::read(root, block, id);
            let same = cores.iter_mut().find(|other| other.is_like(&core));
            match same {
                Some(same) => same.cpus.push(id),
                None => cores.push(core),
            }
        }
        cores.sort_by_key(|c| std::cmp::Reverse((c.capacity, c.max_mhz)));
        let list = field(&cpuinfo, "Features").or_else(|| field(&cpuinfo, "flags"));
        let has: Vec<_> = list.unwrap_or_default().split_whitespace().collect();
        Cpu {
            cores,
            offline: root.text("/sys/devices/system/cpu/offline"),
            features: FEATURES.into_iter().filter(|f| has.contains(f)).collect(),
        }
    }
}

/// The highest level that the features allow: what `Level::detect` finds on the machine itself.
pub(crate) fn level(features: &[&str]) -> &'static str {
    let has = |feature: &&str| features.contains(feature);
    let level = LEVELS.iter().find(|(_, needs)| needs.iter().all(has));
    level.map_or("scalar", |(name, _)| name)
}

impl Cores {
    fn read(root: &Root<'_>, block: &str, id: u32) -> Cores {
        let number = |key| {
            let text = field(block, key)?;
            u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()
        };
        let midr = number("CPU implementer").zip(number("CPU part"));
        let known = midr.and_then(|(implementer, part)| core_name(implementer, part));
        let name = match (known, field(block, "model name"), midr) {
            (Some(name), _, _) | (None, Some(name), _) => name.to_string(),
            (None, None, Some((implementer, part))) => format!("Arm {implementer:#x}/{part:#x}"),
            (None, None, None) => "unknown".to_string(),
        };
        let folder = format!("/sys/devices/system/cpu/cpu{id}");
        let mhz = |file| Some(root.number(&format!("{folder}/cpufreq/{file}"))? / 1000);
        let max_mhz = mhz("cpuinfo_max_freq");
        Cores {
            name,
            cpus: vec![id],
            capacity: root.number(&format!("{folder}/cpu_capacity")),
            max_mhz,
            capped_mhz: mhz("scaling_max_freq").filter(|cap| max_mhz.is_some_and(|max| *cap < max)),
            governor: root.text(&format!("{folder}/cpufreq/scaling_governor")),
        }
    }

    fn is_like(&self, other: &Cores) -> bool {
        let key = |c: &Cores| (c.capacity, c.max_mhz, c.capped_mhz);
        key(self) == key(other) && self.name == other.name && self.governor == other.governor
    }
}
