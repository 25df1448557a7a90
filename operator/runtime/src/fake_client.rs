//! A client for tests: a function answers its requests.

use std::convert::Infallible;

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use serde_json::Value;

/// A client whose requests go to `answer`: the method, the path, and the object in the body (null if the body is empty or not
/// JSON). `answer` returns the status and the object of the response.
pub fn client<F>(answer: impl Fn(Method, String, Value) -> F + Clone + Send + 'static) -> Client
where
    F: Future<Output = (StatusCode, Value)> + Send,
{
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = answer.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.expect("a body").to_bytes();
            let object = serde_json::from_slice(&body).unwrap_or_default();
            let (code, object) = answer(parts.method, parts.uri.path().to_owned(), object).await;
            let mut response = Response::new(Body::from(object.to_string().into_bytes()));
            *response.status_mut() = code;
            Ok::<_, Infallible>(response)
        }
    });
    Client::new(service, "default")
}
