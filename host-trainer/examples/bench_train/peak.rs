//! Memory of this process as Linux counts it.

/// Forgets the peak so far.
pub(crate) fn reset() {
    // Without it the peak is that of the whole process, which is still right, only higher.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Highest resident size since the last [`reset`], in bytes; `None` where the system does not say.
pub(crate) fn peak_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
