use std::{collections::HashMap, net::Ipv4Addr};

use etherparse::PacketBuilder;
use podtap_model::metadata::{Translation, Tuple};

use super::*;
use crate::{
    Limits, Record, Timestamp,
    fixtures::{Recorder, Tcp, address, connection, udp},
    named::NamedRecord,
    names::{Names, Pod, Service},
    record::{End, Opener},
};

/// Last bytes of addresses, and ports.
type End4 = (u8, u16);

const CLIENT: End4 = (2, 40_000);
const SERVER: End4 = (3, 8080);
const SERVICE: End4 = (100, 80);
/// The node, which takes a client's place.
const NODE: End4 = (9, 61_000);

fn recorder() -> Recorder {
    Recorder::new(Table::new(Limits::default()))
}

fn end((last, port): End4) -> Endpoint {
    Endpoint { address: address(last), port }
}

/// Client and server before and after.
fn translation(protocol: u8, before: (End4, End4), after: (End4, End4)) -> Translation {
    let tuple = |from: End4, to: End4| Tuple {
        source: address(from.0),
        source_port: from.1,
        destination: address(to.0),
        destination_port: to.1,
    };
    Translation { protocol, original: tuple(before.0, before.1), reply: tuple(after.1, after.0), zone: 7 }
}

impl Recorder {
    fn tell(&mut self, milliseconds: u64, translation: &Translation) -> bool {
        self.table.translate(0, Timestamp(milliseconds * 1_000_000), translation)
    }

    fn frames(&mut self, milliseconds: u64, frames: &[Vec<u8>]) {
        for frame in frames {
            self.frame(0, milliseconds, frame);
        }
    }
}

/// Client and server as the client knows them, and who answered.
fn ends(record: &Record) -> (Endpoint, Endpoint, Endpoint, Endpoint) {
    let before = record.translated.expect("it is translated");
    (before.0, before.1, record.client, record.server)
}

fn only(records: &[Record]) -> &Record {
    let [record] = records else { panic!("{records:?}") };
    record
}

/// As another pod has the frame: behind a router, with other MAC addresses and a lower TTL.
fn routed(mut frame: Vec<u8>) -> Vec<u8> {
    frame[22] -= 1;
    (frame[0], frame[6]) = (6, 6);
    frame
}

#[test]
fn the_server_of_a_client_alone_is_known_by_conntrack() {
    // 200 connections to a service with 3 backends. What each server answers is the truth, and so is what conntrack tells.
    let mut recorder = recorder();
    let mut truth = HashMap::new();
    for number in 0..200_u16 {
        let (client, server) = ((CLIENT.0, 40_000 + number), (10 + u8::try_from(number % 7 % 3).expect("small"), 8080));
        truth.insert(client.1, address(server.0));
        let at = u64::from(number) * 10;
        let told = translation(TCP, (client, SERVICE), (client, server));
        let frames = connection(client, SERVICE, (u32::from(number) << 8, 9), 64);
        // Its event comes before the first frame, after it, or after the last one.
        let early = [0, 1, frames.len()][usize::from(number % 3)];
        recorder.frames(at, &frames[..early]);
        assert!(recorder.tell(at + 2, &told));
        recorder.frames(at + 3, &frames[early..]);
        recorder.expire(at + 5);
    }
    recorder.flush();
    let names = names();
    let right = recorder.records.iter().filter(|record| {
        let flow = NamedRecord::new(record, &names);
        let translated = flow.translated.expect("it is translated");
        assert_eq!((record.server.port, flow.service.map(|(service, _)| &*service.name)), (8080, Some("web")));
        assert_eq!((translated.by, flow.contradicts_endpoints()), (TranslatedBy::Conntrack, false));
        let pod = translated.pod.expect("it is a pod");
        truth[&record.client.port] == record.server.address && pod.addresses == [record.server.address]
    });
    assert_eq!((right.count(), recorder.records.len()), (200, 200));
    assert_eq!((recorder.table.counters().translations, recorder.table.counters().joined), (200, 0));
}

