//! Finds out which addresses of other nodes answer to TCP, while the controller asks for that: where no probes of this node arrive,
//! this tells a blocked port from a network that does not deliver.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use podtap_model::bounds::MAX_CHECKED_ADDRESSES;
use serde::Deserialize as _;
use serde_json::Value;
use tokio::{
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tracing::info;

use crate::helper_client::HelperClient;

/// The kubelet's port, which the control plane must reach anyway. Where no kubelet listens, a refusal is an answer, too.
const PORT: u16 = 10250;
/// The first segment is sent again after a second (RFC 6298, section 2): one loss is no answer yet.
const TIMEOUT: Duration = Duration::from_millis(1500);
const INTERVAL: Duration = Duration::from_secs(5);

/// Checks the addresses of the newest update, forever, and tells `reachable` which of them answer.
pub async fn run(client: &HelperClient, reachable: &watch::Sender<Vec<IpAddr>>) {
    let mut desired = client.desired();
    let (mut checked, mut next) = (Vec::new(), Instant::now());
    loop {
        desired.mark_unchanged();
        let addresses = client.read_desired(|update| addresses(&update.spec)).unwrap_or_default();
        if addresses != checked {
            next = Instant::now();
            checked = addresses;
        }
        let changed = tokio::select! {
            changed = desired.changed() => changed,
            () = sleep_until(next), if !checked.is_empty() || !reachable.borrow().is_empty() => {
                next = Instant::now() + INTERVAL;
                let answers = answers(&checked, PORT).await;
                reachable.send_if_modified(|known| {
                    let changed = *known != answers;
                    if changed {
                        info!(?checked, reachable = ?answers, "checked which nodes this one reaches");
                        *known = answers;
                    }
                    changed
                });
                Ok(())
            }
        };
        if changed.is_err() {
            return;
        }
    }
}

/// The addresses to check: each that can be decoded.
fn addresses(spec: &Value) -> Vec<IpAddr> {
    let all = spec["checkedAddresses"].as_array().into_iter().flatten();
    all.filter_map(|address| IpAddr::deserialize(address).ok()).take(MAX_CHECKED_ADDRESSES).collect()
}

/// Those that accept or refuse a connection, sorted.
async fn answers(addresses: &[IpAddr], port: u16) -> Vec<IpAddr> {
    let mut checks = JoinSet::new();
    for address in addresses.iter().copied() {
        checks.spawn(async move {
            let connected = timeout(TIMEOUT, TcpStream::connect(SocketAddr::new(address, port))).await;
            let answered = connected.is_ok_and(|result| match result {
                Ok(_) => true,
                Err(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
            });
            answered.then_some(address)
        });
    }
    let mut reachable: Vec<IpAddr> = checks.join_all().await.into_iter().flatten().collect();
    reachable.sort_unstable();
    reachable
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_accepts_or_refuses_is_reachable() {
        let listener = TcpListener::bind("127.0.0.2:0").await.expect("loopback has the address");
        let port = listener.local_addr().expect("it is bound").port();
        // 127.0.0.3 refuses; there is no TCP to a broadcast address.
        let all: Vec<IpAddr> =
            ["127.0.0.3", "127.0.0.2", "255.255.255.255"].map(|text| text.parse().expect("it is one")).into();
        assert_eq!(answers(&all, port).await, [all[1], all[0]]);
    }

    #[test]
    fn only_addresses_are_checked() {
        let spec = json!({"checkedAddresses": ["192.0.2.1", "n2", 7, "2001:db8::1"]});
        let expected: [IpAddr; 2] = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().expect("it is one"));
        assert_eq!((addresses(&spec), addresses(&json!({}))), (expected.to_vec(), vec![]));
    }
}
