//! How long answers take, as a histogram.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::{Duration, Instant};

/// The longest time that is told apart from longer ones, microseconds: an hour.
const LONGEST: u64 = 3_600_000_000;

/// Times of one kind of request, to three digits.
#[derive(Debug)]
pub struct Latencies(Histogram<u64>);

/// What is told of them, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    pub count: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST, 3).expect("three digits are permitted"))
    }
}

impl Latencies {
    pub fn add(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(micros.max(1));
    }

    /// Runs something and adds how long it took, unless it failed.
    pub async fn time<T, E>(&mut self, what: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let begin = Instant::now();
        let answer = what.await?;
        self.add(begin.elapsed());
        Ok(answer)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn summary(&self) -> Summary {
        let ms = |micros: u64| micros as f64 / 1000.0;
        Summary {
            count: self.0.len(),
            p50_ms: ms(self.0.value_at_quantile(0.5)),
            p99_ms: ms(self.0.value_at_quantile(0.99)),
            max_ms: ms(self.0.max()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rare_long_answer_is_in_the_highest_and_not_in_the_median() {
        let mut latencies = Latencies::default();
        (0..99).for_each(|_| latencies.add(Duration::from_millis(2)));
        latencies.add(Duration::from_secs(3));
        let Summary {
            count,
            p50_ms,
            max_ms,
            ..
        } = latencies.summary();
        assert_eq!(count, 100);
        assert!((p50_ms - 2.0).abs() < 0.1, "{p50_ms}");
        assert!((max_ms - 3000.0).abs() < 5.0, "{max_ms}");
    }
}
