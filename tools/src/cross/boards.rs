//! The boards that Tandem is made for. One binary serves them all; what differs is which of its
//! levels will run, and what the user should know.

use std::fmt::Write as _;

use crate::doctor::cpu::level;

/// A board.
#[derive(Debug)]
pub(super) struct Board {
    /// As `--board` takes it.
    pub name: &'static str,
    pub title: &'static str,
    pub cpu: &'static str,
    /// Features that matter to the level, as Linux names them.
    pub features: &'static [&'static str],
    pub memory: &'static str,
    /// Of the largest version, in megabytes.
    pub most_memory: u64,
    /// Pages of its usual kernel.
    pub pages: &'static str,
    pub os: &'static str,
    pub glibc: &'static str,
}

const NEON: &[&str] = &["asimd"];
/// Armv8.2: Carmel has half floats, but no dot products.
const HALF: &[&str] = &["asimd", "asimdhp"];
const DOT: &[&str] = &["asimd", "asimdhp", "asimddp"];

const PI_OS: (&str, &str) = ("Raspberry Pi OS 12, 13 (64-bit)", "2.36, 2.41");
const JETPACK_6: (&str, &str) = ("JetPack 5, 6 (Ubuntu 20.04, 22.04)", "2.31, 2.35");

/// All of them.
#[rustfmt::skip]
pub(super) const BOARDS: [Board; 9] = [
    Board { name: "rpi3", title: "Raspberry Pi 3", cpu: "4 x Cortex-A53", features: NEON,
        memory: "1 GB", most_memory: 1024, pages: "4 KiB", os: PI_OS.0, glibc: PI_OS.1 },
    Board { name: "zero2w", title: "Raspberry Pi Zero 2 W", cpu: "4 x Cortex-A53", features: NEON,
        memory: "512 MB", most_memory: 512, pages: "4 KiB", os: PI_OS.0, glibc: PI_OS.1 },
    Board { name: "rpi4", title: "Raspberry Pi 4", cpu: "4 x Cortex-A72", features: NEON,
        memory: "1 to 8 GB", most_memory: 8192, pages: "4 KiB", os: PI_OS.0, glibc: PI_OS.1 },
    Board { name: "rpi5", title: "Raspberry Pi 5", cpu: "4 x Cortex-A76", features: DOT,
        memory: "1 to 16 GB", most_memory: 16384, pages: "16 KiB", os: PI_OS.0, glibc: PI_OS.1 },
    Board { name: "jetson-nano", title: "Jetson Nano", cpu: "4 x Cortex-A57", features: NEON,
        memory: "2 or 4 GB", most_memory: 4096, pages: "4 KiB", os: "JetPack 4 (Ubuntu 18.04)", glibc: "2.27" },
    Board { name: "xavier-nx", title: "Jetson Xavier NX", cpu: "6 x Carmel", features: HALF,
        memory: "8 or 16 GB", most_memory: 16384, pages: "4 KiB", os: "JetPack 4, 5 (Ubuntu 18.04, 20.04)", glibc: "2.27, 2.31" },
    Board { name: "orin-nano", title: "Jetson Orin Nano", cpu: "6 x Cortex-A78AE", features: DOT,
        memory: "4 or 8 GB", most_memory: 8192, pages: "4 KiB", os: JETPACK_6.0, glibc: JETPACK_6.1 },
    Board { name: "orin-nx", title: "Jetson Orin NX", cpu: "6 or 8 x Cortex-A78AE", features: DOT,
        memory: "8 or 16 GB", most_memory: 16384, pages: "4 KiB", os: JETPACK_6.0, glibc: JETPACK_6.1 },
    Board { name: "agx-orin", title: "Jetson AGX Orin", cpu: "8 or 12 x Cortex-A78AE", features: DOT,
        memory: "32 or 64 GB", most_memory: 65536, pages: "4 KiB", os: JETPACK_6.0, glibc: JETPACK_6.1 },
];

impl Board {
    /// The board of a name, or what to write instead.
    pub(super) fn from_name(name: &str) -> Result<&'static Board, String> {
        if ["armv7", "armhf"].iter().any(|arm32| name.contains(arm32)) {
            return Err(
                "there is no build for 32-bit Arm; the 64-bit one runs on a 32-bit system, too, if \
                 its kernel is 64-bit (`uname -m` says aarch64)"
                    .to_string(),
            );
        }
        let found = BOARDS.iter().find(|board| board.name == name);
        found.ok_or_else(|| {
            let names: Vec<_> = BOARDS.iter().map(|board| board.name).collect();
            format!("it is none of {}", names.join(", "))
        })
    }

    /// Why a model of so many bytes will be slow or fail on it, if it will.
    pub(super) fn warning(&self, n_bytes: u64) -> Option<String> {
        let is_too_large = n_bytes > self.most_memory << 20;
        is_too_large.then(|| {
            format!(
                "warning: a {} has {} of memory, and the model takes {:.1} GB: every token would wait for \
                 the disk",
                self.title,
                self.memory,
                n_bytes as f64 / 1e9
            )
        })
    }

    /// The level that will run on it.
    pub(super) fn level(&self) -> &'static str {
        level(self.features)
    }
}

/// The table of `--list`.
pub(super) fn table() -> String {
    let heads = [
        "board", "", "CPU", "features", "memory", "pages", "system", "glibc", "level",
    ];
    let rows = BOARDS.iter().map(|b| {
        let features = b.features.join(" ");
        let fields = [
            b.name,
            b.title,
            b.cpu,
            &features,
            b.memory,
            b.pages,
            b.os,
            b.glibc,
            b.level(),
        ];
        fields.map(str::to_string)
    });
    let rows: Vec<_> = [heads.map(str::to_string)]
        .into_iter()
        .chain(rows)
        .collect();
    let width = |i: usize| rows.iter().map(|row| row[i].len()).max().unwrap_or(0);
    let mut s = String::new();
    for row in &rows {
        let fields = row.iter().enumerate();
        let text: String = fields
            .map(|(i, field)| format!("{field:<0$}  ", width(i)))
            .collect();
        let _ = writeln!(s, "{}", text.trim_end());
    }
    s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_no_version_of_the_board_holds_is_told() {
        let zero = Board::from_name("zero2w").unwrap();
        assert_eq!(zero.warning(100 << 20), None);
        assert!(zero.warning(700 << 20).unwrap().contains("512 MB"));
        assert_eq!(Board::from_name("rpi5").unwrap().warning(9 << 30), None);
    }
}
