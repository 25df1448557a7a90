//! Checks when the test process ends, after the last test, that the run left nothing behind.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use super::cgroup;

static BEFORE: OnceLock<BTreeSet<String>> = OnceLock::new();

/// A number that is unique among the nodes of this run. The first call removes what killed runs left, records the state of the machine,
/// and registers the check.
pub(super) fn register() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    BEFORE.get_or_init(|| {
        remove_old();
        #[expect(unsafe_code, reason = "std has no hook at the end of a process")]
        // SAFETY: a function that lives as long as the program.
        let done = unsafe { libc::atexit(check) };
        assert_eq!(done, 0, "the check can be registered");
        machine()
    });
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// Fails the process if something is left.
extern "C" fn check() {
    let now = machine();
    let mut found: Vec<String> = BEFORE.get().map(|before| changes(before, &now)).unwrap_or_default();
    found.extend(namespaces().into_iter().map(|name| format!("a descriptor of {name}")));
    found.extend(children().then(|| "a child process".to_owned()));
    if !found.is_empty() {
        eprintln!("\nthe tests left resources behind:\n  {}", found.join("\n  "));
        #[expect(unsafe_code, reason = "exit would run this function again")]
        // SAFETY: ends the process.
        unsafe {
            libc::_exit(101)
        }
    }
}

fn changes(before: &BTreeSet<String>, now: &BTreeSet<String>) -> Vec<String> {
    let new = now.difference(before).map(|line| format!("new: {line}"));
    let removed = before.difference(now).map(|line| format!("removed: {line}"));
    new.chain(removed).collect()
}

/// The machine's devices, qdiscs and named namespaces, and our cgroups and directories.
fn machine() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for command in [&["ip", "-o", "link"][..], &["tc", "qdisc", "show"], &["ip", "netns", "list"]] {
        let output = Command::new(command[0]).args(&command[1..]).output().map(|output| output.stdout);
        let text = String::from_utf8_lossy(&output.unwrap_or_default()).into_owned();
        // Only the name of a device: others may set it up or down meanwhile.
        let line = |line: &str| {
            if command[1] == "-o" { line.split(':').nth(1).unwrap_or(line).into() } else { line.to_owned() }
        };
        found.extend(text.lines().map(|text| format!("{}: {}", command.join(" "), line(text))));
    }
    for path in ours() {
        found.insert(path.display().to_string());
    }
    found
}

/// Cgroups and directories that this process created.
fn ours() -> Vec<PathBuf> {
    let mine = format!("{}{}.", cgroup::PREFIX, std::process::id());
    named(&cgroup::hierarchy(), &mine).chain(named(&std::env::temp_dir(), &mine)).collect()
}

fn named(directory: &Path, prefix: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let prefix = prefix.to_owned();
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    entries.filter(move |entry| entry.file_name().to_string_lossy().starts_with(&prefix)).map(|entry| entry.path())
}

/// Removes the cgroups and directories of processes that have ended.
fn remove_old() {
    let dead = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let pid = name.strip_prefix(cgroup::PREFIX).and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
        pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    };
    for path in named(&cgroup::hierarchy(), cgroup::PREFIX).filter(dead) {
        // If this fails, processes of that run are still ending; the next run tries again.
        let _ = cgroup::remove(&path);
    }
    for path in named(&std::env::temp_dir(), cgroup::PREFIX).filter(dead) {
        let _ = fs::remove_dir_all(path);
    }
}

/// Namespaces of which this process still has open descriptors.
fn namespaces() -> Vec<String> {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().filter_map(Result::ok);
    let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    links
        .map(|link| link.display().to_string())
        .filter(|link| link.starts_with("net:[") || link.starts_with("mnt:["))
        .collect()
}

fn children() -> bool {
    #[expect(unsafe_code, reason = "std waits for known children only")]
    // SAFETY: the status pointer may be null.
    let waited = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
    waited >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ECHILD)
}
