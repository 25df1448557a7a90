//! What the Otterize CLI asks the network mapper: the operations of its GraphQL schema that it uses, answered from the map.
//!
//! The schema is that of `otterize/network-mapper`, without what frames do not tell: types of calls, Kafka topics and HTTP resources are
//! always null.

#![expect(clippy::unused_async, reason = "async-graphql asks for async functions")]

use std::collections::{BTreeMap, BTreeSet};

use async_graphql::{Context, EmptySubscription, Enum, InputObject, Object, Request, SimpleObject};
use podtap_flow::{
    map::{Party, Traffic},
    names::Workload,
};

use crate::{
    namespaces::Namespaces,
    output::otterize::Peer,
    shared::{Labels, Readable},
};

pub type Schema = async_graphql::Schema<Queries, Mutations, EmptySubscription>;

/// Nested selections of a query: those of the CLI have four.
const DEEPEST: usize = 16;
/// Fields of a query. A list of calls counts as 300, so that three fit: each takes as much memory as the map.
const MOST_FIELDS: usize = 1000;

/// Its requests need [`for_reader`].
pub fn schema() -> Schema {
    Schema::build(Queries, Mutations, EmptySubscription).limit_depth(DEEPEST).limit_complexity(MOST_FIELDS).finish()
}

/// A request that is answered with what its reader may know.
pub fn for_reader(request: Request, readable: Readable) -> Request {
    request.data(readable)
}

pub struct Queries;
pub struct Mutations;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, SimpleObject)]
#[graphql(name = "PodLabel")]
struct Label {
    key: String,
    value: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, SimpleObject)]
#[graphql(name = "GroupVersionKind")]
struct OwnerKind {
    group: Option<String>,
    version: String,
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, SimpleObject)]
#[graphql(name = "OtterizeServiceIdentity")]
struct Identity {
    // In this order: answers are sorted by it.
    namespace: String,
    name: String,
    labels: Option<Vec<Label>>,
    pod_owner_kind: Option<OwnerKind>,
    kubernetes_service: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
enum IntentType {
    Http,
    Kafka,
    Database,
    Aws,
    S3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
enum KafkaOperation {
    All,
    Consume,
    Produce,
    Create,
    Alter,
    Delete,
    Describe,
    ClusterAction,
    DescribeConfigs,
    AlterConfigs,
    IdempotentWrite,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
enum HttpMethod {
    Get,
    Post,
    Put,
    Delete,
    Options,
    Trace,
    Patch,
    Connect,
    All,
}

#[derive(Clone, Debug, SimpleObject)]
struct KafkaConfig {
    name: String,
    operations: Option<Vec<KafkaOperation>>,
}

#[derive(Clone, Debug, SimpleObject)]
struct HttpResource {
    path: String,
    methods: Option<Vec<HttpMethod>>,
}

#[derive(Clone, Debug, SimpleObject)]
struct Intent {
    client: Identity,
    server: Identity,
    #[graphql(name = "type")]
    kind: Option<IntentType>,
    kafka_topics: Option<Vec<KafkaConfig>>,
    http_resources: Option<Vec<HttpResource>>,
}

#[derive(Clone, Debug, SimpleObject)]
struct ServiceIntents {
    client: Identity,
    intents: Vec<Identity>,
}

#[derive(Clone, Debug, InputObject)]
struct ServerFilter {
    name: String,
    namespace: String,
}

#[Object(name = "Query")]
impl Queries {
    /// Who calls whom. No namespaces: all clients.
    #[graphql(complexity = "300 + child_complexity")]
    async fn intents(
        &self,
        context: &Context<'_>,
        namespaces: Option<Vec<String>>,
        include_labels: Option<Vec<String>>,
        exclude_service_with_labels: Option<Vec<String>>,
        include_all_labels: Option<bool>,
        server: Option<ServerFilter>,
    ) -> async_graphql::Result<Vec<Intent>> {
        let filter = Filter { namespaces, excluded: exclude_service_with_labels.unwrap_or_default(), server };
        let calls = calls(context.data::<Readable>()?, &filter, &shown(include_labels, include_all_labels));
        let intent = |(client, server)| Intent { client, server, kind: None, kafka_topics: None, http_resources: None };
        Ok(calls.into_iter().map(intent).collect())
    }

    /// What each client calls.
    #[graphql(complexity = "300 + child_complexity")]
    async fn service_intents(
        &self,
        context: &Context<'_>,
        namespaces: Option<Vec<String>>,
        include_labels: Option<Vec<String>>,
        include_all_labels: Option<bool>,
    ) -> async_graphql::Result<Vec<ServiceIntents>> {
        let filter = Filter { namespaces, excluded: Vec::new(), server: None };
        let mut clients: BTreeMap<Identity, Vec<Identity>> = BTreeMap::new();
        for (client, server) in calls(context.data::<Readable>()?, &filter, &shown(include_labels, include_all_labels))
        {
            clients.entry(client).or_default().push(server);
        }
        Ok(clients.into_iter().map(|(client, intents)| ServiceIntents { client, intents }).collect())
    }

