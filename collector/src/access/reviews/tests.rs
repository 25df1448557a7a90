use std::{
    future::pending,
    sync::atomic::{AtomicUsize, Ordering},
};

use podtap_runtime::{fake_client, http::StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, advance, sleep};

use super::*;
use crate::access::{answers::AGE, fixtures::ApiServer};

fn map(namespaces: &[&str]) -> Access {
    let names = namespaces.iter().map(|name| (*name).to_owned()).collect();
    Access::Map(Verb::Get, if namespaces == ["*"] { Namespaces::All } else { Namespaces::Only(names) })
}

fn server() -> ApiServer {
    ApiServer::new(&[("admin", &["*"]), ("alice", &["shop", "team"]), ("bob", &[])])
}

/// Of which namespace a right is missing.
fn missing(result: Result<(), Refusal>) -> Option<String> {
    match result {
        Err(Refusal::Forbidden { namespace, .. }) => namespace.or(Some("*".to_owned())),
        result => panic!("{result:?}"),
    }
}

#[tokio::test]
async fn a_client_needs_the_right_to_each_namespace() {
    let reviews = Reviews::new(server().client());
    for access in [Access::AnyUser, map(&["*"]), map(&["shop"]), map(&["bank", "shop"])] {
        reviews.check("admin", &access).await.expect("an administrator may");
    }
    for access in [Access::AnyUser, map(&["shop"]), map(&["shop", "team"])] {
        reviews.check("alice", &access).await.expect("she may");
    }
    for (user, namespaces, lacks) in [
        ("alice", &["*"][..], "*"),
        ("alice", &["bank"], "bank"),
        ("alice", &["shop", "bank"], "bank"),
        ("bob", &["shop"], "shop"),
        ("bob", &["*"], "*"),
    ] {
        assert_eq!(
            missing(reviews.check(user, &map(namespaces)).await).as_deref(),
            Some(lacks),
            "{user} {namespaces:?}"
        );
    }
    reviews.check("bob", &Access::AnyUser).await.expect("everyone with a token may");
    let query = Access::Map(Verb::Create, Namespaces::All);
    assert_eq!(missing(reviews.check("admin", &query).await).as_deref(), Some("*"), "the verb counts");
    for access in [Access::AnyUser, map(&["shop"])] {
        let refusal = reviews.check("mallory", &access).await.expect_err("the token is of none");
        assert!(matches!(refusal, Refusal::Unauthenticated), "{refusal:?}");
    }
}

#[tokio::test]
async fn the_api_server_decides_about_all_it_knows_of_the_user() {
    let server = server();
    let reviews = Reviews::new(server.client());
    reviews.check("alice", &map(&["shop"])).await.expect("she may");
    let expected = json!([
        {"token": "alice"},
        {"user": "alice", "uid": "7", "groups": ["team"], "extra": {"node": ["n1"]}, "resourceAttributes":
            {"group": "podtap.dev", "resource": "podtaps", "subresource": "map", "verb": "get", "namespace": "shop"}},
    ]);
    assert_eq!(Value::from(server.asked.lock().expect("no thread panics").clone()), expected);
}

