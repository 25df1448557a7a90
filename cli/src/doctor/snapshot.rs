//! What the checks are about, as far as the user may read it.

use std::{collections::BTreeSet, fmt::Debug};

use futures_util::future::try_join_all;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Namespace, Node, Pod},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{ApiResource, ListParams},
    core::DynamicObject,
};
use podtap_api::{GROUP, NodeTap, POLICY_NAME, PodTap, PodTapPolicy, definitions};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::rights;
use crate::{
    access::{Answer, ask},
    connection::Cluster,
    exit::{Exit, Failure, Outcome},
    installation::OWN,
    tap::{Kind, Tap, TapName, get, list},
};

/// What was read, or the API server's message on what the user may not read.
pub type Read<T> = Result<T, String>;

/// The objects of an installation, and what is around them.
pub struct Snapshot {
    /// PodTap's namespace.
    pub home: String,
    /// Its object, if it exists.
    pub namespace: Read<Option<Namespace>>,
    /// Of Kubernetes: `1.35.4`.
    pub kubernetes: String,
    /// Versions of PodTap's API that are served.
    pub served: BTreeSet<String>,
    /// Of the version that this program uses, the kinds that are not served.
    pub missing_kinds: Vec<String>,
    /// The definitions in the cluster.
    pub definitions: Read<Vec<CustomResourceDefinition>>,
    /// What the user may do.
    pub rights: Vec<Answer>,
    pub controller: Read<Option<Deployment>>,
    /// Of PodTap.
    pub pods: Read<Vec<Pod>>,
    pub lease: Read<Option<Lease>>,
    pub policy: Read<Option<PodTapPolicy>>,
    pub nodes: Read<Vec<Node>>,
    /// The same, whatever the scope is.
    pub all_nodes: Vec<Node>,
    pub node_taps: Read<Vec<NodeTap>>,
    pub taps: Read<Vec<Tap>>,
    /// All nodes that receive frames, or are to, with those out of scope. None if the user may not read it.
    pub receiving: Option<BTreeSet<String>>,
    /// Objects that this version of the program does not understand, and why.
    pub undecodable: Vec<String>,
    pub cni: Cni,
}

/// Settings of the programs that connect pods. What the user may not read is left out.
#[derive(Debug, Default)]
pub struct Cni {
    /// `cilium-config`.
    pub cilium: Option<ConfigMap>,
    /// `kube-flannel-cfg`.
    pub flannel: Option<ConfigMap>,
    /// The `FelixConfiguration` of Calico.
    pub calico: Option<Value>,
}

/// Which part of the cluster is checked.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// PodTap's namespace.
    pub home: String,
    /// Only this node.
    pub node: Option<String>,
    /// Only what matters for this tap.
    pub tap: Option<TapName>,
}

fn read<T>(result: Result<T, kube::Error>) -> Outcome<Read<T>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(Err(status.message)),
        Err(error) => Err(error.into()),
    }
}

