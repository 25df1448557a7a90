//! Whether flows may be sent to a server: in a cluster, the `PodTapPolicy` tells.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixStream, lookup_host},
    time::{Instant, timeout},
};

use crate::sinks::Failure;

/// How long an answer is used.
const AGE: Duration = Duration::from_secs(10);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks `podtap-collector names` by its Unix socket. Without one, everything is allowed.
#[derive(Clone, Debug, Default)]
pub struct Policy(Option<Arc<Path>>);

/// The servers of a sink, each as a host and a port, and until when flows may be sent there.
#[derive(Debug)]
pub struct Permit {
    policy: Policy,
    servers: Vec<(String, u16)>,
    until: Option<Instant>,
}

impl Policy {
    pub fn new(socket: Option<&Path>) -> Self {
        Self(socket.map(Arc::from))
    }

    pub const fn permit(self, servers: Vec<(String, u16)>) -> Permit {
        Permit { policy: self, servers, until: None }
    }
}

impl Permit {
    /// Asks, if the last answer is too old. Each address of each server must be allowed.
    pub async fn renew(&mut self) -> Result<(), Failure> {
        let Some(socket) = &self.policy.0 else { return Ok(()) };
        if self.until.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        self.until = None;
        for (host, port) in &self.servers {
            let addresses = lookup_host((host.as_str(), *port)).await;
            let addresses = addresses.map_err(|error| Failure::unavailable(format!("{host}: {error}")))?;
            for address in addresses {
                let question = format!("{}\n", address.ip());
                let answer = timeout(PATIENCE, ask(socket, &question)).await;
                let answer = answer.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
                let answer = answer.map_err(|error| {
                    Failure::unavailable(format!(
                        "the container names does not tell whether {host} is allowed: {error}"
                    ))
                })?;
                if answer != "yes" {
                    return Err(Failure::unavailable(format!("{host}: {answer}")));
                }
            }
        }
        self.until = Some(Instant::now() + AGE);
        Ok(())
    }
}

async fn ask(socket: &Path, question: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(question.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(1024).read_to_string(&mut answer).await?;
    match answer.strip_suffix('\n') {
        Some(answer) => Ok(answer.to_owned()),
        None => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn each_address_of_a_server_must_be_allowed() {
        let socket = std::env::temp_dir().join(format!("podtap-policy-{}.sock", std::process::id()));
        let policy = Policy::new(Some(&socket));
        let mut permit = policy.clone().permit(vec![("192.0.2.7".to_owned(), 9092), ("::1".to_owned(), 9092)]);
        let failure = permit.renew().await.expect_err("nothing answers");
        assert!(failure.message.contains("does not tell whether 192.0.2.7 is allowed"), "{failure:?}");
        let listener = UnixListener::bind(&socket).expect("the path is free");
        let answers = ["yes\n", "no, because\n", "yes\n", "yes\n", ""];
        let server = tokio::spawn(async move {
            let mut questions = String::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("a question");
                let mut buffer = [0; 64];
                let length = stream.read(&mut buffer).await.expect("a question");
                questions += std::str::from_utf8(&buffer[..length]).expect("text");
                stream.write_all(answer.as_bytes()).await.expect("it waits");
            }
            questions
        });
        assert_eq!(permit.renew().await, Err(Failure::unavailable("::1: no, because")));
        assert_eq!(permit.renew().await, Ok(()));
        // The answer is used for a while.
        assert_eq!(permit.renew().await, Ok(()));
        let mut other = policy.permit(vec![("192.0.2.8".to_owned(), 1)]);
        let failure = other.renew().await.expect_err("there is no answer");
        assert!(failure.message.contains("does not tell"), "{failure:?}");
        assert_eq!(server.await.expect("no panic"), "192.0.2.7\n::1\n192.0.2.7\n::1\n192.0.2.8\n");
        fs::remove_file(socket).expect("it exists");
        assert_eq!(Policy::default().permit(vec![("192.0.2.8".to_owned(), 1)]).renew().await, Ok(()));
    }
}
