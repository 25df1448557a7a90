use serde_json::Value;

use super::Network;
use crate::wait::{PATIENCE, until};

/// The devices, qdiscs and filters of a network, as `ip` and `tc` show them, without counters and times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// One line per device, qdisc and filter, sorted.
    pub lines: Vec<String>,
}

/// A filter that mirrors or redirects frames to a device, as `tc` shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mirror {
    /// `ingress` or `egress`.
    pub hook: &'static str,
    /// Its priority.
    pub priority: u64,
    /// The device that gets the frames.
    pub to: String,
    /// The action's cookie, in hexadecimal.
    pub cookie: String,
    /// The action's control: with `continue`, later filters see the frame.
    pub control: String,
    /// Frames mirrored so far.
    pub packets: u64,
}

const HOOKS: [&str; 2] = ["ingress", "egress"];

impl Network {
    /// Its devices, qdiscs and filters.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut lines = Vec::new();
        for link in self.json("ip -j -d link show") {
            let keys = ["ifname", "address", "mtu", "group", "ifalias", "master"];
            lines.push(format!("link {} {}", picked(&link, &keys), link["linkinfo"]["info_data"]["id"]));
        }
        for qdisc in self.json("tc -j qdisc show") {
            lines.push(format!("qdisc {}", picked(&qdisc, &["dev", "kind", "handle", "parent"])));
            if qdisc["kind"] == "clsact" {
                let device = word(&qdisc["dev"]);
                for hook in HOOKS {
                    // The device may be deleted meanwhile.
                    for filter in self.try_json(&format!("tc -j filter show dev {device} {hook}")).unwrap_or_default() {
                        let keys = ["protocol", "pref", "kind", "chain"];
                        let handle = &filter["options"]["handle"];
                        lines.push(format!("filter {device} {hook} {} {handle}", picked(&filter, &keys)));
                    }
                }
            }
        }
        lines.sort_unstable();
        Snapshot { lines }
    }

    /// Waits until each of PodTap's veth devices that is up has a carrier. When a veth device comes up, the kernel activates the queues of
    /// both ends asynchronously, and drops frames until then (`linkwatch_do_dev`, `net/core/link_watch.c`). `NO-CARRIER` does not show
    /// that: a new device is in the state `UNKNOWN` first, which counts as running (`netif_oper_up`, `include/linux/netdevice.h`).
    ///
    /// # Panics
    /// If this takes longer than [`PATIENCE`].
    #[track_caller]
    pub fn wait_for_carrier(&self) {
        until("every veth device has a carrier", PATIENCE, || {
            let links = self.json("ip -j link show type veth");
            let own = links.iter().filter(|link| word(&link["ifalias"]).starts_with("podtap.dev/"));
            let waiting: Vec<String> = own
                .filter(|link| link["flags"].to_string().contains("\"UP\"") && link["operstate"] != "UP")
                .map(|link| format!("{}: {}", word(&link["ifname"]), word(&link["operstate"])))
                .collect();
            if waiting.is_empty() { Ok(()) } else { Err(waiting.join(", ")) }
        });
    }

    /// Everything that a repair restores: the snapshot, and with it whether each device is up and has a carrier, how PodTap's devices
    /// are configured, the destinations of each VXLAN device, and where each filter mirrors to. Each line has the device's name as
    /// its second word. The MAC address of a device of PodTap is left out, because a recreated one has another.
    #[must_use]
    pub fn full_state(&self) -> Vec<String> {
        let mut lines = self.snapshot().lines;
        lines.retain(|line| !line.starts_with("link "));
        for link in self.json("ip -j -d link show") {
            let name = word(&link["ifname"]);
            let keys = ["ifname", "flags", "operstate", "mtu", "group", "ifalias", "master"];
            let own = if word(&link["ifalias"]).starts_with("podtap.dev/") { "linkinfo" } else { "address" };
            lines.push(format!("link {} {}", picked(&link, &keys), link[own]));
            lines.extend(self.destinations(&name).into_iter().map(|to| format!("destination {name} {to}")));
            for mirror in self.mirrors(&name) {
                let Mirror { hook, priority, to, cookie, control, packets: _ } = mirror;
                lines.push(format!("mirror {name} {hook} {priority} to {to} {cookie} {control}"));
            }
            lines.push(format!("programs {name} {}", self.programs(&name).len()));
        }
        lines.sort_unstable();
        lines
    }

    /// The names of all VXLAN devices.
    #[must_use]
    pub fn vxlan_devices(&self) -> Vec<String> {
        self.json("ip -j -d link show type vxlan").iter().map(|link| word(&link["ifname"])).collect()
    }

    /// The names of all devices whose alias names a tap, sorted.
    #[must_use]
    pub fn devices_of(&self, tap: &str) -> Vec<String> {
        let links = self.json("ip -j link show");
        let own = links.iter().filter(|link| word(&link["ifalias"]).contains(&format!(" tap={tap} ")));
        let mut names: Vec<String> = own.map(|link| word(&link["ifname"])).collect();
        names.sort_unstable();
        names
    }

    /// The filters of an interface that mirror or redirect; none also without a clsact.
    #[must_use]
    pub fn mirrors(&self, interface: &str) -> Vec<Mirror> {
        let mut found = Vec::new();
        for hook in HOOKS {
            let Ok(text) = self.try_run(&["tc", "-j", "-s", "filter", "show", "dev", interface, hook], "") else {
                continue;
            };
            let filters: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
            let actions = filters.iter().filter_map(|filter| Some((filter, filter["options"]["actions"].get(0)?)));
            found.extend(actions.map(|(filter, action)| Mirror {
                hook,
                priority: filter["pref"].as_u64().unwrap_or_default(),
                to: word(&action["to_dev"]),
                cookie: word(&action["cookie"]),
                control: word(&action["control_action"]["type"]),
                packets: action["stats"]["packets"].as_u64().unwrap_or_default(),
            }));
        }
        found
    }

    /// The IDs of the eBPF programs in the filters of an interface.
    #[must_use]
    pub fn programs(&self, interface: &str) -> Vec<u64> {
        let filters = HOOKS
            .iter()
            .flat_map(|hook| self.try_json(&format!("tc -j filter show dev {interface} {hook}")).unwrap_or_default());
        filters.filter_map(|filter| filter["options"]["prog"]["id"].as_u64()).collect()
    }

    /// The default destinations of a VXLAN device: address, port and VNI, sorted.
    #[must_use]
    pub fn destinations(&self, vxlan: &str) -> Vec<String> {
        let entries = self.try_json(&format!("bridge -j fdb show dev {vxlan}")).unwrap_or_default();
        let default = entries.iter().filter(|entry| entry["mac"] == "00:00:00:00:00:00");
        let mut found: Vec<String> = default.map(|entry| picked(entry, &["dst", "port", "vni"])).collect();
        found.sort_unstable();
        found
    }
}

impl Snapshot {
    /// The lines that are only in this one, and those that are only in the other.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let removed = self.lines.iter().filter(|line| !other.lines.contains(line)).map(|line| format!("- {line}"));
        let new = other.lines.iter().filter(|line| !self.lines.contains(line)).map(|line| format!("+ {line}"));
        removed.chain(new).collect()
    }
}

fn picked(entry: &Value, keys: &[&str]) -> String {
    keys.iter().map(|key| word(&entry[*key])).collect::<Vec<_>>().join(" ")
}

fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
