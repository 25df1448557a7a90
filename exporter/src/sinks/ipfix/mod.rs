//! IPFIX (RFC 7011) over UDP or TCP.

mod field;
mod messages;
mod report;
mod templates;

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZero,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Result, ensure};
use serde::Deserialize;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpStream, UdpSocket, lookup_host},
    time::{Instant, timeout_at},
};

use self::{
    messages::{SetRecord, pack},
    templates::{Encoder, Format, Profile},
};
use super::{Failure, Sink};
use crate::record::Record;

/// How long sending may take, of an attempt that may take 30 seconds: what was sent until then is not sent again.
const PATIENCE: Duration = Duration::from_secs(15);

/// Where flows are sent to, and what is told of them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IpfixConfig {
    /// A name or an address.
    host: String,
    #[serde(default = "default_port")]
    port: NonZero<u16>,
    #[serde(default)]
    transport: Transport,
    #[serde(default)]
    profile: Profile,
    /// The enterprise number of `NetObserv`'s elements, which has none of its own.
    enterprise: Option<NonZero<u32>>,
    #[serde(default = "default_domain")]
    observation_domain: u32,
    #[serde(default = "default_biflow")]
    biflow: bool,
    #[serde(default = "default_template_seconds")]
    template_seconds: NonZero<u16>,
}

/// That of IANA.
const fn default_port() -> NonZero<u16> {
    NonZero::new(4739).expect("it is not 0")
}

const fn default_domain() -> u32 {
    1
}

const fn default_biflow() -> bool {
    true
}

