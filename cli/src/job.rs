//! Jobs that this program creates, and removes in the end.

use std::{process, time::SystemTime};

use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Preconditions},
};

/// A name that no other job has: of one that is interrupted while it is created, nothing else is known.
pub fn unique_name(purpose: &str) -> String {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Nanoseconds of three days, and process: no two jobs of a namespace have both.
    format!("podtap-{purpose}-{:x}-{:x}", time.as_nanos() & 0xffff_ffff_ffff, process::id())
}

/// The label by which Kubernetes marks the pods of a job (`JobNameLabel`, k8s.io/api/batch/v1/types.go).
pub fn label(job: &str) -> String {
    format!("batch.kubernetes.io/job-name={job}")
}

/// The pods of a job.
pub fn pods(job: &str) -> ListParams {
    ListParams::default().labels(&label(job))
}

/// Deletes a job with its pods, and not another one of the same name. What it owns goes with it.
pub async fn delete(api: &Api<Job>, name: &str, uid: &str) -> Result<(), kube::Error> {
    let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
    api.delete(name, &parameters).await.map(drop)
}
