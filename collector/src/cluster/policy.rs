//! Whether the `PodTapPolicy` lets flows and frames be sent to an address, for the programs of the pod that send them and have no token.
//! [`podtap_runtime::permit`] has their questions.

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    time::Duration,
};

use futures::StreamExt as _;
use ipnet::IpNet;
use kube::{
    Api, Client,
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{WatchStreamExt as _, watcher::watch_object},
};
use podtap_runtime::socket;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tracing::{debug, warn};

use super::inventory::Inventory;

/// Only the object of this name counts.
const NAME: &str = "default";
/// How long a question may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest question: an IPv6 address has up to 45 characters.
const LONGEST: u64 = 64;

/// The networks outside of the cluster that the policy allows.
#[derive(Default)]
pub struct Policy {
    allowed: RefCell<Option<Vec<IpNet>>>,
    /// Whether all addresses of the cluster are known.
    is_synced: Cell<bool>,
}

impl Policy {
    /// Follows the policy.
    pub async fn follow(&self, client: Client) {
        let kind = GroupVersionKind::gvk("podtap.dev", "v1alpha1", "PodTapPolicy");
        let resource = ApiResource::from_gvk_with_plural(&kind, "podtappolicies");
        let api: Api<DynamicObject> = Api::all_with(client, &resource);
        let mut policies = std::pin::pin!(watch_object(api, NAME).default_backoff());
        while let Some(policy) = policies.next().await {
            match policy {
                Ok(policy) => self.set(policy.as_ref()),
                Err(error) => warn!(%error, "the watch of the policy was interrupted; restarting it"),
            }
        }
    }

    /// From now on, all addresses of the cluster are known.
    pub fn set_synced(&self) {
        self.is_synced.set(true);
    }

    /// Without a policy, nothing is allowed. One that cannot be read changes nothing.
    fn set(&self, policy: Option<&DynamicObject>) {
        let allowed = policy.map(|policy| policy.data["spec"]["allowedExternalCIDRs"].clone()).unwrap_or_default();
        match serde_json::from_value::<Option<Vec<IpNet>>>(allowed) {
            Ok(allowed) => *self.allowed.borrow_mut() = Some(allowed.unwrap_or_default()),
            Err(error) => warn!(%error, "the policy's allowedExternalCIDRs cannot be read; the last ones count"),
        }
    }

    /// Answers questions.
    pub async fn serve(&self, listener: &UnixListener, inventory: &Inventory) {
        loop {
            let stream = socket::accept(|| listener.accept()).await;
            if !matches!(timeout(PATIENCE, self.answer(stream, inventory)).await, Ok(Ok(()))) {
                debug!("a question about the policy was not answered");
            }
        }
    }

    async fn answer(&self, mut stream: UnixStream, inventory: &Inventory) -> std::io::Result<()> {
        let (reader, mut writer) = stream.split();
        let mut question = String::new();
        BufReader::new(reader.take(LONGEST)).read_line(&mut question).await?;
        let answer = match question.trim_end().parse() {
            Ok(address) => self.check(address, inventory),
            Err(_) => Err(format!("{question:?} is no address")),
        };
        let answer = answer.map_or_else(|reason| format!("{reason}\n"), |()| "yes\n".to_owned());
        writer.write_all(answer.as_bytes()).await
    }

