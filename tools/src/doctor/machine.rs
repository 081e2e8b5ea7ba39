//! The machine apart from its cores: what it is called, memory, power, heat.

use std::process::Command;

use serde::Serialize;
use tandem_engine::group_limits;

use super::root::{Root, field};

/// What the system says it is.
#[derive(Serialize)]
pub(super) struct System {
    /// The board's name, by the device tree.
    pub board: Option<String>,
    pub os: Option<String>,
    pub kernel: Option<String>,
    /// NVIDIA's release, on a Jetson.
    pub l4t: Option<String>,
    pub page_bytes: Option<usize>,
}

impl System {
    pub(super) fn read(root: &Root<'_>) -> System {
        let os = root.text("/etc/os-release").and_then(|text| {
            let line = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="))?;
            Some(line.trim_matches('"').to_string())
        });
        let l4t = root.text("/etc/nv_tegra_release");
        System {
            board: root
                .text("/proc/device-tree/model")
                .or_else(|| root.text("/sys/firmware/devicetree/base/model")),
            os,
            kernel: root.text("/proc/sys/kernel/osrelease"),
            // "# R36 (release), REVISION: 4.3, GCID: ...", of which the first two parts tell all.
            l4t: l4t.map(|text| {
                let parts: Vec<_> = text.trim_start_matches(['#', ' ']).split(", ").collect();
                parts[..parts.len().min(2)].join(", ")
            }),
            page_bytes: root
                .bytes("/proc/self/auxv")
                .and_then(|bytes| page_bytes(&bytes)),
        }
    }
}

/// The entry `AT_PAGESZ` of a process's auxiliary vector, which is pairs of words.
fn page_bytes(auxv: &[u8]) -> Option<usize> {
    const AT_PAGESZ: usize = 6;
    const WORD: usize = size_of::<usize>();
    let words = auxv.chunks_exact(WORD).map(|word| {
        let bytes = <[u8; WORD]>::try_from(word);
        bytes.map_or(0, usize::from_ne_bytes)
    });
    let words: Vec<_> = words.collect();
    let entry = words.chunks_exact(2).find(|pair| pair[0] == AT_PAGESZ)?;
    Some(entry[1]).filter(|size| size.is_power_of_two())
}

/// Memory, in bytes.
#[derive(Serialize)]
pub(super) struct Memory {
    pub total: Option<u64>,
    /// What the kernel could give now.
    pub available: Option<u64>,
    /// What the control groups that we are in allow, if they limit it.
    pub limit: Option<u64>,
    /// Of that, what is left.
    pub limit_left: Option<u64>,
    pub swap: Vec<Swap>,
}

/// A place to swap to.
#[derive(Serialize)]
pub(super) struct Swap {
    pub name: String,
    pub bytes: u64,
    pub used: u64,
}

impl Memory {
    pub(super) fn read(root: &Root<'_>) -> Memory {
        let meminfo = root.text("/proc/meminfo").unwrap_or_default();
        let kilobytes = |key| field(&meminfo, key).and_then(kilobytes);
        let groups = group_limits(&|path| root.text(path));
        Memory {
            total: kilobytes("MemTotal"),
            available: kilobytes("MemAvailable"),
            limit: groups.iter().map(|group| group.limit).min(),
            limit_left: groups.iter().map(|group| group.left).min(),
            swap: swaps(root),
        }
    }

    /// What a program could take now.
    pub(super) fn usable(&self) -> Option<u64> {
        self.available.into_iter().chain(self.limit_left).min()
    }
}

/// A size like `123 kB`.
fn kilobytes(text: &str) -> Option<u64> {
    let number = text.strip_suffix("kB")?.trim();
    number.parse::<u64>().ok()?.checked_mul(1024)
}

fn swaps(root: &Root<'_>) -> Vec<Swap> {
    let text = root.text("/proc/swaps").unwrap_or_default();
    let swap = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, _kind) = (words.next()?, words.next()?);
        let mut size = || words.next()?.parse::<u64>().ok()?.checked_mul(1024);
        Some(Swap {
            name: name.to_string(),
            bytes: size()?,
            used: size()?,
        })
    };
    // The first line is a heading.
    text.lines().skip(1).filter_map(swap).collect()
}

/// What the board tells of its power supply and of limits to its speed.
#[derive(Serialize)]
pub(super) struct Power {
    /// What limits the speed now, by a Raspberry Pi's firmware; `None` where nothing tells.
    pub limits_now: Option<Vec<&'static str>>,
    /// What did at some time since it was switched on.
    pub limits_before: Option<Vec<&'static str>>,
    /// The power mode of a Jetson.
    pub jetson_mode: Option<String>,
}

