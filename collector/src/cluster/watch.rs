//! Watches: they fill the inventory from the API server.

use std::{collections::HashSet, fmt::Debug, hash::Hash};

use futures::StreamExt as _;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    batch::v1::{CronJob, Job},
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use podtap_runtime::http::Health;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, Semaphore};
use tracing::{info, warn};

use super::{
    inventory::Inventory,
    owners::first_owner,
    pod::Projection,
    service::{key, node, service, slice},
};

/// Objects per page of a list. What is not kept of them is freed with the page.
const PAGE: u32 = 250;
/// How many watches have to list their objects before names are complete.
const WATCHES: u32 = 10;

/// Runs for as long as the watches do, which restart themselves. Reports ready when all objects have been listed.
/// `annotation` has the name of a pod's workload.
pub async fn run(client: &Client, inventory: &Inventory, annotation: &str, health: &Health, synced: &Notify) {
    // A permit for each watch that has listed its objects.
    let listed = Semaphore::new(0);
    tokio::join!(
        owners::<ReplicaSet>(client.clone(), inventory, &listed),
        owners::<Deployment>(client.clone(), inventory, &listed),
        owners::<StatefulSet>(client.clone(), inventory, &listed),
        owners::<DaemonSet>(client.clone(), inventory, &listed),
        owners::<Job>(client.clone(), inventory, &listed),
        owners::<CronJob>(client.clone(), inventory, &listed),
        follow(Api::<Pod>::all(client.clone()), &listed, |change| match change {
            Change::Set(pod) => {
                let projection = Projection::new(pod, annotation)?;
                let uid = projection.pod.uid.clone();
                inventory.set_pod(projection);
                Some(uid)
            }
            Change::Deleted(pod) => {
                // Its last state tells when its containers ended.
                let projection = Projection::new(pod, annotation)?;
                let uid = projection.pod.uid.clone();
                inventory.set_pod(Projection { is_over: true, ..projection });
                inventory.pod_deleted(&uid);
                None
            }
            Change::Listed(uids) => {
                inventory.retain_pods(&uids);
                None
            }
        }),
        follow(Api::<Service>::all(client.clone()), &listed, |change| match change {
            Change::Set(object) => {
                let key = key(&object.metadata);
                inventory.set_service(service(object));
                Some(key)
            }
            Change::Deleted(object) => {
                inventory.service_deleted(&key(&object.metadata));
                None
            }
            Change::Listed(keys) => {
                inventory.retain_services(&keys);
                None
            }
        }),
        follow(Api::<EndpointSlice>::all(client.clone()), &listed, |change| match change {
            Change::Set(object) => {
                let (key, name, slice) = slice(object)?;
                inventory.set_slice(&key, &name, Some(slice));
                Some((key, name))
            }
            Change::Deleted(object) => {
                let (key, name, _) = slice(object)?;
                inventory.set_slice(&key, &name, None);
                None
            }
            Change::Listed(slices) => {
                inventory.retain_slices(&slices);
                None
            }
        }),
        follow(Api::<Node>::all(client.clone()), &listed, |change| match change {
            Change::Set(object) => {
                let name = object.name_any();
                inventory.set_node(node(object));
                Some(name)
            }
            Change::Deleted(object) => {
                inventory.node_deleted(&object.name_any());
                None
            }
            Change::Listed(names) => {
                inventory.retain_nodes(&names);
                None
            }
        }),
        async {
            if listed.acquire_many(WATCHES).await.is_ok() {
                info!("all names are known");
                health.set_ready(true);
                synced.notify_one();
            }
        },
    );
}

/// A change of the objects of a kind.
enum Change<K, Id> {
    Set(K),
    Deleted(K),
    /// These are all.
    Listed(HashSet<Id>),
}

/// Follows the objects of a kind. `apply` returns what identifies an object that was set.
async fn follow<K, Id>(api: Api<K>, listed: &Semaphore, mut apply: impl FnMut(Change<K, Id>) -> Option<Id>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    Id: Eq + Hash,
{
    let mut stream = std::pin::pin!(watcher(api, watcher::Config::default().page_size(PAGE)).default_backoff());
    let (mut ids, mut is_first) = (HashSet::new(), true);
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Init) => ids.clear(),
            Ok(Event::InitApply(object)) => ids.extend(apply(Change::Set(object))),
            Ok(Event::InitDone) => {
                apply(Change::Listed(std::mem::take(&mut ids)));
                if std::mem::take(&mut is_first) {
                    listed.add_permits(1);
                }
            }
            Ok(Event::Apply(object)) => drop(apply(Change::Set(object))),
            Ok(Event::Delete(object)) => drop(apply(Change::Deleted(object))),
            Err(error) => warn!(kind = &*K::kind(&()), %error, "a watch was interrupted; restarting it"),
        }
    }
}

/// Follows what the objects of a kind belong to. One that is deleted is forgotten when its pods are.
async fn owners<K>(client: Client, inventory: &Inventory, listed: &Semaphore)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let api: Api<PartialObjectMeta<K>> = Api::all(client);
    follow(api, listed, |change| {
        match change {
            Change::Set(object) => {
                let uid = object.uid()?;
                inventory.set_owner(uid, object.metadata.owner_references.and_then(first_owner));
            }
            Change::Deleted(object) => inventory.owner_deleted(object.uid()?),
            Change::Listed(_) => {}
        }
        None::<()>
    })
    .await;
}
