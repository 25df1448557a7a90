//! Replaces addresses and names, the same one by the same word everywhere.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use serde_json::Value;

/// Names that every cluster has, and those of PodTap's own parts.
const COMMON: [&str; 7] =
    ["default", "kube-system", "kube-public", "kube-node-lease", "podtap", "podtap-system", "podtap-sweep"];

/// Beginnings of names of PodTap's own parts that have the name of a node behind them.
const OF_NODES: [&str; 2] = ["podtap-helper-", "podtap-agent-"];

/// What was replaced by what.
#[derive(Debug, Default)]
pub struct Redactor {
    names: HashMap<String, String>,
    /// Names of users in quotation marks, as the API server has them in its messages, and what is in their place.
    users: Vec<(String, String)>,
    addresses: HashMap<String, String>,
    counts: HashMap<&'static str, usize>,
}

impl Redactor {
    /// Learns a name, for example of a `node`.
    pub fn learn(&mut self, what: &'static str, name: &str) {
        if what == "user" && !self.names.contains_key(name) {
            let word = self.word(what);
            self.users.push((format!("{name:?}"), format!("{word:?}")));
            self.names.insert(name.to_owned(), word);
        } else if let Some((namespace, name)) = name.split_once('/') {
            // In some places, names of pods have their namespace.
            self.learn("namespace", namespace);
            self.learn(what, name);
        } else if !is_common(name) && !self.names.contains_key(name) {
            let word = self.word(what);
            self.names.insert(name.to_owned(), word);
        }
    }

    /// Learns the names in an object.
    pub fn learn_all(&mut self, object: &Value) {
        self.learn_field("", "", object);
    }

    /// Replaces what is in the values of an object. Its keys are those of the API.
    pub fn object(&mut self, value: &mut Value) {
        match value {
            // A whole value may have characters that no name in a message has.
            Value::String(text) => *text = self.names.get(text).cloned().unwrap_or_else(|| self.text(text)),
            Value::Array(items) => items.iter_mut().for_each(|item| self.object(item)),
            Value::Object(fields) => fields.values_mut().for_each(|field| self.object(field)),
            _ => {}
        }
    }

    /// Replaces what is in a text.
    pub fn text(&mut self, text: &str) -> String {
        // These may have any characters.
        let with_users = self.users.iter().fold(text.to_owned(), |text, (user, word)| text.replace(user, word));
        let with_names = replace(&with_users, is_of_name, |word| {
            if OF_NODES.iter().any(|prefix| word.starts_with(prefix)) {
                self.learn("object", word);
            }
            self.names.get(word).cloned()
        });
        replace(&with_names, is_of_address, |word| self.address(word))
    }

    /// `parent` is the key of the object that has the field `key`.
    fn learn_field(&mut self, parent: &str, key: &str, value: &Value) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, field)| self.learn_field(key, name, field)),
            Value::Array(items) => items.iter().for_each(|item| self.learn_field(parent, key, item)),
            Value::String(text) => {
                if let Some((what, name)) = meaning(parent, key, text) {
                    self.learn(what, name);
                }
            }
            _ => {}
        }
    }

    fn address(&mut self, word: &str) -> Option<String> {
        let (address, port) = match (word.parse::<IpAddr>(), word.parse::<SocketAddr>()) {
            (Ok(address), _) => (address, String::new()),
            (_, Ok(socket)) => (socket.ip(), format!(":{}", socket.port())),
            _ => return None,
        };
        if address.is_loopback() || address.is_unspecified() {
            return None;
        }
        let what = if address.is_ipv4() { "ipv4" } else { "ipv6" };
        let address = address.to_string();
        if !self.addresses.contains_key(&address) {
            let word = self.word(what);
            self.addresses.insert(address.clone(), word);
        }
        Some(format!("{}{port}", self.addresses[&address]))
    }

    fn word(&mut self, what: &'static str) -> String {
        let count = self.counts.entry(what).or_default();
        *count += 1;
        format!("{what}-{count}")
    }
}

fn is_common(name: &str) -> bool {
    let is_own = name.starts_with("podtap-") && !OF_NODES.iter().any(|prefix| name.starts_with(prefix));
    name.is_empty() || COMMON.contains(&name) || is_own
}

/// What a string is the name of.
fn meaning<'a>(parent: &str, key: &str, text: &'a str) -> Option<(&'static str, &'a str)> {
    let what = match (parent, key) {
        (_, "namespace" | "namespaces" | "excludedNamespaces") => "namespace",
        (_, "nodeName" | "node") | ("node", "name") => "node",
        (_, "pod" | "pods" | "podNames") | ("pod", "name") => "pod",
        ("tap" | "taps", "name") => "tap",
        ("workload", "name") => "workload",
        ("metadata" | "ownerReferences" | "involvedObject" | "regarding", "name") | (_, "serviceAccountName") => {
            "object"
        }
        // Of selectors and of pods.
        (key, label) if matches!(key, "labels" | "matchLabels") && !label.starts_with("app.kubernetes.io/") => "label",
        ("matchExpressions", "values") => "label",
        ("annotations", "podtap.dev/requested-by") => "user",
        // In objects, and in what `version` prints.
        (_, "image" | "controller" | "helpers") => return Some(("registry", registry(text)?)),
        _ => return None,
    };
    Some((what, text))
}

