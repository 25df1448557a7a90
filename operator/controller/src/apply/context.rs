//! What all requests of the leader share.

use std::time::{Duration, Instant};

use futures::{Stream, StreamExt as _, future::ready, stream};
use kube::{
    Client,
    api::{DeleteParams, PatchParams, Preconditions},
};

use crate::{apply::helper_pod::HelperTemplate, names, plan::rollout::MaxUnavailable, store::caches::Caches};

/// How many requests are in flight at the same time.
pub const CONCURRENCY: usize = 8;

/// How long a stage starts new requests. What is left waits for the next reconcile, so that slow requests of one kind, an admission
/// webhook for example, do not keep the other stages waiting.
const BUDGET: Duration = Duration::from_secs(5);

/// Sends requests, a few at a time, and starts no more of them when the budget of the stage is spent.
pub fn in_budget<F: Future>(requests: impl IntoIterator<Item = F>) -> impl Stream<Item = F::Output> {
    let end = Instant::now() + BUDGET;
    stream::iter(requests).take_while(move |_| ready(Instant::now() < end)).buffer_unordered(CONCURRENCY)
}

/// The API server, the caches that learn of each write, the template of helper pods, and how fast it is rolled out.
#[derive(Clone)]
pub struct Context {
    pub client: Client,
    pub caches: Caches,
    pub template: HelperTemplate,
    pub max_unavailable: MaxUnavailable,
}

/// Parameters of every patch.
pub fn patch_params() -> PatchParams {
    PatchParams::apply(names::CONTROLLER)
}

/// Deletes only the object with this UID, not another one that has its name by now.
pub fn delete_params(uid: &str) -> DeleteParams {
    DeleteParams::background().preconditions(Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() })
}

/// Whether the API server reports that there is no such object.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

/// Whether the object is certainly gone.
pub fn is_gone<T>(result: Result<T, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if is_not_found(&error) => Ok(true),
        // Another object has the name by now; the watch will report it.
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(false),
        Err(error) => Err(error),
    }
}
