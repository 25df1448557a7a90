//! HTTP requests for 4 KiB from the peer to the tapped pod.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use podtap_tests::namespace::within;

use crate::stage::Stage;

const REQUEST: &[u8] = b"GET /f HTTP/1.1\r\nHost: web\r\n\r\n";
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 4096\r\n\r\n";
const BODY: usize = 4096;
/// Timeout of a read or write.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What to request.
#[derive(Clone, Copy, Debug)]
pub struct Requests {
    pub count: usize,
    /// Clients, each with a connection at a time.
    pub clients: usize,
    /// Whether each request has a connection of its own.
    pub reconnect: bool,
}

impl Requests {
    /// Sends them. Returns the requests per second.
    pub fn run(self, stage: &Stage) -> Result<f64, String> {
        self.send(stage).map_err(|error| format!("requests: {error}"))
    }

    fn send(self, stage: &Stage) -> io::Result<f64> {
        let address = SocketAddr::new(stage.web_address.into(), 0);
        let listener = within(&stage.web, move || TcpListener::bind(address))?;
        let address = listener.local_addr()?;
        let (left, connections) =
            (AtomicUsize::new(self.count), if self.reconnect { self.count } else { self.clients });
        thread::scope(|scope| {
            scope.spawn(move || {
                for stream in listener.incoming().take(connections).flatten() {
                    scope.spawn(move || serve(stream));
                }
            });
            let start = Instant::now();
            let network: &Path = &stage.peer;
            let client = || self.client(network, address, &left);
            let clients: Vec<_> = (0..self.clients).map(|_| scope.spawn(client)).collect();
            for client in clients {
                client.join().map_err(|_| io::Error::other("a client panicked"))??;
            }
            #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
            Ok(self.count as f64 / start.elapsed().as_secs_f64())
        })
    }

    fn client(self, network: &Path, address: SocketAddr, left: &AtomicUsize) -> io::Result<()> {
        let connect = || {
            let stream = within(network, move || TcpStream::connect_timeout(&address, TIMEOUT))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            Ok::<_, io::Error>(stream)
        };
        let mut stream = None;
        let mut response = vec![0; HEAD.len() + BODY];
        let take = |left: usize| left.checked_sub(1);
        // Each client connects, even if the others were faster, so that the server gets the connections it waits for.
        if !self.reconnect {
            stream = Some(connect()?);
        }
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            let mut current = match stream.take() {
                Some(current) => current,
                None => connect()?,
            };
            current.write_all(REQUEST)?;
            current.read_exact(&mut response)?;
            stream = Some(current).filter(|_| !self.reconnect);
        }
        Ok(())
    }
}

fn serve(mut stream: TcpStream) {
    let response = [HEAD, &[b'x'; BODY]].concat();
    let mut request = [0; REQUEST.len()];
    while stream.read_exact(&mut request).and_then(|()| stream.write_all(&response)).is_ok() {}
}
