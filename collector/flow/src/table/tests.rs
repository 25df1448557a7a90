use std::time::Duration;

use proptest::prelude::*;
use simple_dns::{CLASS, Name, Packet as Message, PacketFlag, Question, ResourceRecord, rdata::RData};

use super::*;
use crate::{
    fixtures::{Recorder, Tcp, address, connection, udp},
    record::{Missing, Opener},
};

const CLIENT: (u8, u16) = (2, 40_000);
const SERVER: (u8, u16) = (3, 8080);
/// The address of a service.
const SERVICE: (u8, u16) = (100, 80);

fn recorder() -> Recorder {
    Recorder::new(Table::new(Limits::default()))
}

#[test]
fn a_connection_is_one_record() {
    let mut recorder = recorder();
    for (at, frame) in (0..).zip(connection(CLIENT, SERVER, (7, 9), 64)) {
        recorder.frame(0, at, &frame);
    }
    recorder.expire(500);
    assert!(recorder.records.is_empty(), "late frames may come");
    recorder.expire(1100);
    let [record] = &recorder.records[..] else { panic!("{:?}", recorder.records) };
    assert_eq!((record.client.port, record.server.port, record.opener), (CLIENT.1, SERVER.1, Opener::Syn));
    assert_eq!((record.sent.payload, record.received.payload), (80, 1000));
    assert_eq!((record.sent.frames, record.received.frames), (5, 3));
    assert_eq!((record.end, record.is_first, record.preexisting), (End::Finished, true, false));
    assert_eq!(record.handshake, Some(Duration::from_millis(2)));
    assert_eq!(record.connection, Some(7 << 32 | 9));
    assert!(recorder.table.is_empty() && recorder.opened.is_empty());
}

#[test]
fn both_views_of_a_translated_connection_are_one_record() {
    // The client's view may be met before or after the server's: the TTL tells them apart.
    for order in [[0, 1], [1, 0]] {
        let mut recorder = recorder();
        let views = [connection(CLIENT, SERVICE, (7, 9), 64), connection(CLIENT, SERVER, (7, 9), 62)];
        for (at, step) in (0..).zip(0..views[0].len()) {
            for view in order {
                recorder.frame(0, at, &views[view][step]);
            }
        }
        recorder.expire(5000);
        let [record] = &recorder.records[..] else { panic!("{:?}", recorder.records) };
        assert_eq!(record.server.port, SERVER.1);
        let (_, service) = record.translated.expect("it is joined");
        assert_eq!((service.address, service.port), (address(SERVICE.0), SERVICE.1));
        assert_eq!((record.sent.payload, record.received.payload), (80, 1000), "counted once");
    }
}

#[test]
fn only_the_handshake_of_the_client_s_view_is_needed() {
    let mut recorder = recorder();
    let views = [connection(CLIENT, SERVICE, (7, 9), 64), connection(CLIENT, SERVER, (7, 9), 62)];
    for (at, step) in (0..).zip(0..views[0].len()) {
        if step < 2 {
            recorder.frame(0, at, &views[0][step]);
        }
        recorder.frame(0, at, &views[1][step]);
    }
    recorder.flush();
    let [record] = &recorder.records[..] else { panic!("{:?}", recorder.records) };
    assert!(record.translated.is_some());
    assert_eq!(record.received.payload, 1000);
}

#[test]
fn only_the_handshake_of_the_server_s_view_is_needed() {
    // With handshakes from both ends, the client's end mirrors the rest of a connection to a service.
    let mut recorder = recorder();
    let views = [connection(CLIENT, SERVICE, (7, 9), 64), connection(CLIENT, SERVER, (7, 9), 62)];
    for (at, step) in (0..).zip(0..views[0].len()) {
        recorder.frame(0, at, &views[0][step]);
        if step < 2 {
            recorder.frame(0, at, &views[1][step]);
        }
    }
    recorder.expire(2000);
    let [record] = &recorder.records[..] else { panic!("{:?}", recorder.records) };
    assert_eq!(record.translated.map(|(_, service)| service.port), Some(SERVICE.1));
    assert_eq!((record.server.port, record.sent.payload, record.received.payload), (SERVER.1, 80, 1000));
    assert_eq!((record.sent.frames, record.end), (5, End::Finished));
    assert!(recorder.table.is_empty());
}

