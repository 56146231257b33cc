//! What a host or a VM uses at the moment: processors, memory, disks, network.

use serde::{Deserialize, Serialize};

/// Figures of a host or a VM, over the time since they were measured before: about a minute. Each is none where it is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Load {
    /// Of all processors that it has, thousandths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u64>,
    /// Of the host's memory, bytes. Of a VM: what its process takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Of the file systems of a host's pools, bytes. Of a VM: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<u64>,
    /// Read from disks, bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read: Option<u64>,
    /// Written to disks, bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written: Option<u64>,
    /// Reads and writes of disks per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// Received from networks, bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received: Option<u64>,
    /// Sent to networks, bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent: Option<u64>,
}

impl Load {
    /// How many figures there are.
    pub const FIGURES: usize = 8;

    /// All processors, in the unit of [`Load::cpu`].
    pub const WHOLE: u64 = 1000;

    /// The largest size and rate that is believed, bytes and bytes per second: a pebibyte.
    pub const MOST: u64 = 1 << 50;

    /// The figures in the order of the fields.
    pub const fn figures(&self) -> [Option<u64>; Self::FIGURES] {
        [
            self.cpu,
            self.memory,
            self.storage,
            self.read,
            self.written,
            self.requests,
            self.received,
            self.sent,
        ]
    }

    /// The reverse of [`Load::figures`].
    pub const fn of_figures(figures: [Option<u64>; Self::FIGURES]) -> Self {
        let [
            cpu,
            memory,
            storage,
            read,
            written,
            requests,
            received,
            sent,
        ] = figures;
        Self {
            cpu,
            memory,
            storage,
            read,
            written,
            requests,
            received,
            sent,
        }
    }

    /// As somebody says who may lie: a figure that cannot be is not known.
    pub fn believable(&self) -> Self {
        let mut figures = self.figures();
        for figure in &mut figures {
            *figure = figure.filter(|value| *value <= Self::MOST);
        }
        Self {
            cpu: self.cpu.filter(|cpu| *cpu <= Self::WHOLE),
            ..Self::of_figures(figures)
        }
    }
}

/// The mean of several loads, each figure over those that know it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mean {
    sums: [f64; Load::FIGURES],
    counts: [u32; Load::FIGURES],
}

impl Mean {
    pub fn add(&mut self, load: &Load) {
        let places = self.sums.iter_mut().zip(&mut self.counts);
        for ((sum, count), figure) in places.zip(load.figures()) {
            if let Some(value) = figure {
                *sum += value as f64;
                *count += 1;
            }
        }
    }

    /// None where no load knew any figure.
    pub fn load(&self) -> Option<Load> {
        let mut figures = [None; Load::FIGURES];
        let places = self.sums.iter().zip(self.counts);
        for (figure, (sum, count)) in figures.iter_mut().zip(places) {
            *figure = (count > 0).then(|| (sum / f64::from(count)).round() as u64);
        }
        let known = figures.iter().any(Option::is_some);
        known.then(|| Load::of_figures(figures))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_not_known() {
        let lie = Load {
            cpu: Some(1001),
            memory: Some(u64::MAX),
            sent: Some(7),
            ..Load::default()
        };
        let believed = Load {
            sent: Some(7),
            ..Load::default()
        };
        assert_eq!(lie.believable(), believed);
        let full = Load::of_figures([Some(1000); Load::FIGURES]);
        assert_eq!(full.believable(), full);
    }

    #[test]
    fn a_mean_is_over_those_that_know_the_figure() {
        let load = |cpu, sent| Load {
            cpu,
            sent,
            ..Load::default()
        };
        let mut mean = Mean::default();
        assert_eq!(mean.load(), None);
        mean.add(&load(Some(100), None));
        mean.add(&load(Some(301), Some(5)));
        assert_eq!(mean.load(), Some(load(Some(201), Some(5))));
        let mut most = Mean::default();
        for _ in 0..3 {
            most.add(&Load::of_figures([Some(u64::MAX); Load::FIGURES]));
        }
        assert_eq!(most.load().and_then(|load| load.memory), Some(u64::MAX));
    }
}