const fn default_template_seconds() -> NonZero<u16> {
    NonZero::new(60).expect("it is not 0")
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Transport {
    #[default]
    Udp,
    Tcp,
}

impl Transport {
    /// Longest message. With it, datagrams are not fragmented, also if the network has an overlay.
    const fn longest_message(self) -> u16 {
        match self {
            Self::Udp => 1400,
            Self::Tcp => 16 << 10,
        }
    }
}

/// Exports flows to a collector of IPFIX.
#[derive(Debug)]
pub struct Exporter {
    host: String,
    port: u16,
    transport: Transport,
    domain: u32,
    /// How often templates are repeated.
    repeat: Duration,
    encoder: Encoder,
    /// `None`: after a failure, and before the first records.
    session: Option<Session>,
    /// How often it was connected.
    attempts: usize,
}

/// A transport session: sequence numbers begin with it, and templates are valid in it.
#[derive(Debug)]
struct Session {
    connection: Connection,
    /// Data records that were sent.
    sequence: u32,
    /// When the templates were sent.
    templates: Option<Instant>,
}

#[derive(Debug)]
enum Connection {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Exporter {
    pub fn new(config: IpfixConfig) -> Result<Self> {
        let IpfixConfig { host, port, transport, profile, enterprise, observation_domain, biflow, template_seconds } =
            config;
        ensure!(!host.is_empty(), "host is empty");
        ensure!(
            enterprise.is_some() == (profile == Profile::NetObserv),
            "the profile netobserv needs an enterprise number (`enterprise`), and no other profile has one"
        );
        let enterprise = enterprise.map_or(0, NonZero::get);
        Ok(Self {
            host,
            port: port.get(),
            transport,
            domain: observation_domain,
            repeat: Duration::from_secs(template_seconds.get().into()),
            encoder: Encoder::new(Format { profile, enterprise, biflow }),
            session: None,
            attempts: 0,
        })
    }

    fn target(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    fn failed(&self, error: &io::Error) -> Failure {
        Failure::unavailable(format!("{}: {error}", self.target()))
    }

    /// To the next one of the addresses that the name has now: of a host with two of them, only one may answer.
    async fn connect(&mut self) -> io::Result<Session> {
        let mut addresses: Vec<_> = lookup_host((&*self.host, self.port)).await?.collect();
        if addresses.is_empty() {
            return Err(io::Error::new(ErrorKind::NotFound, "the name has no address"));
        }
        let next = self.attempts % addresses.len();
        addresses.rotate_left(next);
        self.attempts += 1;
        let connection = match self.transport {
            Transport::Udp => Connection::Udp(bind(addresses[0]).await?),
            Transport::Tcp => Connection::Tcp(TcpStream::connect(&*addresses).await?),
        };
        Ok(Session { connection, sequence: 0, templates: None })
    }

    /// A session in which records can be sent: this one, or a new one.
    async fn ready(&mut self, session: Option<Session>) -> io::Result<Session> {
        let mut session = match session {
            Some(session) => {
                session.connection.check()?;
                session
            }
            None => self.connect().await?,
        };
        self.send_templates(&mut session).await?;
        Ok(session)
    }

    /// Sends groups of records. Returns how many of them were sent, and the error that ended it.
    async fn send(&self, session: &mut Session, groups: &[Vec<SetRecord>]) -> (usize, io::Result<()>) {
        let until = Instant::now() + PATIENCE;
        let mut sent = 0;
        for message in pack(groups.iter().map(Vec::as_slice), self.transport.longest_message()) {
            let groups = message.groups;
            let bytes = message.finish(now(), &mut session.sequence, self.domain);
            let result = timeout_at(until, session.connection.send(&bytes)).await;
            if let Err(error) = result.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
                return (sent, Err(error));
            }
            sent += groups;
        }
        (sent, Ok(()))
    }

    /// Datagrams with templates may be lost, so they are repeated.
    async fn send_templates(&self, session: &mut Session) -> io::Result<()> {
        let is_due = match (session.templates, self.transport) {
            (None, _) => true,
            (Some(at), Transport::Udp) => at.elapsed() >= self.repeat,
            (Some(_), Transport::Tcp) => false,
        };
        if !is_due {
            return Ok(());
        }
        let groups: Vec<_> = self.encoder.templates().into_iter().map(|record| vec![record]).collect();
        self.send(session, &groups).await.1?;
        session.templates = Some(Instant::now());
        Ok(())
    }
}

/// Seconds since 1970.
fn now() -> u32 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}

/// A socket that gets the errors of this peer.
async fn bind(to: SocketAddr) -> io::Result<UdpSocket> {
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(to).await?;
    Ok(socket)
}

impl Connection {
    async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => socket.send(message).await.map(drop),
            Self::Tcp(stream) => stream.write_all(message).await,
        }
    }

    /// Whether the peer still listens, as far as it has told.
    fn check(&self) -> io::Result<()> {
        match self {
            Self::Udp(socket) => socket.take_error()?.map_or(Ok(()), Err),
            // Collectors send nothing.
            Self::Tcp(stream) => match stream.try_read(&mut [0; 64]) {
                Ok(0) => Err(io::Error::new(ErrorKind::UnexpectedEof, "the collector has closed the connection")),
                Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
                _ => Ok(()),
            },
        }
    }
}

impl Sink for Exporter {
    const MOST: usize = 256;

    fn servers(&self) -> Vec<(String, u16)> {
        vec![(self.host.clone(), self.port)]
    }

    fn disconnect(&mut self) {
        self.session = None;
    }

    async fn deliver(&mut self, records: &[Arc<Record>]) -> Result<(), Failure> {
        // What fails or is cancelled ends the session: a part of a message may have been sent.
        let kept = self.session.take();
        let mut session = self.ready(kept).await.map_err(|error| self.failed(&error))?;
        let groups: Vec<_> = records.iter().map(|record| self.encoder.encode(record)).collect();
        let (sent, result) = self.send(&mut session, &groups).await;
        result.map_err(|error| self.failed(&error).after(sent))?;
        self.session = Some(session);
        Ok(())
    }

