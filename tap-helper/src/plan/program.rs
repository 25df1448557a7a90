//! The programs of a sender: which of them stay, and which are replaced.

use super::Planner;
use crate::{
    bpf::{BpfError, Settings},
    netlink::{CLAMP_PRIORITY, Filter, FilterTarget, Hook},
    observe::Program,
    step::Step,
};

/// The plan for a sender's programs.
#[derive(Default)]
pub(super) struct ProgramPlan {
    /// Load programs and attach the clamp, or only reconfigure the running programs.
    pub(super) steps: Vec<Step>,
    /// Hooks whose filters get the loaded programs.
    pub(super) replaced: Vec<Hook>,
}

impl ProgramPlan {
    /// Whether programs have to be loaded.
    pub(super) fn loads(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::LoadPrograms { .. }))
    }
}

impl Planner<'_> {
    /// Plans the programs of a sender with mirrors at the given hooks, each with the position of its filter, if that exists.
    ///
    /// Running programs stay if they have the requested code and share their maps. If one is missing, a set is loaded that shares the
    /// maps of the programs that stay or, if none stays, continues the counters of an existing one. Replacing the program of an existing
    /// filter misses no frame.
    pub(super) fn plan_programs(
        &self,
        settings: &Settings,
        device: u32,
        mirrors: &[(Hook, Option<usize>)],
    ) -> Result<ProgramPlan, BpfError> {
        let desired = settings.fingerprint()?;
        let program = |filter: &Filter| filter.program.and_then(|id| self.observed.program(id));
        let clamp_filter = self.clamp(device);
        let classifiers: Vec<(Hook, Option<&Program>)> = mirrors
            .iter()
            .map(|(hook, at)| (*hook, at.and_then(|position| program(&self.observed.filters[position]))))
            .collect();
        let clamp = clamp_filter.and_then(program);
        // Classifiers first: they have all maps, while the clamp has only some of them.
        let running = || classifiers.iter().filter_map(|(_, program)| *program).chain(clamp);
        let reusable = running().find(|program| program.fingerprint.same_programs(&desired));
        let stays = |program: Option<&Program>| {
            program.is_some_and(|program| reusable.is_some_and(|reusable| reusable.group == program.group))
        };
        let replaced: Vec<Hook> =
            classifiers.iter().filter(|(_, program)| !stays(*program)).map(|(hook, _)| *hook).collect();
        let clamp_stays = stays(clamp);
        let settings = || Box::new(settings.clone());
        let mut steps = Vec::new();
        match reusable {
            Some(reusable) if clamp_stays && replaced.is_empty() => {
                if reusable.fingerprint != desired {
                    steps.push(Step::Configure { program: reusable.id, settings: settings() });
                }
            }
            _ => {
                let before = reusable.or_else(|| running().next()).map(|program| program.id);
                steps.push(Step::LoadPrograms { settings: settings(), before });
                if !clamp_stays {
                    let handle = clamp_filter.map_or(0, |filter| filter.id.handle);
                    let (hook, priority) = (Hook::Egress, CLAMP_PRIORITY);
                    steps.push(Step::AttachClamp(FilterTarget { interface: device, hook, priority, handle }));
                }
            }
        }
        Ok(ProgramPlan { steps, replaced })
    }

    /// The filter on a sender device that runs the clamp.
    pub(super) fn clamp(&self, device: u32) -> Option<&Filter> {
        let mut filters = self.filters(device, Hook::Egress).map(|(_, filter)| filter);
        filters.find(|filter| (filter.id.chain, filter.id.priority) == (0, CLAMP_PRIORITY) && filter.id.kind == "bpf")
    }
}
