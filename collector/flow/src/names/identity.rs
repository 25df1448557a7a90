//! Pods by what their taps tell of them: names without the API server, for addresses that it does not name.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use podtap_model::{Uid, metadata::PodMetadata};

use super::{
    Names, Owner, Pod, TOMBSTONE, Workload,
    syntax::{is_label, is_name, is_tap, valid},
};
use crate::Timestamp;

/// A tap tells of its pods this often.
const INTERVAL: Duration = Duration::from_secs(60);
/// A pod of which nothing was told for this time is gone.
const VALID: Duration = Duration::from_secs(5 * 60);
/// Frames of a new pod may be met this long before its tap tells of it.
const LATE: Duration = Duration::from_secs(1);
/// Pods that had one address, one after the other.
const MOST_PODS: usize = 4;
/// Addresses at once. With the longest names and as many pods as there may be, about 20 MB.
const MOST_KNOWN: usize = 4096;
/// Taps of a pod, one after the other or at once.
const MOST_TAPS: usize = 8;
/// Addresses of a pod: its interfaces have one or two each.
const MOST_ADDRESSES: usize = 16;

/// What taps told and was not believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdentityCounters {
    /// Addresses of which a tap told another owner than the API server, or two taps told different pods.
    pub conflicts: u64,
    /// Addresses without room.
    pub refused: u64,
}

/// A pod that had an address.
#[derive(Clone, Debug)]
struct Identity {
    pod: Pod,
    /// When it was told last.
    last: Timestamp,
}

impl Identity {
    fn until(&self) -> Timestamp {
        self.pod.ended.unwrap_or_else(|| self.last.plus(VALID))
    }
}

/// A tap that mirrors a pod.
#[derive(Clone, Debug)]
struct Tap {
    name: Box<str>,
    first: Timestamp,
    last: Timestamp,
}

impl Tap {
    /// One frame with metadata may have been lost.
    fn until(&self) -> Timestamp {
        self.last.plus(2 * INTERVAL)
    }
}

/// The pods that taps told of.
#[derive(Debug, Default)]
pub(super) struct Identities {
    /// In the order of their beginnings.
    by_address: HashMap<IpAddr, Vec<Identity>>,
    /// By the UIDs of pods.
    taps: HashMap<String, Vec<Tap>>,
    counters: IdentityCounters,
}

impl Identities {
    fn pod(&self, address: IpAddr, at: Timestamp) -> Option<&Pod> {
        let pods = self.by_address.get(&address)?;
        let is_it = |identity: &&Identity| identity.pod.started <= at && at <= identity.until();
        pods.iter().rfind(is_it).map(|identity| &identity.pod)
    }

    /// Returns whether the address has a new owner, or there is news of it.
    fn tell(&mut self, address: IpAddr, pod: &Pod, at: Timestamp) -> bool {
        let known = self.by_address.len();
        let pods = match self.by_address.get_mut(&address) {
            Some(pods) => pods,
            None if known >= MOST_KNOWN => {
                self.counters.refused += 1;
                return false;
            }
            None => self.by_address.entry(address).or_default(),
        };
        // Its tap may have told of it before, when this program did not listen.
        let mut started = at.minus(INTERVAL);
        if let Some(current) = pods.last_mut() {
            let is_gone = current.until() < at;
            if current.pod.uid == pod.uid && !is_gone {
                current.last = current.last.max(at);
                let has_news =
                    pod.node.is_some() && (&current.pod.node, &current.pod.workload) != (&pod.node, &pod.workload);
                if has_news {
                    current.pod.node.clone_from(&pod.node);
                    current.pod.workload.clone_from(&pod.workload);
                }
                return has_news;
            }
            if !is_gone {
                // One that lost its address to another one has not got it back: both claim it.
                if pods.iter().any(|other| other.pod.uid == pod.uid) {
                    self.counters.conflicts += 1;
                    return false;
                }
                // A tap tells of a new pod at once.
                started = at.minus(LATE);
                if let Some(current) = pods.last_mut() {
                    current.pod.ended = Some(started);
                }
            }
        }
        if pods.len() >= MOST_PODS {
            pods.remove(0);
        }
        pods.push(Identity { pod: Pod { started, ..pod.clone() }, last: at });
        true
    }