/// The host of an image's registry. Without a dot or a port, the first part is a folder of the default registry
/// (github.com/distribution/reference).
fn registry(image: &str) -> Option<&str> {
    let (host, _) = image.split_once('/').filter(|(host, _)| host.contains(['.', ':']))?;
    // An address is replaced as such.
    let name = host.split(':').next().filter(|name| !name.starts_with('['))?;
    (!matches!(name, "podtap.dev" | "localhost")).then_some(name)
}

/// Replaces each run of such characters for which there is a replacement, with or without the punctuation at its end.
fn replace(text: &str, belongs: fn(char) -> bool, mut replacement: impl FnMut(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(belongs) {
        let (before, from) = rest.split_at(start);
        let (run, after) = from.split_at(from.find(|c| !belongs(c)).unwrap_or(from.len()));
        let trimmed = run.trim_end_matches(['.', ':', '-']);
        result.push_str(before);
        match replacement(run).map(|word| (word, "")).or_else(|| Some((replacement(trimmed)?, &run[trimmed.len()..]))) {
            Some((word, punctuation)) => result.extend([word.as_str(), punctuation]),
            None => result.push_str(run),
        }
        rest = after;
    }
    result.push_str(rest);
    result
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')
}

fn is_of_address(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '_')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_same_name_is_the_same_word_everywhere() {
        let mut object = json!({
            "metadata": {"name": "web", "namespace": "shop", "annotations": {"podtap.dev/requested-by": "alice@example.com"}},
            "spec": {"targets": {"podNames": ["web-0"], "podSelector": {"matchLabels": {"team": "blue"}}},
                "destinations": [{"name": "main", "node": {"name": "worker-1"}}, {"name": "x", "external": {"address": "192.0.2.10"}}]},
            "status": {"destination": "node/worker-1:mirror, 192.0.2.10:4789", "failures": [{"pod": "db/web-0", "message": "no pod web-0."}]},
        });
        let mut redactor = Redactor::default();
        redactor.learn_all(&object);
        redactor.object(&mut object);
        assert_eq!(
            object,
            json!({
                "metadata": {"name": "object-1", "namespace": "namespace-1", "annotations": {"podtap.dev/requested-by": "user-1"}},
                "spec": {"targets": {"podNames": ["pod-1"], "podSelector": {"matchLabels": {"team": "label-1"}}},
                    "destinations": [{"name": "main", "node": {"name": "node-1"}}, {"name": "x", "external": {"address": "ipv4-1"}}]},
                "status": {"destination": "node/node-1:mirror, ipv4-1:4789", "failures": [{"pod": "namespace-2/pod-1", "message": "no pod pod-1."}]},
            })
        );
        let log = "PodTap shop/web: worker-1 (192.0.2.10), [2001:db8::1]:14789, 198.51.100.0/24; web-00 stays";
        assert_eq!(
            redactor.text(log),
            "PodTap namespace-1/object-1: node-1 (ipv4-1), [ipv6-1]:14789, ipv4-2/24; web-00 stays"
        );
    }

    #[test]
    fn what_is_no_address_stays() {
        let mut redactor = Redactor::default();
        for text in [
            "podtap_controller::apply 12:34:56 1.2.3",
            "127.0.0.1:8080 [::1] 0.0.0.0 ::",
            "02:00:00:00:00:05 8d8ac610-566d-4ef0-9c22-186b2a5ed793 kube-system podtap-controller-6d5f",
        ] {
            for name in text.split(' ') {
                redactor.learn_all(&json!({"kind": name}));
            }
            redactor.learn("object", "kube-system");
            redactor.learn("object", "podtap-controller-6d5f");
            assert_eq!(redactor.text(text), text);
        }
        redactor.learn("user", "alice@example.com");
        assert_eq!(redactor.text("User \"alice@example.com\" cannot"), "User \"user-1\" cannot");
        assert_eq!(redactor.text("10.0.0.1: no answer from fe80::1."), "ipv4-1: no answer from ipv6-1.");
        let of_node = redactor.text("podtap-helper-worker-1-x7x7x, podtap-helper-worker-1-");
        assert_eq!(of_node, "object-1, object-2", "they have the name of a node");
        redactor.learn_all(&json!({"image": "registry.example.com:5000/podtap:0.1.0"}));
        assert_eq!(redactor.text("registry.example.com:5000/podtap:0.1.0"), "registry-1:5000/podtap:0.1.0");
        let mut versions =
            json!({"controller": ["registry:5000/podtap:1"], "helpers": ["mirror.corp/podtap:1", "team/podtap:1"]});
        redactor.learn_all(&versions);
        redactor.object(&mut versions);
        assert_eq!(
            versions,
            json!({"controller": ["registry-2:5000/podtap:1"], "helpers": ["registry-3/podtap:1", "team/podtap:1"]})
        );
        redactor.learn_all(&json!({"image": ["localhost:5000/podtap", "[2001:db8::1]:5000/podtap"]}));
        assert_eq!(redactor.text("localhost [2001:db8::1]:5000/podtap"), "localhost [ipv6-2]:5000/podtap");
    }
}
