use std::{fs, io, time::Duration};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

/// A file of a process.
pub(super) fn path(pid: u32, file: &str) -> String {
    format!("/proc/{pid}/{file}")
}

/// All processes.
pub fn pids() -> io::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// The PID that was last given to a process or thread (last field of `/proc/loadavg`, `proc_loadavg(5)`).
///
/// Reading it costs a hundredth of listing all processes, so it is a cheap way to notice a new one.
pub fn last_pid() -> io::Result<u32> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let last = text.split_ascii_whitespace().next_back().and_then(|field| field.parse().ok());
    last.ok_or_else(|| malformed("/proc/loadavg"))
}

/// The highest PID (`proc_sys_kernel(5)`). If it cannot be read, PIDs near the end of the range are only found in lists of all.
pub fn max_pid() -> u32 {
    let text = fs::read_to_string("/proc/sys/kernel/pid_max");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

/// Whether a PID is that of a process, and not of a thread or of a process that has ended. Costs a tenth of reading a file of it.
pub fn is_process(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(_) => true,
        // EINVAL, or ENOENT since Linux 6.9: a thread (`pidfd_prepare`, kernel/fork.c).
        Err(error) => !matches!(error, Errno::SRCH | Errno::INVAL | Errno::NOENT),
    })
}

/// The cgroups of a process.
pub(super) fn cgroup(pid: u32) -> io::Result<String> {
    fs::read_to_string(path(pid, "cgroup"))
}

/// How long ago a process started, to a hundredth of a second (field 22 of `/proc/PID/stat`, `proc_pid_stat(5)`).
pub(super) fn age(pid: u32) -> io::Result<Duration> {
    let text = fs::read_to_string(path(pid, "stat"))?;
    // The name, in parentheses, may hold anything; the third field follows the last closing one.
    let field = text.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19)?.parse::<u64>().ok());
    let start =
        field.map(|ticks| Duration::from_millis(ticks * 1000 / TICKS)).ok_or_else(|| malformed("/proc/PID/stat"))?;
    let uptime = fs::read_to_string("/proc/uptime")?;
    let seconds = uptime.split_ascii_whitespace().next().and_then(|field| field.parse().ok());
    let now = seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| malformed("/proc/uptime"))?;
    Ok(now.saturating_sub(start))
}

fn malformed(file: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{file} does not have its documented format"))
}

/// `USER_HZ`: 100 on every architecture that Kubernetes runs on (include/asm-generic/param.h).
const TICKS: u64 = 100;