    /// Whether it answers.
    async fn health(&self) -> bool {
        true
    }
}

#[Object(name = "Mutation")]
impl Mutations {
    /// Forgets who called whom.
    async fn reset_capture(&self, context: &Context<'_>) -> async_graphql::Result<bool> {
        let Readable { shared, namespaces } = context.data::<Readable>()?;
        if *namespaces != Namespaces::All {
            return Err("resetCapture forgets the map of all namespaces: send it to /query".into());
        }
        shared.clear();
        Ok(true)
    }
}

/// Which calls are asked for.
struct Filter {
    /// Of clients. None and an empty list: all.
    namespaces: Option<Vec<String>>,
    /// Labels of clients and servers that are left out: `key`, or `key=value`.
    excluded: Vec<String>,
    /// All calls of the clients that call it.
    server: Option<ServerFilter>,
}

/// Which labels are shown.
enum Shown {
    All,
    Some(BTreeSet<String>),
}

fn shown(include: Option<Vec<String>>, all: Option<bool>) -> Shown {
    if all == Some(true) { Shown::All } else { Shown::Some(include.into_iter().flatten().collect()) }
}

/// Clients and servers, sorted by namespace and name.
fn calls(readable: &Readable, filter: &Filter, shown: &Shown) -> BTreeSet<(Identity, Identity)> {
    let view = readable.view();
    let labels = &view.labels;
    let excluded = |party: &Party| {
        let has = |label: &String| match label.split_once('=') {
            Some((key, value)) => labels_of(party, labels).is_some_and(|l| l.get(key).is_some_and(|v| v == value)),
            None => labels_of(party, labels).is_some_and(|labels| labels.contains_key(label)),
        };
        filter.excluded.iter().any(has)
    };
    let namespaces: BTreeSet<&str> = filter.namespaces.iter().flatten().map(String::as_str).collect();
    let calls: BTreeSet<(Identity, Identity)> = view
        .map
        .edges()
        .filter(|(edge, _)| !excluded(&edge.client) && !excluded(&edge.server))
        .filter_map(|(edge, traffic)| {
            let client = identity(&edge.client, None, labels, shown)?;
            Some((client, identity(&edge.server, Some(traffic), labels, shown)?))
        })
        .filter(|(client, _)| namespaces.is_empty() || namespaces.contains(client.namespace.as_str()))
        .collect();
    let Some(server) = &filter.server else { return calls };
    let is_server = |identity: &Identity| identity.name == server.name && identity.namespace == server.namespace;
    let clients: BTreeSet<Identity> =
        calls.iter().filter(|(_, server)| is_server(server)).map(|(client, _)| client.clone()).collect();
    calls.into_iter().filter(|(client, _)| clients.contains(client)).collect()
}

fn labels_of<'a>(party: &Party, labels: &'a Labels) -> Option<&'a BTreeMap<String, String>> {
    let Party::Workload { namespace, workload } = party else { return None };
    labels.get(&(namespace.clone(), workload.clone()))?.youngest()
}

/// Nodes and what is outside of the cluster have none: the network mapper does not export them either.
fn identity(party: &Party, traffic: Option<&Traffic>, labels: &Labels, shown: &Shown) -> Option<Identity> {
    let Peer { name, namespace, .. } = Peer::of(party)?;
    let is_shown = |key: &String| match shown {
        Shown::All => true,
        Shown::Some(keys) => keys.contains(key),
    };
    let labels = labels_of(party, labels).into_iter().flatten().filter(|(key, _)| is_shown(key));
    let labels = labels.map(|(key, value)| Label { key: key.clone(), value: value.clone() }).collect();
    let (pod_owner_kind, kubernetes_service) = match party {
        Party::Workload { namespace, workload } => {
            let services = traffic.into_iter().flat_map(|traffic| &traffic.services);
            // The CLI asks for one: that by which it was called most.
            let of_server = services.filter(|((service_namespace, _), _)| service_namespace == namespace);
            let most = of_server.max_by_key(|(_, flows)| **flows).map(|((_, name), _)| name.clone());
            (Some(owner_kind(workload)), most)
        }
        Party::Service { name, .. } => (None, Some(name.clone())),
        Party::Node { .. } | Party::External { .. } | Party::AnotherNamespace | Party::Other => (None, None),
    };
    Some(Identity { namespace, name, labels: Some(labels), pod_owner_kind, kubernetes_service })
}

fn owner_kind(workload: &Workload) -> OwnerKind {
    let (group, version) = match workload.api_version.rsplit_once('/') {
        Some((group, version)) => (Some(group.to_owned()), version),
        None => (None, workload.api_version.as_str()),
    };
    OwnerKind { group, version: version.to_owned(), kind: workload.kind.clone() }
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        time::{SystemTime, UNIX_EPOCH},
    };