    /// Repeats templates, and notices a collector that has ended.
    async fn idle(&mut self) -> Result<(), Failure> {
        if let Some(kept) = self.session.take() {
            self.session = Some(self.ready(Some(kept)).await.map_err(|error| self.failed(&error))?);
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        if let Some(Session { connection: Connection::Tcp(mut stream), .. }) = self.session.take() {
            stream.shutdown().await.map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt as _, net::TcpListener};

    use super::*;
    use crate::{record::fixtures::record, sinks::FailureKind};

    fn exporter(settings: &str) -> Exporter {
        let config = serde_saphyr::from_str(&format!("{{{settings}}}")).expect("it is valid");
        Exporter::new(config).expect("it is valid")
    }

    /// Sequence number and set IDs of a message, which is checked to be one.
    fn message(bytes: &[u8]) -> (u32, Vec<u16>) {
        let short = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        assert_eq!((short(0), usize::from(short(2))), (10, bytes.len()));
        assert_eq!(bytes[12..16], 7_u32.to_be_bytes());
        let mut sets = Vec::new();
        let mut at = 16;
        while at < bytes.len() {
            sets.push(short(at));
            at += usize::from(short(at + 2));
        }
        assert_eq!(at, bytes.len());
        (u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]), sets)
    }

    #[test]
    fn settings_that_do_not_fit_are_errors() {
        let error = |settings: &str| {
            let config = serde_saphyr::from_str::<IpfixConfig>(&format!("{{{settings}}}"));
            match config {
                Ok(config) => Exporter::new(config).expect_err(settings).to_string(),
                Err(error) => error.to_string(),
            }
        };
        for (settings, message) in [
            ("port: 4739", "host"),
            ("host: ''", "host is empty"),
            ("host: a, port: 0", "zero"),
            ("host: a, transport: SCTP", "SCTP"),
            ("host: a, profile: netobserv", "the profile netobserv needs an enterprise number"),
            ("host: a, enterprise: 9", "no other profile has one"),
            ("host: a, templateSeconds: 0", "zero"),
            ("host: a, password: b", "password"),
        ] {
            assert!(error(settings).contains(message), "{settings}: {}", error(settings));
        }
        let exporter = exporter("host: localhost, profile: netobserv, enterprise: 9");
        assert_eq!((exporter.target(), exporter.transport), ("localhost:4739".to_owned(), Transport::Udp));
    }

    #[tokio::test]
    async fn datagrams_have_templates_first_and_again() {
        let collector = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let port = collector.local_addr().expect("an address").port();
        let mut exporter = exporter(&format!("host: 127.0.0.1, port: {port}, observationDomain: 7"));
        let mut buffer = [0; 2000];
        let records: Vec<_> = (0..20).map(|number| record(1000 + number)).collect();
        let mut expected = 0;
        for repeats in [true, false, true] {
            exporter.deliver(&records).await.expect("it is sent");
            let mut found = Vec::new();
            while found.last() != Some(&257) {
                let length = collector.recv(&mut buffer).await.expect("a datagram");
                assert!(length <= 1400, "{length}");
                let (sequence, sets) = message(&buffer[..length]);
                assert_eq!(sequence, expected);
                found.extend(sets);
            }
            // 20 records are longer than one datagram.
            let length = collector.recv(&mut buffer).await.expect("a datagram");
            assert_eq!(message(&buffer[..length]).1, [257]);
            assert_eq!(found.first() == Some(&2), repeats, "{found:?}");
            expected += 20;
            exporter.repeat = if repeats { Duration::from_secs(60) } else { Duration::ZERO };
        }
        exporter.repeat = Duration::ZERO;
        exporter.idle().await.expect("it is sent");
        let length = collector.recv(&mut buffer).await.expect("a datagram");
        assert_eq!(message(&buffer[..length]), (60, vec![2]));
    }

