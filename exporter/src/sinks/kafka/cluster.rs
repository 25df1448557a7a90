//! The brokers of a topic.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use futures::future::join_all;
use kafka_protocol::{
    ResponseError,
    messages::{
        InitProducerIdRequest, MetadataRequest, ProduceRequest, TopicName,
        metadata_request::MetadataRequestTopic,
        produce_request::{PartitionProduceData, TopicProduceData},
    },
    protocol::StrBytes,
};
use podtap_runtime::http::Bytes;
use tokio::time::{Instant, timeout_at};

use super::{
    KafkaConfig,
    connection::{Access, Connection},
};

/// How long a leader may wait for its replicas, in milliseconds.
const REPLICATION: i32 = 15_000;
/// Requests are acknowledged by all replicas that are in sync: what is counted as sent survives the loss of a broker.
const ALL: i16 = -1;

/// What the broker knows a producer by, to recognise what it gets twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerId {
    pub id: i64,
    pub epoch: i16,
}

/// The brokers that lead partitions of a topic, and connections to them.
pub struct Cluster {
    topic: TopicName,
    access: Access,
    /// Of each partition.
    leaders: Vec<i32>,
    brokers: BTreeMap<i32, Broker>,
    /// Brokers to which nothing is sent: the policy was not asked about them.
    unlisted: BTreeMap<i32, String>,
}

struct Broker {
    host: String,
    port: u16,
    connection: Option<Connection>,
}

/// Why a partition did not take a batch.
#[derive(Debug)]
pub enum ProduceError {
    /// The partition's answer.
    Answer(ResponseError, String),
    /// There was none.
    NoAnswer(String),
}

impl Cluster {
    /// Asks the first broker that answers. It is asked first from then on.
    pub async fn connect(config: &mut KafkaConfig, until: Instant) -> Result<Self> {
        let tls = config.tls.as_ref().map(|tls| tls.client().map(Arc::new)).transpose()?;
        let access = Access { tls, sasl: config.sasl.clone() };
        let (mut errors, listed) = (Vec::new(), config.brokers()?);
        for (index, (host, port)) in listed.iter().enumerate() {
            let until = share(until, listed.len() - index);
            match in_time(until, Self::ask(host, *port, &access, &config.topic, &listed)).await {
                Ok(cluster) => {
                    config.brokers.swap(0, index);
                    return Ok(cluster);
                }
                Err(error) => errors.push(format!("{host}:{port}: {error:#}")),
            }
        }
        bail!("{}", errors.join("; "))
    }

    async fn ask(host: &str, port: u16, access: &Access, topic: &str, listed: &[(String, u16)]) -> Result<Self> {
        let mut connection = Connection::open(host, port, access).await?;
        let topic = TopicName(StrBytes::from_string(topic.to_owned()));
        let asked = MetadataRequestTopic::default().with_name(Some(topic.clone()));
        // Brokers may create topics by default, with the partitions and replicas of no one's choice.
        let request = MetadataRequest::default().with_topics(Some(vec![asked])).with_allow_auto_topic_creation(false);
        let answer = connection.call(&request).await?;
        let found = answer.topics.into_iter().next().context("the broker does not tell of the topic")?;
        match ResponseError::try_from_code(found.error_code) {
            None => {}
            Some(ResponseError::UnknownTopicOrPartition) => {
                bail!("there is no topic {}, or the user may not describe it", topic.as_str())
            }
            Some(error) => bail!("the topic {}: {error}", topic.as_str()),
        }
        ensure!(!found.partitions.is_empty(), "the topic {} has no partitions", topic.as_str());
        let mut leaders = vec![-1; found.partitions.len()];
        for partition in &found.partitions {
            if let Some(leader) =
                usize::try_from(partition.partition_index).ok().and_then(|index| leaders.get_mut(index))
            {
                *leader = partition.leader_id.0;
            }
        }
        let (mut brokers, mut unlisted) = (BTreeMap::new(), BTreeMap::new());
        for broker in answer.brokers {
            let (id, address) = (broker.node_id.0, (broker.host.to_string(), u16::try_from(broker.port)?));
            if listed.contains(&address) {
                let (host, port) = address;
                brokers.insert(id, Broker { host, port, connection: None });
            } else {
                unlisted.insert(id, format!("{}:{}", address.0, address.1));
            }
        }
        if brokers.is_empty() {
            let names: Vec<String> = unlisted.into_values().collect();
            bail!("the brokers are called {}: add them to `brokers`", names.join(", "));
        }
        Ok(Self { topic, access: access.clone(), leaders, brokers, unlisted })
    }

    /// How many partitions the topic has.
    pub fn partitions(&self) -> u32 {
        u32::try_from(self.leaders.len()).unwrap_or(u32::MAX)
    }

