//! The planner's guarantees, for random requests in random namespaces.

mod scenario;
mod world;

use std::collections::BTreeMap;

use crate::{
    bpf::ReceiveSettings,
    failure::Failure,
    marks::{Cookie, Mark, is_ours},
    names::{receiver_device, receiver_hash, receiver_veth_pair, sender_hash},
    netlink::{CLAMP_PRIORITY, Filter, Hook, Link, Qdisc},
    observe::Observed,
    plan::{Plan, Requested, plan, receiver::had_unreported_reader},
    readers::is_read,
    resource::{Resource, SenderKey},
    step::Step,
};
use podtap_model::{FrameFormat, Reason};
use proptest::{collection::vec, prelude::any, prop_assert, prop_assert_eq, proptest};

use scenario::{Foreign, Scenario, damage, foreign_states, scenario};
use world::{World, is_raw};

/// Rounds within which every state converges. The last one finds nothing to do.
const ROUNDS: u32 = 4;

/// A namespace with foreign state, in which an earlier plan was executed up to some action and then damaged.
fn scene(foreign_states: &[Foreign], earlier: &Scenario, stop: u8, damages: &[u8]) -> World {
    let mut world = World::of_pod();
    for foreign in foreign_states {
        foreign.configure(&mut world);
    }
    execute(&mut world, &earlier.requested(), stop);
    damage(&mut world, damages);
    world
}

/// Executes plans up to some action, where the helper ends.
fn execute(world: &mut World, requested: &Requested<'_>, stop: u8) {
    let mut left = usize::from(stop);
    for _ in 0..ROUNDS {
        for action in plan(requested, &world.now).actions.iter().take(left) {
            world.act(action);
            left -= 1;
        }
    }
}

/// Everything that does not carry PodTap's marks.
fn foreign(world: &World) -> (Vec<Link>, Vec<Filter>) {
    let mine = |index: u32| world.now.link(index).is_some_and(is_ours);
    let links = world.now.links.iter().filter(|link| !is_ours(link)).cloned().collect();
    let unmarked = |filter: &&Filter| Cookie::of(filter).is_none() && !mine(filter.id.interface);
    (links, world.now.filters.iter().filter(unmarked).cloned().collect())
}

fn is_clean(world: &World) -> bool {
    !world.now.has_ours()
}

/// The number of a sender's filters at a hook.
fn mirrors(world: &World, key: &SenderKey, hook: Hook) -> usize {
    let owner = sender_hash(key);
    let of = |filter: &&Filter| {
        filter.id.hook == hook && Cookie::of(filter).is_some_and(|cookie| cookie.owner == owner && cookie.hook == hook)
    };
    world.now.filters.iter().filter(of).count()
}

/// Everything that belongs to a sender, and nothing else.
fn of_sender(world: &World, key: &SenderKey) -> Observed {
    let is_mine =
        |link: &&Link| matches!(Mark::of(link), Some(Mark::Sender(mark)) if mark.tap == key.tap && mark.pod == key.pod);
    let mut links: Vec<Link> = world.now.ours().filter(is_mine).cloned().collect();
    let has = |index: u32| links.iter().any(|link| link.index == index);
    let owned = |filter: &&Filter| Cookie::of(filter).is_some_and(|cookie| cookie.owner == sender_hash(key));
    let filters = world.now.filters.iter().filter(|filter| owned(filter) || has(filter.id.interface));
    let filters: Vec<Filter> = filters.cloned().collect();
    let forwarding = world.now.forwarding.iter().filter(|(index, _)| has(*index)).copied().collect();
    let programs = filters.iter().filter_map(|filter| world.now.program(filter)).copied().collect();
    // A device without its clamp may go down at any time.
    for link in &mut links {
        let clamps = |filter: &Filter| {
            let at = (filter.id.interface, filter.id.hook, filter.id.priority);
            at == (link.index, Hook::Egress, CLAMP_PRIORITY) && filter.program.is_some()
        };
        link.up &= filters.iter().any(clamps);
    }
    Observed { links, filters, programs, forwarding, ..Observed::default() }
}

