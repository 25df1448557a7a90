//! A control connection: what a client asks for, and the answers.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use socket2::{SockRef, TcpKeepalive};
use tracing::info;

use super::{
    data::{Capture, Data},
    feed::{Feed, Feeds, Subscription},
    figures::{Figures, OfSensor},
    filter::Program,
    rpcap::{self, HEADER, Header, Refusal, Request, Start, Statistics, code},
};

/// What is captured from, as clients see it: all inputs are one interface.
const INTERFACE: &str = "podtap";
const DESCRIPTION: &str = "Frames of the taps";
/// What clients call all interfaces.
const ANY: [&str; 2] = ["", "any"];

/// How long a client may take to authenticate.
const AUTHENTICATE: Duration = Duration::from_secs(90);
/// How long it may be silent while it does not capture, unless this end has connected.
const SILENT: Duration = Duration::from_secs(180);
/// How long it may take to read a reply.
const REPLY: Duration = Duration::from_secs(10);
/// A host that is gone is noticed by probes of the kernel: the first one after this time, and more in these intervals.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// What all sessions share.
#[derive(Debug)]
pub struct Shared {
    pub feeds: Arc<Feeds>,
    pub figures: Figures,
    /// Of datagrams: see [`Data::datagrams`].
    pub payload: u16,
    /// Bytes of a feed that wait at most.
    pub room: usize,
}

/// A client.
pub struct Session {
    shared: Arc<Shared>,
    control: TcpStream,
    figures: OfSensor,
    /// Whether this end has connected.
    is_active: bool,
    /// By when the client has to authenticate. `None`: it has.
    deadline: Option<Instant>,
    is_open: bool,
    capture: Option<Capture>,
    /// Frames that the kernel had dropped when the capture started.
    dropped_before: u64,
}

/// How a request was served.
enum Answer {
    Reply(Vec<u8>),
    /// The client opens the data connection when it has the reply.
    Accept(Vec<u8>, TcpListener, Subscription),
    Close,
}

