//! What the planner guarantees, for random requests in random namespaces.

mod scenario;
mod world;

use crate::{
    marks::{Cookie, is_ours},
    names::{receiver_device, receiver_hash, receiver_pair, sender_hash},
    netlink::{FIT_PRIORITY, Filter, Hook, Link, Qdisc},
    plan::{Plan, Requested, plan},
    step::{Resource, SenderKey},
};
use podtap_model::FrameFormat;
use proptest::{collection::vec, prelude::any, prop_assert, prop_assert_eq, proptest};

use scenario::{Foreign, Scenario, damage, foreign_states, scenario};
use world::World;

/// Rounds within which every state becomes the wanted one, the last one of which finds nothing to do.
const ROUNDS: u32 = 4;

/// A namespace with foreign state, in which an earlier plan was executed up to some action, and something was damaged by hand.
fn scene(foreign_states: &[Foreign], earlier: &Scenario, stop: u8, harm: &[u8]) -> World {
    let mut world = World::of_pod();
    for foreign_state in foreign_states {
        foreign_state.come(&mut world);
    }
    let mut left = usize::from(stop);
    for _ in 0..ROUNDS {
        for action in plan(&earlier.wanted(), &world.now).actions.iter().take(left) {
            world.act(action);
            left -= 1;
        }
    }
    damage(&mut world, harm);
    world
}

/// Everything that does not carry PodTap's marks.
fn foreign(world: &World) -> (Vec<Link>, Vec<Filter>) {
    let mine = |index: u32| world.now.link(index).is_some_and(is_ours);
    let links = world.now.links.iter().filter(|link| !is_ours(link)).cloned().collect();
    let strange = |filter: &&Filter| Cookie::of(filter).is_none() && !mine(filter.id.interface);
    (links, world.now.filters.iter().filter(strange).cloned().collect())
}

fn is_clean(world: &World) -> bool {
    !world.now.has_ours()
}

/// How many filters of a sender there are at a hook.
fn mirrors(world: &World, key: &SenderKey, hook: Hook) -> usize {
    let owner = sender_hash(key);
    let of = |filter: &&Filter| {
        filter.id.hook == hook && Cookie::of(filter).is_some_and(|cookie| cookie.owner == owner && cookie.hook == hook)
    };
    world.now.filters.iter().filter(of).count()
}