    /// A tap mirrors a pod.
    fn tap(&mut self, uid: &Uid, name: &str, at: Timestamp) {
        if self.taps.len() >= MOST_KNOWN && !self.taps.contains_key(&**uid) {
            return;
        }
        let taps = self.taps.entry(uid.to_string()).or_default();
        if let Some(tap) = taps.iter_mut().find(|tap| *tap.name == *name && at <= tap.until()) {
            tap.last = tap.last.max(at);
            return;
        }
        if taps.len() >= MOST_TAPS {
            taps.remove(0);
        }
        taps.push(Tap { name: name.into(), first: at.minus(INTERVAL), last: at });
    }

    /// Forgets what ended long ago.
    pub fn expire(&mut self, now: Timestamp) {
        self.taps.retain(|_, taps| {
            taps.retain(|tap| now.since(tap.until()) <= TOMBSTONE);
            !taps.is_empty()
        });
        self.by_address.retain(|_, pods| {
            pods.retain(|identity| now.since(identity.until()) <= TOMBSTONE);
            !pods.is_empty()
        });
    }
}

impl Names {
    /// Takes what a tap tells of a pod at this time. It names addresses that nothing else names: pods, services and nodes that the API
    /// server knows keep theirs. Returns whether an address has a new owner, or there is news of it.
    pub fn identify(&mut self, uid: &Uid, pod: &PodMetadata, at: Timestamp) -> bool {
        if !is_label(&pod.namespace) || !is_name(&pod.name) {
            return false;
        }
        if is_tap(&pod.tap) {
            self.identities.tap(uid, &pod.tap, at);
        }
        // Its labels are for other programs: those that the policy lists are too few to select pods by.
        let (node, workload) = valid(&pod.details);
        let itself = || Workload { kind: "Pod".into(), name: pod.name.clone(), api_version: "v1".into() };
        let addresses: Vec<IpAddr> = pod.addresses.iter().copied().filter(is_of_pod).take(MOST_ADDRESSES).collect();
        let identity = Pod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: uid.to_string(),
            addresses: addresses.clone(),
            node,
            host_network: false,
            workload: workload.unwrap_or_else(itself),
            started: Timestamp::default(),
            ended: None,
            end_is_estimate: true,
            labels: Arc::default(),
        };
        let mut has_news = false;
        for address in addresses {
            match self.listed_owner(address, at) {
                Owner::External(_) => has_news |= self.identities.tell(address, &identity, at),
                Owner::Pod(known) if known.uid == identity.uid => {}
                _ => self.identities.counters.conflicts += 1,
            }
        }
        has_news
    }

    /// The taps that mirrored a pod at a time, as far as they tell, for example `PodTap shop/web`.
    pub fn taps(&self, pod: &Pod, at: Timestamp) -> impl Iterator<Item = &str> {
        let taps = self.identities.taps.get(&pod.uid).into_iter().flatten();
        taps.filter(move |tap| tap.first <= at && at <= tap.until()).map(|tap| &*tap.name)
    }

    /// What taps told and was not believed.
    #[must_use]
    pub const fn identity_counters(&self) -> IdentityCounters {
        self.identities.counters
    }

    /// The pod that had an address at a time, by what its tap told, if nothing else has it.
    pub(super) fn identified(&self, address: IpAddr, at: Timestamp) -> Option<&Pod> {
        let pod = self.identities.pod(address, at)?;
        let is_free = !self.by_node_address.contains_key(&address) && !self.by_virtual_address.contains_key(&address);
        // The API server may name a pod before its address.
        let pod = self.pods.get(&pod.uid).unwrap_or(pod);
        (is_free && !pod.has_released_address(at)).then_some(pod)
    }
}