impl Session {
    pub fn new(shared: Arc<Shared>, control: TcpStream, figures: OfSensor, is_active: bool) -> io::Result<Self> {
        control.set_nodelay(true)?;
        control.set_write_timeout(Some(REPLY))?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL);
        SockRef::from(&control).set_tcp_keepalive(&keepalive)?;
        let deadline = Some(Instant::now() + AUTHENTICATE);
        figures.connected.inc();
        Ok(Self { shared, control, figures, is_active, deadline, is_open: false, capture: None, dropped_before: 0 })
    }

    /// Serves requests until the client has closed the connection.
    pub fn serve(mut self) -> Result<()> {
        while let Some((header, payload)) = self.request()? {
            let answer = Request::decode(header, &payload).and_then(|request| self.answer(header, request));
            match answer {
                Ok(Answer::Reply(reply)) => self.write(&reply)?,
                Ok(Answer::Accept(reply, listener, subscription)) => {
                    self.write(&reply)?;
                    if let Err(refusal) = self.accept(&listener, subscription) {
                        self.refuse(&refusal)?;
                    }
                }
                Ok(Answer::Close) => return Ok(()),
                Err(refusal) => self.refuse(&refusal)?,
            }
        }
        Ok(())
    }

    /// The next request. `None`: there is none any more.
    fn request(&mut self) -> Result<Option<(Header, Vec<u8>)>> {
        let (patience, refusal) = if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            (Some(left), Refusal::new(code::INITIAL_TIMEOUT, "the client has not authenticated in time"))
        } else {
            let waits = self.is_active || self.capture.is_some();
            ((!waits).then_some(SILENT), Refusal::new(code::TIMEOUT, "the client is silent and does not capture"))
        };
        self.control.set_read_timeout(patience)?;
        let mut header = [0; HEADER];
        let mut payload = Vec::new();
        match self.control.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return self.give_up(refusal),
            Err(error) => return Err(error.into()),
        }
        let header = match Header::decode(header) {
            Ok(header) => header,
            Err(refusal) => return self.give_up(refusal),
        };
        payload.resize(header.length, 0);
        self.control.set_read_timeout(Some(REPLY))?;
        let rest = "the rest of a message has not come";
        self.control.read_exact(&mut payload).context(rest)?;
        payload.resize(payload.len() + rpcap::uncounted(header, &payload), 0);
        self.control.read_exact(&mut payload[header.length..]).context(rest)?;
        Ok(Some((header, payload)))
    }

    fn give_up<T>(&mut self, refusal: Refusal) -> Result<T> {
        self.write(&refusal.encode())?;
        bail!(refusal)
    }

    fn refuse(&mut self, refusal: &Refusal) -> Result<()> {
        info!(reason = %refusal, "a request is refused");
        self.write(&refusal.encode())
    }

    fn write(&mut self, message: &[u8]) -> Result<()> {
        self.control.write_all(message).context("a reply cannot be sent")
    }

    fn answer(&mut self, header: Header, request: Request) -> Result<Answer, Refusal> {
        if self.deadline.is_some() && !matches!(request, Request::Authenticate(_) | Request::Close) {
            return Err(Refusal::new(code::AUTHENTICATION, "the client has to authenticate first"));
        }
        let reply = match request {
            Request::Authenticate(0) => {
                self.deadline = None;
                header.reply(&[])
            }
            Request::Authenticate(kind) => {
                let message = format!("authentication of type {kind} is not supported, only null authentication (0)");
                return Err(Refusal::new(code::AUTHENTICATION, message));
            }
            Request::FindInterfaces => {
                let addresses =
                    rpcap::addresses().map_err(|error| Refusal::new(code::FIND_INTERFACES, error.to_string()))?;
                header.list(1, &rpcap::interface(INTERFACE, DESCRIPTION, &addresses))
            }
            Request::Open(name) if name == INTERFACE || ANY.contains(&&*name) => {
                self.is_open = true;
                header.reply(&rpcap::opened())
            }
            Request::Open(name) => {
                let message = format!("there is no interface {name:?}, only {INTERFACE:?}");
                return Err(Refusal::new(code::OPEN, message));
            }
            Request::Start(start, program) => return self.start(header, start, program),
            Request::UpdateFilter(program) => {
                let Some(capture) = &self.capture else {
                    return Err(Refusal::new(code::UPDATE_FILTER, "there is no capture"));
                };
                capture.feed.set_filter(program);
                header.reply(&[])
            }
            Request::Statistics => header.reply(&self.statistics().encode()),
            Request::End => {
                if self.capture.take().is_none() {
                    return Err(Refusal::new(code::END, "there is no capture"));
                }
                header.reply(&[])
            }
            Request::SetSampling(0) => header.reply(&[]),
            Request::SetSampling(_) => {
                let message = "frames are not sampled here: set `sample` of the tap";
                return Err(Refusal::new(code::SET_SAMPLING, message));
            }
            Request::Close => return Ok(Answer::Close),
        };
        Ok(Answer::Reply(reply))
    }

    fn start(&mut self, header: Header, start: Start, program: Program) -> Result<Answer, Refusal> {
        if !self.is_open {
            return Err(Refusal::new(code::START, format!("the interface {INTERFACE:?} has to be opened first")));
        }
        let shared = Arc::clone(&self.shared);
        let Shared { feeds, payload, room, .. } = &*shared;
        let refused = |error: io::Error| Refusal::new(code::START, format!("no data connection: {error}"));
        // One capture at a time.
        self.capture = None;
        let (mut own, mut client) =
            self.control.local_addr().and_then(|own| Ok((own, self.control.peer_addr()?))).map_err(refused)?;
        own.set_port(0);
        client.set_port(start.port);
        let feed = Feed::new(program, start.snapshot, *room, self.figures.clone());
        self.dropped_before = self.shared.figures.dropped.get();
        if !self.is_active && !start.opens() {
            let listener = TcpListener::bind(own).map_err(refused)?;
            let port = listener.local_addr().map_err(refused)?.port();
            // From the reply on, the client may count on all frames.
            return Ok(Answer::Accept(header.reply(&rpcap::started(*room, port)), listener, feeds.subscribe(feed)));
        }
        let data = if start.has_datagrams() { Data::datagrams(own, client, *payload) } else { Data::connect(client) };
        self.capture(feeds.subscribe(feed), data.map_err(refused)?)?;
        Ok(Answer::Reply(header.reply(&rpcap::started(*room, 0))))
    }

    fn accept(&mut self, listener: &TcpListener, subscription: Subscription) -> Result<(), Refusal> {
        let client = self.control.peer_addr();
        let data = client.and_then(|client| Data::accept(listener, client));
        let data = data.map_err(|error| Refusal::new(code::START, format!("no data connection: {error}")))?;
        self.capture(subscription, data)
    }

    fn capture(&mut self, subscription: Subscription, data: Data) -> Result<(), Refusal> {
        let control = self.control.try_clone();
        let capture = control.and_then(|control| Capture::start(subscription, data, control));
        self.capture = Some(capture.map_err(|error| Refusal::new(code::START, error.to_string()))?);
        Ok(())
    }

    fn statistics(&self) -> Statistics {
        let dropped_by_kernel = self.shared.figures.dropped.get() - self.dropped_before;
        self.capture
            .as_ref()
            .map_or_else(Statistics::default, |capture| Statistics { dropped_by_kernel, ..capture.feed.statistics() })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.figures.connected.dec();
    }
}