/// A service with the endpoints 10, 11 and 12.
fn names() -> Names {
    let mut names = Names::default();
    for last in [2, 3, 10, 11, 12] {
        let pod: Pod = serde_json::from_value(serde_json::json!({"namespace": "shop", "name": last.to_string(),
            "uid": last.to_string(), "addresses": [format!("10.0.0.{last}")],
            "workload": {"kind": "Deployment", "name": "web"}}))
        .expect("a pod");
        names.set_pod(pod);
    }
    let service: Service = serde_json::from_value(serde_json::json!({"namespace": "shop", "name": "web",
        "addresses": ["10.0.0.100"], "ports": [{"port": 80, "targetPort": 8080}],
        "backends": [{"address": "10.0.0.10"}, {"address": "10.0.0.11"}, {"address": "10.0.0.12"}]}))
    .expect("a service");
    names.set_service(service);
    names
}

#[test]
fn a_translation_that_contradicts_the_endpoints_of_a_service_is_believed_and_counted() {
    let mut recorder = recorder();
    recorder.frames(0, &connection(CLIENT, SERVICE, (7, 9), 64));
    recorder.tell(1, &translation(TCP, (CLIENT, SERVICE), (CLIENT, SERVER)));
    recorder.flush();
    let names = names();
    let flow = NamedRecord::new(only(&recorder.records), &names);
    assert_eq!(flow.translated.and_then(|translated| translated.pod).map(|pod| &*pod.name), Some("3"));
    assert!(flow.contradicts_endpoints());
    let mut map = crate::map::Map::default();
    map.record(&flow);
    assert_eq!(map.contradictions, 1);
}

#[test]
fn both_views_of_udp_are_one_flow() {
    // What conntrack tells comes before, between or after them; and the views in either order.
    let told = translation(UDP, (CLIENT, SERVICE), (CLIENT, SERVER));
    for told_at in 0..5_u64 {
        for is_client_first in [true, false] {
            let mut recorder = recorder();
            for number in 0..6_u8 {
                let payload = [number; 20];
                let request = [udp(CLIENT, SERVICE, &payload), routed(udp(CLIENT, SERVER, &payload))];
                let answer = [routed(udp(SERVER, CLIENT, &payload)), udp(SERVICE, CLIENT, &payload)];
                for (step, pair) in [request, answer].into_iter().enumerate() {
                    if told_at == u64::from(number) * 2 + step as u64 {
                        recorder.tell(told_at, &told);
                    }
                    for view in if is_client_first { [0, 1] } else { [1, 0] } {
                        recorder.frame(0, u64::from(number), &pair[view]);
                    }
                }
            }
            recorder.expire(2000);
            recorder.expire(60_000);
            let record = only(&recorder.records);
            assert_eq!(ends(record), (end(CLIENT), end(SERVICE), end(CLIENT), end(SERVER)));
            assert_eq!((record.sent.frames, record.received.frames), (6, 6), "{told_at} {is_client_first}");
            assert_eq!((record.sent.payload, record.received.payload, record.zone), (120, 120, Some(7)));
            assert_eq!((record.opener, record.translated_by), (Opener::Conntrack, Some(TranslatedBy::Conntrack)));
            assert_eq!(recorder.opened.len(), 1);
            assert!(recorder.table.is_empty() && recorder.table.index.is_empty());
        }
    }
}

#[test]
fn a_direction_that_only_the_other_view_has_is_counted() {
    // One tap mirrors what its pod receives, and the other one, too.
    let mut recorder = recorder();
    for number in 0..3_u8 {
        recorder.frame(0, number.into(), &udp(SERVICE, CLIENT, &[number; 9]));
        recorder.frame(0, number.into(), &routed(udp(CLIENT, SERVER, &[number; 5])));
    }
    recorder.tell(3, &translation(UDP, (CLIENT, SERVICE), (CLIENT, SERVER)));
    recorder.flush();
    let record = only(&recorder.records);
    assert_eq!((record.client, record.server), (end(CLIENT), end(SERVER)));
    assert_eq!((record.sent.payload, record.received.payload), (15, 27));
}

