//! Mutexes whose holder panicked are still used: every holder leaves the data
//! whole (a transaction commits or does not), and one bad job must not stop
//! the house.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, poisoned or not.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