    /// Asks for the identity of a new producer.
    pub async fn new_producer(&mut self, until: Instant) -> Result<ProducerId> {
        let mut refused = anyhow!("there is no broker");
        for (left, broker) in (1..=self.brokers.len()).rev().zip(self.brokers.values_mut()) {
            let answer = in_time(share(until, left), async {
                let request = InitProducerIdRequest::default().with_transactional_id(None);
                broker.connected(&self.access).await?.call(&request).await
            });
            match answer.await.map(|answer| (ResponseError::try_from_code(answer.error_code), answer)) {
                Ok((None, answer)) => return Ok(ProducerId { id: answer.producer_id.0, epoch: answer.producer_epoch }),
                Ok((Some(error), _)) => refused = anyhow!("no identity of a producer: {error}"),
                Err(error) => {
                    broker.connection = None;
                    refused = error.context(broker.address());
                }
            }
        }
        Err(refused)
    }

    /// Sends a batch to each of some partitions. Returns what became of each.
    pub async fn produce(
        &mut self,
        batches: BTreeMap<u32, Bytes>,
        until: Instant,
    ) -> BTreeMap<u32, Result<(), ProduceError>> {
        let mut results = BTreeMap::new();
        let mut of_leaders: BTreeMap<i32, Vec<(u32, Bytes)>> = BTreeMap::new();
        for (partition, batch) in batches {
            let leader = self.leaders.get(partition as usize).copied().unwrap_or(-1);
            if self.brokers.contains_key(&leader) {
                of_leaders.entry(leader).or_default().push((partition, batch));
            } else {
                let message = match self.unlisted.get(&leader) {
                    Some(broker) => format!("partition {partition} is led by {broker}: add it to `brokers`"),
                    None => format!("partition {partition} of {} has no leader", self.topic.as_str()),
                };
                results.insert(partition, Err(ProduceError::NoAnswer(message)));
            }
        }
        let (topic, access) = (&self.topic, &self.access);
        let requests = self.brokers.iter_mut().filter_map(|(id, broker)| {
            let batches = of_leaders.remove(id)?;
            Some(async move {
                let partitions: Vec<u32> = batches.iter().map(|(partition, _)| *partition).collect();
                let sent = in_time(until, broker.produce(access, topic, batches)).await;
                let answers = sent.map_err(|error| {
                    // An answer that comes late would be taken for that of the next request.
                    broker.connection = None;
                    format!("{}: {error:#}", broker.address())
                });
                partitions.into_iter().map(move |partition| {
                    let result = match &answers {
                        Err(message) => Err(ProduceError::NoAnswer(message.clone())),
                        Ok(answers) => match answers.get(&partition) {
                            None => Err(ProduceError::NoAnswer(format!("no answer about partition {partition}"))),
                            Some(None) => Ok(()),
                            Some(Some(error)) => {
                                Err(ProduceError::Answer(*error, format!("partition {partition}: {error}")))
                            }
                        },
                    };
                    (partition, result)
                })
            })
        });
        results.extend(join_all(requests).await.into_iter().flatten());
        results
    }
}

/// The time for one of so many brokers that are still to be asked: one that does not answer does not take that of the others.
fn share(until: Instant, left: usize) -> Instant {
    let now = Instant::now();
    now + until.saturating_duration_since(now) / u32::try_from(left).unwrap_or(u32::MAX)
}

async fn in_time<T>(until: Instant, answer: impl Future<Output = Result<T>>) -> Result<T> {
    timeout_at(until, answer).await.unwrap_or_else(|_| Err(anyhow!("no answer in time")))
}

impl Broker {
    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    async fn connected(&mut self, access: &Access) -> Result<&mut Connection> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(&self.host, self.port, access).await?,
        };
        Ok(self.connection.insert(connection))
    }

    /// Returns the answer of each partition: an error, or none.
    async fn produce(
        &mut self,
        access: &Access,
        topic: &TopicName,
        batches: Vec<(u32, Bytes)>,
    ) -> Result<BTreeMap<u32, Option<ResponseError>>> {
        let partition = |(partition, batch): (u32, Bytes)| {
            PartitionProduceData::default().with_index(partition.cast_signed()).with_records(Some(batch))
        };
        let data = batches.into_iter().map(partition).collect();
        let data = TopicProduceData::default().with_name(topic.clone()).with_partition_data(data);
        let request = ProduceRequest::default().with_acks(ALL).with_timeout_ms(REPLICATION).with_topic_data(vec![data]);
        let answer = self.connected(access).await?.call(&request).await?;
        let answers = answer.responses.into_iter().flat_map(|topic| topic.partition_responses);
        Ok(answers
            .map(|answer| (answer.index.cast_unsigned(), ResponseError::try_from_code(answer.error_code)))
            .collect())
    }
}
