//! Memory of the machine, and of the control groups that a process is in.

use std::string::String;
use std::vec::Vec;

/// What one control group allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimit {
    /// Bytes that it may use.
    pub limit: u64,
    /// Bytes of that which are left, with the cached files that the kernel would give up.
    pub left: u64,
}

/// Bytes of memory that the system could give this process, where it tells: what is available, and no
/// more than the control groups around it leave.
pub fn free_memory() -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let groups = group_limits(&read).into_iter().map(|group| group.left);
    let free = available(&read("/proc/meminfo")?)
        .into_iter()
        .chain(groups)
        .min()?;
    Some(usize::try_from(free).unwrap_or(usize::MAX))
}

fn available(meminfo: &str) -> Option<u64> {
    let mut lines = meminfo.lines();
    let line = lines.find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// The limits of the control groups around this process, of either version, as both may be mounted.
/// `read` gives the text of a file.
pub fn group_limits(read: &dyn Fn(&str) -> Option<String>) -> Vec<GroupLimit> {
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let files = match controllers {
            "" => &VERSION_2,
            c if c.split(',').any(|c| c == "memory") => &VERSION_1,
            _ => continue,
        };
        // Every group above limits, too. In a container the path may be that outside, which is not
        // here, and the root of the mount is the group itself.
        let path = path.trim_matches('/');
        let above = path.match_indices('/').map(|(i, _)| &path[..i]);
        for group in [""].into_iter().chain(above).chain([path]) {
            // A name of a group cannot lead out of the mount, whatever the file says.
            if !group.split('/').any(|part| part == "..") {
                limits.extend(files.limit(group, read));
            }
        }
    }
    limits
}

/// What the files of a version are called.
struct Files {
    mount: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// In `memory.stat`: files in the cache, which count as used.
    cached: [&'static str; 2],
}

const VERSION_1: Files = Files {
    mount: "/sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cached: ["total_active_file", "total_inactive_file"],
};
const VERSION_2: Files = Files {
    mount: "/sys/fs/cgroup",
    limit: "memory.max",
    usage: "memory.current",
    cached: ["active_file", "inactive_file"],
};

impl Files {
    /// The limit of a group, if it has one.
    fn limit(&self, group: &str, read: &dyn Fn(&str) -> Option<String>) -> Option<GroupLimit> {
        let text = |file| read(&std::format!("{}/{group}/{file}", self.mount));
        let number = |file| text(file)?.trim().parse::<u64>().ok();
        // Version 1 says "no limit" by the largest number that is a multiple of a page.
        let limit = number(self.limit).filter(|limit| *limit < 1 << 60)?;
        let stat = text("memory.stat").unwrap_or_default();
        let cached = stat.lines().filter_map(|line| {
            let (key, n) = line.split_once(' ')?;
            self.cached
                .contains(&key)
                .then(|| n.trim().parse::<u64>().ok())?
        });
        let cached = cached.fold(0, u64::saturating_add);
        let used = number(self.usage).unwrap_or(0).saturating_sub(cached);
        Some(GroupLimit {
            limit,
            left: limit.saturating_sub(used),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn groups_of_both_versions_limit_with_those_above_them() {
        let read = |path: &str| {
            let text = match path {
                "/proc/self/cgroup" => "4:cpu,memory:/a/b\n3:cpu:/c\n0::/x\n1:memory:/../etc\n",
                "/sys/fs/cgroup/memory//memory.limit_in_bytes" => "9223372036854771712\n",
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes" => "1000",
                "/sys/fs/cgroup/memory/a/memory.usage_in_bytes" => "900",
                "/sys/fs/cgroup/memory/a/memory.stat" => {
                    "cache 5\ntotal_inactive_file 300\ntotal_active_file 50"
                }
                "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes" => "5000",
                "/sys/fs/cgroup/x/memory.max" => "max",
                _ => return None,
            };
            Some(text.to_string())
        };
        let limit = |limit, left| GroupLimit { limit, left };
        assert_eq!(group_limits(&read), [limit(1000, 450), limit(5000, 5000)]);
        assert_eq!(
            available("MemTotal: 9 kB\nMemAvailable:  7 kB\n"),
            Some(7168)
        );
    }
}
