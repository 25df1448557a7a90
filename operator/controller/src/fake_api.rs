//! An API server for tests: stores objects by path, with versions, generations and finalizers like the real one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use http::{Method, StatusCode};
use kube::Client;
use serde_json::{Value, json};

use podtap_runtime::fake_client;
use tokio::time::sleep;

/// Clones share one store.
#[derive(Clone, Default)]
pub struct FakeApi(Arc<Mutex<State>>);

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is refused, and changes nothing.
    Refused(StatusCode, &'static str),
    /// It is carried out, and the answer is lost.
    AnswerLost,
    /// The client dies before it sends the request, and sends no other one.
    DiesBefore,
    /// The client dies after it has sent the request.
    DiesAfter,
}

type Interference = Box<dyn FnOnce(&mut Value) + Send>;

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    /// The requests, as `METHOD path`.
    requests: Vec<String>,
    /// Requests that contain the text are answered with this error.
    refusals: Vec<(String, StatusCode, &'static str)>,
    /// Applied to the object just before the next request that contains the text.
    interferences: Vec<(String, Interference)>,
    /// Requests that contain the text take this long.
    delays: Vec<(String, Duration)>,
    /// What happens to a request, and how many are answered before it.
    fault: Option<(usize, Fault)>,
    /// The client has died.
    is_dead: bool,
}

impl FakeApi {
    pub fn client(&self) -> Client {
        let api = self.clone();
        fake_client::client(move |method, path, object| {
            let api = api.clone();
            async move {
                let delay = api.state().delay(&method, &path);
                if !delay.is_zero() {
                    sleep(delay).await;
                }
                api.state().answer(&method, &path, object)
            }
        })
    }

    /// Stores an object, as another client would.
    pub fn put(&self, path: &str, object: &impl serde::Serialize) {
        let mut state = self.state();
        let object = serde_json::to_value(object).expect("it can be written");
        state.store(path, object);
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.state().objects.get(path).cloned()
    }

    /// All objects whose path contains `part`.
    pub fn list(&self, part: &str) -> Vec<(String, Value)> {
        let state = self.state();
        state.objects.iter().filter(|(path, _)| path.contains(part)).map(|(p, o)| (p.clone(), o.clone())).collect()
    }

    pub fn remove(&self, path: &str) {
        self.state().objects.remove(path);
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
    }

    /// Requests that contain `text` are refused from now on.
    pub fn refuse(&self, text: &str, code: StatusCode, reason: &'static str) {
        self.state().refusals.push((text.to_owned(), code, reason));
    }

    pub fn refuse_nothing(&self) {
        self.state().refusals.clear();
    }

    /// Requests that contain `text` take this long from now on, as with an admission webhook that is slow.
    pub fn delay(&self, text: &str, delay: Duration) {
        self.state().delays.push((text.to_owned(), delay));
    }

    /// Another client applies `change` to the object just before the next request that contains `text`.
    pub fn interfere(&self, text: &str, change: impl FnOnce(&mut Value) + Send + 'static) {
        self.state().interferences.push((text.to_owned(), Box::new(change)));
    }

    /// After `requests` more, something happens to one.
    pub fn fail(&self, requests: usize, fault: Fault) {
        self.state().fault = Some((requests, fault));
    }

    /// Whether the request of [`fail`](Self::fail) has come.
    pub fn has_failed(&self) -> bool {
        self.state().fault.is_none()
    }

    /// Whether the client has died. Another one can send requests from now on.
    pub fn take_death(&self) -> bool {
        std::mem::take(&mut self.state().is_dead)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic before")
    }
}

fn failure(code: StatusCode, reason: &str) -> (StatusCode, Value) {
    let message = format!("refused: {reason}");
    (code, json!({"kind": "Status", "status": "Failure", "code": code.as_u16(), "reason": reason, "message": message}))
}

/// A JSON patch (RFC 6902) that replaces members, as a merge patch; any other body as it is.
fn as_merge_patch(body: Value) -> Value {
    let Value::Array(operations) = body else { return body };
    let mut object = json!({});
    for operation in operations {
        let path = operation["path"].as_str().expect("a path");
        *path.split('/').skip(1).fold(&mut object, |parent, name| &mut parent[name]) = operation["value"].clone();
    }
    object
}

impl State {
    fn delay(&self, method: &Method, path: &str) -> Duration {
        let request = format!("{method} {path}");
        self.delays.iter().find(|(text, _)| request.contains(text)).map_or(Duration::ZERO, |(_, delay)| *delay)
    }

