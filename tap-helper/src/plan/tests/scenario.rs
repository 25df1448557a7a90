//! Random requests, foreign state and damage.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use podtap_model::{DesiredSender, Direction, Endpoint, EtherType, FrameFormat, Pod, Receiver, Tap, TapReference};
use proptest::{
    collection::{btree_set, vec},
    prelude::{Just, Strategy, any},
    prop_oneof,
    sample::{select, subsequence},
};

use crate::{
    bpf::Settings,
    fixtures,
    marks::{GROUP, Mark},
    netlink::{Filter, ForwardingEntry, Hook, Link, Mirror, Qdisc, QdiscKind, Vxlan},
    plan::Requested,
    resource::SenderKey,
};

use super::world::World;

/// The desired state of one namespace, each identity at most once.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub senders: Vec<(DesiredSender, Settings)>,
    pub receivers: Vec<Receiver>,
    pub probe_ether_type: EtherType,
    /// By the ifindex of an interface.
    pub recently_read: BTreeSet<u32>,
    pub unreported: BTreeSet<u32>,
}

impl Scenario {
    pub fn requested(&self) -> Requested<'_> {
        Requested {
            recently_read: self.recently_read.clone(),
            unreported: self.unreported.clone(),
            senders: self.senders.iter().map(|(sender, settings)| (sender, settings.clone())).collect(),
            receivers: self.receivers.iter().collect(),
            unloadable: BTreeMap::new(),
            probe_ether_type: self.probe_ether_type,
        }
    }
}

pub fn scenario() -> impl Strategy<Value = Scenario> {
    let ether_type = select(vec![EtherType::default(), 0x88b6.try_into().expect("an EtherType")]);
    let interfaces = || btree_set(4..24_u32, 0..4);
    (vec((sender(), settings()), 0..5), vec(receiver(), 0..3), ether_type, interfaces(), interfaces()).prop_map(
        |(senders, receivers, ether_type, recently_read, unreported)| {
            let senders = senders.into_iter().map(|sender| (SenderKey::of(&sender.0), sender));
            let senders: BTreeMap<_, _> = senders.collect();
            let receivers: BTreeMap<_, _> = receivers.into_iter().map(|receiver| (receiver.vni, receiver)).collect();
            let (senders, receivers) = (senders.into_values().collect(), receivers.into_values().collect());
            Scenario { senders, receivers, probe_ether_type: ether_type, recently_read, unreported }
        },
    )
}

fn sender() -> impl Strategy<Value = DesiredSender> {
    let endpoints: Vec<Endpoint> =
        (1..5).map(|number| Endpoint { address: [10, 66, 0, number].into(), port: 14789, vni: vni(7) }).collect();
    let direction = select(vec![Direction::Ingress, Direction::Egress, Direction::Both]);
    let interface = select(vec!["", "", "", "eth0", "net1", "none"]);
    (1..4u8, direction, interface, subsequence(endpoints, 1..=4), any::<bool>()).prop_map(
        |(tap, direction, interface, destinations, known)| {
            let addresses = known.then(|| [10, 88, 0, 5].into()).into_iter().collect();
            let tap =
                Tap { interface: interface.parse().ok(), direction, destinations, ..fixtures::tap(&tap_name(tap)) };
            fixtures::sender(tap, Pod { addresses, ..fixtures::pod("pod-1") })
        },
    )
}

fn vni(number: u32) -> podtap_model::Vni {
    number.try_into().expect("a VNI")
}

fn tap_name(number: u8) -> String {
    format!("tap-{number}")
}

fn tap_reference(number: u8) -> TapReference {
    let Tap { namespace, name, uid, .. } = fixtures::tap(&tap_name(number));
    TapReference { namespace, name, uid }
}

/// Settings of two kinds of programs, two of each.
fn settings() -> impl Strategy<Value = Settings> {
    (any::<bool>(), any::<bool>()).prop_map(|(has_expression, narrow)| Settings {
        program: has_expression.then(fixtures::program),
        frame_limit: narrow.then_some(1364),
        ..Settings::default()
    })
}

fn receiver() -> impl Strategy<Value = Receiver> {
    (1..4u32, select(vec!["m0", "m1", "eth0"]), any::<bool>(), any::<bool>(), 1..3u8).prop_map(
        |(network, name, ipv6, raw, tap)| Receiver {
            tap: tap_reference(tap),
            vni: vni(network),
            port: 14789,
            ipv6,
            interface_name: name.parse().expect("an interface name"),
            metadata: false,
            packet_socket: false,
            frame_format: if raw { FrameFormat::Raw } else { FrameFormat::Wire },
            pod: None,
        },
    )
}

/// A change by another program.
#[derive(Clone, Debug)]
pub enum Foreign {
    Clsact(u32),
    Ingress(u32),
    Filter(u32, Hook, u16, Option<Vec<u8>>),
    Vxlan(String, u32),
}

pub fn foreign_states() -> impl Strategy<Value = Vec<Foreign>> {
    let interface = || select(vec![2u32, 3]);
    let hook = select(vec![Hook::Ingress, Hook::Egress]);
    let cookie = prop_oneof![Just(None), Just(Some(b"foreign".to_vec())), Just(Some(b"PTap".to_vec()))];
    let filter = (interface(), hook, 30..40u16, cookie)
        .prop_map(|(interface, hook, priority, cookie)| Foreign::Filter(interface, hook, priority, cookie));
    let vxlan = (select(vec!["m0", "vx9", "ptap00000000000"]), select(vec![0, GROUP]));
    vec(
        prop_oneof![
            interface().prop_map(Foreign::Clsact),
            interface().prop_map(Foreign::Ingress),
            filter,
            vxlan.prop_map(|(name, group)| Foreign::Vxlan(name.to_owned(), group)),
        ],
        0..6,
    )
}

