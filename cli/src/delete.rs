//! `delete`: taps, until nothing of them is left.

use std::{collections::BTreeSet, ops::ControlFlow, time::Duration};

use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Preconditions},
};
use podtap_api::NodeTap;

use crate::{
    connection::{Cluster, Connection},
    console::{Console, after, counted, line, warn},
    exit::{Exit, Failure, Outcome},
    job,
    pods::{Surroundings, Verdict, if_permitted, matching, verdict},
    suspend::Arguments,
    tap::Tap,
    wait::{Waiting, until},
};

/// Deletes taps.
pub async fn run(arguments: Arguments, connection: &Connection, console: Console) -> Outcome {
    let cluster = connection.open().await?;
    let (taps, mut exit) = arguments.taps(&cluster, "deletes").await?;
    let mut deleted = Vec::new();
    // Only for the report.
    let around = Surroundings::read(&cluster).await.ok();
    // All of them at first: none keeps the others waiting.
    for tap in taps {
        match request(&cluster, &tap, None, around.as_ref()).await {
            Ok(nodes) => {
                end_capture(&cluster, &tap).await;
                deleted.push((tap, nodes));
            }
            Err(failure) => exit = after(exit, Err(failure)),
        }
    }
    for (tap, nodes) in deleted {
        exit = after(exit, finish(&cluster, &tap, nodes.as_ref(), arguments.wait, console).await);
    }
    Ok(exit)
}

/// Asks for the deletion, of this version only if there is one, and returns the nodes that have a part of the tap.
pub async fn request(
    cluster: &Cluster,
    tap: &Tap,
    version: Option<String>,
    around: Option<&Surroundings>,
) -> Outcome<Option<BTreeSet<String>>> {
    let nodes = match around {
        Some(around) => nodes(cluster, tap, around).await.unwrap_or_default(),
        None => None,
    };
    // Not another one of the same name.
    let preconditions = Preconditions { uid: Some(tap.uid().to_owned()), resource_version: version };
    let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    tap.api(cluster).delete(tap.name(), &parameters).await?;
    Ok(nodes)
}

/// Deletes the Job of a capture: without its tap, its pod may wait for a client.
async fn end_capture(cluster: &Cluster, tap: &Tap) {
    let (Some((name, uid)), Some(namespace)) = (tap.job(), tap.namespace()) else { return };
    let jobs: Api<Job> = Api::namespaced(cluster.client.clone(), namespace);
    match job::delete(&jobs, name, uid).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => warn(&format!("the Job {name} stays until its deadline: {}", Failure::from(error).message)),
        Ok(()) => {}
    }
}

/// Waits until nothing is left, and reports where that was.
pub async fn finish(
    cluster: &Cluster,
    tap: &Tap,
    nodes: Option<&BTreeSet<String>>,
    limit: Duration,
    console: Console,
) -> Outcome {
    let object = tap.kind().object(tap.name());
    if limit.is_zero() {
        line(&format!("{object} deleted; nodes are being cleaned up"));
        return Ok(Exit::Done);
    }
    let mut waiting = Waiting::new(console);
    let end = until(cluster, tap, limit, |current| {
        if current.is_none() {
            return ControlFlow::Break(());
        }
        waiting.reports(format!("nodes to report that nothing of {tap} is left"));
        ControlFlow::Continue(())
    });
    if end.await?.is_none() {
        let (seconds, nodes) = (limit.as_secs(), all(nodes));
        let message = format!("{tap} is not gone after {seconds} s, and still being removed from {nodes}");
        return Err(Failure::new(Exit::TimedOut, message));
    }
    let left = left_behind(cluster, tap.uid()).await.unwrap_or_else(|failure| {
        warn(&format!("whether a node still has a part of {tap} is not known: {failure}"));
        BTreeSet::new()
    });
    if left.is_empty() {
        line(&format!("{object} deleted, removed on {}", all(nodes)));
        return Ok(Exit::Done);
    }
    let left = left.into_iter().collect::<Vec<_>>().join(", ");
    line(&format!("{object} deleted, but not yet removed on {left}: a node cleans up when it answers again"));
    Ok(Exit::Partly)
}

/// How many nodes those are, if they are known.
fn all(nodes: Option<&BTreeSet<String>>) -> String {
    match nodes {
        None => "every node".to_owned(),
        Some(nodes) if nodes.is_empty() => "no node, since it was on none".to_owned(),
        Some(nodes) => counted(nodes.len(), "node"),
    }
}

/// The nodes that have a part of a tap: by what each NodeTap has, or else by the status of the tap and its pods; none if the user may not
/// list those either.
async fn nodes(cluster: &Cluster, tap: &Tap, around: &Surroundings) -> Outcome<Option<BTreeSet<String>>> {
    if let Some(node_taps) = &around.node_taps {
        let nodes = node_taps.iter().filter(|node| is_on(node, tap.uid()));
        return Ok(Some(nodes.map(ResourceExt::name_any).collect()));
    }
    let Some(pods) = matching(cluster, tap).await? else { return Ok(None) };
    let tapped = pods.into_iter().filter(|pod| verdict(tap, pod, around) == Verdict::Tapped);
    let senders = tapped.filter_map(|pod| pod.spec?.node_name);
    let receivers = tap.status().into_iter().flat_map(|status| &status.destinations).filter_map(|d| d.node.clone());
    Ok(Some(senders.chain(receivers).collect()))
}

/// The nodes that have not reported that nothing is left, as far as the user may read that.
async fn left_behind(cluster: &Cluster, uid: &str) -> Outcome<BTreeSet<String>> {
    let api: Api<NodeTap> = Api::all(cluster.client.clone());
    let nodes = if_permitted(api.list(&ListParams::default()).await)?.map(|list| list.items).unwrap_or_default();
    Ok(nodes.iter().filter(|node| is_on(node, uid)).map(ResourceExt::name_any).collect())
}

/// Whether a node has a part of a tap, or is asked to.
fn is_on(node: &NodeTap, uid: &str) -> bool {
    let status = node.status.as_ref();
    let senders = status.into_iter().flat_map(|status| &status.senders).map(|sender| sender.tap_uid.as_str());
    let receivers = status.into_iter().flat_map(|status| &status.receivers).map(|receiver| receiver.tap_uid.as_str());
    let requested = node.spec.0.senders.iter().map(|sender| &*sender.tap);
    let receiving = node.spec.0.receivers.iter().map(|receiver| &*receiver.tap.uid);
    senders.chain(receivers).chain(requested).chain(receiving).any(|other| other == uid)
}
