use k8s_openapi::{api::core::v1, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::core::{PartialObjectMeta, PartialObjectMetaExt as _};

use super::*;
use crate::store::node::CachedNamespace;

/// As it is watched: its metadata alone.
type Namespace = PartialObjectMeta<v1::Namespace>;

fn namespace(name: &str, version: u32, excluded: bool) -> Namespace {
    let metadata = ObjectMeta {
        name: Some(name.into()),
        resource_version: Some(version.to_string()),
        labels: Some([(podtap_api::EXCLUDE.into(), excluded.to_string())].into()),
        ..ObjectMeta::default()
    };
    metadata.into_response_partial()
}

fn project(namespace: Namespace) -> CachedNamespace {
    CachedNamespace::new(namespace, "podtap-system")
}

fn excluded(cache: &Cache<CachedNamespace>) -> Vec<(String, bool)> {
    cache.list().into_iter().map(|entry| (entry.object.name.clone(), entry.object.excluded)).collect()
}

#[test]
fn an_irrelevant_change_is_none() {
    let cache = Cache::new();
    assert!(cache.apply(Event::Apply(namespace("shop", 5, false)), project));
    assert!(!cache.apply(Event::Apply(namespace("shop", 6, false)), project));
    assert_eq!(cache.list()[0].version, "6");
    assert!(cache.apply(Event::Apply(namespace("shop", 7, true)), project));
}

#[test]
fn older_events_do_not_undo_what_was_written() {
    let cache = Cache::new();
    cache.record_write(namespace("shop", 10, true), project, |_, _| true);
    assert!(!cache.apply(Event::Apply(namespace("shop", 9, false)), project));
    assert!(!cache.apply(Event::Delete(namespace("shop", 8, false)), project));
    assert_eq!(excluded(&cache), [("shop".to_owned(), true)]);
    assert!(cache.apply(Event::Delete(namespace("shop", 11, true)), project));
    assert_eq!(excluded(&cache), []);
}

#[test]
fn a_late_response_brings_nothing_back() {
    let cache = Cache::new();
    cache.apply(Event::Apply(namespace("shop", 10, false)), project);
    // We wrote version 11; the watch reports that and a deletion before we get our response.
    cache.apply(Event::Apply(namespace("shop", 11, true)), project);
    cache.apply(Event::Delete(namespace("shop", 12, true)), project);
    assert!(!cache.record_write(namespace("shop", 11, true), project, |_, _| true));
    assert_eq!(excluded(&cache), []);
}

#[test]
fn a_response_that_shows_changes_of_others_is_a_change() {
    let cache = Cache::new();
    cache.apply(Event::Apply(namespace("shop", 10, false)), project);
    assert!(!cache.record_write(namespace("shop", 11, false), project, |old, new| old == new));
    assert!(cache.record_write(namespace("shop", 13, true), project, |old, new| old == new));
    // The watch reports both, and changes nothing.
    assert!(!cache.apply(Event::Apply(namespace("shop", 12, true)), project));
    assert!(!cache.apply(Event::Apply(namespace("shop", 13, true)), project));
}

#[test]
fn a_list_does_not_undo_what_was_written_meanwhile() {
    let cache = Cache::new();
    cache.apply(Event::Apply(namespace("shop", 10, false)), project);
    cache.apply(Event::<Namespace>::Init, project);
    cache.apply(Event::InitApply(namespace("shop", 10, false)), project);
    cache.record_write(namespace("shop", 11, true), project, |_, _| true);
    cache.apply(Event::<Namespace>::InitDone, project);
    assert_eq!(excluded(&cache), [("shop".to_owned(), true)]);
}

#[test]
fn a_list_replaces_everything() {
    let cache = Cache::new();
    cache.apply(Event::Apply(namespace("gone", 1, false)), project);
    for event in [Event::<Namespace>::Init, Event::InitApply(namespace("shop", 2, false))] {
        assert!(!cache.apply(event, project));
    }
    assert_eq!(excluded(&cache), [("gone".to_owned(), false)], "the old state applies until the list is complete");
    assert!(cache.apply(Event::<Namespace>::InitDone, project));
    assert_eq!(excluded(&cache), [("shop".to_owned(), false)]);
    cache.apply(Event::<Namespace>::Init, project);
    cache.apply(Event::InitApply(namespace("shop", 3, false)), project);
    assert!(!cache.apply(Event::<Namespace>::InitDone, project), "the second list brought nothing new");
}
