//! The cores on which a thread runs.

use std::io;

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// Pins the calling thread to one core.
///
/// # Errors
/// When the thread may not run there.
pub fn stay_on(core: usize) -> io::Result<()> {
    let mut one = CpuSet::new();
    one.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &one)?)
}

/// Confines this thread, and what it starts, to some of its cores until dropped.
pub struct Confined {
    before: CpuSet,
    /// Their numbers.
    pub cores: Vec<usize>,
}

impl Confined {
    /// To its first cores, as many as given.
    ///
    /// # Panics
    /// When the kernel refuses that.
    #[must_use]
    pub fn to(count: usize) -> Self {
        let before = sched_getaffinity(Pid::from_raw(0)).expect("a thread knows its cores");
        let cores: Vec<usize> =
            (0..CpuSet::count()).filter(|core| before.is_set(*core).unwrap_or(false)).take(count).collect();
        let mut fewer = CpuSet::new();
        for core in &cores {
            fewer.set(*core).expect("a number that was just read");
        }
        sched_setaffinity(Pid::from_raw(0), &fewer).expect("a thread may use fewer cores");
        Self { before, cores }
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        let _ = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}
