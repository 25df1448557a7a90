use podtap_model::IpNet;

use super::{
    expression::{Family, rejected},
    message::rule,
    *,
};

#[test]
fn a_table_is_recognised_by_its_comment_and_rules() {
    let network: IpNet = "10.0.0.2/32".parse().expect("a network");
    let filter = SourceFilter { receivers: [(14789, 7)].into(), sources: [network].into() };
    let comment = comment(&filter.table());
    let table = SourceFilterTable {
        comment,
        dropped: vec![Count { frames: 1, bytes: 2 }; RULES],
        ..SourceFilterTable::default()
    };
    assert!(table.is(&filter) && !table.is(&SourceFilter::default()));
    assert_eq!(table.dropped(), Count { frames: 4, bytes: 8 });
    assert!(!SourceFilterTable { dropped: vec![], ..table }.is(&filter), "without its rules");
}

#[test]
fn counters_continue() {
    let counted = Count { frames: u64::MAX, bytes: 7 };
    let (message, _) = rule(&rejected(Family::V6, counted));
    assert_eq!(dropped(&message), counted);
}