    /// Why nothing may be sent there. Addresses of pods and Services are the cluster's own.
    fn check(&self, address: IpAddr, inventory: &Inventory) -> Result<(), String> {
        let address = address.to_canonical();
        if address.is_loopback() || inventory.has_address(address) {
            return Ok(());
        }
        match &*self.allowed.borrow() {
            _ if !self.is_synced.get() => Err("the addresses of the cluster are not known yet".to_owned()),
            None => Err("the PodTapPolicy is not known yet".to_owned()),
            Some(allowed) if allowed.iter().any(|network| network.contains(&address)) => Ok(()),
            Some(_) => Err(format!(
                "the PodTapPolicy does not allow {address}, which is outside of the cluster: add it to allowedExternalCIDRs"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use podtap_runtime::http::Metrics;
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::service::{service, slice};

    fn policy(spec: &Value) -> DynamicObject {
        serde_json::from_value(json!({"metadata": {"name": NAME}, "spec": spec})).expect("an object")
    }

    fn inventory() -> Inventory {
        let inventory = Inventory::new(&Metrics::new());
        let object = json!({"metadata": {"namespace": "shop", "name": "web"},
            "spec": {"clusterIPs": ["10.96.0.5"], "externalIPs": ["198.51.100.1"]}});
        let object = serde_json::from_value(object).expect("a service");
        inventory.set_service(service(object));
        // Its endpoints are what the user who wrote it says.
        let object =
            json!({"metadata": {"namespace": "shop", "name": "outside"}, "spec": {"clusterIPs": ["10.96.0.9"]}});
        let object = serde_json::from_value(object).expect("a service");
        inventory.set_service(service(object));
        let object = json!({"metadata": {"namespace": "shop", "name": "outside-1", "labels": {"kubernetes.io/service-name": "outside"}},
            "addressType": "IPv4", "endpoints": [{"addresses": ["203.0.113.7"]}]});
        let (key, name, slice) = slice(serde_json::from_value(object).expect("a slice")).expect("it is of a service");
        inventory.set_slice(&key, &name, Some(slice));
        inventory
    }

    fn is_allowed(policy: &Policy, address: &str) -> Result<(), String> {
        policy.check(address.parse().expect("an address"), &inventory())
    }

    #[test]
    fn what_is_outside_of_the_cluster_needs_the_policy() {
        let current = Policy::default();
        current.set(None);
        for (address, expected) in [("127.0.0.1", true), ("192.0.2.7", false)] {
            assert_eq!(is_allowed(&current, address).is_ok(), expected, "{address}, while others are not known yet");
        }
        let current = Policy::default();
        current.set_synced();
        assert!(is_allowed(&current, "192.0.2.7").expect_err("it is not known").contains("not known yet"));
        current.set(None);
        for address in ["127.0.0.1", "::1", "10.96.0.5", "::ffff:10.96.0.5"] {
            assert_eq!(is_allowed(&current, address), Ok(()), "{address}");
        }
        // Who may create a Service chooses its external addresses.
        for address in ["192.0.2.7", "2001:db8::7", "10.96.0.6", "10.96.0.9", "198.51.100.1"] {
            let reason = is_allowed(&current, address).expect_err(address);
            assert!(reason.contains(address) && reason.contains("allowedExternalCIDRs"), "{reason}");
        }
        current.set(Some(&policy(&json!({"allowedExternalCIDRs": ["192.0.2.0/24", "2001:db8::7/128"]}))));
        for (address, expected) in
            [("192.0.2.7", true), ("192.0.3.7", false), ("2001:db8::7", true), ("2001:db8::8", false)]
        {
            assert_eq!(is_allowed(&current, address).is_ok(), expected, "{address}");
        }
        current.set(Some(&policy(&json!({"allowedExternalCIDRs": ["192.0.2"]}))));
        assert_eq!(is_allowed(&current, "192.0.2.7"), Ok(()));
        current.set(Some(&policy(&json!({}))));
        assert!(is_allowed(&current, "192.0.2.7").is_err());
    }

    #[tokio::test]
    async fn a_question_is_a_line() {
        let (client, server) = UnixStream::pair().expect("sockets");
        let current = Policy::default();
        let inventory = inventory();
        let asked = async {
            let mut client = client;
            client.write_all(b"10.96.0.5\n").await.expect("it is connected");
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("text");
            answer
        };
        let answered = async {
            current.answer(server, &inventory).await.expect("it is connected");
        };
        assert_eq!(tokio::join!(asked, answered).0, "yes\n");
    }
}
