use aya::programs::{SchedClassifier, tc::TcAttachType};

use crate::netlink::Hook;

/// A program that runs at a hook of an interface before all filters (Linux 6.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcxProgram {
    /// The hook.
    pub hook: Hook,
    /// Its name; its ID if it has none.
    pub name: String,
}

/// The programs at both hooks of an interface of the current network namespace; none if the kernel has no such hooks.
#[must_use]
pub fn tcx_programs(interface: &str) -> Vec<TcxProgram> {
    let hooks = [(Hook::Ingress, TcAttachType::Ingress), (Hook::Egress, TcAttachType::Egress)];
    let mut found = Vec::new();
    for (hook, attach_type) in hooks {
        let programs = SchedClassifier::query_tcx(interface, attach_type).map(|(_, programs)| programs);
        found.extend(programs.unwrap_or_default().iter().map(|program| {
            let name = String::from_utf8_lossy(program.name()).into_owned();
            TcxProgram { hook, name: if name.is_empty() { program.id().to_string() } else { name } }
        }));
    }
    found
}
