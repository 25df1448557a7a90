use tap_wire::{Reason, Receiver};

use super::Planner;
use crate::{
    failure::Failure,
    marks::{Mark, ReceiverMark, is_ours},
    names::{SOURCE_PORTS, receiver_device},
    netlink::{Link, Vxlan},
    step::{Action, Item, Step},
};

impl Planner<'_> {
    /// Plans one receiver: keeps what is right of the observed state, and returns the steps for what is not there.
    pub(super) fn receiver(&mut self, receiver: &Receiver) -> Vec<Action> {
        let item = Item::Receiver(receiver.tap.clone(), receiver.vni);
        if let Err(failure) = self.name_is_free(receiver) {
            self.plan.outcomes.insert(item, Err(failure));
            return Vec::new();
        }
        self.plan.outcomes.insert(item.clone(), Ok(receiver.interface_name.clone()));
        self.kept.names.push(receiver.interface_name.clone());

        let mark = ReceiverMark { tap: receiver.tap.clone(), vni: receiver.vni, ipv6: receiver.ipv6 };
        let alias = Mark::Receiver(mark).alias();
        let vxlan = Vxlan { vni: receiver.vni, port: receiver.port, source_ports: SOURCE_PORTS, learning: false };
        let mut actions = Vec::new();
        let Some(device) = self.receiver_device(receiver, vxlan).cloned() else {
            let name = receiver_device(receiver.vni);
            let step = Step::CreateDevice { name, vxlan, ipv6: receiver.ipv6, alias };
            actions.push(Action { item, step });
            return actions;
        };
        self.kept.devices.push(device.index);
        self.furnish(&item, &device, &alias, &mut actions);
        let mut push = |step| actions.push(Action { item: item.clone(), step });
        if device.name != receiver.interface_name {
            push(Step::Rename(device.index, receiver.interface_name.clone()));
        }
        if !device.up {
            push(Step::Up(device.index));
        }
        actions
    }

    /// The receiver's device, if there is one that need not be made anew. The tap may be another one: then it changes hands.
    fn receiver_device(&self, receiver: &Receiver, wanted: Vxlan) -> Option<&Link> {
        self.observed.links.iter().find(|link| {
            let Some(Mark::Receiver(mark)) = Mark::of(link) else { return false };
            // A device that is up may not be renamed by every kernel.
            let name = link.name == receiver.interface_name || !link.up;
            mark.vni == receiver.vni
                && mark.ipv6 == receiver.ipv6
                && name
                && self.sound(link)
                && link.vxlan == Some(wanted)
        })
    }

    fn name_is_free(&self, receiver: &Receiver) -> Result<(), Failure> {
        let name = &receiver.interface_name;
        let holder = self.observed.links.iter().find(|link| link.name == *name);
        let foreign = holder.is_some_and(|link| !is_ours(link));
        if !foreign && !self.kept.names.contains(name) {
            return Ok(());
        }
        Err(Failure::refused(
            Reason::NameTaken,
            format!(
                "There is an interface {name} already that belongs to something else. Choose another interfaceName."
            ),
        ))
    }
}
