use aya::programs::{ProgramInfo, SchedClassifier, tc::TcAttachType};

use crate::netlink::Hook;

/// A program that runs at a hook of an interface before all filters (Linux 6.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcxProgram {
    /// The hook.
    pub hook: Hook,
    /// Its name; its ID if it has none.
    pub name: String,
}

/// The programs at a hook of an interface of the current network namespace; none if the kernel has no such hook.
#[must_use]
pub fn tcx_programs(interface: &str, hook: Hook) -> Vec<TcxProgram> {
    let attach_type = match hook {
        Hook::Ingress => TcAttachType::Ingress,
        Hook::Egress => TcAttachType::Egress,
    };
    let programs = SchedClassifier::query_tcx(interface, attach_type).map(|(_, programs)| programs).unwrap_or_default();
    let program = |program: &ProgramInfo| {
        let name = String::from_utf8_lossy(program.name()).into_owned();
        TcxProgram { hook, name: if name.is_empty() { program.id().to_string() } else { name } }
    };
    programs.iter().map(program).collect()
}
