//! When a file has stopped changing. Pure: the caller brings the clock.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What changes when a file does: its name, place, size and time, as text that is
/// kept.
pub type Stamp = String;

/// How a dataset looks. A file is at rest when it looks the same twice with some quiet
/// time between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looks {
    pub data: Stamp,
    /// The sidecar's and the folder recipe's.
    pub companions: Stamp,
}

/// Remembers since when each file looks as it does. It starts empty with the
/// process, so a restart waits once more rather than too little.
#[derive(Debug, Default)]
pub struct Settling {
    seen: HashMap<PathBuf, (Looks, Duration)>,
}

impl Settling {
    /// Notes how a file looks at `now` (time since any fixed moment) and
    /// returns for how long it has looked so.
    pub fn unchanged_for(&mut self, path: &Path, looks: &Looks, now: Duration) -> Duration {
        match self.seen.get(path) {
            Some((known, since)) if known == looks => now.saturating_sub(*since),
            _ => {
                self.seen.insert(path.to_path_buf(), (looks.clone(), now));
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
        let looks = |data: &str, companions: &str| Looks { data: data.into(), companions: companions.into() };
        let (one, two, three) = (looks("1", ""), looks("2", ""), looks("2", "recipe"));
        assert_eq!(settling.unchanged_for(path, &one, second(10)), second(0));
        assert_eq!(settling.unchanged_for(path, &one, second(14)), second(4));
        assert_eq!(settling.unchanged_for(path, &two, second(15)), second(0));
        assert_eq!(settling.unchanged_for(path, &two, second(20)), second(5));
        assert_eq!(settling.unchanged_for(path, &three, second(21)), second(0), "a companion counts as well");
        settling.retain(|_| false);
        assert_eq!(settling.unchanged_for(path, &three, second(99)), second(0));
    }
}
