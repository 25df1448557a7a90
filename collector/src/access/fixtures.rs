//! An API server for tests.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use kube::Client;
use podtap_runtime::{
    fake_client,
    http::{Method, StatusCode},
};
use serde_json::{Value, json};

/// Knows tokens, and what their users may read; `writer` may also write there. Clones are the same.
#[derive(Clone, Default)]
pub struct ApiServer {
    /// Namespaces by token; `*`: all of them.
    rights: Arc<BTreeMap<&'static str, &'static [&'static str]>>,
    /// Reviews that were asked for: their specs.
    pub asked: Arc<Mutex<Vec<Value>>>,
}

impl ApiServer {
    pub fn new(rights: &[(&'static str, &'static [&'static str])]) -> Self {
        Self { rights: Arc::new(rights.iter().copied().collect()), asked: Arc::default() }
    }

    pub fn client(&self) -> Client {
        let server = self.clone();
        fake_client::client(move |method, path, review| {
            let server = server.clone();
            async move { server.review(&method, &path, review) }
        })
    }

    fn review(&self, method: &Method, path: &str, mut review: Value) -> (StatusCode, Value) {
        assert_eq!(method, Method::POST);
        let spec = &review["spec"];
        let status = match path {
            "/apis/authentication.k8s.io/v1/tokenreviews" => {
                let token = spec["token"].as_str().expect("a token");
                // The user is called like the token. The API server tells the user of an expired token, too.
                let user = json!({"username": token, "uid": "7", "groups": ["team"], "extra": {"node": ["n1"]}});
                json!({"authenticated": self.rights.contains_key(token), "user": user})
            }
            "/apis/authorization.k8s.io/v1/subjectaccessreviews" => {
                let attributes = &spec["resourceAttributes"];
                assert_eq!(
                    (&attributes["group"], &attributes["resource"], &attributes["subresource"]),
                    (&json!("podtap.dev"), &json!("podtaps"), &json!("map"))
                );
                let (namespace, user) = (attributes["namespace"].as_str().unwrap_or("*"), spec["user"].as_str());
                let namespaces = user.and_then(|user| self.rights.get(user)).expect("a user of a token");
                let may_do = attributes["verb"] == "get" || attributes["verb"] == "create" && user == Some("writer");
                json!({"allowed": may_do && (namespaces.contains(&namespace) || namespaces.contains(&"*"))})
            }
            other => panic!("{other} was asked for"),
        };
        self.asked.lock().expect("no thread panics").push(spec.clone());
        review["status"] = status;
        (StatusCode::CREATED, review)
    }

    /// How many reviews were asked for since this was called last.
    pub fn count(&self) -> usize {
        self.asked.lock().expect("no thread panics").drain(..).count()
    }
}
