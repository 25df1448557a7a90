use std::{
    future::ready,
    sync::{Arc, Mutex},
};

use http::StatusCode;
use podtap_model::Renewal;
use podtap_runtime::{clock::ServerClock, fake_client, http::Health};
use serde_json::{Value, json};
use tokio::{sync::watch, time::sleep};

use super::*;
use crate::helper_client::Channels;

/// UID of the `NodeTap` that the API server has, or none; an error if it is down.
type ApiServer = Arc<Mutex<Result<Option<&'static str>, ()>>>;

/// The renewals of the node n1, with a tap-helper that is not connected.
struct Fixture {
    server: ApiServer,
    requests: Arc<Mutex<usize>>,
    client: Arc<HelperClient>,
    channels: Channels,
    renewals: watch::Receiver<Option<Renewal>>,
}

fn fixture() -> Fixture {
    let server: ApiServer = Arc::new(Mutex::new(Ok(Some("a"))));
    let requests = Arc::new(Mutex::new(0));
    let (answers, counter) = (Arc::clone(&server), Arc::clone(&requests));
    let api = fake_client::client(move |method, path, _| {
        *counter.lock().expect("no panic before") += 1;
        assert_eq!((method.as_str(), path.as_str()), ("GET", "/apis/podtap.dev/v1alpha1/nodetaps/n1"));
        ready(match *answers.lock().expect("no panic before") {
            Ok(Some(uid)) => (StatusCode::OK, json!({"metadata": {"name": "n1", "uid": uid}})),
            Ok(None) => failure(StatusCode::NOT_FOUND, "NotFound"),
            Err(()) => failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        })
    });
    let (client, channels) = HelperClient::without_connection(ServerClock::default(), Health::new(Duration::MAX));
    let client = Arc::new(client);
    let renewals = channels.renewals.clone();
    let task = Arc::clone(&client);
    tokio::spawn(async move { run(Api::all(api), "n1", &task).await });
    Fixture { server, requests, client, channels, renewals }
}

fn failure(code: StatusCode, reason: &str) -> (StatusCode, Value) {
    (code, json!({"kind": "Status", "status": "Failure", "code": code.as_u16(), "reason": reason}))
}

impl Fixture {
    fn server_has(&self, state: Result<Option<&'static str>, ()>) {
        *self.server.lock().expect("no panic before") = state;
    }

    /// An update with one sender and an orphan timeout of 80 seconds.
    fn apply(&self, uid: &str) {
        let spec = json!({"senders": [{"tap": "t"}], "orphanTimeoutSeconds": 80});
        self.client.apply(DesiredUpdate { uid: Some(uid.into()), generation: 1, now: None, spec });
    }

    /// The UIDs of the renewals during this time. No two of them are less than a second apart.
    async fn renewed(&mut self, time: Duration) -> Vec<String> {
        let end = Instant::now() + time;
        let mut uids = Vec::new();
        while Instant::now() < end {
            if self.renewals.has_changed().expect("the client exists") {
                uids.extend(self.renewals.borrow_and_update().as_ref().map(|renewal| renewal.uid.clone()));
            }
            sleep(Duration::from_millis(500)).await;
        }
        uids
    }

    fn requests(&self) -> usize {
        std::mem::take(&mut self.requests.lock().expect("no panic before"))
    }
}

#[tokio::test(start_paused = true)]
async fn mirrors_are_renewed_at_once_and_then_well_before_they_stop() {
    let mut fixture = fixture();
    fixture.apply("a");
    assert_eq!(fixture.renewed(Duration::from_secs(1)).await, ["a"]);
    let renewed = fixture.renewed(Duration::from_secs(800)).await.len();
    assert!((80..130).contains(&renewed), "{renewed} renewals in ten times the timeout");
}

#[tokio::test(start_paused = true)]
async fn the_default_timeout_costs_the_api_server_ten_requests_an_hour() {
    let mut fixture = fixture();
    let spec = json!({"senders": [{"tap": "t"}]});
    fixture.client.apply(DesiredUpdate { uid: Some("a".into()), generation: 1, now: None, spec });
    fixture.renewed(Duration::from_secs(36_000)).await;
    assert!((80..130).contains(&fixture.requests()), "in ten hours");
}

#[tokio::test(start_paused = true)]
async fn without_confirmation_nothing_is_renewed() {
    for state in [Err(()), Ok(None), Ok(Some("another"))] {
        let mut fixture = fixture();
        fixture.server_has(state);
        fixture.apply("a");
        assert_eq!(fixture.renewed(Duration::from_secs(160)).await, [""; 0], "{state:?}");
        assert!((10..50).contains(&fixture.requests()), "{state:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_back_confirms_before_the_timeout() {
    let mut fixture = fixture();
    fixture.apply("a");
    fixture.renewed(Duration::from_secs(20)).await;
    fixture.server_has(Err(()));
    fixture.renewed(Duration::from_secs(60)).await;
    fixture.server_has(Ok(Some("a")));
    assert_ne!(fixture.renewed(Duration::from_secs(10)).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_new_connection_and_a_new_object_are_confirmed_at_once() {
    let mut fixture = fixture();
    fixture.apply("a");
    fixture.renewed(Duration::from_secs(1)).await;
    fixture.channels.connections.send_modify(|number| *number += 1);
    assert_eq!(fixture.renewed(Duration::from_secs(1)).await, ["a"]);
    fixture.server_has(Ok(Some("b")));
    fixture.apply("b");
    assert_eq!(fixture.renewed(Duration::from_secs(1)).await, ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_node_without_senders_sends_no_requests() {
    let mut fixture = fixture();
    fixture.renewed(Duration::from_secs(600)).await;
    let spec = json!({"senders": [], "receivers": [{}]});
    fixture.client.apply(DesiredUpdate { uid: Some("a".into()), generation: 1, now: None, spec });
    fixture.renewed(Duration::from_secs(600)).await;
    fixture.client.apply(crate::node_tap::remove_everything());
    fixture.renewed(Duration::from_secs(600)).await;
    assert_eq!(fixture.requests(), 0);
}