/// The bits of a Raspberry Pi's `get_throttled`; those of the past are 16 further up.
const THROTTLED: [&str; 4] = [
    "under-voltage",
    "frequency capped",
    "throttled",
    "soft temperature limit",
];

impl Power {
    /// `is_here`: the root is this machine's, where programs can be asked, too.
    pub(super) fn read(root: &Root<'_>, is_here: bool) -> Power {
        let bits = throttled_file(root).or_else(|| is_here.then(vcgencmd).flatten());
        let names = |shift: u32| {
            let is_set = move |i: u32| bits.is_some_and(|bits| bits >> (i + shift) & 1 == 1);
            let set = (0..).zip(THROTTLED).filter(move |(i, _)| is_set(*i));
            set.map(|(_, name)| name).collect::<Vec<_>>()
        };
        let (now, before) = match bits {
            Some(_) => (Some(names(0)), Some(names(16))),
            None => (under_voltage(root), None),
        };
        Power {
            limits_now: now,
            limits_before: before,
            jetson_mode: jetson_mode(root),
        }
    }
}

/// The firmware's flags where the kernel shows them: not on every Raspberry Pi 5.
fn throttled_file(root: &Root<'_>) -> Option<u32> {
    let platform = "/sys/devices/platform";
    let socs = root.names(platform);
    let text = socs.iter().filter(|soc| soc.starts_with("soc"));
    let text = text
        .filter_map(|soc| root.text(&format!("{platform}/{soc}/{soc}:firmware/get_throttled")))
        .next()?;
    throttled(&text)
}

/// Asks the firmware by Raspberry Pi OS's program.
fn vcgencmd() -> Option<u32> {
    let out = Command::new("vcgencmd")
        .arg("get_throttled")
        .output()
        .ok()?;
    throttled(&String::from_utf8(out.stdout).ok()?)
}

fn throttled(text: &str) -> Option<u32> {
    let text = text.trim();
    let text = text.strip_prefix("throttled=").unwrap_or(text);
    u32::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

/// What the Raspberry Pi's voltage sensor says, where the firmware's flags are not to be had.
fn under_voltage(root: &Root<'_>) -> Option<Vec<&'static str>> {
    let folder = "/sys/class/hwmon";
    let sensors = root.names(folder);
    let is_volt =
        |name: &&String| root.text(&format!("{folder}/{name}/name")).as_deref() == Some("rpi_volt");
    let sensor = sensors.iter().find(is_volt)?;
    match root.number(&format!("{folder}/{sensor}/in0_lcrit_alarm"))? {
        0 => Some(Vec::new()),
        _ => Some(vec![THROTTLED[0]]),
    }
}

/// The chosen power mode: its number is in one file, its name in another.
fn jetson_mode(root: &Root<'_>) -> Option<String> {
    let status = root.text("/var/lib/nvpmodel/status")?;
    let id: u32 = status.strip_prefix("pmode:")?.trim().parse().ok()?;
    let names = root.text("/etc/nvpmodel.conf").unwrap_or_default();
    let name = names.lines().find_map(|line| {
        // < POWER_MODEL ID=0 NAME=MAXN >
        let line = line.trim_start_matches('<').trim_start();
        let words = line.strip_prefix("POWER_MODEL")?.split_whitespace();
        let mut words = words.filter_map(|word| word.split_once('='));
        let is_it = words.next()? == ("ID", id.to_string().as_str());
        let (key, name) = words.next()?;
        (is_it && key == "NAME").then(|| name.to_string())
    });
    Some(name.unwrap_or_else(|| format!("mode {id}")))
}

/// A place where the temperature is measured.
#[derive(Serialize)]
pub(super) struct Temperature {
    pub zone: String,
    pub celsius: f64,
    /// Where the kernel begins to slow down.
    pub slows_at: Option<f64>,
}

/// All thermal zones that can be read.
pub(super) fn temperatures(root: &Root<'_>) -> Vec<Temperature> {
    let class = "/sys/class/thermal";
    let zones = root.names(class);
    let zone = |name: &String| {
        let folder = format!("{class}/{name}");
        let degrees = |file: &str| Some(root.number(&format!("{folder}/{file}"))? as f64 / 1e3);
        let trip = |i: usize| {
            let kind = root.text(&format!("{folder}/trip_point_{i}_type"))?;
            degrees(&format!("trip_point_{i}_temp")).filter(|_| kind == "passive")
        };
        Some(Temperature {
            zone: root.text(&format!("{folder}/type")).unwrap_or_default(),
            celsius: degrees("temp")?,
            slows_at: (0..12).filter_map(trip).reduce(f64::min),
        })
    };
    let zones = zones.iter().filter(|name| name.starts_with("thermal_zone"));
    zones.filter_map(zone).collect()
}
