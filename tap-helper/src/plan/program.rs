//! The programs of a sender: which of them stay, and which are loaded.

use super::Planner;
use crate::{
    bpf::{BpfError, Settings},
    netlink::{FIT_PRIORITY, Filter, FilterTarget, Hook},
    observe::Program,
    step::Step,
};

/// What is to be done about a sender's programs.
#[derive(Default)]
pub(super) struct Programming {
    /// Loads programs and attaches the clamp, or only reconfigures the running ones.
    pub(super) steps: Vec<Step>,
    /// Where other programs are to be put then.
    pub(super) renewed: Vec<Hook>,
}

impl Planner<'_> {
    /// Plans the programs of a sender, whose mirrors are at the given hooks as far as they are there.
    ///
    /// Those that run stay if they are of the right kind and belong together. If one lacks, a set is loaded that joins those that are
    /// right, or else goes on with the counters of those that are there; the rest take their places in existing filters, so that no
    /// frame passes unseen.
    pub(super) fn programming(
        &self,
        settings: &Settings,
        device: u32,
        mirrors: &[(Hook, Option<usize>)],
    ) -> Result<Programming, BpfError> {
        let desired = settings.fingerprint()?;
        let program = |filter: &Filter| filter.program.and_then(|id| self.observed.program(id));
        let clamp_filter = self.clamp(device);
        let classifiers: Vec<(Hook, Option<&Program>)> = mirrors
            .iter()
            .map(|(hook, at)| (*hook, at.and_then(|position| program(&self.observed.filters[position]))))
            .collect();
        let clamp = clamp_filter.and_then(program);
        // A classifier's maps are all there are; the other program has only some of them.
        let known = || classifiers.iter().filter_map(|(_, program)| *program).chain(clamp);
        let joined = known().find(|program| program.fingerprint.same_programs(&desired));
        let stays = |program: Option<&Program>| {
            program.is_some_and(|program| joined.is_some_and(|joined| joined.group == program.group))
        };
        let renewed: Vec<Hook> =
            classifiers.iter().filter(|(_, program)| !stays(*program)).map(|(hook, _)| *hook).collect();
        let clamp_stays = stays(clamp);
        let settings = || Box::new(settings.clone());
        let mut steps = Vec::new();
        match joined {
            Some(joined) if clamp_stays && renewed.is_empty() => {
                if joined.fingerprint != desired {
                    steps.push(Step::Configure { program: joined.id, settings: settings() });
                }
            }
            _ => {
                let before = joined.or_else(|| known().next()).map(|program| program.id);
                steps.push(Step::LoadPrograms { settings: settings(), before });
                if !clamp_stays {
                    let handle = clamp_filter.map_or(0, |filter| filter.id.handle);
                    let (hook, priority) = (Hook::Egress, FIT_PRIORITY);
                    steps.push(Step::AttachClamp(FilterTarget { interface: device, hook, priority, handle }));
                }
            }
        }
        Ok(Programming { steps, renewed })
    }

    /// The filter of the clamp on a sender device.
    pub(super) fn clamp(&self, device: u32) -> Option<&Filter> {
        let mut filters = self.filters(device, Hook::Egress).map(|(_, filter)| filter);
        filters.find(|filter| (filter.id.chain, filter.id.priority) == (0, FIT_PRIORITY) && filter.id.kind == "bpf")
    }
}
