use std::sync::Arc;

use podtap_api::{NodeTapPod, TapReference};

use super::*;
use crate::fixtures::at;

fn spec(taps: &[&str]) -> NodeTapSpec {
    let sender = |tap: &&str| NodeTapSender {
        tap: TapReference { uid: (*tap).to_owned(), ..TapReference::default() },
        ..NodeTapSender::default()
    };
    NodeTapSpec { senders: taps.iter().map(sender).collect(), ..NodeTapSpec::default() }
}

fn fact(uid: &str, generation: i64, taps: &[&str]) -> CachedNodeTap {
    CachedNodeTap { name: "n1".into(), uid: uid.into(), generation, spec: Some(spec(taps)), ..CachedNodeTap::default() }
}

fn look(generations: &mut Generations, fact: &CachedNodeTap) {
    generations.look(&[("n1".to_owned(), Arc::new(fact.clone()))].into());
}

#[test]
fn only_the_taps_that_a_write_changed_wait_for_it() {
    let mut generations = Generations::default();
    let old = fact("u", 3, &["a"]);
    look(&mut generations, &old);
    assert_eq!(generations.needed(&old, "a"), 3, "after a restart: what is there has to be observed");
    let new = fact("u", 4, &["a", "b"]);
    generations.note(Some(&old), &new);
    assert_eq!((generations.needed(&new, "a"), generations.needed(&new, "b")), (3, 4));
    let removed = fact("u", 5, &["b"]);
    generations.note(Some(&new), &removed);
    assert_eq!((generations.needed(&removed, "a"), generations.needed(&removed, "b")), (5, 4));
}

#[test]
fn addresses_that_become_known_change_nothing() {
    let mut generations = Generations::default();
    let old = fact("u", 1, &["a"]);
    look(&mut generations, &old);
    let mut new = fact("u", 2, &["a"]);
    let senders = &mut new.spec.as_mut().expect("a spec").senders;
    senders[0].pod = NodeTapPod { addresses: vec!["10.1.0.1".into()], ..NodeTapPod::default() };
    generations.note(Some(&old), &new);
    assert_eq!(generations.needed(&new, "a"), 1);
}

#[test]
fn an_object_that_was_made_anew_is_another_one() {
    let mut generations = Generations::default();
    look(&mut generations, &fact("u", 7, &["a"]));
    let anew = fact("v", 1, &["a"]);
    generations.note(None, &anew);
    assert_eq!((generations.needed(&anew, "a"), generations.needed(&anew, "never")), (1, 0));
    // Somebody else made it: all of it has to be observed.
    let foreign = fact("w", 2, &["a"]);
    assert_eq!(generations.needed(&foreign, "a"), 2);
    look(&mut generations, &foreign);
    assert_eq!(generations.needed(&foreign, "a"), 2);
}

#[test]
fn pauses_grow_and_end() {
    let mut retries = Retries::default();
    let key = RetryKey::Status("t".into());
    let mut last = SignedDuration::ZERO;
    for _ in 0..12 {
        retries.failed(key.clone(), at(0));
        let next = retries.next(at(0)).expect("a next attempt");
        last = next.duration_since(at(0));
        assert!(retries.holds(&key, at(0)) && !retries.holds(&key, next));
        assert!(!retries.holds(&RetryKey::Finalizers("t".into()), at(0)), "another write is not held back");
        assert_eq!(retries.next(next), None, "what is due is no deadline: that would keep the leader going");
    }
    assert!((40..=80).contains(&last.as_secs()), "{last:?} is not about a minute");
    retries.succeeded(&key);
    assert!(!retries.holds(&key, at(0)));
    retries.failed(key.clone(), at(0));
    retries.forget_old(at(700));
    assert!(retries.0.is_empty());
}