#[test]
fn the_server_of_udp_is_known_also_when_its_flow_begins_again() {
    let mut recorder = recorder();
    recorder.frame(0, 0, &udp(CLIENT, SERVICE, b"a"));
    recorder.tell(1, &translation(UDP, (CLIENT, SERVICE), (CLIENT, SERVER)));
    // Conntrack forgets what is idle for two minutes.
    for (at, expected) in [(0, true), (100_000, true), (200_000, true), (321_000, false)] {
        recorder.expire(at);
        recorder.frame(0, at, &udp(CLIENT, SERVICE, &at.to_be_bytes()));
        recorder.expire(at + 20_000);
        let record = recorder.records.last().expect("it was idle");
        assert_eq!((record.start.milliseconds(), record.translated.is_some()), (at, expected));
    }
}

#[test]
fn clients_whose_address_is_translated_keep_theirs() {
    // A NodePort: the node takes the client's place.
    let (client, port) = ((2, 40_000), (8, 30_080));
    let told = translation(TCP, (client, port), (NODE, SERVER));
    for views in [&[0][..], &[1], &[0, 1], &[1, 0]] {
        for told_at in 0..9 {
            let mut recorder = recorder();
            let frames = [connection(client, port, (7, 9), 64), connection(NODE, SERVER, (7, 9), 62)];
            for step in 0..=frames[0].len() {
                if step == told_at {
                    recorder.tell(step as u64, &told);
                }
                for view in views {
                    if let Some(frame) = frames[*view].get(step) {
                        recorder.frame(0, step as u64, frame);
                    }
                }
            }
            recorder.expire(3000);
            let record = only(&recorder.records);
            assert_eq!(ends(record), (end(client), end(port), end(NODE), end(SERVER)));
            assert_eq!((record.sent.payload, record.received.payload, record.end), (80, 1000, End::Finished));
            let by = if views.len() == 2 { TranslatedBy::Join } else { TranslatedBy::Conntrack };
            assert_eq!((record.translated_by, record.opener), (Some(by), Opener::Syn), "{views:?} {told_at}");
            assert_eq!(record.zone, Some(7), "{views:?} {told_at}");
            assert_eq!(recorder.table.counters().contradictions, 0);
            assert!(recorder.table.is_empty() && recorder.table.index.is_empty());
        }
    }
}

#[test]
fn two_nodes_may_translate_one_after_the_other() {
    // The client's node takes its place, and the one whose port it used does so again.
    let port = (8, 30_080);
    let second = (7, 62_000);
    let told = [translation(UDP, (CLIENT, port), (NODE, port)), translation(UDP, (NODE, port), (second, SERVER))];
    for order in [[0, 1], [1, 0]] {
        for told_at in [0, 3] {
            let mut recorder = recorder();
            for number in 0..6_u8 {
                if number == told_at {
                    for which in order {
                        assert!(recorder.tell(0, &told[which]));
                    }
                }
                recorder.frame(0, 1, &udp(CLIENT, port, &[number; 9]));
                recorder.frame(0, 1, &routed(udp(second, SERVER, &[number; 9])));
            }
            recorder.flush();
            let record = only(&recorder.records);
            assert_eq!(ends(record), (end(CLIENT), end(port), end(second), end(SERVER)));
            assert_eq!(record.sent.frames, 6);
            assert!(recorder.table.index.is_empty());
        }
    }
}

#[test]
fn a_pod_may_call_its_own_service() {
    // Hairpin: it has both views, in one interface.
    let own = (CLIENT.0, 8080);
    for protocol in [TCP, UDP] {
        let mut recorder = recorder();
        recorder.tell(0, &translation(protocol, (CLIENT, SERVICE), (NODE, own)));
        if protocol == TCP {
            let views = [connection(CLIENT, SERVICE, (7, 9), 64), connection(NODE, own, (7, 9), 63)];
            for (first, second) in views[0].iter().zip(&views[1]) {
                recorder.frames(1, &[first.clone(), second.clone()]);
            }
        } else {
            for number in 0..5 {
                recorder.frames(1, &[udp(CLIENT, SERVICE, &[number; 16]), routed(udp(NODE, own, &[number; 16]))]);
            }
        }
        recorder.flush();
        let record = only(&recorder.records);
        assert_eq!(ends(record), (end(CLIENT), end(SERVICE), end(NODE), end(own)));
        assert_eq!(record.sent.payload, 80);
    }
}

