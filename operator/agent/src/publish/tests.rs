use std::sync::Arc;

use tap_wire::Report;

use super::*;
use crate::order::Origin;

fn answer(uid: &str, generation: i64) -> Answer {
    let origin = Arc::new(Origin { uid: uid.into(), generation, ..Origin::default() });
    Answer { origin, report: Report { generation, ..Report::default() } }
}

fn status(generation: i64) -> NodeTapStatus {
    let features = [("ebpf".to_owned(), false), ("fit".to_owned(), false)].into();
    NodeTapStatus { observed_generation: Some(generation), features, ..NodeTapStatus::default() }
}

fn seen(uid: &str, version: &str, status: Option<NodeTapStatus>) -> Seen {
    Seen { uid: uid.into(), version: version.into(), status }
}

#[test]
fn nothing_is_due_before_both_sides_are_known() {
    assert_eq!(due(None, Some(&seen("a", "1", None)), None), None);
    assert_eq!(due(Some(&answer("a", 1)), None, None), None);
}

#[test]
fn what_differs_is_due() {
    assert_eq!(due(Some(&answer("a", 2)), Some(&seen("a", "5", None)), None), Some(("a".into(), status(2))));
    assert_eq!(due(Some(&answer("a", 2)), Some(&seen("a", "5", Some(status(1)))), None), Some(("a".into(), status(2))));
}

#[test]
fn what_is_there_is_not_due() {
    assert_eq!(due(Some(&answer("a", 2)), Some(&seen("a", "5", Some(status(2)))), None), None);
    let own = seen("a", "7", Some(status(2)));
    assert_eq!(due(Some(&answer("a", 2)), Some(&seen("a", "5", Some(status(1)))), Some(&own)), None, "the watch lags");
}

#[test]
fn what_somebody_else_wrote_is_put_right() {
    let own = seen("a", "7", Some(status(2)));
    let theirs = seen("a", "10", Some(status(9)));
    assert_eq!(due(Some(&answer("a", 2)), Some(&theirs), Some(&own)), Some(("a".into(), status(2))));
}

#[test]
fn versions_are_compared_as_numbers() {
    let own = seen("a", "10", Some(status(2)));
    assert_eq!(newest(&seen("a", "9", None), Some(&own)), &own);
}

#[test]
fn an_answer_about_another_object_is_not_due() {
    assert_eq!(due(Some(&answer("a", 2)), Some(&seen("b", "5", None)), None), None);
    assert_eq!(due(Some(&answer("", 0)), Some(&seen("b", "5", None)), None), None);
    let own = seen("a", "7", Some(status(2)));
    assert_eq!(due(Some(&answer("b", 2)), Some(&seen("b", "5", None)), Some(&own)), Some(("b".into(), status(2))));
}

#[test]
fn a_burst_passes_and_a_flood_does_not() {
    let start = Instant::now();
    let mut pace = Pace::new(start);
    for _ in 0..BURST {
        assert_eq!(pace.next(start), start);
    }
    assert_eq!(pace.next(start), start + Duration::from_secs(1));
    assert_eq!(pace.next(start), start + Duration::from_secs(2));
    // Rest refills it.
    let later = start + Duration::from_secs(60);
    assert_eq!(pace.next(later), later);
}
