//! Medians, and intervals that hold them.

/// A median with the interval that holds it with a confidence of 95 %.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Estimate {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Estimate {
    /// Of values that are all measured alike: order statistics, which assume nothing of how they
    /// are distributed. Fewer than six values reach less confidence: the interval is all of them.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let outside = outside(sorted.len());
        Self {
            median: median(&sorted),
            low: sorted[outside],
            high: sorted[sorted.len() - 1 - outside],
        }
    }
}

/// The middle of sorted values, of which there is one at least.
fn median(sorted: &[f64]) -> f64 {
    let (upper, lower) = (sorted.len() / 2, (sorted.len() - 1) / 2);
    f64::midpoint(sorted[lower], sorted[upper])
}

/// Of any values.
pub fn median_of(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    if values.is_empty() {
        return f64::NAN;
    }
    median(&values)
}

/// How many of the least values, and of the greatest, lie outside of the interval: each lies on a
/// side of the true median by the toss of a coin.
fn outside(count: usize) -> usize {
    let mut outside = 0;
    let (mut term, mut sum) = (0.5_f64.powi(count as i32), 0.0);
    for tails in 0..count / 2 {
        sum += term;
        if sum > 0.025 {
            break;
        }
        outside = tails;
        term *= (count - tails) as f64 / (tails + 1) as f64;
    }
    outside
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_is_that_of_the_sign_test() {
        // The table of any book: of 10 values from the second to the ninth, of 20 from the sixth.
        let expected = [
            (3, 0),
            (5, 0),
            (6, 0),
            (9, 1),
            (10, 1),
            (12, 2),
            (15, 3),
            (20, 5),
        ];
        for (count, number) in expected {
            assert_eq!(outside(count), number, "{count}");
        }
    }

    #[test]
    fn estimate_does_not_depend_on_the_order() {
        let values = [7.0, 1.0, 3.0, 9.0, 5.0, 2.0, 8.0, 4.0, 6.0, 10.0];
        let expected = Estimate {
            median: 5.5,
            low: 2.0,
            high: 9.0,
        };
        assert_eq!(Estimate::of(&values), expected);
        assert_eq!(Estimate::of(&[4.0]).low, 4.0);
    }
}