impl Snapshot {
    /// Reads it.
    pub async fn read(cluster: &Cluster, scope: &Scope) -> Outcome<Self> {
        let client = || cluster.client.clone();
        let home = scope.home.as_str();
        let (version, groups) = tokio::try_join!(cluster.client.apiserver_version(), cluster.client.list_api_groups())?;
        let groups = groups.groups.into_iter().filter(|group| group.name == GROUP).flat_map(|group| group.versions);
        let served: BTreeSet<String> = groups.map(|version| version.version).collect();
        let missing_kinds = missing_kinds(cluster, &served).await?;

        let of_podtap = ListParams::default().labels(OWN);
        let everything = ListParams::default();
        let namespaces = Api::<Namespace>::all(client());
        let controllers = Api::<Deployment>::namespaced(client(), home);
        let pods = Api::<Pod>::namespaced(client(), home);
        let leases = Api::<Lease>::namespaced(client(), home);
        let nodes = Api::<Node>::all(client());
        let definitions = Api::<CustomResourceDefinition>::all(client());
        let names = podtap_api::definitions().map(|(_, definition)| definition.name_any());
        let (rights, namespace, controller, pods, lease, nodes, definitions, cni) = tokio::join!(
            ask(cluster, rights::of_verbs(&cluster.namespace, home)),
            namespaces.get_opt(home),
            controllers.get_opt("podtap-controller"),
            pods.list(&of_podtap),
            leases.get_opt("podtap-controller"),
            nodes.list(&everything),
            try_join_all(names.iter().map(|name| definitions.get_opt(name))),
            Cni::read(cluster),
        );
        let mut undecodable = Vec::new();
        let node_taps = read(objects(cluster, &missing_kinds, &mut undecodable).await)?;
        let policies = read(objects::<PodTapPolicy>(cluster, &missing_kinds, &mut undecodable).await)?;
        let is_read = |policy: &PodTapPolicy| policy.name_any() == POLICY_NAME;
        let nodes = read(nodes)?.map(|list| list.items);
        let snapshot = Self {
            home: home.to_owned(),
            namespace: read(namespace)?,
            kubernetes: format!("{}.{}", version.major, version.minor),
            served,
            definitions: read(definitions)?.map(|found| found.into_iter().flatten().collect()),
            rights: rights?,
            controller: read(controller)?,
            pods: read(pods)?.map(|list| list.items),
            lease: read(lease)?,
            policy: policies.map(|policies| policies.into_iter().find(is_read)),
            all_nodes: nodes.iter().flatten().cloned().collect(),
            nodes,
            receiving: node_taps.as_ref().ok().map(|all| receiving(all)),
            node_taps,
            taps: taps(cluster, scope, &missing_kinds).await?,
            undecodable,
            missing_kinds,
            cni: cni?,
        };
        snapshot.restricted(scope)
    }

    /// Without what is out of scope.
    pub fn restricted(mut self, scope: &Scope) -> Outcome<Self> {
        let mut names: Option<BTreeSet<String>> = None;
        if let Some(name) = &scope.node {
            if let Ok(nodes) = &self.nodes
                && !nodes.iter().any(|node| node.name_any() == *name)
            {
                return Err(Failure::new(Exit::Refused, format!("there is no node {name}")));
            }
            names = Some([name.clone()].into());
        }
        if let (Some(_), Ok(taps), Ok(node_taps)) = (&scope.tap, &self.taps, &self.node_taps) {
            let uids: BTreeSet<&str> = taps.iter().map(Tap::uid).collect();
            let has_part = |node: &&NodeTap| {
                let spec = &node.spec.0;
                let taps = spec.taps.iter().map(|tap| tap.uid.to_string());
                let receivers = spec.receivers.iter().map(|receiver| receiver.tap.uid.to_string());
                taps.chain(receivers).any(|uid| uids.contains(uid.as_str()))
            };
            let of_tap: BTreeSet<String> = node_taps.iter().filter(has_part).map(ResourceExt::name_any).collect();
            names = Some(names.map_or_else(|| of_tap.clone(), |names| &names & &of_tap));
        }
        if let Some(names) = names {
            if let Ok(nodes) = &mut self.nodes {
                nodes.retain(|node| names.contains(&node.name_any()));
            }
            if let Ok(node_taps) = &mut self.node_taps {
                node_taps.retain(|node| names.contains(&node.name_any()));
            }
        }
        Ok(self)
    }

    /// The port of receivers.
    pub fn receiver_port(&self) -> u16 {
        let policy = self.policy.as_ref().ok().and_then(Option::as_ref);
        policy.map_or(podtap_model::bounds::RECEIVER_PORT, |policy| policy.spec.receiver_port)
    }
}

fn receiving(node_taps: &[NodeTap]) -> BTreeSet<String> {
    let receives = |node: &&NodeTap| {
        !node.spec.0.receivers.is_empty() || node.status.as_ref().is_some_and(|status| !status.receivers.is_empty())
    };
    node_taps.iter().filter(receives).map(ResourceExt::name_any).collect()
}

