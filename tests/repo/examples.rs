//! Every example is accepted by the schema (the types can decode it, and no rule refuses it), says what to expect, and leaves room for
//! the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use kube::core::cel::Validator;
use podtap_api::{ClusterPodTap, PodTap, PodTapPolicy, definitions};
use serde_json::Value;

/// All documents of all examples, with their file's name.
fn documents() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(super::top().join("examples")).expect("examples/ exists") {
        let path = entry.expect("examples/ is readable").path();
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = fs::read_to_string(&path).expect("an example is text");
            let parsed: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
            found.extend(parsed.into_iter().map(|document| (name.clone(), document)));
        }
    }
    found
}

#[test]
fn every_example_is_accepted() {
    let mut kinds = BTreeSet::new();
    for (file, document) in documents() {
        let kind = document["kind"].as_str().unwrap_or_default().to_owned();
        // Decoded and encoded again, so that it has the defaults that the API server fills in.
        let object = match kind.as_str() {
            "PodTap" => serde_json::from_value::<PodTap>(document).map(|o| serde_json::to_value(o).expect("JSON")),
            "ClusterPodTap" => {
                serde_json::from_value::<ClusterPodTap>(document).map(|o| serde_json::to_value(o).expect("JSON"))
            }
            "PodTapPolicy" => {
                serde_json::from_value::<PodTapPolicy>(document).map(|o| serde_json::to_value(o).expect("JSON"))
            }
            _ => continue,
        }
        .unwrap_or_else(|e| panic!("{file}: {e}"));
        let (_, definition) =
            definitions().into_iter().find(|(_, d)| d.spec.names.kind == kind).expect("the kind is ours");
        let schema = definition.spec.versions[0].schema.as_ref().and_then(|s| s.open_api_v3_schema.clone());
        let schema = serde_json::to_value(schema).expect("a schema is JSON");
        if let Err(errors) = Validator::new().validate(&schema, &object, None) {
            panic!("{file}: {errors:?}");
        }
        kinds.insert(kind);
    }
    assert!(kinds.contains("PodTap") && kinds.contains("ClusterPodTap"), "examples/ has {kinds:?} only");
}

/// The taps of all examples.
fn taps() -> Vec<(String, PodTap)> {
    let is_tap = |(_, document): &(String, Value)| document["kind"] == "PodTap";
    let decode = |(file, document)| (file, serde_json::from_value(document).expect("a PodTap"));
    documents().into_iter().filter(is_tap).map(decode).collect()
}

#[test]
fn every_example_says_what_to_expect() {
    for (file, document) in documents() {
        let text = fs::read_to_string(super::top().join("examples").join(&file)).expect("an example is text");
        let comment: Vec<&str> = text.lines().take_while(|line| line.starts_with("# ")).collect();
        assert!(comment.iter().any(|line| line.starts_with("# Expect")), "{file}: {comment:?}");
        if document["kind"] == "PodTap" || document["kind"] == "ClusterPodTap" {
            let name = document["metadata"]["name"].as_str().expect("a name");
            let columns =
                |start: &str| comment.iter().filter(|line| line.starts_with(&format!("#   {start} "))).count();
            assert_eq!((columns("NAME"), columns(name)), (1, 1), "{file}: {comment:?}");
        }
        if document["kind"] == "PodTap" {
            let needs = "# Needs: kubectl apply -f examples/pods.yaml";
            assert!(comment.iter().any(|line| line.starts_with(needs)), "{file}: {comment:?}");
        }
    }
}

/// Clusters differ in pods, images and nodes: what an example names is in `pods.yaml`, can be pulled, or is replaced by the
/// command in its comment.
#[test]
fn every_example_works_in_any_cluster() {
    let pods: BTreeSet<String> = documents()
        .into_iter()
        .filter(|(file, document)| file == "pods.yaml" && document["kind"] == "Pod")
        .filter_map(|(_, document)| document["metadata"]["name"].as_str().map(str::to_owned))
        .collect();
    for (file, tap) in taps() {
        let by_name = tap.spec.mirror.destinations.iter().filter_map(|d| d.pod.as_ref()?.name.as_ref());
        for name in tap.spec.targets.pod_names.iter().flatten().chain(by_name) {
            assert!(pods.contains(name), "{file}: {name} is not in pods.yaml");
        }
        let text = fs::read_to_string(super::top().join("examples").join(&file)).expect("an example is text");
        let nodes = tap.spec.mirror.destinations.iter().filter_map(|destination| destination.node.as_ref());
        for node in nodes {
            let command = format!("#   sed s/{}/NODE/ examples/{file} | kubectl apply -f -\n", node.name);
            assert!(text.contains(&command), "{file}: no command replaces {}", node.name);
        }
    }
    for (file, document) in documents() {
        let text = document.to_string();
        for image in text.split("\"image\":\"").skip(1) {
            assert!(image.starts_with("docker.io/"), "{file}: {image}");
        }
    }
}

#[test]
fn all_examples_fit_under_the_example_policy() {
    let policy = documents().into_iter().find(|(file, _)| file == "policy.yaml").expect("there is a policy").1;
    let policy: PodTapPolicy = serde_json::from_value(policy).expect("a PodTapPolicy");
    let limits = &policy.spec.limits;
    let taps = taps();
    let mut names = BTreeSet::new();
    let mut vnis = BTreeSet::new();
    let mut interfaces: BTreeMap<(String, String), &str> = BTreeMap::new();
    let mut of_web = 0;
    for (file, tap) in &taps {
        assert!(names.insert(tap.metadata.name.clone()), "{file}: another example has the name");
        let vni = tap.spec.mirror.vxlan.as_ref().and_then(|vxlan| vxlan.vni);
        if let Some(vni) = vni {
            assert!(vnis.insert(vni) && policy.spec.vni_range.contains(vni), "{file}: {vni} is taken or not allowed");
        }
        of_web += u32::from(tap.spec.targets.pod_selector.is_some());
        for destination in &tap.spec.mirror.destinations {
            if let Some(external) = &destination.external {
                let allowed = &policy.spec.allowed_external_cidrs;
                assert!(allowed.iter().any(|cidr| cidr.contains(&external.address)), "{file}");
            }
            let node = destination.node.iter().map(|node| (node.name.clone(), node.interface_name.clone()));
            // The selector of the examples selects ids.
            let pod = destination.pod.iter().map(|pod| ("ids".to_owned(), pod.interface_name.clone()));
            for (place, interface) in node.chain(pod).filter_map(|(place, interface)| Some((place, interface?))) {
                let other = interfaces.insert((place.clone(), interface.to_string()), file);
                assert_eq!(other, None, "{file}: {interface} on {place}");
            }
        }
    }
    assert!(of_web <= limits.taps_per_pod, "{of_web} taps select a pod with app=web");
    assert!(taps.len() <= usize::try_from(limits.taps_per_namespace).expect("a number"));
}