/// How many filters of a sender mirror everything.
fn mirrors_without_program(world: &World, key: &SenderKey) -> usize {
    let filters = of_sender(world, key).filters;
    filters.iter().filter(|filter| filter.mirror.is_some() && filter.program.is_none()).count()
}

/// Each accepted sender has its device, its destinations and one filter per direction; nothing else carries marks.
fn assert_in_place(world: &World, scenario: &Scenario, plan: &Plan) {
    let accepted = |resource: &Resource| matches!(plan.results.get(resource), Some(Ok(_)));
    let mut devices = 0;
    for (sender, settings) in &scenario.senders {
        let key = SenderKey::of(sender);
        let expected = accepted(&Resource::Sender(key.clone()));
        for (hook, requested) in
            [(Hook::Ingress, sender.tap.direction.has_ingress()), (Hook::Egress, sender.tap.direction.has_egress())]
        {
            assert_eq!(mirrors(world, &key, hook), usize::from(expected && requested), "{sender:?}");
        }
        let name = crate::names::sender_device(&key);
        let device = world.now.ours().find(|link| link.name == name);
        assert_eq!(device.is_some(), expected, "{sender:?}");
        let Some(device) = device else { continue };
        devices += 1;
        let mut expected = sender.tap.destinations.clone();
        expected.sort_unstable();
        expected.dedup();
        let mut to = world.now.destinations(device.index);
        to.sort_unstable();
        assert_eq!(to, expected);
        assert!(world.now.diverted(device.index).is_empty());
        assert!(device.up && device.autoconf_disabled);
        let mirrors_to_device =
            |filter: &Filter| filter.mirror.as_ref().is_some_and(|mirror| mirror.to == device.index && mirror.as_ours);
        let own = |filter: &&Filter| Cookie::of(filter).is_some_and(|cookie| cookie.owner == sender_hash(&key));
        assert!(world.now.filters.iter().filter(own).all(mirrors_to_device), "each filter mirrors to its device");
        let is_clamp = |filter: &&Filter| {
            (filter.id.interface, filter.id.hook, filter.id.priority) == (device.index, Hook::Egress, CLAMP_PRIORITY)
        };
        let filters: Vec<&Filter> = world.now.filters.iter().filter(|filter| own(filter) || is_clamp(filter)).collect();
        let expected = settings.fingerprint().expect("the settings are valid");
        let programs = filters.iter().map(|filter| world.now.program(filter));
        let programs: Vec<_> = programs.map(|program| program.expect("the program was loaded")).collect();
        assert!(programs.iter().all(|program| program.fingerprint == expected), "{programs:?}");
        assert!(programs.iter().all(|program| program.group == programs[0].group), "{programs:?}");
        assert!(filters.iter().all(|filter| filter.classid == filters[0].classid), "{filters:?}");
        assert_eq!(filters.iter().filter(|filter| is_clamp(filter)).count(), 1);
    }
    for receiver in &scenario.receivers {
        let expected = accepted(&Resource::receiver(receiver));
        let vxlan = world.now.ours().find(|link| link.vxlan.is_some_and(|vxlan| vxlan.vni == receiver.vni.get()));
        assert_eq!(vxlan.is_some(), expected, "{receiver:?}");
        let Some(vxlan) = vxlan else { continue };
        devices += 1;
        assert_eq!(vxlan.name, receiver_device(receiver.vni.get()));
        let [peer_name, _] = receiver_veth_pair(receiver.vni.get());
        let peer = world.now.ours().find(|link| link.name == peer_name).expect("the peer exists");
        let redirects = |filter: &&Filter| {
            let mirror = filter.mirror.as_ref().filter(|mirror| mirror.redirects && mirror.to == peer.index);
            filter.id.interface == vxlan.index && mirror.is_some()
        };
        let [redirect] = world.now.filters.iter().filter(redirects).collect::<Vec<_>>()[..] else {
            panic!("one filter redirects: {receiver:?}")
        };
        let (tap, probe_ether_type) = (receiver.tap.uid.to_string(), scenario.probe_ether_type);
        let fingerprint = ReceiveSettings { tap, probe_ether_type, metadata: false }.fingerprint();
        assert_eq!(world.now.receive_program(redirect), Some(fingerprint), "{receiver:?}");
        devices += 2;
        let interface = world.now.link(peer.peer.expect("a veth device has a peer")).expect("the interface exists");
        assert_eq!(interface.name, *receiver.interface_name);
        assert_eq!(is_raw(interface), receiver.frame_format == FrameFormat::Raw);
        let off = |link: &Link| {
            let sends = |name: &String| name.starts_with("tx-");
            world.now.offloads(link.index).map(|offloads| !offloads.on.iter().any(sends))
        };
        let wire = !is_raw(interface);
        assert_eq!(off(interface), wire.then_some(true), "{receiver:?}");
        let index = &interface.index;
        let unreported = had_unreported_reader(peer);
        assert!(unreported || !wire || !scenario.unreported.contains(index), "{receiver:?}");
        let is_read = unreported || is_read(interface, &world.now) || scenario.recently_read.contains(index);
        assert_eq!(off(peer), wire.then_some(is_read), "it segments only for a reader: {receiver:?}");
    }
    assert!(world.now.ours().all(|link| link.up));
    assert_eq!(world.now.ours().count(), devices);
    let senders = scenario.senders.iter().map(|(sender, _)| sender_hash(&SenderKey::of(sender)));
    let owners: Vec<u64> =
        senders.chain(scenario.receivers.iter().map(|receiver| receiver_hash(receiver.vni.get()))).collect();
    assert!(world.now.filters.iter().filter_map(Cookie::of).all(|cookie| owners.contains(&cookie.owner)));
    for link in world.now.ours() {
        let drops = |filter: &&Filter| filter.id.interface == link.index && filter.drops_all;
        assert_eq!(world.now.filters.iter().filter(drops).count(), 1, "{} drops what it receives", link.name);
    }
}

