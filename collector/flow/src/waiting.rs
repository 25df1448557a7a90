//! Events that wait for the names of their ends.
//!
//! The API server has the address of a new pod a moment after the pod has sent its first frames. Named at once, these would be of
//! something outside of the cluster, and make a false edge.

use std::{collections::VecDeque, net::IpAddr, time::Duration};

use crate::{
    Event, Record, Timestamp,
    named::{NamedRecord, Translated},
    names::{Names, Network, Owner},
};

/// Events whose ends are not all known.
#[derive(Debug)]
pub struct Waiting {
    events: VecDeque<(Timestamp, Event)>,
    /// How long events wait.
    patience: Duration,
    /// How many events wait at most.
    capacity: usize,
}

impl Waiting {
    /// No events. With a patience of zero, none will wait.
    #[must_use]
    pub const fn new(patience: Duration, capacity: usize) -> Self {
        Self { events: VecDeque::new(), patience, capacity }
    }

    /// Takes an event. It goes to `take` at once if its ends are known, and else when they are, or when its time is over.
    pub fn add(&mut self, event: Event, names: &Names, now: Timestamp, take: &mut impl FnMut(Event)) {
        if self.patience.is_zero() || is_known(record(&event), names) {
            take(event);
            return;
        }
        if self.events.len() >= self.capacity
            && let Some((_, oldest)) = self.events.pop_front()
        {
            take(oldest);
        }
        self.events.push_back((now.plus(self.patience), event));
    }

    /// Passes on what is known by now: to be called when names have changed.
    pub fn names_changed(&mut self, names: &Names, take: &mut impl FnMut(Event)) {
        let mut kept = VecDeque::with_capacity(self.events.len());
        for (until, event) in self.events.drain(..) {
            if is_known(record(&event), names) {
                take(event);
            } else {
                kept.push_back((until, event));
            }
        }
        self.events = kept;
    }

    /// Passes on what has waited for long enough. While names are not complete, only a lack of room ends the wait.
    pub fn expire(&mut self, names: &Names, now: Timestamp, take: &mut impl FnMut(Event)) {
        while names.is_complete() && self.events.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, event)) = self.events.pop_front() {
                take(event);
            }
        }
    }

    /// Passes on everything.
    pub fn flush(&mut self, take: &mut impl FnMut(Event)) {
        self.events.drain(..).for_each(|(_, event)| take(event));
    }

    /// How many events wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

const fn record(event: &Event) -> &Record {
    match event {
        Event::Opened(record) | Event::Record(record) => record,
    }
}