/// Of the kinds that this program uses, those that the API server does not serve.
async fn missing_kinds(cluster: &Cluster, served: &BTreeSet<String>) -> Outcome<Vec<String>> {
    let own = <PodTap as Resource>::version(&()).to_string();
    let mut missing: Vec<String> =
        definitions().into_iter().map(|(_, definition)| definition.spec.names.kind).collect();
    if served.contains(&own) {
        let resources = cluster.client.list_api_group_resources(&format!("{GROUP}/{own}")).await?.resources;
        missing.retain(|kind| !resources.iter().any(|resource| resource.kind == *kind));
    }
    Ok(missing)
}

/// All objects of a kind, and what is wrong with those that cannot be decoded.
async fn objects<K>(cluster: &Cluster, missing: &[String], undecodable: &mut Vec<String>) -> Result<Vec<K>, kube::Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Debug,
{
    let resource = ApiResource::erase::<K>(&());
    if missing.contains(&resource.kind) {
        return Ok(Vec::new());
    }
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
    let list = api.list(&ListParams::default()).await?;
    let mut decode = |object: DynamicObject| {
        let name = object.name_any();
        let decoded = serde_json::to_value(object).and_then(serde_json::from_value);
        decoded.inspect_err(|error| undecodable.push(format!("{} {name}: {error}", resource.kind))).ok()
    };
    Ok(list.items.into_iter().filter_map(&mut decode).collect())
}

/// The taps in scope: of all namespaces, or of the one in which the user may read them.
async fn taps(cluster: &Cluster, scope: &Scope, missing: &[String]) -> Outcome<Read<Vec<Tap>>> {
    let not_permitted = |failure: Failure| match failure.exit {
        Exit::NotPermitted => Ok(Err(failure.message)),
        _ => Err(failure),
    };
    if let Some(name) = &scope.tap {
        return get(cluster, name).await.map_or_else(not_permitted, |tap| Ok(Ok(vec![tap])));
    }
    let mut taps = Vec::new();
    for (kind, name) in [(Kind::PodTap, "PodTap"), (Kind::ClusterPodTap, "ClusterPodTap")] {
        if missing.iter().any(|missing| missing == name) {
            continue;
        }
        match list(cluster, kind, None).await {
            Ok(listed) => taps.extend(listed),
            Err(failure) if failure.exit == Exit::NotPermitted && kind == Kind::PodTap => {
                match list(cluster, kind, Some(&cluster.namespace)).await {
                    Ok(listed) => return Ok(Ok(listed)),
                    Err(failure) => return not_permitted(failure),
                }
            }
            Err(failure) => return not_permitted(failure),
        }
    }
    Ok(Ok(taps))
}

impl Cni {
    async fn read(cluster: &Cluster) -> Outcome<Self> {
        let maps = |namespace: &str| Api::<ConfigMap>::namespaced(cluster.client.clone(), namespace);
        let (system, flannel) = (maps("kube-system"), maps("kube-flannel"));
        let felix = ApiResource {
            group: "crd.projectcalico.org".to_owned(),
            version: "v1".to_owned(),
            api_version: "crd.projectcalico.org/v1".to_owned(),
            kind: "FelixConfiguration".to_owned(),
            plural: "felixconfigurations".to_owned(),
        };
        let felix: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &felix);
        let (cilium, flannel, of_k3s, calico) = tokio::join!(
            system.get_opt("cilium-config"),
            flannel.get_opt("kube-flannel-cfg"),
            system.get_opt("kube-flannel-cfg"),
            felix.get_opt("default"),
        );
        let calico = match calico {
            // Of a kind that it does not serve, the API server says it in other words than of an object.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            calico => calico,
        };
        let flannel = read(flannel)?.ok().flatten();
        Ok(Self {
            cilium: read(cilium)?.ok().flatten(),
            flannel: flannel.or(read(of_k3s)?.ok().flatten()),
            calico: read(calico)?.ok().flatten().map(|object| object.data),
        })
    }
}