    fn answer(&mut self, method: &Method, path: &str, body: Value) -> (StatusCode, Value) {
        let body = as_merge_patch(body);
        // A creation with a name counts as a request for the object.
        let name = body.pointer("/metadata/name").and_then(Value::as_str).filter(|_| *method == Method::POST);
        let own = name.map_or(path.trim_end_matches("/status").to_owned(), |name| format!("{path}/{name}"));
        let request = format!("{method} {}", if name.is_some() { &own } else { path });
        let refusal = self.refusals.iter().find(|(text, ..)| request.contains(text)).cloned();
        if self.is_dead {
            return failure(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable");
        }
        self.requests.push(request.clone());
        match self.fault.take() {
            Some((0, fault)) => return self.answer_with(fault, method, path, body),
            Some((more, fault)) => self.fault = Some((more - 1, fault)),
            None => {}
        }
        if let Some((_, code, reason)) = refusal {
            return failure(code, reason);
        }
        if let Some(index) = self.interferences.iter().position(|(text, _)| request.contains(text)) {
            let (_, change) = self.interferences.remove(index);
            let mut object = self.objects.get(&own).cloned().unwrap_or_default();
            change(&mut object);
            self.store(&own, object);
        }
        match *method {
            // The API server answers, and stores nothing.
            Method::POST if path.ends_with("/selfsubjectreviews") => {
                (StatusCode::CREATED, json!({"metadata": {}, "status": {"userInfo": {"uid": "installation-1"}}}))
            }
            Method::POST => {
                let mut body = body;
                if let Some(prefix) = body["metadata"]["generateName"].as_str() {
                    body["metadata"]["name"] = json!(format!("{prefix}{}", self.version));
                }
                let name = body.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
                let path = format!("{path}/{name}");
                if self.objects.contains_key(&path) {
                    return failure(StatusCode::CONFLICT, "AlreadyExists");
                }
                (StatusCode::CREATED, self.store(&path, body))
            }
            Method::DELETE => match self.objects.remove(&own) {
                Some(object) => (StatusCode::OK, object),
                None => failure(StatusCode::NOT_FOUND, "NotFound"),
            },
            _ => match self.objects.get(&own).cloned() {
                None if *method == Method::PATCH && body.get("kind").is_some() => {
                    (StatusCode::CREATED, self.store(&own, body))
                }
                None => failure(StatusCode::NOT_FOUND, "NotFound"),
                Some(object) if *method == Method::GET => (StatusCode::OK, object),
                Some(object) => self.change(method, &own, path != own, object, &body),
            },
        }
    }

    fn answer_with(&mut self, fault: Fault, method: &Method, path: &str, body: Value) -> (StatusCode, Value) {
        if matches!(fault, Fault::AnswerLost | Fault::DiesAfter) {
            self.answer(method, path, body);
        }
        self.is_dead = matches!(fault, Fault::DiesBefore | Fault::DiesAfter);
        match fault {
            Fault::Refused(code, reason) => failure(code, reason),
            Fault::AnswerLost | Fault::DiesBefore | Fault::DiesAfter => failure(StatusCode::GATEWAY_TIMEOUT, "Timeout"),
        }
    }

    fn change(
        &mut self,
        method: &Method,
        path: &str,
        is_status: bool,
        mut object: Value,
        body: &Value,
    ) -> (StatusCode, Value) {
        for precondition in ["resourceVersion", "uid"] {
            let expected = body["metadata"].get(precondition).filter(|expected| !expected.is_null());
            if expected.is_some_and(|expected| *expected != object["metadata"][precondition]) {
                return failure(StatusCode::CONFLICT, "Conflict");
            }
        }
        if is_status {
            object["status"] = body["status"].clone();
        } else if *method == Method::PUT {
            object["data"] = body["data"].clone();
        } else {
            if let Some(spec) = body.get("spec") {
                object["spec"] = spec.clone();
            }
            if let Some(finalizers) = body["metadata"].get("finalizers") {
                object["metadata"]["finalizers"] = finalizers.clone();
            }
        }
        let finalizers = object["metadata"]["finalizers"].as_array().map_or(0, Vec::len);
        if object["metadata"].get("deletionTimestamp").is_some() && finalizers == 0 {
            self.objects.remove(path);
            return (StatusCode::OK, object);
        }
        (StatusCode::OK, self.store(path, object))
    }

    /// Stores an object. A write that changes nothing gets no new version.
    fn store(&mut self, path: &str, mut object: Value) -> Value {
        let before = self.objects.get(path);
        if before == Some(&object) {
            return object;
        }
        self.version += 1;
        let metadata = &mut object["metadata"];
        if metadata.get("uid").is_none() {
            metadata["uid"] = json!(format!("uid-{}", self.version));
        }
        metadata["resourceVersion"] = json!(self.version.to_string());
        let generation = before.and_then(|before| before["metadata"]["generation"].as_i64()).unwrap_or_default();
        if before.is_none_or(|before| before["spec"] != object["spec"]) {
            object["metadata"]["generation"] = json!(generation + 1);
        }
        self.objects.insert(path.to_owned(), object.clone());
        object
    }
}
