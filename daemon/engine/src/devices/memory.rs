//! How much memory a device has for a run.

use finetuned_shaders::DeviceInfo;

/// Memory of the device that a run may use; None if unknown. A device that shares the
/// host's memory has no more than the host has left.
pub(crate) fn available(info: &DeviceInfo, host: Option<u64>) -> Option<u64> {
    let own = (info.memory_bytes > 0).then_some(info.memory_bytes);
    if !info.shares_host_memory {
        return own;
    }
    match (own, host) {
        (Some(own), Some(host)) => Some(own.min(host)),
        (own, host) => own.or(host),
    }
}

/// Memory that the host has left, within the limit of its control group; None if the
/// system does not say.
pub(crate) fn host_memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let available = available_bytes(&read("/proc/meminfo"))?;
    let limit: u64 = read("/sys/fs/cgroup/memory.max").trim().parse().unwrap_or(u64::MAX);
    let used: u64 = read("/sys/fs/cgroup/memory.current").trim().parse().unwrap_or(0);
    // A group at its limit says nothing: what it uses includes the page cache.
    Some(available.min(limit.saturating_sub(used))).filter(|left| *left > 0)
}

/// `MemAvailable` of /proc/meminfo, which counts in KiB.
fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_linux_writes_it() {
        let text = "MemTotal:       24689240 kB\nMemFree:        11042312 kB\nMemAvailable:   22000000 kB\n";
        assert_eq!(available_bytes(text), Some(22_000_000 << 10));
        assert_eq!(available_bytes(""), None);
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
        assert_eq!(of(24, false, Some(64)), Some(24));
        assert_eq!(of(0, false, Some(64)), None, "unknown");
        assert_eq!(of(0, true, Some(64)), Some(64));
        assert_eq!(of(32, true, Some(64)), Some(32));
        assert_eq!(of(64, true, Some(20)), Some(20), "the host has no more");
        assert_eq!(of(32, true, None), Some(32));
    }
}