#[tokio::test(start_paused = true)]
async fn answers_are_used_again_for_a_short_time() {
    let server = server();
    let reviews = Reviews::new(server.client());
    for (user, namespaces, expected) in
        [("alice", &["shop", "team"][..], 3), ("alice", &["bank"], 1), ("bob", &["shop"], 2), ("mallory", &["shop"], 1)]
    {
        let first = reviews.check(user, &map(namespaces)).await.map_err(|refusal| refusal.to_string());
        assert_eq!(server.count(), expected, "{user}");
        let second = reviews.check(user, &map(namespaces)).await.map_err(|refusal| refusal.to_string());
        assert_eq!((server.count(), second), (0, first), "{user}");
    }
    advance(AGE).await;
    reviews.check("alice", &map(&["shop", "team"])).await.expect("she may");
    assert_eq!(server.count(), 3);
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_nothing_is_allowed_and_nothing_is_remembered() {
    for (status, answer) in [
        (StatusCode::INTERNAL_SERVER_ERROR, json!({})),
        (StatusCode::FORBIDDEN, json!({"kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden"})),
        (StatusCode::CREATED, json!({"spec": {}})),
        (StatusCode::CREATED, json!({"spec": {}, "status": {"authenticated": "yes"}})),
    ] {
        let count = Arc::new(AtomicUsize::new(0));
        let asked = Arc::clone(&count);
        let client = fake_client::client(move |_, _, _| {
            asked.fetch_add(1, Ordering::Relaxed);
            let answer = answer.clone();
            async move { (status, answer) }
        });
        let reviews = Reviews::new(client);
        for number in 1..=2 {
            let refusal = reviews.check("admin", &Access::AnyUser).await.expect_err("it is not known who it is");
            assert!(matches!(refusal, Refusal::Unavailable(_)), "{refusal:?}");
            assert_eq!(count.load(Ordering::Relaxed), number);
        }
    }
    let start = Instant::now();
    let reviews = Reviews::new(fake_client::client(|_, _, _| pending()));
    let refusal = reviews.check("admin", &Access::AnyUser).await.expect_err("there is no answer");
    assert!(matches!(refusal, Refusal::Unavailable(_)) && start.elapsed() == PATIENCE, "{refusal:?}");
}

/// The token is valid, but nothing tells what its user may do.
#[tokio::test(start_paused = true)]
async fn without_an_answer_about_a_right_nothing_is_allowed() {
    for answer in [
        Some((StatusCode::INTERNAL_SERVER_ERROR, json!({}))),
        Some((StatusCode::CREATED, json!({"spec": {}}))),
        Some((StatusCode::CREATED, json!({"spec": {}, "status": {}}))),
        None,
    ] {
        let client = fake_client::client(move |_, path, _| {
            let answer = answer.clone();
            async move {
                if path.ends_with("/tokenreviews") {
                    let status = json!({"authenticated": true, "user": {"username": "admin"}});
                    return (StatusCode::CREATED, json!({"spec": {}, "status": status}));
                }
                match answer {
                    Some(answer) => answer,
                    None => pending().await,
                }
            }
        });
        let reviews = Reviews::new(client);
        reviews.check("admin", &Access::AnyUser).await.expect("the token is valid");
        for access in [map(&["*"]), map(&["shop"])] {
            reviews.check("admin", &access).await.expect_err("it is not known whether this may be read");
        }
    }
}

#[tokio::test]
async fn an_authenticator_that_is_down_is_asked_again() {
    let client = fake_client::client(|_, _, _| async {
        let status = json!({"authenticated": false, "error": "the webhook does not answer"});
        (StatusCode::CREATED, json!({"spec": {}, "status": status}))
    });
    let reviews = Reviews::new(client);
    reviews.check("admin", &Access::AnyUser).await.expect_err("nothing is known of it");
    assert!(reviews.users.get(&Digest::try_from(digest(&SHA256, b"admin").as_ref()).expect("32 bytes")).is_none());
}

#[tokio::test(start_paused = true)]
async fn requests_at_the_same_time_are_bounded() {
    let (now, most, all) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counters = (Arc::clone(&now), Arc::clone(&most), Arc::clone(&all));
    let client = fake_client::client(move |_, _, review| {
        let (now, most, all) = counters.clone();
        async move {
            all.fetch_add(1, Ordering::Relaxed);
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            sleep(Duration::from_millis(10)).await;
            now.fetch_sub(1, Ordering::Relaxed);
            (StatusCode::CREATED, json!({"spec": review["spec"], "status": {"authenticated": true, "user": {}}}))
        }
    });
    let reviews = Reviews::new(client);
    let tokens: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    for refused in futures::future::join_all(tokens.iter().map(|token| reviews.check(token, &Access::AnyUser))).await {
        refused.expect("all tokens are valid");
    }
    assert_eq!((most.load(Ordering::Relaxed), all.swap(0, Ordering::Relaxed)), (REQUESTS, 40));
    let same = (0..40).map(|_| reviews.check("same", &Access::AnyUser));
    for refused in futures::future::join_all(same).await {
        refused.expect("it is valid");
    }
    assert!(all.load(Ordering::Relaxed) <= REQUESTS, "what waited is answered by what was asked meanwhile");
}