#[test]
fn ipv6_is_translated_like_ipv4() {
    let v6 = |last: u8| -> IpAddr { format!("fd00::{last:x}").parse().expect("an address") };
    let tuple = |from: (u8, u16), to: (u8, u16)| Tuple {
        source: v6(from.0),
        source_port: from.1,
        destination: v6(to.0),
        destination_port: to.1,
    };
    let datagram = |from: (u8, u16), to: (u8, u16), payload: &[u8]| {
        let (IpAddr::V6(source), IpAddr::V6(destination)) = (v6(from.0), v6(to.0)) else { unreachable!("IPv6") };
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, from.0], [2, 0, 0, 0, 0, to.0])
            .ipv6(source.octets(), destination.octets(), 64)
            .udp(from.1, to.1);
        let mut frame = Vec::new();
        builder.write(&mut frame, payload).expect("a short frame can be built");
        frame
    };
    let mut recorder = recorder();
    for number in 0..4 {
        recorder.frame(0, 0, &datagram(CLIENT, SERVICE, &[number; 7]));
        if number == 0 {
            let (original, reply) = (tuple(CLIENT, SERVICE), tuple(SERVER, CLIENT));
            assert!(recorder.tell(0, &Translation { protocol: UDP, original, reply, zone: 0 }));
        }
        recorder.frame(0, 0, &datagram(CLIENT, SERVER, &[number; 7]));
    }
    recorder.flush();
    let record = only(&recorder.records);
    assert_eq!((record.server.address, record.server.port, record.sent.frames), (v6(SERVER.0), SERVER.1, 4));
}

#[test]
fn what_is_translated_of_an_earlier_connection_is_not_of_the_next_one() {
    let mut recorder = recorder();
    let other = (4, 8080);
    recorder.frames(0, &connection(CLIENT, SERVICE, (7, 9), 64));
    recorder.tell(1, &translation(TCP, (CLIENT, SERVICE), (CLIENT, SERVER)));
    recorder.expire(5000);
    recorder.frames(10_000, &connection(CLIENT, SERVICE, (70_000, 90_000), 64));
    recorder.expire(12_000);
    recorder.frames(20_000, &connection(CLIENT, SERVICE, (700_000, 900_000), 64));
    recorder.tell(20_001, &translation(TCP, (CLIENT, SERVICE), (CLIENT, other)));
    recorder.flush();
    let servers: Vec<_> = recorder.records.iter().map(|record| record.server).collect();
    assert_eq!(servers, [end(SERVER), end(SERVICE), end(other)]);
}

#[test]
fn connections_from_before_the_tap_are_joined() {
    let mut recorder = recorder();
    recorder.tell(0, &translation(TCP, (CLIENT, SERVICE), (CLIENT, SERVER)));
    // An hour later.
    for step in 0..10_u32 {
        let at = 3_600_000 + u64::from(step) * 100;
        for (server, is_routed) in [(SERVICE, false), (SERVER, true)] {
            let frame = Tcp::new(CLIENT, server, "A").at(1000 + step * 50, 5).payload(50).frame();
            recorder.frame(0, at, &if is_routed { routed(frame) } else { frame });
        }
    }
    recorder.flush();
    let record = only(&recorder.records);
    assert_eq!(ends(record), (end(CLIENT), end(SERVICE), end(CLIENT), end(SERVER)));
    assert_eq!((record.sent.frames, record.sent.payload, record.preexisting), (10, 500, true));
}