#[test]
fn both_views_of_an_attempt_that_fails_are_one() {
    let mut recorder = recorder();
    let views = [(SERVICE, 64), (SERVER, 62)];
    for (server, ttl) in views {
        recorder.frame(0, 0, &Tcp::new(CLIENT, server, "S").at(7, 0).ttl(ttl).frame());
    }
    for (server, ttl) in views.into_iter().rev() {
        recorder.frame(0, 1, &Tcp::new(server, CLIENT, "RA").at(0, 8).ttl(ttl).frame());
    }
    recorder.expire(2000);
    let [record] = &recorder.records[..] else { panic!("{:?}", recorder.records) };
    assert_eq!((record.server.port, record.failure), (SERVER.1, Some(Failure::Refused)));
    assert_eq!(record.translated.map(|(_, service)| service.port), Some(SERVICE.1));
    assert_eq!((record.sent.frames, record.received.frames), (1, 1));
}

#[test]
fn views_with_one_ttl_are_told_apart_by_the_order_of_their_first_frames() {
    let mut recorder = recorder();
    let views = [connection(CLIENT, SERVICE, (7, 9), 64), connection(CLIENT, SERVER, (7, 9), 64)];
    for (at, step) in (0..).zip(0..views[0].len()) {
        // The server's answers are seen at the server first.
        let order = if step == 1 { [1, 0] } else { [0, 1] };
        for (microsecond, view) in order.into_iter().enumerate() {
            recorder.frame(0, at * 10 + microsecond as u64, &views[view][step]);
        }
    }
    recorder.flush();
    let [record] = &recorder.records[..] else { panic!("{:?}", recorder.records) };
    assert_eq!((record.server.port, record.translated.map(|(_, service)| service.port)), (SERVER.1, Some(SERVICE.1)));
}

#[test]
fn frames_that_repeat_do_not_keep_a_flow_from_its_end() {
    let mut recorder = recorder();
    let reset = Tcp::new((9, 1), SERVER, "RA").at(5, 6).frame();
    let datagram = udp((9, 2), (3, 6000), b"x");
    let mut with_id = datagram.clone();
    with_id[19] = 7;
    for frame in connection(CLIENT, SERVER, (7, 9), 64) {
        recorder.frame(0, 0, &frame);
    }
    for step in 0..100 {
        recorder.frame(0, step * 500, &reset);
        recorder.frame(0, step * 500, &with_id);
        recorder.expire(step * 500);
    }
    assert!(recorder.records.iter().any(|record| record.client.port == CLIENT.1));
    assert!(recorder.records.iter().any(|record| record.client.port == 2), "{:?}", recorder.records);
}

#[test]
fn what_is_left_of_an_old_connection_is_no_part_of_the_next_one() {
    let mut recorder = recorder();
    // The server sends its last segment again, long after.
    recorder.frame(0, 0, &Tcp::new(SERVER, CLIENT, "FA").at(90_000_000, 5).frame());
    recorder.expire(30_000);
    let mut frames = connection(CLIENT, SERVER, (7, 9), 64);
    // An answer to the SYN that is of the old connection (RFC 9293, 3.5.2).
    frames.insert(1, Tcp::new(SERVER, CLIENT, "A").at(90_000_001, 77_000_000).frame());
    for (at, frame) in (60_000..).zip(frames) {
        recorder.frame(0, at, &frame);
    }
    recorder.flush();
    let record = recorder.records.last().expect("the connection");
    assert_eq!((record.sent.payload, record.received.payload), (80, 1000));
    assert_eq!((record.start, record.preexisting), (Timestamp(60_000_000_000), false));
    assert_eq!(record.totals.map(|totals| totals.missing), [Missing::default(); 2]);
}

#[test]
fn a_connection_of_which_one_direction_is_mirrored_did_not_fail() {
    let mut recorder = recorder();
    for (at, frame) in (0..).zip(connection(CLIENT, SERVER, (7, 9), 64)) {
        if frame[29] == CLIENT.0 {
            recorder.frame(0, at, &frame);
        }
    }
    recorder.expire(60_000);
    assert!(recorder.records.iter().all(|record| record.failure.is_none()), "{:?}", recorder.records);
    assert_eq!(recorder.records.iter().map(|record| record.sent.payload).sum::<u64>(), 80);
}

