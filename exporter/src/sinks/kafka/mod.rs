//! Kafka: a message for each line, and all of a flow in one partition.

mod cluster;
mod connection;
mod partition;
mod sasl;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use kafka_protocol::{
    ResponseError,
    indexmap::IndexMap,
    records::{
        Compression, NO_PARTITION_LEADER_EPOCH, Record as Message, RecordBatchEncoder, RecordEncodeOptions,
        TimestampType,
    },
};
use podtap_runtime::http::Bytes;
use serde::Deserialize;
use tokio::time::Instant;

use self::{
    cluster::{Cluster, ProduceError, ProducerId},
    sasl::{Mechanism, SaslConfig},
};
use super::{Failure, FailureKind, Sink};
use crate::{http::TlsConfig, record::Record};

/// Where to send messages.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KafkaConfig {
    /// `host:port` of all brokers.
    brokers: Vec<String>,
    topic: String,
    sasl: Option<SaslConfig>,
    /// Without it, connections are not encrypted.
    tls: Option<TlsConfig>,
    #[serde(default)]
    compression: CompressionConfig,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
enum CompressionConfig {
    None,
    Gzip,
    Snappy,
    #[default]
    Zstd,
}

/// How long an attempt may take: less than the task of a sink waits, which would not know what was delivered.
const ATTEMPT: Duration = Duration::from_secs(25);
/// Connections that were not used for so long are opened again: brokers and what is between close them, many after minutes.
const UNUSED: Duration = Duration::from_secs(60);
/// Longest name of a topic.
const LONGEST_TOPIC: usize = 249;

impl KafkaConfig {
    fn validate(&self) -> Result<()> {
        let brokers = self.brokers()?;
        ensure!(!brokers.is_empty(), "brokers must have at least one host:port");
        let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        ensure!(
            (1..=LONGEST_TOPIC).contains(&self.topic.len()) && self.topic.chars().all(is_valid),
            "{:?} is no topic: it must have 1 to {LONGEST_TOPIC} letters, digits, `-`, `_` and `.`",
            self.topic
        );
        let is_loopback = |host: &String| {
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        };
        let is_plain = self.sasl.as_ref().is_some_and(|sasl| sasl.mechanism == Mechanism::Plain);
        ensure!(
            !is_plain || self.tls.is_some() || brokers.iter().all(|(host, _)| is_loopback(host)),
            "PLAIN would send the password in clear text: set tls, or a mechanism SCRAM-SHA-256 or SCRAM-SHA-512"
        );
        Ok(())
    }

    fn brokers(&self) -> Result<Vec<(String, u16)>> {
        let split = |broker: &String| {
            let parts = broker.rsplit_once(':').and_then(|(host, port)| {
                let is_bare_v6 = host.contains(':') && !host.starts_with('[');
                (!host.is_empty() && !is_bare_v6)
                    .then_some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
            });
            parts.with_context(|| format!("{broker:?} must be host:port"))
        };
        self.brokers.iter().map(split).collect()
    }
}

/// A producer of messages.
pub struct Kafka {
    config: KafkaConfig,
    compression: Compression,
    cluster: Option<Cluster>,
    used: Instant,
    /// Of the topic, when it was asked last.
    partitions: u32,
    producer: Option<Producer>,
}

/// What makes the broker ignore what it gets twice.
struct Producer {
    id: ProducerId,
    /// The number of the next message in each partition.
    sequences: HashMap<u32, i32>,
}

/// The records that go to a partition, by their indices, and their messages.
#[derive(Default)]
struct Batch {
    records: Vec<usize>,
    messages: Vec<Message>,
}

impl Kafka {
    pub fn new(config: KafkaConfig) -> Result<Self> {
        config.validate()?;
        if let Some(tls) = &config.tls {
            // What is missing is told at the start.
            tls.client()?;
        }
        let compression = match config.compression {
            CompressionConfig::None => Compression::None,
            CompressionConfig::Gzip => Compression::Gzip,
            CompressionConfig::Snappy => Compression::Snappy,
            CompressionConfig::Zstd => Compression::Zstd,
        };
        Ok(Self { config, compression, cluster: None, used: Instant::now(), partitions: 1, producer: None })
    }

    /// Connects, if that is necessary.
    async fn prepare(&mut self, until: Instant) -> Result<Cluster> {
        let mut cluster = match self.cluster.take() {
            Some(cluster) => cluster,
            None => Cluster::connect(&mut self.config, until).await?,
        };
        if self.producer.is_none() {
            self.producer = Some(Producer { id: cluster.new_producer(until).await?, sequences: HashMap::new() });
        }
        Ok(cluster)
    }

