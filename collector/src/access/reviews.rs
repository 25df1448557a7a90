//! What the API server knows of a token: whose it is (`TokenReview`), and what its user may do (`SubjectAccessReview`).

use std::{hash::Hash, sync::Arc, time::Duration};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use podtap_runtime::http::Method;
use ring::digest::{SHA256, digest};
use tokio::{sync::Semaphore, time::timeout};

use super::answers::Answers;
use crate::namespaces::Namespaces;

/// What is read: a subresource, so that who may read taps may not read who calls whom.
pub const GROUP: &str = "podtap.dev";
pub const RESOURCE: &str = "podtaps";
pub const SUBRESOURCE: &str = "map";

/// Requests to the API server at the same time. Others wait.
const REQUESTS: usize = 4;
/// How long all requests about one of a client may take, waiting included.
const PATIENCE: Duration = Duration::from_secs(8);

/// What a request needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// A valid token of any user.
    AnyUser,
    /// A right to the map of these namespaces.
    Map(Verb, Namespaces),
}

/// What is done with the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    Get,
    /// For queries: one of their operations forgets the map.
    Create,
}

impl Verb {
    /// As the kubelet's API maps methods to verbs.
    pub fn of(method: &Method) -> Self {
        if matches!(*method, Method::GET | Method::HEAD) { Self::Get } else { Self::Create }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Create => "create",
        }
    }
}

/// Why a client gets nothing.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The API server does not know the token.
    #[error("the token is not valid")]
    Unauthenticated,
    /// Its user lacks a right in a namespace, or in all of them (`None`).
    #[error("{user} may not {} {RESOURCE}/{SUBRESOURCE}", .verb.name())]
    Forbidden { user: String, verb: Verb, namespace: Option<String> },
    /// It is not known whose the token is, or what its user may do.
    #[error("the API server did not answer")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// SHA-256 of a token: the token itself is not kept.
type Digest = [u8; 32];

/// Asks the API server, and uses its answers for 10 seconds: a user who loses a right, or a group with it, has it for up to 20. An error
/// is no answer, and is never used again.
#[derive(Debug)]
pub struct Reviews {
    tokens: Api<TokenReview>,
    access: Api<SubjectAccessReview>,
    requests: Semaphore,
    users: Answers<Digest, Option<Arc<UserInfo>>>,
    rights: Answers<(Digest, Verb, Option<String>), bool>,
}

impl Reviews {
    pub fn new(client: Client) -> Self {
        Self {
            tokens: Api::all(client.clone()),
            access: Api::all(client),
            requests: Semaphore::new(REQUESTS),
            users: Answers::new(),
            rights: Answers::new(),
        }
    }

    /// Whether the user of a token has this access.
    pub async fn check(&self, token: &str, access: &Access) -> Result<(), Refusal> {
        timeout(PATIENCE, self.check_all(token, access)).await.unwrap_or_else(|late| Err(unavailable(late)))
    }

    async fn check_all(&self, token: &str, access: &Access) -> Result<(), Refusal> {
        let mut key = Digest::default();
        key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let user = self.user(key, token).await?.ok_or(Refusal::Unauthenticated)?;
        let Access::Map(verb, namespaces) = access else { return Ok(()) };
        let namespaces: Vec<Option<&String>> = match namespaces {
            Namespaces::All => vec![None],
            Namespaces::Only(names) => names.iter().map(Some).collect(),
        };
        for namespace in namespaces {
            if !self.may(key, &user, *verb, namespace).await? {
                let user = user.username.clone().unwrap_or_default();
                return Err(Refusal::Forbidden { user, verb: *verb, namespace: namespace.cloned() });
            }
        }
        Ok(())
    }

    async fn user(&self, key: Digest, token: &str) -> Result<Option<Arc<UserInfo>>, Refusal> {
        let ask = async {
            let spec = TokenReviewSpec { token: Some(token.to_owned()), ..TokenReviewSpec::default() };
            let review = TokenReview { spec, ..TokenReview::default() };
            let review = self.tokens.create(&PostParams::default(), &review).await.map_err(unavailable)?;
            let status = review.status.ok_or_else(|| unavailable("the TokenReview has no status"))?;
            let is_valid = status.authenticated == Some(true);
            // With an error, an authenticator may only be down.
            let is_certain = is_valid || status.error.is_none_or(|error| error.is_empty());
            Ok((status.user.filter(|_| is_valid).map(Arc::new), is_certain))
        };
        self.known_or_asked(&self.users, key, ask).await
    }

    /// In a namespace, or in all of them.
    async fn may(&self, key: Digest, user: &UserInfo, verb: Verb, namespace: Option<&String>) -> Result<bool, Refusal> {
        let ask = async {
            let spec = access_of(user, verb, namespace);
            let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
            let review = self.access.create(&PostParams::default(), &review).await.map_err(unavailable)?;
            let status = review.status.ok_or_else(|| unavailable("the SubjectAccessReview has no status"))?;
            Ok((status.allowed, true))
        };
        self.known_or_asked(&self.rights, (key, verb, namespace.cloned()), ask).await
    }

    /// The answer to a question. `ask` tells it, and whether it may be used again.
    async fn known_or_asked<Question: Eq + Hash, Answer: Clone>(
        &self,
        answers: &Answers<Question, Answer>,
        question: Question,
        ask: impl Future<Output = Result<(Answer, bool), Refusal>>,
    ) -> Result<Answer, Refusal> {
        if let Some(known) = answers.get(&question) {
            return Ok(known);
        }
        let _permit = self.requests.acquire().await.map_err(unavailable)?;
        // While this waited, it may have been asked for another request.
        if let Some(known) = answers.get(&question) {
            return Ok(known);
        }
        let (answer, is_certain) = ask.await?;
        if is_certain {
            answers.insert(question, answer.clone());
        }
        Ok(answer)
    }
}

fn access_of(user: &UserInfo, verb: Verb, namespace: Option<&String>) -> SubjectAccessReviewSpec {
    SubjectAccessReviewSpec {
        user: user.username.clone(),
        uid: user.uid.clone(),
        groups: user.groups.clone(),
        extra: user.extra.clone(),
        resource_attributes: Some(ResourceAttributes {
            group: Some(GROUP.to_owned()),
            resource: Some(RESOURCE.to_owned()),
            subresource: Some(SUBRESOURCE.to_owned()),
            verb: Some(verb.name().to_owned()),
            namespace: namespace.cloned(),
            ..ResourceAttributes::default()
        }),
        ..SubjectAccessReviewSpec::default()
    }
}

fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Refusal {
    Refusal::Unavailable(error.into())
}

#[cfg(test)]
mod tests;
