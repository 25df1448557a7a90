//! Passes names on over a Unix socket.

use std::{io, sync::Arc};

use podtap_runtime::socket;
use tokio::{
    io::{AsyncWriteExt as _, BufWriter},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::LocalSet,
};
use tracing::debug;

use super::inventory::Inventory;

/// Connections at the same time: the container that captures has one.
const CONNECTIONS: usize = 4;

/// Answers each connection with all objects, and then with changes.
pub async fn serve(listener: &UnixListener, inventory: &Inventory) {
    let answer = async {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            // The semaphore is never closed.
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let stream = socket::accept(|| listener.accept()).await;
            let inventory = inventory.clone();
            tokio::task::spawn_local(async move {
                if let Err(error) = write(stream, &inventory).await {
                    debug!(%error, "a connection ended");
                }
                drop(permit);
            });
        }
    };
    LocalSet::new().run_until(answer).await;
}

async fn write(stream: UnixStream, inventory: &Inventory) -> io::Result<()> {
    let mut stream = BufWriter::new(stream);
    let (all, mut changes) = inventory.subscribe();
    for line in all {
        stream.write_all(line.as_bytes()).await?;
    }
    stream.flush().await?;
    while let Some(line) = changes.recv().await {
        stream.write_all(line.as_bytes()).await?;
        while let Ok(line) = changes.try_recv() {
            stream.write_all(line.as_bytes()).await?;
        }
        stream.flush().await?;
    }
    Ok(())
}