impl Foreign {
    /// Makes the change, if it is possible.
    pub fn configure(&self, world: &mut World) {
        match self {
            Self::Clsact(interface) if world.now.qdisc(*interface).is_none() => {
                world.add_qdisc(*interface, QdiscKind::Clsact);
            }
            Self::Ingress(interface) if world.now.qdisc(*interface).is_none() => {
                world.add_qdisc(*interface, QdiscKind::Ingress);
            }
            Self::Filter(interface, hook, priority, cookie)
                if world.now.qdisc(*interface) == Some(QdiscKind::Clsact) =>
            {
                let counters = crate::netlink::Counters::default();
                let mirror = cookie.as_ref().map(|cookie| Mirror {
                    to: 1,
                    as_ours: true,
                    redirects: false,
                    cookie: cookie.clone(),
                    counters,
                });
                world.add_filter((*interface, *hook), *priority, "bpf", mirror, false);
            }
            Self::Vxlan(name, group) if world.now.links.iter().all(|link| link.name != *name) => {
                let vxlan = Vxlan { vni: 1, port: 4789, source_ports: (0, 0), learning: true, addresses: 0 };
                // A device is ours only if it has both our group and an alias of ours.
                world.add_link(Link {
                    name: name.clone(),
                    group: *group,
                    alias: "theirs".to_owned(),
                    kind: "vxlan".to_owned(),
                    vxlan: Some(vxlan),
                    ..Link::default()
                });
            }
            _ => {}
        }
    }
}

/// Damages PodTap's resources. Each number selects a device and a kind of damage.
pub fn damage(world: &mut World, choices: &[u8]) {
    for choice in choices {
        let ours: Vec<u32> = world.now.ours().map(|link| link.index).collect();
        let Some(index) = ours.get(usize::from(choice / 16) % ours.len().max(1)).copied() else { return };
        let position = world.now.links.iter().position(|link| link.index == index).expect("the device exists");
        match choice % 16 {
            0 => world.delete_link(index),
            1 => world.remove_qdisc(index),
            2 => world.now.links[position].up = false,
            3 => (world.now.links[position].autoconf_disabled, world.now.links[position].mtu) = (false, 1500),
            4 => "podtap.dev/v0 of another".clone_into(&mut world.now.links[position].alias),
            5 => world.now.forwarding.retain(|(device, _)| *device != index),
            14 if world.now.links[position].vxlan.is_some() => {
                world.now.forwarding.push((index, ForwardingEntry::Other([0; 6])));
            }
            15 if world.now.links[position].vxlan.is_some() => {
                world.now.forwarding.push((index, ForwardingEntry::Other([2, 0, 0, 0, 0, 0x77])));
            }
            10 if matches!(Mark::of(&world.now.links[position]), Some(Mark::Sender(_)))
                && !world.now.has_root_qdisc(index) =>
            {
                world.now.qdiscs.push(Qdisc { interface: index, kind: QdiscKind::Root });
            }
            6 => world.now.filters.retain(|filter| filter.mirror.as_ref().is_none_or(|mirror| mirror.to != index)),
            7 | 8 => {
                let mirrors_to_device =
                    |filter: &&mut Filter| filter.mirror.as_ref().is_some_and(|mirror| mirror.to == index);
                let Some(filter) = world.now.filters.iter_mut().find(mirrors_to_device) else { continue };
                let mirror = filter.mirror.as_mut().expect("the filter mirrors");
                if choice % 16 == 7 {
                    mirror.to = 1;
                } else {
                    (mirror.as_ours, mirror.redirects) = (false, false);
                }
            }
            11 => {
                let mirrors_to_device =
                    |filter: &&mut Filter| filter.mirror.as_ref().is_some_and(|mirror| mirror.to == index);
                let Some(filter) = world.now.filters.iter_mut().find(mirrors_to_device) else { continue };
                // A foreign program, or none.
                filter.program = filter.program.map(|_| 7).filter(|_| choice / 16 % 2 == 0);
            }
            12 => world.now.filters.retain(|filter| (filter.id.interface, filter.id.hook) != (index, Hook::Egress)),
            13 if world.now.qdisc(index) == Some(QdiscKind::Clsact) => {
                world.add_filter((index, Hook::Egress), 1, "bpf", None, false);
            }
            9 if world.now.links[position].kind == "veth" => {
                // Somebody reads it, or another program changes its offloads.
                world.now.links[position].promiscuous = choice / 16 % 2 == 0;
                if let Some((_, offloads)) = world.now.offloads.iter_mut().find(|(device, _)| *device == index) {
                    match choice / 32 % 4 {
                        0 => offloads.off.extend(offloads.on.pop()),
                        1 => offloads.on.extend(offloads.off.pop()),
                        2 => mem::swap(&mut offloads.on, &mut offloads.off),
                        _ => {}
                    }
                }
            }
            // The pod replaces it with one of its own.
            9 => world.now.links[position].lower_netns = None,
            // The peer is moved to another namespace.
            10 if world.now.links[position].kind == "veth" => {
                let Some(peer) = world.now.links[position].peer.take() else { continue };
                world.now.links.iter_mut().find(|link| link.index == peer).expect("the peer exists").peer = None;
                world.delete_link(peer);
            }
            _ => {
                let mirror = world
                    .now
                    .filters
                    .iter()
                    .find(|filter| filter.mirror.as_ref().is_some_and(|mirror| mirror.to == index));
                if let Some(duplicate) = mirror.cloned() {
                    let at = (duplicate.id.interface, duplicate.id.hook);
                    world.add_filter(at, duplicate.id.priority + 50, "u32", duplicate.mirror, false);
                }
            }
        }
    }
}
