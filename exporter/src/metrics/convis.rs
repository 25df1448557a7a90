//! Metrics as convis has them: what the sockets of pods send and receive.

use std::{fmt, fs, path::Path};

use anyhow::{Context as _, Result};
use maxminddb::{Reader, path};

use super::{
    table::{Detail, Family, Kind, Label, Metric, OTHER, Table, Update},
    text,
    top::Top,
};
use crate::{flow::End, record::Record};

const fn label(name: &'static str, detail: Detail) -> Label {
    Label { name, detail }
}

const BYTES: usize = 0;
const PLACES: usize = 1;

pub const FAMILIES: &[Family] = &[
    Family {
        labels: &[
            label("event", Detail::Constant),
            label("k8s_namespace", Detail::Coarse),
            label("k8s_pod", Detail::Coarse),
            label("source_ip", Detail::Coarse),
            label("source_host", Detail::Coarse),
            label("destination_ip", Detail::Fine),
            label("destination_port", Detail::Fine),
        ],
        metrics: &[
            Metric { name: "bytes_rx", help: "Payload that the pod received", kind: Kind::Plain("By") },
            Metric { name: "bytes_tx", help: "Payload that the pod sent", kind: Kind::Plain("By") },
        ],
    },
    Family {
        labels: &[
            label("k8s_namespace", Detail::Coarse),
            label("k8s_pod", Detail::Coarse),
            label("ip", Detail::Fine),
            label("country", Detail::Fine),
            label("latitude", Detail::Fine),
            label("longitude", Detail::Fine),
            label("zip", Detail::Fine),
        ],
        metrics: &[Metric {
            name: "geo_ip",
            help: "Connections with an address outside of the cluster",
            kind: Kind::Plain("{connection}"),
        }],
    },
];

/// The event with which convis tells the bytes of a connection.
const EVENT: &str = "Close";
const TCP: u8 = 6;

#[derive(Debug)]
pub struct Convis {
    top: Top,
    cities: Option<Cities>,
}

impl Convis {
    /// With a database of the places of addresses.
    pub fn new(cities: Option<&Path>) -> Result<Self> {
        Ok(Self { top: Top::default(), cities: cities.map(Cities::read).transpose()? })
    }

    pub fn count(&mut self, record: &Record, table: &mut Table, now: u64) {
        let [sent, received] = [&record.sent, &record.received].map(|line| line.as_ref().map(|line| &line.flow));
        let (client, called) = match (sent, received) {
            (Some(sent), _) => (&sent.source, &sent.destination),
            (None, Some(received)) => (&received.destination, &received.source),
            (None, None) => return,
        };
        // The server gets what the client sent, maybe from and to other addresses.
        let answering = sent.and_then(|sent| sent.translated_destination.as_ref()).unwrap_or(called);
        let calling = sent.and_then(|sent| sent.translated_source.as_ref()).unwrap_or(client);
        let [requests, responses] = [sent, received].map(|flow| flow.and_then(|flow| flow.payload));
        if requests.or(responses).is_some() {
            let [requests, responses] = [requests, responses].map(Option::unwrap_or_default);
            self.bytes(client, (called, called.port), [responses, requests], table, now);
            self.bytes(answering, (calling, None), [requests, responses], table, now);
        }
        let is_opened = match (sent, received) {
            // Other protocols have no beginning: a flow is one when it ends.
            (Some(flow), _) | (None, Some(flow)) if flow.protocol != TCP => flow.has_ended(),
            (Some(sent), _) => sent.has_syn(),
            _ => false,
        };
        if is_opened {
            let bytes = requests.unwrap_or_default() + responses.unwrap_or_default();
            self.place(called, client, bytes, table, now);
            self.place(client, answering, bytes, table, now);
        }
    }

    /// What a pod received and sent. The port of a client is not told: each connection has another one.
    fn bytes(&mut self, pod: &End, peer: (&End, Option<u16>), [rx, tx]: [u64; 2], table: &mut Table, now: u64) {
        let (Some("Pod"), (End { address: Some(address), .. }, port)) = (pod.kind.as_deref(), peer) else { return };
        let is_named = self.top.weigh((*address, port), rx + tx, now);
        let labels: [&dyn fmt::Display; 7] = [
            &EVENT,
            &text(pod.namespace.as_ref()),
            &text(pod.name.as_ref()),
            &Known(pod.address),
            &text(pod.node.as_ref()),
            if is_named { address } else { &OTHER },
            if is_named && let Some(port) = &port { port } else { &OTHER },
        ];
        table.count(BYTES, &labels, &[(0, Update::Add(rx)), (1, Update::Add(tx))], now);
    }

    /// Counts a connection with what is outside of the cluster.
    fn place(&mut self, outside: &End, inside: &End, bytes: u64, table: &mut Table, now: u64) {
        let Some(address) = outside.address.filter(|_| outside.kind.is_none()) else { return };
        let place = self.cities.as_ref().and_then(|cities| cities.place(address)).unwrap_or_default();
        let country = if place.country.is_empty() { text(outside.country.as_ref()) } else { &place.country };
        if country.is_empty() && place.at.is_none() {
            return;
        }
        let is_named = self.top.weigh((address, None), bytes, now);
        let [latitude, longitude] = [0, 1].map(|part| Known(place.at.filter(|_| is_named).map(|at| at[part])));
        let zip = if is_named { &*place.zip } else { "" };
        let pod = if inside.kind.as_deref() == Some("Pod") { text(inside.name.as_ref()) } else { "" };
        let ip: &dyn fmt::Display = if is_named { &address } else { &OTHER };
        let labels: [&dyn fmt::Display; 7] =
            [&text(inside.namespace.as_ref()), &pod, ip, &country, &latitude, &longitude, &zip];
        table.count(PLACES, &labels, &[(0, Update::Add(1))], now);
    }
}

/// Nothing if it is unknown.
struct Known<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for Known<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |value| value.fmt(f))
    }
}

/// A database in the format of `MaxMind` (version 2) with the fields of `GeoIP2` City, or some of them.
#[derive(Debug)]
struct Cities(Reader<Vec<u8>>);

#[derive(Debug, Default)]
struct Place {
    /// ISO 3166-1.
    country: String,
    /// Latitude and longitude, in degrees.
    at: Option<[f64; 2]>,
    zip: String,
}

impl Cities {
    fn read(file: &Path) -> Result<Self> {
        let bytes = fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
        let reader = Reader::from_source(bytes);
        reader.map(Self).with_context(|| format!("{} is no database of places", file.display()))
    }

    /// `None`: the database does not have the address.
    fn place(&self, address: std::net::IpAddr) -> Option<Place> {
        let found = self.0.lookup(address).ok().filter(maxminddb::LookupResult::has_data)?;
        let coordinate = |name| found.decode_path::<f64>(&path!["location", name]).ok().flatten();
        Some(Place {
            country: found.decode_path(&path!["country", "iso_code"]).ok().flatten().unwrap_or_default(),
            at: coordinate("latitude").zip(coordinate("longitude")).map(|(latitude, longitude)| [latitude, longitude]),
            zip: found.decode_path(&path!["postal", "code"]).ok().flatten().unwrap_or_default(),
        })
    }
}