    /// A retry sends the same records, so that batches are the same, too, but for the time of sending. This is no time of the flow: brokers
    /// forget producers, and delete messages, by it.
    fn batches(&self, records: &[Arc<Record>], partitions: u32, now: i64) -> BTreeMap<u32, Batch> {
        let mut batches = BTreeMap::<u32, Batch>::new();
        for (index, record) in records.iter().enumerate() {
            let key = partition::key(record);
            let partition = partition::partition_of(&key, partitions);
            let key = Bytes::from(key);
            let batch = batches.entry(partition).or_default();
            batch.records.push(index);
            for line in record.lines() {
                let value = Bytes::copy_from_slice(line.text.as_bytes());
                let number = i32::try_from(batch.messages.len()).unwrap_or(i32::MAX);
                batch.messages.push(self.message(partition, number, now, key.clone(), value));
            }
        }
        batches
    }

    fn message(&self, partition: u32, number: i32, timestamp: i64, key: Bytes, value: Bytes) -> Message {
        let producer = self.producer.as_ref();
        let first = producer.and_then(|producer| producer.sequences.get(&partition)).copied().unwrap_or_default();
        let ProducerId { id, epoch } = producer.map_or(ProducerId { id: -1, epoch: -1 }, |producer| producer.id);
        Message {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: NO_PARTITION_LEADER_EPOCH,
            producer_id: id,
            producer_epoch: epoch,
            timestamp_type: TimestampType::Creation,
            offset: number.into(),
            sequence: first.wrapping_add(number),
            timestamp,
            key: Some(key),
            value: Some(value),
            headers: IndexMap::default(),
        }
    }

    fn encode(&self, batch: &Batch) -> Result<Bytes> {
        let options = RecordEncodeOptions { version: 2, compression: self.compression };
        let mut encoded = Vec::new();
        RecordBatchEncoder::encode(&mut encoded, &batch.messages, &options)?;
        Ok(encoded.into())
    }
}

impl Producer {
    /// Counts messages that a partition has.
    fn advance(&mut self, partition: u32, messages: usize) {
        let sequence = self.sequences.entry(partition).or_default();
        // After the largest one comes 0.
        *sequence = sequence.wrapping_add(i32::try_from(messages).unwrap_or(i32::MAX)) & i32::MAX;
    }
}

/// In milliseconds since 1970.
fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// What to do about an error of a partition.
const fn kind(error: &ProduceError) -> FailureKind {
    match error {
        ProduceError::Answer(
            ResponseError::MessageTooLarge
            | ResponseError::RecordListTooLarge
            | ResponseError::InvalidRecord
            | ResponseError::InvalidTimestamp,
            _,
        ) => FailureKind::Refused,
        _ => FailureKind::PartitionUnavailable,
    }
}

impl Sink for Kafka {
    const MOST: usize = 4096;

    fn partitions(&self) -> u32 {
        self.partitions
    }

    fn partition(record: &Record, partitions: u32) -> u32 {
        partition::partition_of(&partition::key(record), partitions)
    }

    fn servers(&self) -> Vec<(String, u16)> {
        self.config.brokers().unwrap_or_default()
    }

    fn disconnect(&mut self) {
        self.cluster = None;
    }

    async fn deliver(&mut self, records: &[Arc<Record>]) -> Result<(), Failure> {
        let until = Instant::now() + ATTEMPT;
        let prepared = self.prepare(until).await;
        let mut cluster = prepared.map_err(|error| Failure::unavailable(format!("{error:#}")))?;
        self.partitions = cluster.partitions();
        let batches = self.batches(records, self.partitions, now());
        let encoded = batches.iter().map(|(partition, batch)| Ok((*partition, self.encode(batch)?)));
        let encoded = encoded.collect::<Result<_>>().map_err(|error| Failure::refused(format!("{error:#}")))?;
        let results = cluster.produce(encoded, until).await;
        self.used = Instant::now();

        let (mut delivered, mut refused, mut failure) = (Vec::new(), BTreeSet::new(), None::<Failure>);
        for (partition, result) in results {
            let batch = &batches[&partition];
            match (result, &mut self.producer) {
                // It has got them before, and the answer was lost.
                (Ok(()) | Err(ProduceError::Answer(ResponseError::DuplicateSequenceNumber, _)), producer) => {
                    delivered.extend(&batch.records);
                    if let Some(producer) = producer {
                        producer.advance(partition, batch.messages.len());
                    }
                }
                (Err(error), producer) => {
                    if let ProduceError::Answer(
                        ResponseError::OutOfOrderSequenceNumber
                        | ResponseError::UnknownProducerId
                        | ResponseError::InvalidProducerEpoch,
                        _,
                    ) = &error
                    {
                        // The broker has forgotten it.
                        *producer = None;
                    }
                    let kind = kind(&error);
                    if kind == FailureKind::Refused {
                        refused.extend(&batch.records);
                    }
                    if failure.as_ref().is_none_or(|failure| failure.kind == FailureKind::Refused) {
                        let (ProduceError::Answer(_, message) | ProduceError::NoAnswer(message)) = error;
                        failure = Some(Failure::new(kind, message));
                    }
                }
            }
        }
        // After an error, other brokers may lead, and passwords and certificates be replaced.
        if failure.as_ref().is_none_or(|failure| failure.kind == FailureKind::Refused) {
            self.cluster = Some(cluster);
        }
        failure.map_or(Ok(()), |failure| Err(Failure { refused, ..failure.except(delivered) }))
    }