    #[tokio::test]
    async fn a_port_without_a_listener_is_tried_again() {
        let collector = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let port = collector.local_addr().expect("an address").port();
        drop(collector);
        let mut exporter = exporter(&format!("host: localhost, port: {port}, observationDomain: 7"));
        let mut refusals = 0;
        // The name may have an address of IPv6, too, at which nothing listens either.
        for _ in 0..2 {
            let failure = exporter.deliver(&[record(1000)]).await.expect_err("nothing listens");
            assert_eq!((failure.delivered, failure.kind), (0, FailureKind::Unavailable), "{failure:?}");
            refusals += usize::from(failure.message.contains("localhost:") && failure.message.contains("refused"));
        }
        assert_eq!(refusals, 2);
        let collector = UdpSocket::bind(("127.0.0.1", port)).await.expect("a socket");
        while exporter.deliver(&[record(1000)]).await.is_err() {}
        let mut buffer = [0; 2000];
        let length = collector.recv(&mut buffer).await.expect("a datagram");
        assert_eq!(message(&buffer[..length]), (0, vec![2]));
    }

    #[tokio::test]
    async fn a_new_connection_begins_with_templates() {
        let collector = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let port = collector.local_addr().expect("an address").port();
        let mut exporter = exporter(&format!("host: localhost, port: {port}, transport: TCP, observationDomain: 7"));
        exporter.repeat = Duration::ZERO;
        for _ in 0..2 {
            exporter.deliver(&[record(1000)]).await.expect("it is sent");
            exporter.idle().await.expect("it is connected");
            exporter.deliver(&[record(1000), record(1001)]).await.expect("it is sent");
            let (mut stream, _) = collector.accept().await.expect("a connection");
            let mut found = Vec::new();
            for _ in 0..3 {
                let mut bytes = vec![0; 4];
                stream.read_exact(&mut bytes).await.expect("a header");
                bytes.resize(u16::from_be_bytes([bytes[2], bytes[3]]).into(), 0);
                stream.read_exact(&mut bytes[4..]).await.expect("a message");
                found.push(message(&bytes));
            }
            assert_eq!(found, [(0, vec![2]), (0, vec![257]), (1, vec![257])]);
            drop(stream);
            // It is noticed without records.
            let failure = loop {
                if let Err(failure) = exporter.idle().await {
                    break failure;
                }
                tokio::task::yield_now().await;
            };
            assert!(failure.message.contains("the collector has closed the connection"), "{failure:?}");
        }
        drop(collector);
        let failure = exporter.deliver(&[record(1000)]).await.expect_err("nothing listens");
        assert_eq!((failure.delivered, failure.kind), (0, FailureKind::Unavailable), "{failure:?}");
    }

    /// The clock advances when nothing else can happen.
    #[tokio::test(start_paused = true)]
    async fn a_collector_that_does_not_read_gets_each_record_once() {
        let collector = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let port = collector.local_addr().expect("an address").port();
        let mut exporter = exporter(&format!("host: 127.0.0.1, port: {port}, transport: TCP, observationDomain: 7"));
        let records: Vec<_> = (0..256).map(record).collect();
        let mut delivered = 0;
        let failure = loop {
            match exporter.deliver(&records).await {
                Ok(()) => delivered += records.len(),
                Err(failure) => break failure,
            }
        };
        assert_eq!(failure.kind, FailureKind::Unavailable);
        assert!(failure.message.contains("timed out"), "{failure:?}");
        // What it reads later: whole messages, and a part of one.
        let (mut stream, _) = collector.accept().await.expect("a connection");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.expect("a stream");
        let mut rest = &bytes[..];
        let mut sequence = 0;
        let mut received = 0;
        let length = exporter.encoder.encode(&record(0))[0].bytes.len();
        while let Some(length_of_message) =
            rest.get(2..4).map(|bytes| usize::from(bytes[0]) << 8 | usize::from(bytes[1]))
            && let Some((bytes, behind)) = rest.split_at_checked(length_of_message)
        {
            let (found, sets) = message(bytes);
            assert_eq!(found, sequence);
            if sets == [257] {
                received += (bytes.len() - 20) / length;
                sequence = u32::try_from(received).expect("few");
            }
            rest = behind;
        }
        assert_eq!(received, delivered + failure.delivered);
    }
}
