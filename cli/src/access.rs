//! What the user may do, by asking the API server (`SelfSubjectAccessReview`).

use std::fmt;

use futures_util::future::try_join_all;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, api::PostParams};

use crate::{connection::Cluster, exit::Outcome};

/// A right in a namespace, or in the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    pub verb: &'static str,
    pub group: &'static str,
    /// With its subresource, if it is about one.
    pub resource: &'static str,
    pub namespace: Option<String>,
    /// What it is needed for.
    pub purpose: &'static str,
}

/// A right, and whether the user has it.
#[derive(Clone, Debug)]
pub struct Answer {
    pub right: Right,
    pub allowed: bool,
}

/// Asks for each of them.
pub async fn ask(cluster: &Cluster, rights: Vec<Right>) -> Outcome<Vec<Answer>> {
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let answers = rights.into_iter().map(async |right| {
        let answer = api.create(&PostParams::default(), &right.review()).await?;
        Ok::<_, kube::Error>(Answer { right, allowed: answer.status.is_some_and(|status| status.allowed) })
    });
    Ok(try_join_all(answers).await?)
}

impl Right {
    /// Where it is needed, as the end of a message.
    pub fn place(&self) -> String {
        self.namespace.as_ref().map(|namespace| format!(" in the namespace {namespace}")).unwrap_or_default()
    }

    fn review(&self) -> SelfSubjectAccessReview {
        let (resource, subresource) = self.resource.split_once('/').unwrap_or((self.resource, ""));
        let attributes = ResourceAttributes {
            verb: Some(self.verb.to_owned()),
            group: Some(self.group.to_owned()),
            resource: Some(resource.to_owned()),
            subresource: Some(subresource.to_owned()).filter(|name| !name.is_empty()),
            namespace: self.namespace.clone(),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        };
        SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, group, resource, .. } = self;
        let dot = if group.is_empty() { "" } else { "." };
        write!(formatter, "{verb} {resource}{dot}{group}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subresources_are_asked_for_as_such() {
        let namespace = Some("shop".to_owned());
        let right = Right { verb: "create", group: "", resource: "pods/portforward", namespace, purpose: "capture" };
        let asked = right.review().spec.resource_attributes.expect("it is about a resource");
        assert_eq!((asked.resource.as_deref(), asked.subresource.as_deref()), (Some("pods"), Some("portforward")));
        assert_eq!(asked.namespace.as_deref(), Some("shop"));
        assert_eq!(right.to_string(), "create pods/portforward");
    }
}
