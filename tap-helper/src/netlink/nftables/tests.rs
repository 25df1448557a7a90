use super::*;

fn filter(sources: &[&str]) -> SourceFilter {
    let sources = sources.iter().map(|text| text.parse().expect("a network")).collect();
    SourceFilter { ports: [14789].into(), sources }
}

#[test]
fn intervals_are_disjoint_and_not_adjacent() {
    let starts = |filter: &SourceFilter, family| filter.intervals(family);
    let four = |a: [u8; 4], flags| (a.to_vec(), flags);
    let nodes = filter(&["10.0.0.2/32", "10.0.0.1/32", "10.0.0.9/32", "10.0.0.8/31", "fd00::1/128"]);
    assert_eq!(
        starts(&nodes, Family::V4),
        [four([10, 0, 0, 1], 0), four([10, 0, 0, 3], 1), four([10, 0, 0, 8], 0), four([10, 0, 0, 10], 1)]
    );
    assert_eq!(
        starts(&nodes, Family::V6).iter().map(|(bytes, flags)| (bytes[15], *flags)).collect::<Vec<_>>(),
        [(1, 0), (2, 1)]
    );
    let all = filter(&["0.0.0.0/0", "::/0", "10.0.0.0/8"]);
    assert_eq!(starts(&all, Family::V4), [four([0; 4], 0)]);
    assert_eq!(starts(&all, Family::V6), [(vec![0; 16], 0)]);
    assert_eq!(starts(&filter(&[]), Family::V4), []);
}

#[test]
fn a_table_is_recognised_by_its_comment_and_rules() {
    let filter = filter(&["10.0.0.2/32"]);
    let data = DefaultNla::new(NFTA_TABLE_USERDATA, comment_data(&filter.comment()));
    let comment = comment(&message(NFT_MSG_NEWTABLE, &[string(NFTA_TABLE_NAME, TABLE), data]));
    let table = SourceFilterTable { comment, dropped: vec![Count { frames: 1, bytes: 2 }; 2] };
    assert!(table.is(&filter) && !table.is(&SourceFilter::default()));
    assert_eq!(table.dropped(), Count { frames: 2, bytes: 4 });
    assert!(!SourceFilterTable { dropped: vec![], ..table }.is(&filter), "without its rules");
}

#[test]
fn counters_continue() {
    let counted = Count { frames: u64::MAX, bytes: 7 };
    let rule = [nested(NFTA_RULE_EXPRESSIONS, &rule(Family::V6, 1, 2, counted))];
    assert_eq!(dropped(&message(NFT_MSG_NEWRULE, &rule)), counted);
}
