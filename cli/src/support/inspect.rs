//! What `tap-helper inspect` prints on a node.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::AttachParams};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    time::timeout,
};

use super::archive::MAX_PART;
use crate::exit::{Exit, Failure, Outcome};

/// A node with thousands of pods takes a second.
const PATIENCE: Duration = Duration::from_secs(30);
/// What kube keeps of what was not read yet: with its default, a tenth as fast.
const BUFFER: usize = 64 << 10;

/// Runs it in a helper pod.
pub async fn inspect(pods: &Api<Pod>, name: &str) -> Outcome<String> {
    let late = |_| Failure::error(format!("no answer within {} s", PATIENCE.as_secs()));
    timeout(PATIENCE, run(pods, name)).await.map_err(late)?
}

async fn run(pods: &Api<Pod>, name: &str) -> Outcome<String> {
    let parameters = AttachParams::default()
        .container("tap-helper")
        .stdin(false)
        .stderr(true)
        .max_stdout_buf_size(BUFFER)
        .max_stderr_buf_size(BUFFER);
    let mut process = pods.exec(name, ["/tap-helper", "inspect"], &parameters).await.map_err(not_permitted)?;
    let (output, errors) = (process.stdout(), process.stderr());
    let status = process.take_status();
    // Both at a time: who waits for one keeps the other's writer waiting.
    let (output, errors) = tokio::join!(text(output), text(errors));
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    match status {
        Some(status) if status.status.as_deref() != Some("Success") => {
            Err(Failure::error(format!("{} {}", status.message.unwrap_or_default(), errors?.trim())))
        }
        _ => output,
    }
}

/// What a stream has, up to the size of a part. The rest is read, and thrown away.
async fn text(stream: Option<impl AsyncRead + Unpin>) -> Outcome<String> {
    let Some(mut stream) = stream else { return Ok(String::new()) };
    let mut bytes = Vec::new();
    let failed = |error: std::io::Error| Failure::error(error.to_string());
    // One more, by which the archive tells that it is cut.
    (&mut stream).take(MAX_PART as u64 + 1).read_to_end(&mut bytes).await.map_err(failed)?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The API server may refuse a connection without a message.
fn not_permitted(error: kube::Error) -> Failure {
    let failure = Failure::from(error);
    let hint = "that takes the verbs get and create on pods/exec in PodTap's namespace";
    Failure { message: format!("{} ({hint})", failure.message), exit: Exit::NotPermitted }
}