/// Nothing but the clamp is attached to the egress of a sender device with programs.
fn assert_only_clamps_at_egress(world: &World, scenario: &Scenario) {
    for (sender, _) in &scenario.senders {
        let name = crate::names::sender_device(&SenderKey::of(sender));
        let Some(device) = world.now.ours().find(|link| link.name == name) else { continue };
        let at_egress = |filter: &&Filter| (filter.id.interface, filter.id.hook) == (device.index, Hook::Egress);
        let priorities: Vec<u16> =
            world.now.filters.iter().filter(at_egress).map(|filter| filter.id.priority).collect();
        assert_eq!(priorities, [CLAMP_PRIORITY]);
    }
}

proptest! {
    #[test]
    fn every_state_converges_to_the_desired_one(
        foreign_states in foreign_states(), earlier in scenario(), requested in scenario(), stop in any::<u8>(), damages in vec(any::<u8>(), 0..4)
    ) {
        let mut world = scene(&foreign_states, &earlier, stop, &damages);
        let before = foreign(&world);
        let (rounds, last) = world.converge(&requested.requested());
        prop_assert!(rounds <= ROUNDS, "{rounds} rounds; remaining actions: {:?}", last.actions);
        assert_in_place(&world, &requested, &last);
        prop_assert_eq!(foreign(&world), before, "foreign state is unchanged");
        assert_only_clamps_at_egress(&world, &requested);
        // The result needs no further change.
        prop_assert_eq!(plan(&requested.requested(), &world.now).actions, vec![]);
    }

    #[test]
    fn a_device_without_its_clamp_goes_down_before_anything_else(requested in scenario()) {
        let mut world = World::of_pod();
        world.converge(&requested.requested());
        let devices: Vec<u32> = world.now.ours().map(|link| link.index).collect();
        let is_clamp = |filter: &Filter| devices.contains(&filter.id.interface) && filter.id.hook == Hook::Egress;
        world.now.filters.retain(|filter| !is_clamp(filter));
        let again = plan(&requested.requested(), &world.now);
        for (sender, _) in &requested.senders {
            let resource = Resource::sender(sender);
            if matches!(again.results.get(&resource), Some(Ok(_))) {
                let first = again.actions.iter().find(|action| action.resource == resource);
                prop_assert!(matches!(first.map(|action| &action.step), Some(Step::Down(_))), "{first:?}");
            }
        }
    }

    #[test]
    fn an_empty_request_restores_the_original_state(
        foreign_states in foreign_states(), earlier in scenario(), stop in any::<u8>(), requested in scenario(),
        unloadable in vec(any::<bool>(), 5), second_stop in any::<u8>()
    ) {
        let before = scene(&foreign_states, &earlier, 0, &[]);
        let mut world = scene(&foreign_states, &earlier, stop, &[]);
        // Another request, some of whose senders are refused, has been executed in part.
        let refusal = Failure::failed(Reason::KernelError, "out of memory".to_owned());
        let keys = requested.senders.iter().map(|(sender, _)| SenderKey::of(sender));
        let refused = keys.zip(unloadable).filter(|(_, is_refused)| *is_refused).map(|(key, _)| (key, refusal.clone()));
        execute(&mut world, &Requested { unloadable: refused.collect(), ..requested.requested() }, second_stop);
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
    fn while_no_programs_can_be_loaded_refused_senders_are_not_changed(
        foreign_states in foreign_states(), earlier in scenario(), requested in scenario(), stop in any::<u8>(),
        damages in vec(any::<u8>(), 0..4), unloadable in vec(any::<bool>(), 5)
    ) {
        let mut world = scene(&foreign_states, &earlier, stop, &damages);
        let before = world.clone();
        let refusal = Failure::failed(Reason::KernelError, "out of memory".to_owned());
        let keys = requested.senders.iter().map(|(sender, _)| SenderKey::of(sender));
        let unloadable = keys.zip(unloadable).filter(|(_, unloadable)| *unloadable);
        let unloadable: BTreeMap<_, _> = unloadable.map(|(key, _)| (key, refusal.clone())).collect();
        let request = Requested { unloadable: unloadable.clone(), ..requested.requested() };
        let (rounds, last) = world.converge(&request);
        prop_assert!(rounds <= ROUNDS, "{rounds} rounds; remaining actions: {:?}", last.actions);
        for (sender, _) in &requested.senders {
            let key = SenderKey::of(sender);
            let is_refused = last.results[&Resource::sender(sender)] == Err(refusal.clone());
            prop_assert!(!is_refused || unloadable.contains_key(&key), "{key:?}");
            if is_refused {
                prop_assert_eq!(of_sender(&world, &key), of_sender(&before, &key));
            }
            prop_assert!(mirrors_without_program(&world, &key) <= mirrors_without_program(&before, &key));
        }
        // As soon as they can, everything is put in place.
        let (rounds, last) = world.converge(&requested.requested());
        prop_assert!(rounds <= ROUNDS, "{rounds} rounds; remaining actions: {:?}", last.actions);
        assert_in_place(&world, &requested, &last);
    }

    #[test]
    fn the_order_of_requests_does_not_matter(
        foreign_states in foreign_states(), earlier in scenario(), requested in scenario(), stop in any::<u8>()
    ) {
        let world = scene(&foreign_states, &earlier, stop, &[]);
        let mut reversed = requested.requested();
        reversed.senders.reverse();
        reversed.receivers.reverse();
        let once = plan(&requested.requested(), &world.now);
        prop_assert_eq!(&plan(&reversed, &world.now), &once);
        prop_assert_eq!(&plan(&requested.requested(), &world.now), &once, "planning is deterministic");
    }
}
