//! The times of a device's operations, for `finetune bench --profile`.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What one operation took.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    pub operation: &'static str,
    pub calls: usize,
    pub seconds: f64,
}

/// What a device's operations took.
#[derive(Debug, Default)]
pub struct Profile(Mutex<Vec<Timing>>);

impl Profile {
    /// The timings since the last call, the longest first.
    pub fn take(&self) -> Vec<Timing> {
        let mut timings = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        timings.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        timings
    }

    pub(crate) fn add(&self, operation: &'static str, took: Duration) {
        let seconds = took.as_secs_f64();
        let mut timings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match timings.iter_mut().find(|timing| timing.operation == operation) {
            Some(timing) => {
                timing.calls += 1;
                timing.seconds += seconds;
            }
            None => timings.push(Timing { operation, calls: 1, seconds }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ops::Device;

    #[test]
    fn results_are_the_device_s_and_each_call_is_counted() {
        let profile = Arc::<Profile>::default();
        let device = Device::cpu(Some(1)).unwrap().timed_by(profile.clone());
        let x = device.upload(&[2], &[1.0, 2.0]).unwrap();
        let y = device.add(&x, &x).unwrap();
        assert_eq!(device.read(&device.add(&x, &y).unwrap()).unwrap(), [3.0, 6.0]);
        assert!(device.add(&x, &device.zeros(&[3]).unwrap()).is_err());
        let timings = profile.take();
        assert_eq!(timings.iter().find(|t| t.operation == "add").map(|t| t.calls), Some(2));
        assert!(profile.take().is_empty());
    }
}
