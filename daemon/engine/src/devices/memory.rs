//! What a device has to give.

use finetuned_shaders::DeviceInfo;

/// What the device has to give; 0 where it does not say. One that shares the
/// host's memory can give what the host has left.
pub(crate) fn available(info: &DeviceInfo, host: u64) -> u64 {
    match (info.memory_bytes, info.shares_host_memory) {
        (own, false) => own,
        (0, true) => host,
        (own, true) if host == 0 => own,
        (own, true) => own.min(host),
    }
}

/// Memory that the host can give now, 0 where it does not say: what Linux calls
/// available, within the control group's limit.
pub(crate) fn host_memory() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let available = available_bytes(&read("/proc/meminfo"));
    let limit: u64 = read("/sys/fs/cgroup/memory.max").trim().parse().unwrap_or(u64::MAX);
    let used: u64 = read("/sys/fs/cgroup/memory.current").trim().parse().unwrap_or(0);
    available.min(limit.saturating_sub(used))
}

/// `MemAvailable` of /proc/meminfo, which counts in KiB.
fn available_bytes(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_linux_writes_it() {
        let text = "MemTotal:       24689240 kB\nMemFree:        11042312 kB\nMemAvailable:   22000000 kB\n";
        assert_eq!(available_bytes(text), 22_000_000 << 10);
        assert_eq!(available_bytes(""), 0);
    }

    #[test]
    fn a_device_with_memory_of_its_own_never_gets_the_hosts() {
        let of = |memory_bytes, shares_host_memory, host| {
            let info = DeviceInfo {
                name: String::new(),
                parallelism: 1,
                memory_bytes,
                shares_host_memory,
                product_rounding: 0.0,
                on_host: false,
            };
            available(&info, host)
        };
        assert_eq!(of(24, false, 64), 24);
        assert_eq!(of(0, false, 64), 0, "unknown");
        assert_eq!(of(0, true, 64), 64);
        assert_eq!(of(32, true, 64), 32);
        assert_eq!(of(64, true, 20), 20, "the host has no more");
        assert_eq!(of(32, true, 0), 32);
    }
}