    async fn idle(&mut self) -> Result<(), Failure> {
        if self.used.elapsed() >= UNUSED {
            self.cluster = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixtures::record;

    fn config(text: &str) -> Result<KafkaConfig> {
        let config: KafkaConfig = serde_saphyr::from_str(text)?;
        config.validate()?;
        Ok(config)
    }

    #[test]
    fn settings_are_validated() {
        let valid = config("{brokers: ['a:9092', '[::1]:9093'], topic: flows, tls: {}}").expect("it is valid");
        assert_eq!(valid.brokers().expect("two"), [("a".to_owned(), 9092), ("::1".to_owned(), 9093)]);
        config("{brokers: ['127.0.0.1:1'], topic: f, sasl: {mechanism: PLAIN, username: u, passwordFile: p}}")
            .expect("it stays on the machine");
        for (text, message) in [
            ("{brokers: [], topic: flows}", "at least one"),
            ("{brokers: [a], topic: flows}", "\"a\" must be host:port"),
            ("{brokers: ['::1:9092'], topic: flows}", "must be host:port"),
            ("{brokers: ['a:b'], topic: flows}", "must be host:port"),
            ("{brokers: ['a:1'], topic: a b}", "no topic"),
            ("{brokers: ['a:1'], topic: a, acks: 0}", "acks"),
            ("{brokers: ['a:1'], topic: a, compression: lz4}", "lz4"),
            ("{brokers: ['a:1'], topic: a, sasl: {mechanism: PLAIN, username: u, passwordFile: p}}", "clear text"),
            ("{brokers: ['a:1'], topic: a, sasl: {mechanism: GSSAPI, username: u, passwordFile: p}}", "GSSAPI"),
        ] {
            let error = format!("{:#}", config(text).expect_err(text));
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[tokio::test]
    async fn a_broker_that_does_not_answer_leaves_time_for_others() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("it listens");
        let silent = listener.local_addr().expect("an address");
        let mut config = config(&format!("{{brokers: ['{silent}', '127.0.0.1:1'], topic: a}}")).expect("it is valid");
        let connected = Cluster::connect(&mut config, Instant::now() + Duration::from_millis(200)).await;
        let error = connected.err().expect("none answers").to_string();
        assert!(error.starts_with(&format!("{silent}: no answer in time; 127.0.0.1:1: Connection refused")), "{error}");
    }

    #[test]
    fn a_retry_has_the_same_batches() {
        let mut kafka = Kafka::new(config("{brokers: ['a:1'], topic: a}").expect("it is valid")).expect("it is valid");
        let id = ProducerId { id: 7, epoch: 1 };
        kafka.producer = Some(Producer { id, sequences: HashMap::new() });
        let records: Vec<_> = (1000..1100).map(record).collect();
        let encode = |kafka: &Kafka, records: &[Arc<Record>]| -> BTreeMap<u32, Bytes> {
            let batches = kafka.batches(records, 4, 1000);
            batches.iter().map(|(partition, batch)| (*partition, kafka.encode(batch).expect("a batch"))).collect()
        };
        let first = encode(&kafka, &records);
        assert_eq!(first.len(), 4);
        let batches = kafka.batches(&records, 4, 1000);
        let (partition, batch) = batches.iter().next().expect("four");
        assert_eq!(batch.messages.len(), 2 * batch.records.len());
        // One partition has its batch, the others get the rest.
        if let Some(producer) = &mut kafka.producer {
            producer.advance(*partition, batch.messages.len());
        }
        let rest = records.iter().enumerate().filter(|(index, _)| !batch.records.contains(index));
        let rest: Vec<_> = rest.map(|(_, record)| Arc::clone(record)).collect();
        let again = encode(&kafka, &rest);
        assert_eq!(again.len(), 3);
        assert!(again.iter().all(|(partition, batch)| first[partition] == batch));
    }

    #[test]
    fn numbers_of_messages_start_again() {
        let mut producer =
            Producer { id: ProducerId { id: 7, epoch: 1 }, sequences: HashMap::from([(3, i32::MAX - 1)]) };
        producer.advance(3, 4);
        assert_eq!(producer.sequences[&3], 2);
    }
}