/// Whether a pod can have an address that others reach.
fn is_of_pod(address: &IpAddr) -> bool {
    let is_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(is_local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "5f0d6c1e-0000-4000-8000-000000000001";
    const SECOND: &str = "5f0d6c1e-0000-4000-8000-000000000002";

    fn tell(names: &mut Names, uid: &str, name: &str, addresses: &[&str], second: u64) -> bool {
        let metadata = PodMetadata {
            namespace: "shop".into(),
            name: name.into(),
            addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
            mac: "02:00:00:00:00:01".into(),
            ..PodMetadata::default()
        };
        names.identify(&uid.parse().expect("a UID"), &metadata, Timestamp::from_seconds(second))
    }

    fn pod<'a>(names: &'a Names, address: &str, second: u64) -> Option<&'a str> {
        let pod = names.pod(address.parse().expect("an address"), Timestamp::from_seconds(second));
        pod.map(|pod| pod.name.as_str())
    }

    fn listed(name: &str, uid: &str, address: &str, started: u64, ended: Option<u64>) -> Pod {
        serde_json::from_value(
            serde_json::json!({"namespace": "shop", "name": name, "uid": uid, "addresses": [address],
            "workload": {"kind": "Deployment", "name": name}, "started": started * 1_000_000_000,
            "ended": ended.map(|second| second * 1_000_000_000)}),
        )
        .expect("a pod")
    }

    #[test]
    fn a_tap_names_its_pod_s_addresses_until_it_no_longer_tells_of_it() {
        let mut names = Names::default();
        assert!(tell(&mut names, FIRST, "web-0", &["10.0.0.1", "fd00::1"], 1000));
        assert!(!tell(&mut names, FIRST, "web-0", &["10.0.0.1", "fd00::1"], 1060), "that was known");
        for (second, expected) in [(939, None), (940, Some("web-0")), (1360, Some("web-0")), (1361, None)] {
            assert_eq!((pod(&names, "10.0.0.1", second), pod(&names, "fd00::1", second)), (expected, expected));
        }
        let Owner::Pod(owner) = names.owner("10.0.0.1".parse().expect("an address"), Timestamp::from_seconds(1000))
        else {
            panic!("it is a pod")
        };
        assert_eq!((&*owner.workload.kind, &*owner.workload.name, &*owner.namespace), ("Pod", "web-0", "shop"));
        // Its records may come later.
        names.expire(Timestamp::from_seconds(1360 + 1800));
        assert_eq!(pod(&names, "10.0.0.1", 1100), Some("web-0"));
        names.expire(Timestamp::from_seconds(1361 + 1800));
        assert!(pod(&names, "10.0.0.1", 1100).is_none() && names.identities.by_address.is_empty());
    }

    #[test]
    fn an_address_that_is_used_again_is_of_the_older_pod_before() {
        let mut names = Names::default();
        tell(&mut names, FIRST, "web-0", &["10.0.0.1"], 1000);
        assert!(tell(&mut names, SECOND, "db-0", &["10.0.0.1"], 1050));
        for (second, expected) in [(1000, "web-0"), (1048, "web-0"), (1050, "db-0"), (1300, "db-0")] {
            assert_eq!(pod(&names, "10.0.0.1", second), Some(expected), "{second}");
        }
        assert_eq!(names.identity_counters().conflicts, 0);
        assert!(!tell(&mut names, FIRST, "web-0", &["10.0.0.1"], 1060), "both claim it");
        assert_eq!((names.identity_counters().conflicts, pod(&names, "10.0.0.1", 1060)), (1, Some("db-0")));
        // Long after the other one has gone, it may be back.
        assert!(tell(&mut names, FIRST, "web-0", &["10.0.0.1"], 2000));
        assert_eq!((pod(&names, "10.0.0.1", 2000), pod(&names, "10.0.0.1", 1300)), (Some("web-0"), Some("db-0")));
    }

    #[test]
    fn the_api_server_wins() {
        let mut names = Names::new(
            serde_json::from_value(serde_json::json!({
                "services": [{"namespace": "shop", "name": "web", "addresses": ["10.96.0.1"]}],
                "nodes": [{"name": "n1", "addresses": ["192.168.0.1"]}]
            }))
            .expect("objects"),
        );
        tell(&mut names, FIRST, "told", &["10.0.0.1"], 1000);
        names.set_pod(listed("listed", SECOND, "10.0.0.1", 900, Some(1100)));
        assert_eq!(pod(&names, "10.0.0.1", 1001), Some("listed"));
        tell(&mut names, FIRST, "told", &["10.0.0.1", "10.96.0.1", "192.168.0.1"], 1010);
        assert_eq!(names.identity_counters().conflicts, 3);
        for (address, expected) in [("10.96.0.1", "Service"), ("192.168.0.1", "Node")] {
            let owner = names.owner(address.parse().expect("an address"), Timestamp::from_seconds(1010));
            assert!(format!("{owner:?}").starts_with(expected), "{owner:?}");
        }
        // Nor does an object take over that appears later.
        tell(&mut names, FIRST, "told", &["10.96.0.2"], 1010);
        assert_eq!(pod(&names, "10.96.0.2", 1011), Some("told"));
        let service = r#"{"namespace": "shop", "name": "new", "addresses": ["10.96.0.2"]}"#;
        names.set_service(serde_json::from_str(service).expect("a service"));
        assert_eq!(pod(&names, "10.96.0.2", 1011), None);
        // After the listed pod's end, only its tap knows the next one.
        tell(&mut names, "third", "next", &["10.0.0.1"], 1200);
        assert_eq!((pod(&names, "10.0.0.1", 1200), pod(&names, "10.0.0.1", 1050)), (Some("next"), Some("listed")));
    }

    #[test]
    fn a_pod_that_is_listed_before_its_address_has_its_workload() {
        let mut names = Names::default();
        let pod = Pod { addresses: Vec::new(), ..listed("web", FIRST, "10.0.0.1", 900, None) };
        names.set_pod(pod);
        tell(&mut names, FIRST, "web", &["10.0.0.1"], 1000);
        let Owner::Pod(owner) = names.owner("10.0.0.1".parse().expect("an address"), Timestamp::from_seconds(1000))
        else {
            panic!("it is a pod")
        };
        assert_eq!(owner.workload.kind, "Deployment");
    }

    #[test]
    fn a_pod_has_the_details_and_the_taps_that_are_told() {
        let mut names = Names::default();
        let told = |tap: &str| PodMetadata {
            namespace: "shop".into(),
            name: "web-0".into(),
            addresses: ["10.0.0.1".parse().expect("an address")].into(),
            tap: tap.into(),
            details: serde_json::from_value(serde_json::json!({"node": "n1", "labels": {"app": "web"},
                "workload": {"kind": "StatefulSet", "name": "web", "apiVersion": "apps/v1"}}))
            .expect("details"),
            ..PodMetadata::default()
        };
        let uid: Uid = FIRST.parse().expect("a UID");
        for (tap, second) in
            [("PodTap shop/a", 1000), ("PodTap shop/a", 1060), ("ClusterPodTap b", 1060), ("b\n", 1060)]
        {
            names.identify(&uid, &told(tap), Timestamp::from_seconds(second));
        }
        let pod = names.pod("10.0.0.1".parse().expect("an address"), Timestamp::from_seconds(1000)).expect("a pod");
        assert_eq!((pod.workload.kind.as_str(), pod.node.as_deref()), ("StatefulSet", Some("n1")));
        let taps = |second: u64| names.taps(pod, Timestamp::from_seconds(second)).collect::<Vec<_>>();
        for (second, expected) in
            [(939, &[][..]), (940, &["PodTap shop/a"]), (1100, &["PodTap shop/a", "ClusterPodTap b"]), (1181, &[])]
        {
            assert_eq!(taps(second), expected, "{second}");
        }
        // However many there are.
        for number in 0..100 {
            names.identify(&uid, &told(&format!("PodTap shop/t{number}")), Timestamp::from_seconds(1200));
        }
        assert_eq!(names.identities.taps[FIRST].len(), MOST_TAPS);
        names.expire(Timestamp::from_seconds(1321 + 1800));
        assert!(names.identities.taps.is_empty());
    }

    #[test]
    fn names_and_addresses_that_no_pod_has_are_ignored() {
        let mut names = Names::default();
        for name in ["", "a\nb", "A", "-a", "a.", "a..b", "\u{1b}[2J", &"a".repeat(254), &"a.".repeat(140)] {
            assert!(!tell(&mut names, FIRST, name, &["10.0.0.1"], 1000), "{name:?}");
        }
        let addresses = ["127.0.0.1", "::1", "224.0.0.1", "0.0.0.0", "169.254.1.1", "fe80::1", "255.255.255.255"];
        assert!(!tell(&mut names, FIRST, "a", &addresses, 1000));
        assert!(names.identities.by_address.is_empty());
        assert!(tell(&mut names, FIRST, "a-1.b", &["10.0.0.1"], 1000));
    }

    #[test]
    fn the_number_of_addresses_and_of_their_pods_is_bounded() {
        let mut names = Names::default();
        let total = u32::try_from(MOST_KNOWN).expect("32 bits") + 10;
        for number in 0..total {
            let address = std::net::Ipv4Addr::from_bits(0x0a00_0001 + number).to_string();
            tell(&mut names, FIRST, "web", &[&address], 1000);
        }
        assert_eq!(names.identities.by_address.len(), MOST_KNOWN);
        assert_eq!(names.identity_counters().refused, 10);
        for second in 0..100 {
            tell(&mut names, &format!("uid-{second}"), "web", &["10.0.0.1"], 1001 + second);
        }
        let addresses: Vec<String> = (0..20).map(|last| format!("10.0.0.{last}")).collect();
        let mut other = Names::default();
        tell(&mut other, FIRST, "web", &addresses.iter().map(String::as_str).collect::<Vec<_>>(), 1000);
        assert_eq!(other.identities.by_address.len(), MOST_ADDRESSES);
        let pods = &names.identities.by_address[&"10.0.0.1".parse::<IpAddr>().expect("an address")];
        assert_eq!(pods.len(), MOST_PODS);
    }
}