#[test]
fn an_attempt_that_is_repeated_fails_once() {
    let mut recorder = recorder();
    for at in [0, 1000, 3000, 7000, 15_000, 31_000, 63_000] {
        recorder.expire(at);
        let mut frame = Tcp::new(CLIENT, SERVER, "S").at(7, 0).frame();
        // Each is another packet.
        frame[19] = u8::try_from(at / 1000).expect("small");
        recorder.frame(0, at, &frame);
    }
    recorder.expire(300_000);
    assert_eq!(recorder.records.iter().filter(|record| record.failure == Some(Failure::NoAnswer)).count(), 1);
    assert_eq!(recorder.records.iter().filter(|record| record.is_first).count(), 1);
    assert!(recorder.table.is_empty() && recorder.opened.is_empty());
}

#[test]
fn a_reset_that_the_peer_ignores_ends_nothing() {
    let mut recorder = recorder();
    let frames = connection(CLIENT, SERVER, (7, 9), 64);
    for frame in &frames[..3] {
        recorder.frame(0, 0, frame);
    }
    recorder.frame(0, 1, &Tcp::new(CLIENT, SERVER, "R").at(1000, 0).frame());
    for frame in &frames[3..5] {
        recorder.frame(0, 2, frame);
    }
    recorder.expire(2000);
    assert_eq!((recorder.opened.len(), recorder.records.len()), (1, 0), "it is still open");
}

#[test]
fn an_answer_to_no_question_gives_no_name() {
    let mut recorder = recorder();
    let name = Name::new_unchecked("updates.example");
    let mut reply = Message::new_reply(77);
    reply.questions.push(Question::new(name.clone(), simple_dns::TYPE::A.into(), CLASS::IN.into(), false));
    let a = RData::A(simple_dns::rdata::A { address: u32::from_be_bytes([10, 0, 0, SERVER.0]) });
    reply.answers.push(ResourceRecord::new(name, CLASS::IN, 30, a));
    recorder.frame(0, 0, &udp((9, 53), (2, 5000), &reply.build_bytes_vec().expect("a reply")));
    for frame in connection(CLIENT, SERVER, (7, 9), 64) {
        recorder.frame(0, 1, &frame);
    }
    recorder.flush();
    assert!(recorder.records.iter().all(|record| record.dns_name.is_none()));
}

#[test]
fn a_frame_that_two_pods_mirror_counts_once() {
    let mut recorder = recorder();
    for (at, frame) in (0..).zip(connection(CLIENT, SERVER, (7, 9), 64)) {
        recorder.frame(0, at, &frame);
        // Behind a router: other MAC addresses, and a lower TTL.
        let mut routed = frame.clone();
        routed[5] = 99;
        routed[11] = 98;
        routed[22] -= 1;
        recorder.frame(0, at, &routed);
    }
    recorder.flush();
    let [record] = &recorder.records[..] else { panic!("{:?}", recorder.records) };
    assert_eq!((record.sent.frames, record.received.frames), (5, 3));
    assert_eq!(record.totals.map(|totals| totals.retransmitted), [0, 0]);
    assert_eq!(recorder.table.counters().duplicates, 8);
}

#[test]
fn a_port_that_is_used_again_is_another_connection() {
    let mut recorder = recorder();
    for (at, initials) in [(0, (7, 9)), (100, (1_000_000, 5))] {
        for frame in connection(CLIENT, SERVER, initials, 64) {
            recorder.frame(0, at, &frame);
        }
    }
    recorder.flush();
    assert_eq!(recorder.records.len(), 2);
    assert!(recorder.records.iter().all(|record| record.received.payload == 1000));
}

