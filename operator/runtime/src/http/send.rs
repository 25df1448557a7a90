//! A client for requests that are passed on to another server of the same pod.

use std::net::SocketAddr;

use hyper::{Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// There is no response.
#[derive(Debug, thiserror::Error)]
#[error("no response from {server}")]
pub struct SendError {
    server: SocketAddr,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// The response of an HTTP server to a request, which must have a `Host` header. Neither body is held in memory: each is read as fast as
/// the other side takes it.
pub async fn send(server: SocketAddr, request: Request<Incoming>) -> Result<Response<Incoming>, SendError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| SendError { server, source };
    let stream = TcpStream::connect(server).await.map_err(|error| failed(error.into()))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(error.into()))?;
    // It ends with the body of the response, or when that is dropped. An error is the reader's, too.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(|error| failed(error.into()))
}
