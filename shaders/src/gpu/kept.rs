//! What an operation keeps on a device from one call to the next.
//!
//! A device does not know the types that its operations keep: a plan of an optimizer
//! program names the device that runs it, and the device would name the plan.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// One value per type, made when it is first asked for.
#[derive(Default)]
pub(crate) struct Kept(Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>);

impl Kept {
    /// The value of type `T` that this device keeps.
    pub(crate) fn of<T: Default + Send + 'static>(&self) -> Arc<Mutex<T>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.get(&TypeId::of::<T>()).and_then(|known| known.clone().downcast().ok()) {
            return known;
        }
        let new = Arc::new(Mutex::<T>::default());
        kept.insert(TypeId::of::<T>(), new.clone());
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_has_one_value() {
        let kept = Kept::default();
        *kept.of::<u32>().lock().unwrap() = 7;
        assert_eq!((*kept.of::<u32>().lock().unwrap(), *kept.of::<u64>().lock().unwrap()), (7, 0));
    }
}
