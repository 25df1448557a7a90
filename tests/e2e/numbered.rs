//! Numbered datagrams to a pod: what is missing at a receiver, or there twice, is seen in their numbers.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use podtap_tests::{capture::Capture, cluster::udp_socket, wait::until};

use crate::{
    packet::numbers,
    scene::{Scene, address},
};

/// A port that gets each number.
pub const PORT: u16 = 7000;
/// Another one.
pub const OTHER_PORT: u16 = 7001;

/// Ends the load when dropped, also if the test fails meanwhile.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends numbered datagrams from the client to two ports of the web server while `meanwhile` runs, which can read their number so far.
/// Returns their number.
pub fn under_load(scene: &Scene, meanwhile: impl FnOnce(&AtomicU32)) -> u32 {
    let (web, client) = (scene.sandbox.network(&scene.web), scene.sandbox.network(&scene.client));
    let _sinks = [PORT, OTHER_PORT].map(|port| udp_socket(&web, port).expect("the port is free"));
    let socket = udp_socket(&client, 0).expect("a socket can be made");
    let (stop, sent, to) = (AtomicBool::new(false), AtomicU32::new(0), address(&scene.web));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let number = sent.load(Ordering::Relaxed);
                for port in [PORT, OTHER_PORT] {
                    socket.send_to(&number.to_be_bytes(), (to.as_str(), port)).expect("it can be sent");
                }
                sent.store(number + 1, Ordering::Relaxed);
                // The rate of the load.
                thread::sleep(Duration::from_micros(500));
            }
        });
        let _ending = Ending(&stop);
        meanwhile(&sent);
    });
    sent.into_inner()
}

/// Waits until more datagrams have been sent.
pub fn a_while(sent: &AtomicU32) {
    let before = sent.load(Ordering::Relaxed);
    until("datagrams are sent", Duration::from_secs(10), || {
        let now = sent.load(Ordering::Relaxed);
        if now > before + 200 { Ok(()) } else { Err(now) }
    });
}

/// Waits until every number from the first that arrived up to the last that was sent has arrived exactly once; returns the first.
#[track_caller]
pub fn each_once(receiver: &Capture, port: u16, sent: u32) -> u32 {
    each_arrives(receiver, port, sent, 0)
}

/// Likewise, but so many of them may have arrived twice.
#[track_caller]
pub fn each_arrives(receiver: &Capture, port: u16, sent: u32, twice: usize) -> u32 {
    // The last one sent need not be the last one to arrive: each core has its own queue.
    until("each datagram arrives once", Duration::from_secs(10), || {
        let seen = numbers(&receiver.so_far(), port);
        let first = *seen.keys().next().ok_or("none has arrived")?;
        let wrong: Vec<_> =
            (first..sent).map(|n| (n, seen.get(&n).copied().unwrap_or(0))).filter(|(_, times)| *times != 1).collect();
        let some = &wrong[..wrong.len().min(10)];
        let is_right = wrong.len() <= twice && wrong.iter().all(|(_, times)| *times == 2);
        if is_right { Ok(first) } else { Err(format!("{} not exactly once: {some:?}", wrong.len())) }
    })
}
