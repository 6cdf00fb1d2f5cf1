//! When a file has stopped changing. Pure: the caller brings the clock.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is compared: two equal stamps with some quiet time between them are a
/// file at rest.
pub type Stamp = String;

/// Remembers since when each file looks as it does. It starts empty with the
/// process, so a restart waits once more rather than too little.
#[derive(Debug, Default)]
pub struct Settling {
    seen: HashMap<PathBuf, (Stamp, Duration)>,
}

impl Settling {
    /// Notes how a file looks at `now` (time since any fixed moment) and
    /// returns for how long it has looked so.
    pub fn unchanged_for(&mut self, path: &Path, stamp: &str, now: Duration) -> Duration {
        match self.seen.get_mut(path) {
            Some((known, since)) if known == stamp => now.saturating_sub(*since),
            Some(entry) => {
                *entry = (stamp.to_string(), now);
                Duration::ZERO
            }
            None => {
                self.seen.insert(path.to_path_buf(), (stamp.to_string(), now));
                Duration::ZERO
            }
        }
    }

    /// Forgets what is no longer there.
    pub fn retain(&mut self, mut present: impl FnMut(&Path) -> bool) {
        self.seen.retain(|path, _| present(path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_starts_the_wait_anew() {
        let second = Duration::from_secs;
        let mut settling = Settling::default();
        let path = Path::new("a");
        assert_eq!(settling.unchanged_for(path, "1", second(10)), second(0));
        assert_eq!(settling.unchanged_for(path, "1", second(14)), second(4));
        assert_eq!(settling.unchanged_for(path, "2", second(15)), second(0));
        assert_eq!(settling.unchanged_for(path, "2", second(20)), second(5));
        settling.retain(|_| false);
        assert_eq!(settling.unchanged_for(path, "2", second(99)), second(0));
    }
}
