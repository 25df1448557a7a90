use podtap_model::IpNet;

use super::{
    expression::{Family, rejected},
    message::{rule, table},
    sets::SetNames,
    *,
};

#[test]
fn a_table_is_recognised_by_its_comment_rules_and_sets() {
    let network: IpNet = "10.0.0.2/32".parse().expect("a network");
    let filter = SourceFilter { receivers: [(14789, 7)].into(), sources: [network].into() };
    let (message, _) = rule(&rejected(Family::V4, &SetNames::of(&filter), Count::default()));
    assert!(SetNames::of(&filter).all().is_superset(&used_sets(&message).into_iter().collect()));
    let table = SourceFilterTable {
        comment: comment(&table()),
        dropped: vec![Count { frames: 1, bytes: 2 }; RULES],
        used_sets: SetNames::of(&filter).all(),
        ..SourceFilterTable::default()
    };
    assert!(table.is(&filter) && !table.is(&SourceFilter::default()));
    assert_eq!(table.dropped(), Count { frames: 4, bytes: 8 });
    assert!(!SourceFilterTable { dropped: vec![], ..table }.is(&filter), "without its rules");
}

#[test]
fn counters_continue() {
    let counted = Count { frames: u64::MAX, bytes: 7 };
    let (message, _) = rule(&rejected(Family::V6, &SetNames::of(&SourceFilter::default()), counted));
    assert_eq!(dropped(&message), counted);
}