#[test]
fn a_connection_that_is_older_than_the_tap_is_announced_within_a_second_and_reported_every_minute() {
    let mut recorder = recorder();
    for second in 0..150 {
        let sequence = u32::try_from(second).expect("small") * 10;
        recorder.frame(0, second * 1000, &Tcp::new(CLIENT, SERVER, "A").at(sequence, 5).payload(10).frame());
        recorder.expire(second * 1000 + 500);
    }
    let [opened] = &recorder.opened[..] else { panic!("{:?}", recorder.opened) };
    assert!(opened.preexisting && opened.is_first);
    // The server has the lower port.
    assert_eq!((opened.server.port, opened.opener), (SERVER.1, Opener::Port));
    assert_eq!(recorder.records.len(), 2);
    assert!(recorder.records.iter().all(|record| !record.is_first && record.end == End::ActiveTimeout));
    recorder.expire(200_000);
    assert_eq!(recorder.records.iter().map(|record| record.sent.payload).sum::<u64>(), 1500);
    assert_eq!(recorder.records[2].end, End::IdleTimeout);
    assert_eq!(recorder.table.len(), 1, "more may come");
    recorder.expire(200_000 + 3 * 3_600_000);
    assert!(recorder.table.is_empty());
    assert_eq!(recorder.records.len(), 3, "there was nothing new");
}

#[test]
fn failed_attempts_say_why() {
    let mut recorder = recorder();
    recorder.frame(0, 0, &Tcp::new((2, 1), SERVER, "S").at(1, 0).frame());
    recorder.frame(0, 1, &Tcp::new(SERVER, (2, 1), "RA").at(0, 2).frame());
    recorder.frame(0, 2, &Tcp::new((2, 2), SERVER, "S").at(1, 0).frame());
    recorder.expire(20_000);
    let failures: Vec<_> = recorder.records.iter().map(|record| (record.client.port, record.failure)).collect();
    assert_eq!(failures, [(1, Some(Failure::Refused)), (2, Some(Failure::NoAnswer))]);
}

#[test]
fn a_server_has_the_name_that_its_client_looked_up() {
    let mut recorder = recorder();
    let name = Name::new_unchecked("Shop.example.com");
    let mut query = Message::new_query(77);
    query.questions.push(Question::new(name.clone(), simple_dns::TYPE::A.into(), CLASS::IN.into(), false));
    let mut reply = Message::new_reply(77);
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
    reply.questions.clone_from(&query.questions);
    let alias = Name::new_unchecked("edge.cdn.example");
    let cname = RData::CNAME(simple_dns::rdata::CNAME(alias.clone()));
    reply.answers.push(ResourceRecord::new(name, CLASS::IN, 30, cname));
    let a = RData::A(simple_dns::rdata::A { address: u32::from_be_bytes([10, 0, 0, SERVER.0]) });
    reply.answers.push(ResourceRecord::new(alias, CLASS::IN, 30, a));
    recorder.frame(0, 0, &udp((2, 5000), (9, 53), &query.build_bytes_vec().expect("a query")));
    recorder.frame(0, 4, &udp((9, 53), (2, 5000), &reply.build_bytes_vec().expect("a reply")));
    for (client, at) in [(CLIENT, 10), ((4, 40_000), 11), ((2, 40_001), 600_000)] {
        for frame in connection(client, SERVER, (7, at), 64) {
            recorder.frame(0, at.into(), &frame);
        }
    }
    recorder.flush();
    let names: Vec<_> = recorder
        .records
        .iter()
        .filter(|record| record.server.port == SERVER.1)
        .map(|record| (record.client.address, record.client.port, record.dns_name.as_deref()))
        .collect();
    assert!(names.contains(&(address(2), 40_000, Some("shop.example.com"))), "{names:?}");
    assert!(names.contains(&(address(4), 40_000, None)), "another client: {names:?}");
    assert!(names.contains(&(address(2), 40_001, None)), "too late: {names:?}");
    let lookup = recorder.records.iter().find(|record| record.query.is_some()).expect("the query's flow");
    let query = lookup.query.as_deref().expect("it has one");
    let answer = query.answer.expect("it was answered");
    assert_eq!((&*query.name, answer.code, answer.after), ("shop.example.com", 0, Duration::from_millis(4)));
    assert_eq!(lookup.responses, [(0, 1)]);
}

