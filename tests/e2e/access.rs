//! The collector's API with the rights of a token.

use podtap_tests::{
    cluster::{Cluster, PODTAP_NAMESPACE, Sandbox},
    https::Certificate,
    wait::{PATIENCE, until},
};
use serde_json::{Value, json};

use crate::{
    map::{Forward, of_namespace, tap_all},
    scene::{address, set_values},
};

const SECRET: &str = "podtap-collector-tls";
const CLUSTER_READER: &str = "podtap-access-test";

/// The API over HTTPS, until this is dropped.
struct Exposed {
    lab: &'static Cluster,
    certificate: Certificate,
}

impl Exposed {
    fn new(lab: &'static Cluster) -> Self {
        let certificate = Certificate::new();
        let [cert, key] = [("cert", certificate.certificate()), ("key", certificate.key())]
            .map(|(option, file)| format!("--{option}={}", file.display()));
        lab.kubectl(&["-n", PODTAP_NAMESPACE, "create", "secret", "tls", SECRET, &cert, &key], "").expect("a Secret");
        let exposed = Self { lab, certificate };
        let values =
            format!("collector.enabled=true,collector.expose.enabled=true,collector.expose.tlsSecret={SECRET}");
        set_values(lab, &values).expect("helm works");
        exposed
    }
}

impl Drop for Exposed {
    fn drop(&mut self) {
        let delete =
            |arguments: &[&str]| self.lab.kubectl(&[&["delete", "--ignore-not-found"], arguments].concat(), "");
        for result in [
            set_values(self.lab, "collector.expose.enabled=false"),
            delete(&["-n", PODTAP_NAMESPACE, "secret", SECRET]),
            delete(&["clusterrolebinding", CLUSTER_READER]),
        ] {
            if let Err(message) = result {
                eprintln!("{message}");
            }
        }
    }
}

/// A server and a client that calls it; the tap of the namespace mirrors both.
fn calling(sandbox: &Sandbox) {
    tap_all(sandbox);
    sandbox.start("server", "n1", "server", "mkdir /w; hostname > /w/index.html; httpd -f -h /w -p 8080");
    call(sandbox, "client", &address(&sandbox.running("server")));
}

fn call(sandbox: &Sandbox, client: &str, server: &str) {
    let script = format!("while :; do wget -q -O /dev/null http://{server}:8080/; sleep 1; done");
    sandbox.start(client, "n2", "client", &script);
}

/// A token of a new account of the namespace, whose rights a binding grants.
fn token(sandbox: &Sandbox, account: &str, binding: &[&str]) -> String {
    let kubectl = |arguments: &[&str]| sandbox.kubectl(arguments, "").expect("an administrator may");
    kubectl(&["create", "serviceaccount", account]);
    if !binding.is_empty() {
        let subject = format!("--serviceaccount={}:{account}", sandbox.namespace());
        kubectl(&[&["create"], binding, &["--clusterrole=podtap-map-view", &subject]].concat());
    }
    kubectl(&["create", "token", account]).trim().to_owned()
}

#[test]
fn a_token_reads_the_map_of_the_namespaces_of_its_user() {
    let _alone = Cluster::alone();
    let one = Sandbox::alone("access");
    let two = one.another("access-two");
    let exposed = Exposed::new(one.lab());
    calling(&one);
    calling(&two);
    // From one namespace to the other.
    call(&one, "caller", &address(&two.running("server")));
    let reader = token(&one, "reader", &["rolebinding", "map"]);
    let stranger = token(&one, "stranger", &[]);
    let everywhere = token(&two, "everywhere", &["clusterrolebinding", CLUSTER_READER]);

    let forward = Forward::to(one.lab(), "service/podtap-collector", 8443).expect("it is exposed");
    let get = |path: &str, token: &str| exposed.certificate.get(forward.address, path, Some(token));
    let in_one = |rest: &str| format!("/namespaces/{}/{rest}", one.namespace());
    let in_two = |rest: &str| format!("/namespaces/{}/{rest}", two.namespace());
    let list = |client: &str, server: &str, (from, to): (&Sandbox, &Sandbox)| {
        let [from, to] = [from, to].map(Sandbox::namespace);
        format!("{client} in namespace {from} calls:\n  - {server} in namespace {to}\n")
    };
    let of_one = list("client", "server", (&one, &one));
    let all = list("caller", "server", (&one, &two)) + &of_one;

    // Who may read all namespaces.
    until("all calls are in the map", PATIENCE, || {
        let (status, text) = get("/map?format=list", &everywhere)?;
        let found = of_namespace(&text, one.namespace());
        let is_other = of_namespace(&text, two.namespace()) == list("client", "server", (&two, &two));
        if status == 200 && found == all && is_other { Ok(()) } else { Err(format!("{status}: {text}")) }
    });
    // Who may read one: its calls, and of what is elsewhere no name.
    assert_eq!(get(&in_one("map?format=list"), &reader), Ok((200, of_one)));
    let (status, map) = get(&in_one("map"), &reader).expect("an answer");
    let map: Value = serde_json::from_str(&map).expect("JSON");
    let edges = map["edges"].as_array().expect("a list");
    let caller = edges.iter().find(|edge| edge["client"]["name"] == "caller").expect("its pod is of the namespace");
    assert_eq!((status, &caller["server"]), (200, &json!({"kind": "AnotherNamespace"})), "{map}");
    let (status, flows) = get(&in_one("flows"), &reader).expect("an answer");
    assert!(status == 200 && flows.contains("\"caller\""), "{flows}");
    for secret in [two.namespace(), &address(&two.running("server"))] {
        assert!(!flows.contains(secret) && !map.to_string().contains(secret), "{secret}: {flows} {map}");
    }
    for path in [&*in_two("map"), "/map", "/flows", "/metrics"] {
        let (status, text) = get(path, &reader).expect("an answer");
        assert!(status == 403 && text.contains("kubectl auth can-i get podtaps.podtap.dev"), "{path}: {status} {text}");
    }
    // What the message asks is answered alike.
    let can = |namespace: &str| {
        let user = format!("system:serviceaccount:{}:reader", one.namespace());
        let question =
            ["auth", "can-i", "get", "podtaps.podtap.dev", "--subresource=map", "-n", namespace, "--as", &user];
        one.lab().kubectl(&question, "").is_ok()
    };
    assert!(can(one.namespace()) && !can(two.namespace()));

    for path in [&*in_one("map"), "/map"] {
        assert_eq!(get(path, &stranger).expect("an answer").0, 403, "{path}");
    }
    assert_eq!(get("/status", &stranger).expect("an answer").0, 200, "it has no names");
    for path in ["/status", "/map", &in_one("map")] {
        let damaged = format!("{reader}x");
        assert_eq!(get(path, &damaged).expect("an answer").0, 401, "{path}");
        assert_eq!(exposed.certificate.get(forward.address, path, None).expect("an answer").0, 401, "{path}");
    }

    one.kubectl(&["delete", "rolebinding", "map"], "").expect("an administrator may");
    until("a right that is taken away is gone", PATIENCE, || match get(&in_one("map"), &reader)? {
        (403, _) => Ok(()),
        (status, text) => Err(format!("{status}: {text}")),
    });
    one.kubectl(&["delete", "serviceaccount", "reader"], "").expect("an administrator may");
    until("a token of an account that is deleted is not valid", PATIENCE, || match get("/status", &reader)? {
        (401, _) => Ok(()),
        (status, text) => Err(format!("{status}: {text}")),
    });
}
