//! Small datagrams between the pods, as fast as one thread can send them, or at a rate.
//!
//! The reader polls at short intervals, as a busy server does. If it were woken for each datagram, as iperf3 is, the cost of that would
//! hide the mirror's.

use std::{
    io,
    net::UdpSocket,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use podtap_tests::namespace::within;

use crate::stage::Stage;

/// Payload of a datagram.
pub const SIZE: usize = 64;
/// Datagrams between two readings of the clock.
const BATCH: u64 = 32;
/// Interval of the reader: at any rate seen, fewer datagrams arrive than a socket's queue holds.
const PAUSE: Duration = Duration::from_micros(100);

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// Source ports, used in turn.
    pub flows: usize,
    /// To the tapped pod, instead of from it.
    pub receive: bool,
    /// Datagrams per second, at most.
    pub rate: Option<f64>,
    pub length: Duration,
}

impl Flood {
    /// Datagrams per second that have reached the other pod's program.
    pub fn run(self, stage: &Stage) -> Result<f64, String> {
        self.send(stage).map_err(|error| format!("datagrams: {error}"))
    }

    fn send(self, stage: &Stage) -> io::Result<f64> {
        let (from, to): (&Path, &Path) =
            if self.receive { (&stage.peer, &stage.web) } else { (&stage.web, &stage.peer) };
        let receiver = within(to, || UdpSocket::bind("0.0.0.0:0"))?;
        receiver.set_nonblocking(true)?;
        let address = if self.receive { stage.web_address } else { stage.peer_address };
        let target = (address, receiver.local_addr()?.port());
        let flows = self.flows;
        let senders = within(from, move || {
            let socket = || {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.connect(target)?;
                Ok(socket)
            };
            (0..flows).map(|_| socket()).collect::<io::Result<Vec<UdpSocket>>>()
        })?;

        let ended = Arc::new(AtomicBool::new(false));
        let counting = thread::spawn({
            let ended = Arc::clone(&ended);
            move || count(&receiver, &ended)
        });
        let sent = self.transmit(&senders);
        // For datagrams in flight.
        thread::sleep(Duration::from_millis(20));
        ended.store(true, Ordering::Relaxed);
        let arrived = counting.join().map_err(|_| io::Error::other("the counter panicked"))??;
        let elapsed = sent?;
        #[expect(clippy::cast_precision_loss, reason = "a count of a few seconds")]
        Ok(arrived as f64 / elapsed.as_secs_f64())
    }

    /// Sends until the time is over. Returns how long it took.
    fn transmit(self, senders: &[UdpSocket]) -> io::Result<Duration> {
        let message = [0_u8; SIZE];
        let (start, mut sent) = (Instant::now(), 0_u64);
        let mut next = senders.iter().cycle();
        while start.elapsed() < self.length {
            if let Some(rate) = self.rate {
                #[expect(clippy::cast_precision_loss, reason = "a count of a few seconds")]
                let due = sent as f64 / rate;
                if let Some(early) = Duration::from_secs_f64(due).checked_sub(start.elapsed()) {
                    thread::sleep(early);
                }
            }
            for socket in next.by_ref().take(usize::try_from(BATCH).unwrap_or(1)) {
                match socket.send(&message) {
                    Ok(_) => {}
                    // A full queue, or no listener any more.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                    Err(error) => return Err(error),
                }
            }
            sent += BATCH;
        }
        Ok(start.elapsed())
    }
}

/// Counts what arrives until the sender has ended and nothing is left.
fn count(receiver: &UdpSocket, ended: &AtomicBool) -> io::Result<u64> {
    let (mut buffer, mut arrived) = ([0_u8; 2 * SIZE], 0);
    loop {
        // Read before the socket, so that everything sent until then is found below.
        let last = ended.load(Ordering::Relaxed);
        loop {
            match receiver.recv(&mut buffer) {
                Ok(_) => arrived += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if last {
            return Ok(arrived);
        }
        thread::sleep(PAUSE);
    }
}
