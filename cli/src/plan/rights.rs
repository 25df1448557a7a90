//! Which of the rights that a tap takes the user lacks.

use futures_util::future::try_join_all;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, api::PostParams};

use super::report::{By, Denial};
use crate::{connection::Cluster, exit::Outcome, pods::Cause, tap::Tap};

/// A right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Right {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
}

/// The rights that creating or changing a tap takes: server-side apply is a patch, also of what does not exist yet, and the policy for
/// admission `podtap-tenancy` asks for `tap` on pods.
fn needed(tap: &Tap, exists: bool) -> Vec<Right> {
    let resource = match tap {
        Tap::Namespaced(_) => "podtaps",
        Tap::Cluster(_) => "clusterpodtaps",
    };
    let of_taps = |verb| Right { verb, group: podtap_api::GROUP, resource };
    let create = (!exists).then(|| of_taps("create"));
    let tap = Right { verb: "tap", group: "", resource: "pods" };
    create.into_iter().chain([of_taps("patch"), tap]).collect()
}

/// Asks the API server.
pub async fn missing(cluster: &Cluster, tap: &Tap, exists: bool) -> Outcome<Vec<Denial>> {
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let reviews = needed(tap, exists).into_iter().map(|right| {
        let api = &api;
        async move {
            let review = review(right, tap.namespace());
            let answer = api.create(&PostParams::default(), &review).await?;
            Outcome::Ok((!answer.status.is_some_and(|status| status.allowed)).then(|| denial(right, tap.namespace())))
        }
    });
    Ok(try_join_all(reviews).await?.into_iter().flatten().collect())
}

fn review(Right { verb, group, resource }: Right, namespace: Option<&str>) -> SelfSubjectAccessReview {
    let attributes = ResourceAttributes {
        verb: Some(verb.to_owned()),
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        namespace: namespace.map(str::to_owned),
        ..ResourceAttributes::default()
    };
    let spec =
        SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..SelfSubjectAccessReviewSpec::default() };
    SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() }
}

fn denial(Right { verb, group, resource }: Right, namespace: Option<&str>) -> Denial {
    let resource = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
    let scope = namespace.map_or("all namespaces".to_owned(), |namespace| format!("the namespace {namespace}"));
    let message = format!("you may not {verb} {resource} in {scope}");
    Denial { by: By::Rbac, cause: Cause { reason: String::new(), message } }
}
