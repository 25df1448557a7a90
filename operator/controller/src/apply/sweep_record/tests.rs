use http::StatusCode;
use serde_json::json;

use super::*;
use crate::fake_api::FakeApi;

const PATH: &str = "/api/v1/namespaces/podtap-system/configmaps/podtap-sweep";

fn record(api: &FakeApi) -> SweepRecord {
    SweepRecord::new(api.client(), "podtap-system")
}

fn nodes(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn stored(api: &FakeApi) -> serde_json::Value {
    api.get(PATH).expect("a record")["data"].clone()
}

#[tokio::test]
async fn an_installation_begins_once() {
    let api = FakeApi::default();
    let mut first = record(&api);
    assert_eq!(first.known(), None);
    first.begin(|| nodes(&["n1", "n2"]), async || Ok(())).await.expect("it is written");
    assert_eq!(first.known(), Some(&nodes(&["n1", "n2"])));
    assert_eq!(stored(&api), json!({"installation": "installation-1", "nodes": "n1 n2"}));
    first.write(nodes(&["n2"])).await.expect("it is written");
    first.write(nodes(&[])).await.expect("it is written");

    api.requests();
    first.write(nodes(&[])).await.expect("nothing to write");
    assert_eq!(api.requests(), [""; 0]);

    let mut next = record(&api);
    next.begin(|| panic!("nodes that came later are not swept"), async || Ok(())).await.expect("it is read");
    assert_eq!(next.known(), Some(&nodes(&[])));
}

/// The `ConfigMap` stays if only the release is uninstalled, and not its namespace.
#[tokio::test]
async fn another_installation_begins_again() {
    let api = FakeApi::default();
    api.put(
        PATH,
        &json!({"metadata": {"name": "podtap-sweep"}, "data": {"installation": "installation-0", "nodes": ""}}),
    );
    let mut record = record(&api);
    let mut forgotten = false;
    let forget = async || {
        forgotten = true;
        Ok(())
    };
    record.begin(|| nodes(&["n1"]), forget).await.expect("it is written");
    assert!(forgotten, "what the other one has observed");
    assert_eq!(stored(&api), json!({"installation": "installation-1", "nodes": "n1"}));
}

#[tokio::test]
async fn after_an_error_nothing_is_known() {
    let api = FakeApi::default();
    let mut record = record(&api);
    for refused in ["GET", "selfsubjectreviews", "POST /api/v1/namespaces"] {
        api.refuse(refused, StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
        record.begin(|| nodes(&["n1"]), async || Ok(())).await.expect_err(refused);
        assert_eq!(record.known(), None);
        api.refuse_nothing();
    }
    record.begin(|| nodes(&["n1"]), async || Ok(())).await.expect("it is written");
    // Another replica has written it.
    api.put(
        PATH,
        &json!({"metadata": {"name": "podtap-sweep"}, "data": {"installation": "installation-1", "nodes": ""}}),
    );
    api.refuse("PUT", StatusCode::CONFLICT, "Conflict");
    record.write(nodes(&[])).await.expect_err("the newer one is not overwritten");
    api.refuse_nothing();
    record.begin(|| panic!("it is known"), async || Ok(())).await.expect("it is read");
    assert_eq!(record.known(), Some(&nodes(&[])));
}