#[test]
fn sequence_numbers_are_believed_before_conntrack() {
    let views = [connection(CLIENT, SERVICE, (7, 9), 64), connection(CLIENT, SERVER, (7, 9), 62)];
    let false_one = translation(TCP, (CLIENT, SERVICE), (CLIENT, (4, 8080)));
    for told_at in [0, 4] {
        let mut recorder = recorder();
        for (step, (before, after)) in (0..).zip(views[0].iter().zip(&views[1])) {
            if step == told_at {
                recorder.tell(step, &false_one);
            }
            recorder.frames(step, &[before.clone(), after.clone()]);
        }
        recorder.flush();
        let record = only(&recorder.records);
        assert_eq!((record.server, record.translated_by), (end(SERVER), Some(TranslatedBy::Join)), "{told_at}");
        assert_eq!(recorder.table.counters().contradictions, 1);
        assert!(recorder.table.index.is_empty());
    }
}

#[test]
fn the_order_of_views_that_the_time_to_live_does_not_tell_is_corrected() {
    // The server's view comes first, with no router between them.
    let views = [connection(CLIENT, SERVER, (7, 9), 64), connection(CLIENT, SERVICE, (7, 9), 64)];
    let mut recorder = recorder();
    for (at, (first, second)) in (0..).zip(views[0].iter().zip(&views[1])) {
        recorder.frame(0, at * 10, first);
        recorder.frame(0, at * 10 + 1, second);
    }
    recorder.tell(100, &translation(TCP, (CLIENT, SERVICE), (CLIENT, SERVER)));
    recorder.flush();
    let record = only(&recorder.records);
    assert_eq!(ends(record), (end(CLIENT), end(SERVICE), end(CLIENT), end(SERVER)));
    assert_eq!((record.translated_by, recorder.table.counters().contradictions), (Some(TranslatedBy::Join), 0));
}

#[test]
fn two_connections_are_not_made_one() {
    // Another server has the tuple, and other sequence numbers; or the server is said to be the client.
    let second = connection(CLIENT, SERVER, (70_000, 90_000), 64);
    for told in
        [translation(TCP, (CLIENT, SERVICE), (CLIENT, SERVER)), translation(TCP, (SERVICE, CLIENT), (SERVER, CLIENT))]
    {
        let mut recorder = recorder();
        let first = connection(CLIENT, SERVICE, (7, 9), 64);
        recorder.frames(0, &first[..4]);
        recorder.frames(0, &second[..4]);
        recorder.tell(1, &told);
        recorder.frames(2, &first[4..]);
        recorder.frames(2, &second[4..]);
        recorder.flush();
        assert_eq!(recorder.records.len(), 2);
        assert!(recorder.records.iter().all(|record| record.translated.is_none() && record.received.payload == 1000));
        assert!(recorder.table.counters().contradictions > 0);
    }
}

#[test]
fn a_translation_names_no_other_flow() {
    let mut recorder = recorder();
    recorder.tell(0, &translation(UDP, (CLIENT, SERVICE), (CLIENT, SERVER)));
    let others = [((2, 40_001), SERVICE), (CLIENT, (100, 81)), ((5, 40_000), SERVICE), ((5, 1), SERVER)];
    for (client, server) in others {
        recorder.frame(0, 1, &udp(client, server, b"x"));
    }
    // The same tuple by another protocol, and from another source.
    recorder.frame(0, 1, &Tcp::new(CLIENT, SERVICE, "A").frame());
    recorder.frame(1, 1, &udp(CLIENT, SERVICE, b"x"));
    recorder.flush();
    assert_eq!(recorder.records.len(), 6);
    assert!(recorder.records.iter().all(|record| record.translated.is_none()), "{:?}", recorder.records);
}

