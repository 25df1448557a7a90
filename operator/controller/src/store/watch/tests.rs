use std::future::pending;

use futures::stream;
use kube::core::Status;
use serde_json::json;

use super::*;
use crate::fixtures::object;

fn refused(code: u16) -> watcher::Result<Event<ServiceCIDR>> {
    let status = Status { code, ..Status::default() };
    Err(watcher::Error::InitialListFailed(kube::Error::Api(status.into())))
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_not_served_is_empty_until_it_is() {
    for code in [403, 404] {
        let (cache, changed) = (Cache::new(), Arc::new(Notify::new()));
        let object: ServiceCIDR = object(json!({"metadata": {"name": "k"}, "spec": {"cidrs": ["10.96.0.0/12", "?"]}}));
        let later = vec![Ok(Event::Init), Ok(Event::InitApply(object)), Ok(Event::InitDone)];
        let events = stream::iter([refused(code)]).chain(stream::iter(later)).chain(stream::once(pending()));
        let task = follow_if_served(events, cache.clone(), project_service_networks, Arc::clone(&changed));
        let task = tokio::spawn(task);
        cache.wait_until_synced().await;
        changed.notified().await;
        assert!(cache.list().is_empty());
        changed.notified().await;
        assert_eq!(cache.list()[0].object.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.96.0.0/12"]);
        task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn other_errors_are_waited_for() {
    let (cache, changed) = (Cache::new(), Arc::new(Notify::new()));
    let events = stream::iter([refused(500)]).chain(stream::once(pending()));
    let task = tokio::spawn(follow_if_served(events, cache.clone(), project_service_networks, changed));
    let synced = tokio::time::timeout(Duration::from_secs(3600), cache.wait_until_synced()).await;
    assert!(synced.is_err(), "there may be some");
    task.abort();
}
