use k8s_openapi::{api::core::v1, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::core::{PartialObjectMeta, PartialObjectMetaExt as _};

use super::*;
use crate::store::objects::CachedNamespace;

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

fn excluded(cache: &Cache<CachedNamespace>) -> Vec<(String, bool)> {
    cache.list().into_iter().map(|entry| (entry.fact.name.clone(), entry.fact.excluded)).collect()
}

#[test]
fn a_change_that_does_not_matter_is_none() {
    let cache = Cache::new();
    assert!(cache.take(Event::Apply(namespace("shop", 5, false)), CachedNamespace::from));
    assert!(!cache.take(Event::Apply(namespace("shop", 6, false)), CachedNamespace::from));
    assert_eq!(cache.list()[0].version, "6");
    assert!(cache.take(Event::Apply(namespace("shop", 7, true)), CachedNamespace::from));
}

#[test]
fn older_events_do_not_undo_what_was_written() {
    let cache = Cache::new();
    cache.wrote(namespace("shop", 10, true), CachedNamespace::from, |_, _| true);
    assert!(!cache.take(Event::Apply(namespace("shop", 9, false)), CachedNamespace::from));
    assert!(!cache.take(Event::Delete(namespace("shop", 8, false)), CachedNamespace::from));
    assert_eq!(excluded(&cache), [("shop".to_owned(), true)]);
    assert!(cache.take(Event::Delete(namespace("shop", 11, true)), CachedNamespace::from));
    assert_eq!(excluded(&cache), []);
}

#[test]
fn an_answer_that_is_late_brings_nothing_back() {
    let cache = Cache::new();
    cache.take(Event::Apply(namespace("shop", 10, false)), CachedNamespace::from);
    // We wrote version 11; the watch tells of that and of a deletion before we get our answer.
    cache.take(Event::Apply(namespace("shop", 11, true)), CachedNamespace::from);
    cache.take(Event::Delete(namespace("shop", 12, true)), CachedNamespace::from);
    assert!(!cache.wrote(namespace("shop", 11, true), CachedNamespace::from, |_, _| true));
    assert_eq!(excluded(&cache), []);
}

#[test]
fn an_answer_that_shows_what_others_did_is_news() {
    let cache = Cache::new();
    cache.take(Event::Apply(namespace("shop", 10, false)), CachedNamespace::from);
    assert!(!cache.wrote(namespace("shop", 11, false), CachedNamespace::from, |old, new| old == new));
    assert!(cache.wrote(namespace("shop", 13, true), CachedNamespace::from, |old, new| old == new));
    // The watch tells of both, and has nothing new.
    assert!(!cache.take(Event::Apply(namespace("shop", 12, true)), CachedNamespace::from));
    assert!(!cache.take(Event::Apply(namespace("shop", 13, true)), CachedNamespace::from));
}

#[test]
fn a_list_does_not_undo_what_was_written_meanwhile() {
    let cache = Cache::new();
    cache.take(Event::Apply(namespace("shop", 10, false)), CachedNamespace::from);
    cache.take(Event::<Namespace>::Init, CachedNamespace::from);
    cache.take(Event::InitApply(namespace("shop", 10, false)), CachedNamespace::from);
    cache.wrote(namespace("shop", 11, true), CachedNamespace::from, |_, _| true);
    cache.take(Event::<Namespace>::InitDone, CachedNamespace::from);
    assert_eq!(excluded(&cache), [("shop".to_owned(), true)]);
}

#[test]
fn a_list_replaces_everything() {
    let cache = Cache::new();
    cache.take(Event::Apply(namespace("gone", 1, false)), CachedNamespace::from);
    for event in [Event::<Namespace>::Init, Event::InitApply(namespace("shop", 2, false))] {
        assert!(!cache.take(event, CachedNamespace::from));
    }
    assert_eq!(excluded(&cache), [("gone".to_owned(), false)], "the old state holds until the list is complete");
    assert!(cache.take(Event::<Namespace>::InitDone, CachedNamespace::from));
    assert_eq!(excluded(&cache), [("shop".to_owned(), false)]);
    cache.take(Event::<Namespace>::Init, CachedNamespace::from);
    cache.take(Event::InitApply(namespace("shop", 3, false)), CachedNamespace::from);
    assert!(!cache.take(Event::<Namespace>::InitDone, CachedNamespace::from), "the second list brought nothing new");
}