#[test]
fn what_translates_nothing_is_ignored() {
    let mut recorder = recorder();
    let v6: IpAddr = "fd00::1".parse().expect("an address");
    let sound = translation(UDP, (CLIENT, SERVICE), (CLIENT, SERVER));
    for told in [
        translation(UDP, (CLIENT, SERVICE), (CLIENT, SERVICE)),
        translation(UDP, (CLIENT, SERVICE), (SERVICE, CLIENT)),
        translation(1, (CLIENT, SERVICE), (CLIENT, SERVER)),
        Translation { reply: Tuple { source: v6, ..sound.reply }, ..sound },
    ] {
        assert!(!recorder.tell(0, &told), "{told:?}");
    }
    assert!(recorder.tell(0, &sound));
    assert_eq!(recorder.table.counters().translations, 1);
}

#[test]
fn translations_in_a_circle_end() {
    let mut recorder = recorder();
    let places: Vec<End4> = (0..5).map(|last| (20 + last, 80)).collect();
    for (number, server) in places.iter().enumerate() {
        let next = places[(number + 1) % places.len()];
        recorder.frame(0, 0, &udp(CLIENT, *server, b"x"));
        recorder.tell(0, &translation(UDP, (CLIENT, *server), (CLIENT, next)));
    }
    for server in places {
        recorder.frame(0, 1, &udp(CLIENT, server, b"xy"));
    }
    recorder.flush();
    assert!(recorder.table.is_empty() && recorder.table.index.is_empty());
}

#[test]
fn the_number_of_translations_is_bounded() {
    let mut recorder = Recorder::new(Table::new(Limits { translations: 100, ..Limits::default() }));
    for number in 0..10_000_u16 {
        let client = (2, number);
        recorder.tell(0, &translation(UDP, (client, SERVICE), (client, SERVER)));
    }
    let counters = recorder.table.counters();
    assert!(counters.translations == 10_000 && counters.translations_evicted >= 9_900, "{counters:?}");
    recorder.frame(0, 1, &udp((2, 9_999), SERVICE, b"x"));
    recorder.flush();
    assert!(only(&recorder.records).translated.is_some(), "the latest ones stay");
    assert_eq!(ends(&recorder.records[0]).3.address, IpAddr::from(Ipv4Addr::new(10, 0, 0, 3)));
}

proptest::proptest! {
    /// Whatever conntrack tells, true or false: nothing stays in the index, and no frame counts twice.
    #[test]
    fn nothing_is_left_and_no_frame_counts_twice(
        steps in proptest::collection::vec(
            (0_u8..8, 0_u8..4, 0_u8..4, 0_u8..4, 0_u8..4, 0_u32..300, 0_u64..3000), 1..150,
        ),
        flows in 1_usize..12,
    ) {
        let mut recorder = Recorder::new(Table::new(Limits { flows, translations: 8, ..Limits::default() }));
        let mut now = 0;
        for (kind, a, b, c, d, number, wait) in steps {
            now += wait;
            let (from, to) = ((a, 1), (b, 2));
            match kind {
                0..3 => {
                    let protocol = if kind == 0 { TCP } else { UDP };
                    recorder.tell(now, &translation(protocol, (from, to), ((c, 1), (d, 2))));
                }
                3 | 4 => recorder.frame(0, now, &udp(from, to, &number.to_be_bytes())),
                5 => recorder.frame(0, now, &udp(to, from, &number.to_be_bytes())),
                _ => {
                    let flags = ["S", "SA", "A", "FA", "R"][number as usize % 5];
                    let (from, to) = if kind == 6 { (from, to) } else { (to, from) };
                    recorder.frame(0, now, &Tcp::new(from, to, flags).at(number % 3, number % 3).payload(usize::from(c)).frame());
                }
            }
            recorder.expire(now);
            proptest::prop_assert!(recorder.table.len() <= flows);
            proptest::prop_assert!(recorder.table.index.len() <= 2 * recorder.table.len());
        }
        recorder.flush();
        proptest::prop_assert!(recorder.table.is_empty() && recorder.table.index.is_empty());
        proptest::prop_assert_eq!(recorder.table.beginnings, 0);
        let counts = recorder.records.iter().flat_map(|record| [record.sent, record.received]);
        let counters = recorder.table.counters();
        proptest::prop_assert_eq!(counts.map(|one| one.frames).sum::<u64>() + counters.duplicates, counters.packets);
    }
}
