//! Statistics of a list of samples.

/// The percentile by nearest rank: the sample below which `share` of all samples lie. None for an empty list.
pub fn percentile(samples: &[f64], share: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place in a list"
    )]
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// The median.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The lowest and the highest sample.
pub fn spread(samples: &[f64]) -> Option<(f64, f64)> {
    let low = samples.iter().copied().min_by(f64::total_cmp)?;
    let high = samples.iter().copied().max_by(f64::total_cmp)?;
    Some((low, high))
}

/// The ratio of each sample to the other list's sample of the same round, if both exist.
pub fn ratios(samples: &[Option<f64>], to: &[Option<f64>]) -> Vec<f64> {
    let pairs = samples.iter().zip(to).filter_map(|(sample, to)| (*sample).zip(*to));
    pairs.filter(|(_, to)| *to > 0.0).map(|(sample, to)| sample / to).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle_whatever_the_order() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[4.0, 1.0, 100.0, 2.0]), Some(3.0));
    }

    #[test]
    fn one_outlier_moves_the_spread_and_not_the_median() {
        let samples = [10.0, 11.0, 12.0, 11.0, 1000.0];
        assert_eq!(median(&samples), Some(11.0));
        assert_eq!(spread(&samples), Some((10.0, 1000.0)));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&samples, 0.5), Some(50.0));
        assert_eq!(percentile(&samples, 0.99), Some(99.0));
        assert_eq!(percentile(&samples, 0.0), Some(1.0));
        assert_eq!(percentile(&samples, 1.0), Some(100.0));
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(percentile(&[3.0], 0.99), Some(3.0));
    }

    #[test]
    fn ratios_are_of_one_round() {
        // The machine was half as fast in the second round: the ratio is the same.
        let (untapped, tapped) = ([Some(10.0), Some(5.0)], [Some(8.0), Some(4.0)]);
        assert_eq!(ratios(&tapped, &untapped), [0.8, 0.8]);
    }

    #[test]
    fn a_round_that_failed_on_either_side_gives_no_ratio() {
        let (untapped, tapped) = ([Some(10.0), None, Some(4.0), Some(0.0)], [None, Some(4.0), Some(2.0), Some(1.0)]);
        assert_eq!(ratios(&tapped, &untapped), [0.5]);
        assert_eq!(ratios(&tapped, &[]), [0.0; 0]);
    }
}
