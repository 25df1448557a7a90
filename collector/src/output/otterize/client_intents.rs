//! As `ClientIntents`, the objects of Otterize's intents operator: `otterize network-mapper export`.
//!
//! The CLI writes YAML by a template, in this order and without quotes, and JSON in the order of the operator's structs.

use std::io::{self, Write};

use serde::Serialize;

use super::{Client, Peer};

/// The API server's service: called so also where it is one of several.
fn is_api_server(server: &Peer) -> bool {
    server.name == "kubernetes" && server.namespace == "default"
}

/// Writes YAML documents of version v2beta1 (`--output-version v2`).
pub fn yaml_v2(out: &mut impl Write, clients: &[Client]) -> io::Result<()> {
    documents(out, clients, |out, Client { client, servers }| {
        writeln!(out, "apiVersion: k8s.otterize.com/v2beta1")?;
        metadata(out, client)?;
        writeln!(out, "  workload:\n    name: {}", client.name)?;
        if let Some(kind) = &client.kind {
            writeln!(out, "    kind: {kind}")?;
        }
        write!(out, "  targets:")?;
        for server in servers {
            let name = server.name_seen_from(client);
            match server.kind.as_ref().filter(|_| !is_api_server(server)) {
                Some(kind) => write!(out, "\n    - kubernetes:\n        name: {name}\n        kind: {kind}")?,
                None => write!(out, "\n    - service:\n        name: {name}")?,
            }
        }
        Ok(())
    })
}

/// Writes YAML documents of version v1alpha3 (`--output-version v1`), the CLI's default.
pub fn yaml_v1(out: &mut impl Write, clients: &[Client]) -> io::Result<()> {
    documents(out, clients, |out, Client { client, servers }| {
        writeln!(out, "apiVersion: k8s.otterize.com/v1alpha3")?;
        metadata(out, client)?;
        write!(out, "  service:\n    name: {}\n  calls:", client.name)?;
        for server in servers {
            let prefix = if is_api_server(server) { "svc:" } else { "" };
            write!(out, "\n    - name: {prefix}{}", server.name_seen_from(client))?;
        }
        Ok(())
    })
}

fn metadata(out: &mut impl Write, client: &Peer) -> io::Result<()> {
    writeln!(out, "kind: ClientIntents\nmetadata:\n  name: {}\n  namespace: {}\nspec:", client.name, client.namespace)
}

fn documents<Out: Write>(
    out: &mut Out,
    clients: &[Client],
    write: impl Fn(&mut Out, &Client) -> io::Result<()>,
) -> io::Result<()> {
    for (number, client) in clients.iter().enumerate() {
        if number > 0 {
            writeln!(out, "\n---")?;
        }
        write(out, client)?;
    }
    writeln!(out)
}

/// Writes a JSON list, always of version v2beta1.
pub fn json(out: &mut impl Write, clients: &[Client]) -> io::Result<()> {
    let objects: Vec<ClientIntents<'_>> = clients.iter().map(ClientIntents::of).collect();
    serde_json::to_writer_pretty(&mut *out, &objects)?;
    writeln!(out)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ClientIntents<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: Metadata<'a>,
    spec: Spec<'a>,
    status: Status,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    name: &'a str,
    namespace: &'a str,
    creation_timestamp: (),
}

#[derive(Serialize)]
struct Spec<'a> {
    workload: Workload<'a>,
    targets: Vec<Target<'a>>,
}

#[derive(Serialize)]
struct Workload<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Target<'a> {
    Kubernetes { name: String, kind: &'a str },
    Service { name: String },
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    up_to_date: bool,
    observed_generation: i64,
}

impl<'a> ClientIntents<'a> {
    fn of(Client { client, servers }: &'a Client) -> Self {
        let target = |server: &'a Peer| {
            let name = server.name_seen_from(client);
            match server.kind.as_ref().filter(|_| !is_api_server(server)) {
                Some(kind) => Target::Kubernetes { name, kind },
                None => Target::Service { name },
            }
        };
        Self {
            kind: "ClientIntents",
            api_version: "k8s.otterize.com/v2beta1",
            metadata: Metadata { name: &client.name, namespace: &client.namespace, creation_timestamp: () },
            spec: Spec {
                workload: Workload { name: &client.name, kind: client.kind.as_deref() },
                targets: servers.iter().map(target).collect(),
            },
            status: Status::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::otterize::fixtures::{client, peer};

    fn clients() -> Vec<Client> {
        let api_server = peer("kubernetes", "default", "Service");
        vec![
            client(
                peer("a", "x", "Deployment"),
                [peer("b", "x", "Deployment"), peer("db", "data", "StatefulSet"), api_server],
            ),
            client(peer("c", "default", "CronJob"), [peer("kubernetes", "default", "Service")]),
        ]
    }

    fn written(write: impl Fn(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut text = Vec::new();
        write(&mut text).expect("memory");
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn version_2() {
        let expected = "apiVersion: k8s.otterize.com/v2beta1\nkind: ClientIntents\nmetadata:\n  name: a\n  namespace: x\n\
            spec:\n  workload:\n    name: a\n    kind: Deployment\n  targets:\n    - kubernetes:\n        name: b\n        \
            kind: Deployment\n    - kubernetes:\n        name: db.data\n        kind: StatefulSet\n    - service:\n        \
            name: kubernetes.default\n---\napiVersion: k8s.otterize.com/v2beta1\nkind: ClientIntents\nmetadata:\n  \
            name: c\n  namespace: default\nspec:\n  workload:\n    name: c\n    kind: CronJob\n  targets:\n    \
            - service:\n        name: kubernetes\n";
        assert_eq!(written(|out| yaml_v2(out, &clients())), expected);
    }

    #[test]
    fn version_1() {
        let expected = "apiVersion: k8s.otterize.com/v1alpha3\nkind: ClientIntents\nmetadata:\n  name: a\n  namespace: x\n\
            spec:\n  service:\n    name: a\n  calls:\n    - name: b\n    - name: db.data\n    \
            - name: svc:kubernetes.default\n---\napiVersion: k8s.otterize.com/v1alpha3\nkind: ClientIntents\nmetadata:\n  \
            name: c\n  namespace: default\nspec:\n  service:\n    name: c\n  calls:\n    - name: svc:kubernetes\n";
        assert_eq!(written(|out| yaml_v1(out, &clients())), expected);
    }

    #[test]
    fn json_has_the_order_of_the_operator_s_structs() {
        let expected = r#"[
  {
    "kind": "ClientIntents",
    "apiVersion": "k8s.otterize.com/v2beta1",
    "metadata": {
      "name": "client",
      "namespace": "tutorial",
      "creationTimestamp": null
    },
    "spec": {
      "workload": {
        "name": "client",
        "kind": "Deployment"
      },
      "targets": [
        {
          "kubernetes": {
            "name": "server",
            "kind": "Deployment"
          }
        }
      ]
    },
    "status": {
      "upToDate": false,
      "observedGeneration": 0
    }
  }
]
"#;
        let clients = [client(peer("client", "tutorial", "Deployment"), [peer("server", "tutorial", "Deployment")])];
        assert_eq!(written(|out| json(out, &clients)), expected);
    }

    #[test]
    fn without_calls_there_is_nothing_to_apply() {
        assert_eq!(written(|out| yaml_v2(out, &[])), "\n");
        assert_eq!(written(|out| json(out, &[])), "[]\n");
    }
}