/// Whether more time would tell nothing more about its ends.
fn is_known(record: &Record, names: &Names) -> bool {
    let flow = NamedRecord::new(record, names);
    let is_known = |owner: Owner<'_>, address: IpAddr| {
        let is_special = match address {
            IpAddr::V4(address) => {
                address.is_multicast() || address.is_broadcast() || address.is_unspecified() || address.is_link_local()
            }
            IpAddr::V6(address) => {
                address.is_multicast() || address.is_unspecified() || address.is_unicast_link_local()
            }
        };
        is_special
            || match owner {
                // Otherwise, its workload is not known yet, or its address may have a new owner.
                Owner::Pod(pod) => names.is_certain(pod, record.start),
                Owner::External(None | Some(Network::Country(_))) => !names.may_be_of_cluster(address),
                _ => true,
            }
    };
    let has_name = record.dns_name.is_some() || record.sni.is_some();
    let server_is_known =
        is_known(flow.server_owner, flow.server.address) || has_name && matches!(flow.server_owner, Owner::External(_));
    let backend_is_known = match (flow.translated, flow.service) {
        (Some(Translated { ends: Some((_, server)), .. }), _) => {
            is_known(names.owner(server.address, record.start), server.address)
        }
        (_, Some((service, _))) => names.has_known_backends(service, record.start),
        (Some(translated), None) => translated.workload.is_some(),
        (None, None) => true,
    };
    is_known(flow.client_owner, flow.client.address) && server_is_known && backend_is_known
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Limits, Table,
        fixtures::{Recorder, udp},
        names::{Pod, Service, Update},
    };

    fn pod(name: &str, address: &str) -> Pod {
        serde_json::from_value(
            serde_json::json!({"namespace": "shop", "name": name, "uid": name, "addresses": [address],
            "workload": {"kind": "Deployment", "name": name}}),
        )
        .expect("a pod")
    }

    /// The event of a datagram between two addresses of 10.0.0.0/24.
    fn event(client: u8, server: u8) -> Event {
        let mut recorder = Recorder::new(Table::new(Limits::default()));
        recorder.frame(0, 1000, &udp((client, 4000), (server, 80), b"x"));
        recorder.flush();
        Event::Record(recorder.records.remove(0))
    }

    #[test]
    fn a_flow_of_a_new_pod_waits_until_its_name_is_known() {
        let mut names = Names::default();
        names.set_pod(pod("server", "10.0.0.2"));
        let mut waiting = Waiting::new(Duration::from_secs(10), 2);
        let mut taken = Vec::new();
        waiting.add(event(1, 2), &names, Timestamp::from_seconds(1), &mut |event| taken.push(event));
        waiting.names_changed(&names, &mut |event| taken.push(event));
        waiting.expire(&names, Timestamp::from_seconds(10), &mut |event| taken.push(event));
        assert!(taken.is_empty() && waiting.len() == 1);
        names.set_pod(pod("client", "10.0.0.1"));
        waiting.names_changed(&names, &mut |event| taken.push(event));
        assert!(taken.len() == 1 && waiting.is_empty());
        waiting.add(event(1, 2), &names, Timestamp::from_seconds(1), &mut |event| taken.push(event));
        assert_eq!(taken.len(), 2, "now both are known at once");
    }

    #[test]
    fn a_call_of_a_service_waits_for_the_pods_behind_it() {
        let service: Service = serde_json::from_value(serde_json::json!({"namespace": "shop", "name": "web",
            "addresses": ["10.0.0.9"], "ports": [{"port": 80, "protocol": "UDP", "targetPort": 80}],
            "backends": [{"address": "10.0.0.2"}]}))
        .expect("a service");
        let mut names = Names::default();
        names.set_pod(pod("client", "10.0.0.1"));
        names.set_service(service);
        let mut waiting = Waiting::new(Duration::from_secs(10), 2);
        let mut count = 0;
        waiting.add(event(1, 9), &names, Timestamp::from_seconds(1), &mut |_| count += 1);
        assert_eq!((count, waiting.len()), (0, 1));
        names.set_pod(pod("server", "10.0.0.2"));
        waiting.names_changed(&names, &mut |_| count += 1);
        assert_eq!((count, waiting.len()), (1, 0));
    }

    #[test]
    fn a_pod_that_only_its_tap_names_waits_for_its_workload() {
        let told: crate::metadata::PodMetadata = serde_json::from_value(serde_json::json!({"namespace": "shop",
            "name": "client-0", "addresses": ["10.0.0.1"], "mac": "02:00:00:00:00:01"}))
        .expect("metadata");
        let mut names = Names::default();
        names.set_pod(pod("server", "10.0.0.2"));
        names.identify(&"client".parse().expect("a UID"), &told, Timestamp::from_seconds(1));
        let client = |event: Event, names: &Names| {
            NamedRecord::new(record(&event), names).client_workload().map(|(_, workload)| workload.kind.clone())
        };
        let mut waiting = Waiting::new(Duration::from_secs(10), 2);
        let mut taken = Vec::new();
        waiting.add(event(1, 2), &names, Timestamp::from_seconds(1), &mut |event| taken.push(client(event, &names)));
        assert_eq!(waiting.len(), 1);
        // The API server may never tell.
        waiting.expire(&names, Timestamp::from_seconds(11), &mut |event| taken.push(client(event, &names)));
        names.set_pod(pod("client", "10.0.0.1"));
        waiting.add(event(1, 2), &names, Timestamp::from_seconds(1), &mut |event| taken.push(client(event, &names)));
        assert_eq!(taken, [Some("Pod".to_owned()), Some("Deployment".to_owned())]);
    }

    #[test]
    fn a_flow_from_the_address_of_a_deleted_pod_waits_for_the_next_one() {
        let mut names = Names::default();
        names.set_pod(pod("server", "10.0.0.2"));
        let deleted = Timestamp::from_seconds(1);
        names.set_pod(Pod { ended: Some(deleted), end_is_estimate: true, ..pod("first", "10.0.0.1") });
        let event = || match event(1, 2) {
            Event::Record(record) => Event::Record(Record { start: Timestamp::from_seconds(3), ..record }),
            opened @ Event::Opened(_) => opened,
        };
        let client = |event: Event, names: &Names| {
            NamedRecord::new(record(&event), names).client_workload().map(|(_, workload)| workload.name.clone())
        };
        let mut waiting = Waiting::new(Duration::from_secs(10), 2);
        let mut taken = Vec::new();
        waiting.add(event(), &names, Timestamp::from_seconds(4), &mut |event| taken.push(client(event, &names)));
        assert_eq!((taken.len(), waiting.len()), (0, 1));
        // Its kubelet tells when it started together with its address.
        names.set_pod(Pod { started: Timestamp::from_seconds(2), ..pod("second", "10.0.0.1") });
        waiting.names_changed(&names, &mut |event| taken.push(client(event, &names)));
        assert_eq!(taken, [Some("second".to_owned())]);
    }

    #[test]
    fn what_stays_unknown_is_passed_on() {
        let names = Names::default();
        let mut waiting = Waiting::new(Duration::from_secs(10), 2);
        let mut count = 0;
        for _ in 0..3 {
            let event = event(1, 9);
            waiting.add(event, &names, Timestamp::from_seconds(1), &mut |_| count += 1);
        }
        assert_eq!((count, waiting.len()), (1, 2), "the oldest makes room");
        // Without a connection to the program that watches the cluster, time tells nothing.
        let mut incomplete = Names::default();
        incomplete.apply(Update::Listing, Timestamp::from_seconds(2));
        waiting.expire(&incomplete, Timestamp::from_seconds(11), &mut |_| count += 1);
        assert_eq!((count, waiting.len()), (1, 2));
        waiting.expire(&names, Timestamp::from_seconds(11), &mut |_| count += 1);
        assert_eq!((count, waiting.len()), (3, 0));
        let mut impatient = Waiting::new(Duration::ZERO, 2);
        impatient.add(event(1, 9), &names, Timestamp::from_seconds(1), &mut |_| count += 1);
        assert_eq!(count, 4);
    }
}
