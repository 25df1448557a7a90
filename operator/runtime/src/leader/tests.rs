use std::{
    future::ready,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::*;
use crate::fake_client;

/// An API server with one lease and the optimistic lock of the real one.
#[derive(Clone, Default)]
struct FakeApi(Arc<State>);

#[derive(Default)]
struct State {
    lease: Mutex<Option<Value>>,
    version: AtomicU32,
    down: AtomicBool,
    forbidden: AtomicBool,
}

impl FakeApi {
    fn client(&self) -> Client {
        let api = self.clone();
        fake_client::client(move |method, _, object| ready(api.answer(&method, object)))
    }

    fn answer(&self, method: &Method, mut object: Value) -> (StatusCode, Value) {
        // kube looks at the reason only.
        let failure = |code: StatusCode, reason: &str| {
            (code, json!({"kind": "Status", "status": "Failure", "code": code.as_u16(), "reason": reason}))
        };
        if self.0.down.load(Ordering::Relaxed) {
            return failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
        }
        if self.0.forbidden.load(Ordering::Relaxed) {
            return failure(StatusCode::FORBIDDEN, "Forbidden");
        }
        let mut lease = self.0.lease.lock().expect("no panic before");
        match (method.as_str(), lease.as_ref()) {
            ("GET", Some(lease)) => return (StatusCode::OK, lease.clone()),
            ("GET" | "PUT", None) => return failure(StatusCode::NOT_FOUND, "NotFound"),
            ("POST", Some(_)) => return failure(StatusCode::CONFLICT, "AlreadyExists"),
            ("PUT", Some(lease)) if lease["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] => {
                return failure(StatusCode::CONFLICT, "Conflict");
            }
            _ => {}
        }
        object["metadata"]["resourceVersion"] = json!(self.0.version.fetch_add(1, Ordering::Relaxed).to_string());
        *lease = Some(object.clone());
        (StatusCode::OK, object)
    }

    fn lease(&self, identity: &str) -> Lease {
        Lease::new(self.client(), "podtap-system", "podtap-controller", identity)
    }

    fn holder(&self) -> String {
        let lease = self.0.lease.lock().expect("no panic before");
        lease.as_ref().expect("a lease")["spec"]["holderIdentity"].as_str().expect("a holder").to_owned()
    }

    fn write(&self, pointer: &str, value: Value) {
        let mut lease = self.0.lease.lock().expect("no panic before");
        let lease = lease.as_mut().expect("a lease");
        *lease.pointer_mut(pointer).expect("the field exists") = value;
        lease["metadata"]["resourceVersion"] = json!(self.0.version.fetch_add(1, Ordering::Relaxed).to_string());
    }
}

async fn within<T>(seconds: u64, future: impl Future<Output = T>) -> Option<T> {
    timeout(Duration::from_secs(seconds), future).await.ok()
}

#[tokio::test(start_paused = true)]
async fn the_second_candidate_waits_while_the_first_renews() {
    let api = FakeApi::default();
    let held = within(1, api.lease("a").acquire()).await.expect("at once").expect("leads");
    assert_eq!(api.holder(), "a");
    let mut second = api.lease("b");
    assert!(within(300, second.acquire()).await.is_none(), "two leaders");
    assert!(within(1, held.lost()).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_released_lease_is_taken_at_the_next_read() {
    let api = FakeApi::default();
    let held = api.lease("a").acquire().await.expect("leads");
    let mut second = api.lease("b");
    let standby = tokio::spawn(async move { second.acquire().await.map(std::mem::forget) });
    sleep(Duration::from_secs(10)).await;
    held.release().await;
    within(3, standby).await.expect("soon").expect("no panic").expect("leads");
    assert_eq!(api.holder(), "b");
    assert_eq!(api.0.lease.lock().expect("no panic before").as_ref().expect("a lease")["spec"]["leaseTransitions"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_in_time() {
    let api = FakeApi::default();
    let held = api.lease("a").acquire().await.expect("leads");
    api.0.down.store(true, Ordering::Relaxed);
    assert!(within(7, held.lost()).await.is_none(), "gave up too early");
    within(4, held.lost()).await.expect("gave up before the lease ran out");
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_is_survived() {
    let api = FakeApi::default();
    let held = api.lease("a").acquire().await.expect("leads");
    for _ in 0..5 {
        api.0.down.store(true, Ordering::Relaxed);
        // Plus up to 2.4 s since the last renewal and 2.4 s until the next one: less than the deadline of 10 s.
        sleep(Duration::from_secs(5)).await;
        api.0.down.store(false, Ordering::Relaxed);
        assert!(within(4, held.lost()).await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn an_edited_lease_is_kept_and_a_taken_one_is_lost() {
    let api = FakeApi::default();
    let held = api.lease("a").acquire().await.expect("leads");
    // Someone edits the object: the next renewal conflicts and is repeated.
    api.write("/spec/leaseTransitions", json!(0));
    assert!(within(60, held.lost()).await.is_none());
    api.write("/spec/holderIdentity", json!("b"));
    within(4, held.lost()).await.expect("notices");
    assert_eq!(api.holder(), "b");
}

#[tokio::test(start_paused = true)]
async fn an_outage_at_the_start_is_retried() {
    let api = FakeApi::default();
    api.0.down.store(true, Ordering::Relaxed);
    let mut lease = api.lease("a");
    assert!(within(60, lease.acquire()).await.is_none());
    api.0.down.store(false, Ordering::Relaxed);
    within(20, lease.acquire()).await.expect("soon").expect("leads").release().await;
}

#[tokio::test(start_paused = true)]
async fn missing_permissions_are_an_error_that_names_the_lease() {
    let api = FakeApi::default();
    api.0.forbidden.store(true, Ordering::Relaxed);
    let error = within(1, api.lease("a").acquire()).await.expect("at once").err().expect("an error");
    assert!(error.to_string().contains("podtap-system/podtap-controller"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_leadership_is_not_renewed() {
    let api = FakeApi::default();
    drop(api.lease("a").acquire().await.expect("leads"));
    let before = api.0.version.load(Ordering::Relaxed);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(api.0.version.load(Ordering::Relaxed), before);
}
