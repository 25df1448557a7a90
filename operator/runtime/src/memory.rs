//! Protection of a process's secrets from other processes of the same user.

use std::io;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// Prevents other processes of the same user from reading and writing the memory of this one and from reaching its files through
/// `/proc` (`ptrace_may_access` in the kernel's `kernel/ptrace.c`): it holds a token for the API server. An exec resets the attribute,
/// so each process sets its own.
pub fn disable_tracing() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}