#[test]
fn later_fragments_belong_to_the_datagram_s_flow() {
    let whole = udp((2, 5000), (3, 6000), &[0; 64]);
    let fragment = |offset: u16, more: bool, payload: &[u8]| {
        let mut frame = whole[..34].to_vec();
        frame.extend(payload);
        let length = u16::try_from(20 + payload.len()).expect("short").to_be_bytes();
        frame[16..18].copy_from_slice(&length);
        frame[18..20].copy_from_slice(&[7, 7]);
        frame[20..22].copy_from_slice(&((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
        frame
    };
    let mut recorder = recorder();
    recorder.frame(0, 0, &fragment(0, true, &whole[34..50]));
    // Two are equal, but for their offsets.
    recorder.frame(0, 1, &fragment(16, true, &whole[50..66]));
    recorder.frame(0, 1, &fragment(32, true, &whole[66..82]));
    recorder.frame(0, 1, &fragment(48, false, &whole[82..]));
    recorder.flush();
    let [record] = &recorder.records[..] else { panic!("{:?}", recorder.records) };
    assert_eq!((record.sent.frames, record.sent.payload), (4, 64));
    assert_eq!(recorder.table.counters().orphaned_fragments, 0);
}

#[test]
fn a_full_table_reports_what_is_idle_for_longest() {
    let mut recorder = Recorder::new(Table::new(Limits { flows: 100, ..Limits::default() }));
    for number in 0..1000_u16 {
        recorder.frame(0, number.into(), &udp((2, 1000 + number), (3, 53), b"?"));
        assert!(recorder.table.len() <= 100);
    }
    assert_eq!(recorder.records.len(), 900);
    assert!(recorder.records.iter().all(|record| record.end == End::LackOfResources));
    assert_eq!(recorder.records[0].client.port, 1000);
    assert_eq!(recorder.table.counters().evicted, 900);
}

proptest! {
    /// Whatever comes, and however full the table is: each frame is in one record.
    #[test]
    fn every_frame_is_in_one_record(
        steps in prop::collection::vec((0_u8..6, 0_u8..3, 0_u16..4, 0_usize..4, 0_u32..300, 0_u64..20_000), 1..200),
        flows in 1_usize..12,
    ) {
        let mut recorder = Recorder::new(Table::new(Limits { flows, ..Limits::default() }));
        let (mut now, mut octets) = (0, 0);
        for (pair, kind, port, flags, sequence, wait) in &steps {
            now += if *wait > 19_000 { *wait * 10 } else { *wait / 100 };
            let (from, to) = ((pair % 2, 10 + port), (2 + pair / 2, 20));
            let (from, to) = if *sequence % 2 == 0 { (from, to) } else { (to, from) };
            let frame = if *kind == 0 {
                udp(from, to, &[0; 9])
            } else {
                let flags = ["S", "SA", "A", "FA"][*flags];
                Tcp::new(from, to, flags).at(*sequence, *sequence).payload(usize::from(*kind)).frame()
            };
            octets += frame.len() as u64 - 14;
            recorder.frame(0, now, &frame);
            recorder.expire(now);
        }
        recorder.flush();
        prop_assert!(recorder.table.is_empty());
        let counters = recorder.table.counters();
        let joined = counters.joined;
        let counts = recorder.records.iter().flat_map(|record| [record.sent, record.received]);
        let (frames, seen) = counts.fold((0, 0), |(frames, octets), one| (frames + one.frames, octets + one.octets));
        // What the view before translation has is in no record, and duplicates count once.
        if joined == 0 {
            prop_assert_eq!(frames, counters.packets - counters.duplicates);
            prop_assert!(seen <= octets);
        }
        prop_assert_eq!(counters.packets, steps.len() as u64);
        // Each flow is announced once.
        let first = recorder.records.iter().filter(|record| record.is_first).count() + recorder.opened.len();
        prop_assert!(first as u64 <= counters.flows && (joined > 0 || first as u64 == counters.flows));
    }
}

/// Seconds as milliseconds.
const fn seconds(seconds: u64) -> u64 {
    seconds * 1000
}

#[test]
fn with_a_filter_that_leaves_data_out_a_connection_is_counted_by_its_ends() {
    let mut recorder = recorder();
    let frames = connection(CLIENT, SERVER, (7, 9), 64);
    recorder.table.lost_until(Timestamp::MAX);
    // No more than its SYNs and FINs, with more than the idle timeout between them.
    for (at, step) in [(0, 0), (1, 1), (seconds(40), 5), (seconds(40) + 1, 6)] {
        recorder.expire(at);
        recorder.frame(0, at, &frames[step]);
    }
    recorder.expire(seconds(60));
    let [first, last] = &recorder.records[..] else { panic!("{:?}", recorder.records) };
    assert_eq!((first.end, first.sent.payload, first.degraded), (End::ActiveTimeout, 0, true), "it is not idle");
    assert_eq!((last.end, last.is_first, last.degraded), (End::Finished, false, true));
    assert_eq!((last.sent.payload, last.received.payload), (80, 1000));
    let missing = last.totals.map(|totals| totals.missing);
    assert_eq!(missing, [80, 1000].map(|by_collector| Missing { by_mirror: 0, by_collector }), "no loss of the mirror");
    assert_eq!((last.failure, recorder.table.counters().flows), (None, 1));
    assert_eq!(last.handshake, None, "its last frame was not seen");
}

#[test]
fn what_a_filter_left_out_counts_with_the_first_frame_after_it() {
    let mut recorder = recorder();
    let frames = connection(CLIENT, SERVER, (7, 9), 64);
    for (at, frame) in (0..).zip(&frames[..3]) {
        recorder.frame(0, at, frame);
    }
    recorder.table.lost_until(Timestamp::MAX);
    recorder.table.lost_until(Timestamp::from_seconds(20));
    // Of the server, an acknowledgment tells what the client sent, and later segments what it sent itself.
    recorder.frame(0, seconds(30), &Tcp::new(SERVER, CLIENT, "A").at(10, 8 + 500).frame());
    recorder.frame(0, seconds(31), &Tcp::new(SERVER, CLIENT, "A").at(10 + 700, 8 + 500).payload(10).frame());
    recorder.frame(0, seconds(31) + 1, &Tcp::new(CLIENT, SERVER, "A").at(8 + 600, 9).payload(10).frame());
    recorder.frame(0, seconds(31) + 2, &Tcp::new(CLIENT, SERVER, "A").at(8 + 650, 9).payload(10).frame());
    recorder.expire(seconds(50));
    let record = recorder.records.last().expect("a record");
    assert_eq!(record.totals[0].missing, Missing { by_mirror: 40, by_collector: 600 });
    assert_eq!(record.totals[1].missing, Missing { by_mirror: 700, by_collector: 0 });
    assert!(record.degraded);
    recorder.frame(0, seconds(51), &Tcp::new(CLIENT, SERVER, "A").at(8 + 660, 9).payload(10).frame());
    recorder.expire(seconds(90));
    assert_eq!(recorder.records.last().map(|record| record.degraded), Some(false), "nothing was left out since");
}

#[test]
fn flows_without_connections_are_held_while_their_frames_are_left_out() {
    let mut recorder = recorder();
    let datagrams = [SERVER.1, dns::PORT].map(|port| udp(CLIENT, (SERVER.0, port), b"x"));
    for datagram in &datagrams {
        recorder.frame(0, 0, datagram);
    }
    recorder.table.lost_until(Timestamp::MAX);
    recorder.expire(seconds(500));
    let mut ends: Vec<_> = recorder.records.iter().map(|record| (record.server.port, record.end)).collect();
    ends.sort_by_key(|(port, _)| *port);
    let expected = [(dns::PORT, End::IdleTimeout), (SERVER.1, End::ActiveTimeout)];
    assert_eq!(ends, expected, "DNS is not left out");
    assert_eq!(recorder.table.len(), 1);
    recorder.table.lost_until(Timestamp::from_seconds(500));
    recorder.frame(0, seconds(510), &datagrams[0]);
    assert_eq!(recorder.table.counters().flows, 2, "it is the same flow");
    recorder.expire(seconds(530));
    let last = recorder.records.last().expect("a record");
    assert_eq!((last.end, last.is_first, last.degraded), (End::IdleTimeout, false, true));
    assert!(recorder.table.is_empty());
}

#[test]
fn what_was_held_and_did_not_come_again_is_forgotten() {
    let mut recorder = recorder();
    recorder.frame(0, 0, &udp(CLIENT, SERVER, b"x"));
    recorder.table.lost_until(Timestamp::MAX);
    recorder.expire(seconds(100));
    recorder.table.lost_until(Timestamp::from_seconds(100));
    recorder.expire(seconds(114));
    assert_eq!((recorder.table.len(), recorder.records.len()), (1, 1));
    recorder.expire(seconds(115));
    assert_eq!((recorder.table.len(), recorder.records.len()), (0, 1), "all of it was reported");
}
