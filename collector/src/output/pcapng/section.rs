//! A section of pcapng, which can be read alone: what it has already, so that interfaces and names are written when a packet needs them.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
};

use podtap_flow::Timestamp;

use super::{
    Counts, Interface, Packet,
    blocks::{self, Statistics},
};

/// Interfaces, and names, that are remembered: beyond it, they are written again when they are needed.
const MOST: usize = 65_536;

/// See the module.
#[derive(Debug, Default)]
pub struct Section {
    /// By their identity: their places in the section.
    interfaces: HashMap<u64, (u32, Arc<Interface>)>,
    next_interface: u32,
    names: BTreeMap<IpAddr, Arc<str>>,
}

impl Section {
    /// Begins a section.
    pub fn new(out: &mut Vec<u8>) -> Self {
        blocks::section(out);
        Self::default()
    }

    /// Interfaces that it has.
    pub fn interfaces(&self) -> usize {
        self.interfaces.len()
    }

    /// The blocks of a packet, with what the section does not have yet.
    pub fn encode(&self, out: &mut Vec<u8>, packet: &Packet<'_>) {
        let interface = &packet.interface;
        let number = self.interfaces.get(&interface.id).map_or_else(
            || {
                blocks::interface(out, &interface.name, &interface.description);
                self.next_interface
            },
            |(number, _)| *number,
        );
        for (address, name) in packet.names.iter().flatten() {
            if self.names.get(address).is_none_or(|known| known != name) {
                blocks::name(out, *address, name);
            }
        }
        blocks::packet(out, number, packet);
    }

    /// Takes note that the blocks of a packet were written.
    pub fn add(&mut self, packet: &Packet<'_>) {
        let interface = &packet.interface;
        if !self.interfaces.contains_key(&interface.id) {
            if self.interfaces.len() >= MOST {
                self.interfaces.clear();
            }
            self.interfaces.insert(interface.id, (self.next_interface, Arc::clone(interface)));
            self.next_interface += 1;
        }
        for (address, name) in packet.names.iter().flatten() {
            if self.names.get(address).is_none_or(|known| known != name) {
                if self.names.len() >= MOST {
                    self.names.clear();
                }
                self.names.insert(*address, Arc::clone(name));
            }
        }
    }

    /// Takes note of packets that were written, and lost then: how many, by the place of their interface.
    pub fn lose(&self, packets: &BTreeMap<u32, u64>) {
        for (number, interface) in self.interfaces.values() {
            interface.dropped.fetch_add(packets.get(number).copied().unwrap_or_default(), Ordering::Relaxed);
        }
    }

    /// What was counted of each interface until now.
    pub fn statistics(&self, out: &mut Vec<u8>, at: Timestamp, counts: &Counts) {
        let mut interfaces: Vec<&(u32, Arc<Interface>)> = self.interfaces.values().collect();
        interfaces.sort_by_key(|(number, _)| *number);
        for (number, interface) in interfaces {
            let counted = Statistics {
                received: interface.received.load(Ordering::Relaxed),
                dropped: interface.dropped.load(Ordering::Relaxed),
                lost: counts.lost.load(Ordering::Relaxed),
            };
            blocks::statistics(out, *number, at, &counted);
        }
    }
}
