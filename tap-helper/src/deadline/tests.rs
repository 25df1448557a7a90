use podtap_model::Tap;

use super::*;
use crate::fixtures;

const START: Duration = Duration::from_secs(1_000_000);

fn moment(seconds: u64) -> Monotonic {
    Monotonic::at(START).after(Duration::from_secs(seconds))
}

fn reading(at: u64, time: i64) -> ClockReading {
    ClockReading { at: moment(at), time: UnixTime::from_seconds(time) }
}

fn sender(name: &str, expiration: Option<i64>) -> DesiredSender {
    let expiration_time = expiration.map(UnixTime::from_seconds);
    fixtures::sender(Tap { expiration_time, ..fixtures::tap(name) }, fixtures::pod("web-0"))
}

/// A node whose clock is far off.
fn renewals() -> Renewals {
    Renewals::new(reading(0, 5))
}

#[test]
fn a_confirmation_renews_until_the_orphan_timeout_or_the_expiration() {
    let mut renewals = renewals();
    for (at, time) in [(10, 1_800_000_000), (40, 1_800_000_030)] {
        renewals.confirm(reading(at, time));
        assert_eq!(renewals.deadline(&sender("t", None)), Deadline::Confirmed(moment(at + 60)));
        assert_eq!(renewals.deadline(&sender("t", Some(time + 7))), Deadline::Confirmed(moment(at + 7)));
        assert_eq!(renewals.deadline(&sender("t", Some(time + 61))), Deadline::Confirmed(moment(at + 60)));
        assert_eq!(renewals.deadline(&sender("t", Some(time - 99))), Deadline::Confirmed(moment(at)));
    }
}

#[test]
fn without_a_confirmation_a_running_mirror_keeps_its_deadline() {
    let deadline = renewals().deadline(&sender("t", None));
    assert_eq!(deadline, Deadline::Provisional(moment(60)));
    assert_eq!((deadline.after(None), deadline.after(Some(moment(3)))), (moment(60), moment(3)));
    assert_eq!(Deadline::Confirmed(moment(60)).after(Some(moment(3))), moment(60));
}

#[test]
fn expired_taps_are_refused_by_the_clock_of_the_api_server() {
    let senders = vec![sender("t1", Some(1_800_000_010)), sender("t2", None), sender("t3", Some(1_800_000_020))];
    let desired = DesiredState { senders, ..DesiredState::default() };
    let mut renewals = renewals();
    assert_eq!(renewals.without_expired(&desired, moment(9_999)), None, "the clock of the node is not asked");
    renewals.confirm(reading(0, 1_800_000_000));
    assert_eq!(renewals.without_expired(&desired, moment(9)), None);
    let left = renewals.without_expired(&desired, moment(10)).expect("one tap has expired");
    let taps: Vec<_> = left.senders.iter().map(|sender| &*sender.tap.uid).collect();
    assert_eq!(taps, ["t2", "t3"]);
    let [refused] = left.refused_senders.as_slice() else { panic!("one sender is refused") };
    assert_eq!((refused.tap_uid.as_str(), refused.state, refused.reason), ("t1", State::Refused, Reason::Expired));
    assert_eq!(refused.message, "The tap expired at 2027-01-15T08:00:10Z.");
    assert_eq!(renewals.without_expired(&left, moment(19)), None);
    // A clock that was set back revives nothing.
    renewals.confirm(reading(20, 1_700_000_000));
    assert_eq!(renewals.without_expired(&left, moment(20)), None);
}