    use podtap_flow::{map::Edge, names::Names};

    use super::*;
    use crate::shared::Shared;

    fn everything() -> Readable {
        let shared = Shared::new(Names::default(), podtap_flow::map::Bounds::default());
        let party = |name: &str, namespace: &str| {
            let workload = Workload { kind: "Deployment".into(), name: name.into(), api_version: "apps/v1".into() };
            Party::Workload { namespace: namespace.into(), workload }
        };
        for (client, server) in [("a", "b"), ("a", "c"), ("d", "c")] {
            let edge = Edge { client: party(client, "x"), server: party(server, "y") };
            shared.lock().map.restore(edge, Traffic::default());
        }
        let edge = Edge { client: party("a", "x"), server: Party::External { name: None } };
        shared.lock().map.restore(edge, Traffic::default());
        Readable { shared, namespaces: Namespaces::All }
    }

    fn execute(readable: Readable, query: &str) -> async_graphql::Response {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(schema().execute(for_reader(query.into(), readable)))
    }

    fn calls_of(query: &str) -> Vec<String> {
        let answer = execute(everything(), &format!("{{ intents{query} {{ client {{ name }} server {{ name }} }} }}"));
        assert!(answer.errors.is_empty(), "{:?}", answer.errors);
        let answer = serde_json::to_value(answer.data).expect("JSON");
        let name = |of: &serde_json::Value| of["name"].as_str().expect("a name").to_owned();
        let intents = answer["intents"].as_array().expect("a list").iter();
        intents.map(|intent| format!("{}-{}", name(&intent["client"]), name(&intent["server"]))).collect()
    }

    #[test]
    fn calls_are_filtered_as_by_the_network_mapper() {
        assert_eq!(calls_of(""), ["a-b", "a-c", "d-c"], "without what is outside of the cluster");
        for all in ["(namespaces: [])", "(namespaces: null)", "(namespaces: [\"x\"])"] {
            assert_eq!(calls_of(all).len(), 3, "{all}");
        }
        assert_eq!(calls_of("(namespaces: [\"y\"])"), [""; 0], "these are namespaces of clients");
        let server = |name: &str| calls_of(&format!("(server: {{name: \"{name}\", namespace: \"y\"}})"));
        assert_eq!(server("b"), ["a-b", "a-c"], "all calls of the clients that call it");
        assert_eq!(server("a"), [""; 0]);
    }

    #[test]
    fn only_who_reads_all_namespaces_resets_the_map() {
        let everything = everything();
        let one = Readable { namespaces: Namespaces::Only(["x".to_owned()].into()), ..everything.clone() };
        let answer = execute(one, "mutation { resetCapture }");
        assert!(answer.errors.iter().any(|error| error.message.contains("send it to /query")), "{answer:?}");
        assert!(!everything.shared.lock().map.is_empty());
        let answer = execute(everything.clone(), "mutation { resetCapture }");
        assert!(answer.errors.is_empty() && everything.shared.lock().map.is_empty(), "{answer:?}");
    }

    #[test]
    fn damaged_queries_are_answered() {
        let inputs = env::var("PODTAP_FUZZ").ok().and_then(|text| text.parse().ok()).unwrap_or(5000);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
        let mut seed = u64::try_from(now.as_micros()).expect("64 bits").max(1);
        println!("seed {seed}");
        let mut random = move |end: usize| {
            seed ^= seed >> 12;
            seed ^= seed << 25;
            seed ^= seed >> 27;
            usize::try_from(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).expect("31 bits") % end
        };
        let valid = "query Q($n: [String!]) { intents(namespaces: $n, server: null) { client { ...i } server { name } type } } \
            fragment i on OtterizeServiceIdentity { name namespace labels { key value } podOwnerKind { kind } }";
        let damage = ["{", "}", "(", ")", "...", "\"", "$", ":", "[", "]", "!", "@", "i", "\\u", "\u{0}", "fragment"];
        let (schema, readable) = (schema(), everything());
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut answered = 0;
        for _ in 0..inputs {
            let mut query = valid.to_owned();
            for _ in 0..random(4) {
                let at = random(query.len());
                let part = damage[random(damage.len())];
                match random(3) {
                    0 => query.insert_str(at, &part.repeat(1 + random(40))),
                    1 => query.truncate(at.max(1)),
                    _ => query.replace_range(at..=at, part),
                }
            }
            let answer = runtime.block_on(schema.execute(for_reader(query.as_str().into(), readable.clone())));
            answered += usize::from(answer.errors.is_empty());
        }
        assert!(answered > inputs / 10, "{answered}");
    }
}
