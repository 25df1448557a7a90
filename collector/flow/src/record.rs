//! What is reported about a flow.

use std::{net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{named::TranslatedBy, time::Timestamp};

/// An end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// IP address.
    pub address: IpAddr,
    /// 0 for protocols without ports.
    pub port: u16,
}

/// Where frames come from: an interface, or a file's interface. Flows of two sources are never the same.
pub type Source = u16;

/// What the table reports.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A new flow that is still active. A record with its counts follows.
    Opened(Record),
    /// What was counted since the record before.
    Record(Record),
}

/// A part of a flow: from its first frame, or the end of the record before, to its end or an active timeout.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Where the frames came from.
    pub source: Source,
    /// IP protocol number.
    pub protocol: u8,
    /// The end that opened the flow, as far as is known: see [`Opener`].
    pub client: Endpoint,
    /// The other end.
    pub server: Endpoint,
    /// How it is known which end is the client.
    pub opener: Opener,
    /// The first frame of the flow.
    pub start: Timestamp,
    /// The first frame of this record.
    pub from: Timestamp,
    /// The last frame of this record.
    pub to: Timestamp,
    /// What the client sent in this record.
    pub sent: Counts,
    /// What the server sent in this record.
    pub received: Counts,
    /// Of the whole flow.
    pub totals: [StreamTotals; 2],
    /// Type and code of the first ICMP message.
    pub icmp: Option<(u8, u8)>,
    /// From the client's SYN to its acknowledgment of the server's.
    pub handshake: Option<Duration>,
    /// Why it was not answered, if it was not.
    pub failure: Option<Failure>,
    /// Why this record ends.
    pub end: End,
    /// Whether the flow was in no event before.
    pub is_first: bool,
    /// The flow is older than what was seen of it: of a TCP connection, no SYN was.
    pub preexisting: bool,
    /// Whether frames may be missing in it because this program did not keep up: see [`crate::Table::lost_until`].
    pub degraded: bool,
    /// The client's tuple before the destination, or also the source, was translated: `client` and `server` are those after.
    pub translated: Option<(Endpoint, Endpoint)>,
    /// How that is known: [`TranslatedBy::Join`] or [`TranslatedBy::Conntrack`].
    pub translated_by: Option<TranslatedBy>,
    /// The conntrack zone in which they are translated, if conntrack told.
    pub zone: Option<u16>,
    /// The name that the client looked up to get the server's address.
    pub dns_name: Option<Box<str>>,
    /// Of a flow to a DNS server: the first question, and its answer.
    pub query: Option<Box<Query>>,
    /// Answers of a DNS server in this record, by response code.
    pub responses: Vec<(u8, u32)>,
    /// The name that the client asked for in its TLS handshake.
    pub sni: Option<Box<str>>,
    /// The same for all views of a TCP connection, wherever they are met: made of both initial sequence numbers, which address
    /// translation leaves as they are.
    pub connection: Option<u64>,
}

/// A question to a DNS server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The ID of the question.
    pub id: u16,
    /// The name in the question.
    pub name: Box<str>,
    /// When it was sent.
    pub asked: Timestamp,
    /// The first answer.
    pub answer: Option<Answer>,
}

/// The answer to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 0 NOERROR, 3 NXDOMAIN, ...
    pub code: u8,
    /// How long it took.
    pub after: Duration,
}

/// What one end sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames.
    pub frames: u64,
    /// Of IP packets, with their headers, as in the frames that were seen.
    pub octets: u64,
    /// Of TCP: by sequence numbers, so also of what was not mirrored. Of UDP: as the datagrams say.
    pub payload: u64,
    /// All TCP flags of these frames.
    pub flags: u8,
}

/// What one end of a TCP connection sent, in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamTotals {
    /// Bytes of payload of which no frame was seen.
    pub missing: Missing,
    /// Bytes of payload that were sent again.
    pub retransmitted: u64,
}

/// Bytes of payload of which no frame was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Their frames did not arrive.
    pub by_mirror: u64,
    /// Their frames came when this program did not keep up: see [`crate::Table::lost_until`].
    pub by_collector: u64,
}

/// How it is known which end opened a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opener {
    /// It sent the SYN.
    Syn,
    /// The other end answered with a SYN-ACK.
    SynAck,
    /// It sent the first frame that was seen, of a protocol without connections.
    FirstFrame,
    /// The other end has the lower port.
    Port,
    /// Conntrack says so: see [`crate::Table::translate`].
    Conntrack,
}

/// Why a flow was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Failure {
    /// A RST in answer to the SYN.
    Refused,
    /// Nothing.
    NoAnswer,
    /// An ICMP error.
    Unreachable,
}

/// Why a record ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The flow is still active. Long flows are reported at intervals.
    ActiveTimeout,
    /// No frame was seen for a while. More may come.
    IdleTimeout,
    /// Both ends closed their directions.
    Finished,
    /// One end sent a RST.
    Reset,
    /// The table is full.
    LackOfResources,
    /// The program ends.
    Forced,
}