/// Each accepted sender has its device, its destinations and one filter per direction; nothing else carries marks.
fn assert_in_place(world: &World, scenario: &Scenario, plan: &Plan) {
    let accepted = |resource: &Resource| matches!(plan.outcomes.get(resource), Some(Ok(_)));
    let mut devices = 0;
    for sender in &scenario.senders {
        let key = SenderKey::of(sender);
        let there = accepted(&Resource::Sender(key.clone()));
        for (hook, wanted) in
            [(Hook::Ingress, sender.tap.direction.has_ingress()), (Hook::Egress, sender.tap.direction.has_egress())]
        {
            assert_eq!(mirrors(world, &key, hook), usize::from(there && wanted), "{sender:?}");
        }
        let name = crate::names::sender_device(&key);
        let device = world.now.ours().find(|link| link.name == name);
        assert_eq!(device.is_some(), there, "{sender:?}");
        let Some(device) = device else { continue };
        devices += 1;
        let mut to: Vec<_> = world.now.destinations.iter().filter(|entry| entry.0 == device.index).collect();
        to.sort_unstable();
        assert_eq!(to.len(), sender.tap.destinations.len());
        assert!(device.up && device.autoconf_disabled);
        let leads =
            |filter: &Filter| filter.mirror.as_ref().is_some_and(|mirror| mirror.to == device.index && mirror.as_ours);
        let own = |filter: &&Filter| Cookie::of(filter).is_some_and(|cookie| cookie.owner == sender_hash(&key));
        assert!(world.now.filters.iter().filter(own).all(leads), "each filter leads to its device");
        let fit = |filter: &&Filter| {
            (filter.id.interface, filter.id.hook, filter.id.priority) == (device.index, Hook::Egress, FIT_PRIORITY)
        };
        let having: Vec<&Filter> = world.now.filters.iter().filter(|filter| own(filter) || fit(filter)).collect();
        match scenario.settings.get(&key) {
            None => assert!(having.iter().all(|filter| filter.program.is_none() && own(filter)), "{having:?}"),
            Some(settings) => {
                let told = settings.fingerprint().expect("they are valid");
                let programs = having.iter().map(|filter| filter.program.and_then(|id| world.now.program(id)));
                let programs: Vec<_> = programs.map(|program| program.expect("it is there")).collect();
                assert!(programs.iter().all(|program| program.fingerprint == told), "{programs:?}");
                assert!(programs.iter().all(|program| program.group == programs[0].group), "{programs:?}");
                assert_eq!(having.iter().filter(|filter| fit(filter)).count(), 1);
            }
        }
    }
    for receiver in &scenario.receivers {
        let there = accepted(&Resource::receiver(receiver));
        let tunnel = world.now.ours().find(|link| link.vxlan.is_some_and(|vxlan| vxlan.vni == receiver.vni.get()));
        assert_eq!(tunnel.is_some(), there, "{receiver:?}");
        let Some(tunnel) = tunnel else { continue };
        devices += 1;
        let interface = if receiver.frame_format == FrameFormat::Raw {
            tunnel
        } else {
            assert_eq!(tunnel.name, receiver_device(receiver.vni.get()));
            let [near_name, _] = receiver_pair(receiver.vni.get());
            let near = world.now.ours().find(|link| link.name == near_name).expect("the near end is there");
            let leads = |filter: &&Filter| {
                let mirror = filter.mirror.as_ref().filter(|mirror| mirror.redirects && mirror.to == near.index);
                filter.id.interface == tunnel.index && mirror.is_some()
            };
            assert_eq!(world.now.filters.iter().filter(leads).count(), 1, "{receiver:?}");
            devices += 2;
            world.now.link(near.peer.expect("it is a pair")).expect("the far end is there")
        };
        assert_eq!(interface.name, *receiver.interface_name);
    }
    assert!(world.now.ours().all(|link| link.up) && world.now.offloads.is_empty());
    assert_eq!(world.now.ours().count(), devices);
    let senders = scenario.senders.iter().map(|sender| sender_hash(&SenderKey::of(sender)));
    let owners: Vec<u64> =
        senders.chain(scenario.receivers.iter().map(|receiver| receiver_hash(receiver.vni.get()))).collect();
    assert!(world.now.filters.iter().filter_map(Cookie::of).all(|cookie| owners.contains(&cookie.owner)));
    for link in world.now.ours() {
        let drops = |filter: &&Filter| filter.id.interface == link.index && filter.drops_all;
        assert_eq!(world.now.filters.iter().filter(drops).count(), 1, "nothing comes out of {}", link.name);
    }
}

proptest! {
    #[test]
    fn every_state_becomes_the_wanted_one(
        foreign_states in foreign_states(), earlier in scenario(), wanted in scenario(), stop in any::<u8>(), harm in vec(any::<u8>(), 0..4)
    ) {
        let mut world = scene(&foreign_states, &earlier, stop, &harm);
        let before = foreign(&world);
        let (rounds, last) = world.converge(&wanted.wanted());
        prop_assert!(rounds <= ROUNDS, "{rounds} rounds; still to do: {:?}", last.actions);
        assert_in_place(&world, &wanted, &last);
        prop_assert_eq!(foreign(&world), before, "what is not ours is as before");
        // Its result is what it wants.
        prop_assert_eq!(plan(&wanted.wanted(), &world.now).actions, vec![]);
    }

    #[test]
    fn a_pod_is_as_before_when_nothing_is_wanted(
        foreign_states in foreign_states(), wanted in scenario(), stop in any::<u8>()
    ) {
        let before = scene(&foreign_states, &wanted, 0, &[]);
        let mut world = scene(&foreign_states, &wanted, stop, &[]);
        let (rounds, last) = world.converge(&Requested::default());
        prop_assert!(rounds <= ROUNDS, "{:?}", last.actions);
        prop_assert!(is_clean(&world));
        let sorted = |world: &World| {
            let mut qdiscs: Vec<Qdisc> = world.now.qdiscs.clone();
            qdiscs.sort_by_key(|qdisc| qdisc.interface);
            (world.now.links.clone(), qdiscs, world.now.filters.clone())
        };
        prop_assert_eq!(sorted(&world), sorted(&before));
    }

    #[test]
    fn the_order_of_wishes_does_not_matter(
        foreign_states in foreign_states(), earlier in scenario(), wanted in scenario(), stop in any::<u8>()
    ) {
        let world = scene(&foreign_states, &earlier, stop, &[]);
        let mut reversed = wanted.wanted();
        reversed.senders.reverse();
        reversed.receivers.reverse();
        let once = plan(&wanted.wanted(), &world.now);
        prop_assert_eq!(&plan(&reversed, &world.now), &once);
        prop_assert_eq!(&plan(&wanted.wanted(), &world.now), &once, "the same again");
    }
}
