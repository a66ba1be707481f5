//! What the numbers of the protocol stand for. A panic while one is held loses that one, and no other.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use super::peer::{Answer, Refusal};

/// States, pending joins and signers share one space of numbers, from 1: a number is never taken for another kind's.
pub struct Handles<T> {
    next: AtomicU32,
    held: Mutex<HashMap<u32, Arc<Mutex<T>>>>,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self {
            next: AtomicU32::new(1),
            held: Mutex::default(),
        }
    }
}

impl<T> Handles<T> {
    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Arc<Mutex<T>>>> {
        // Nothing that can panic runs while the table is held.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a value; its number.
    pub fn keep(&self, value: T) -> u32 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.table().insert(number, Arc::new(Mutex::new(value)));
        number
    }

    /// Works on a value.
    ///
    /// # Errors
    /// There is none, it was lost in a panic, or what `work` says.
    pub fn with<R>(&self, number: u32, work: impl FnOnce(&mut T) -> Answer<R>) -> Answer<R> {
        let value = self.table().get(&number).cloned();
        let value =
            value.ok_or_else(|| Refusal::Invalid(format!("no handle has the number {number}")))?;
        let mut value = value.lock().map_err(|_| {
            Refusal::Failed(format!("handle {number} was lost in an earlier panic"))
        })?;
        work(&mut value)
    }

    /// Forgets a value, if it is there.
    pub fn free(&self, number: u32) {
        self.table().remove(&number);
    }
}

/// Signature keys by identity and suite. An identity keeps its key for as long as the process lives: that is how it takes over its prior leaf, and joins a
/// branch of its group.
pub struct Keys<K>(Mutex<HashMap<(Vec<u8>, u16), K>>);

impl<K> Default for Keys<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone> Keys<K> {
    /// The identity's key, made now if there is none.
    ///
    /// # Errors
    /// What `make` says.
    pub fn of(&self, identity: &[u8], suite: u16, make: impl FnOnce() -> Answer<K>) -> Answer<K> {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (identity.to_vec(), suite);
        if let Some(key) = keys.get(&place) {
            return Ok(key.clone());
        }
        let key = make()?;
        keys.insert(place, key.clone());
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_panic_loses_its_own_handle_only() {
        let handles = Handles::default();
        let (one, two) = (handles.keep(1), handles.keep(2));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            handles.with(one, |_| -> Answer<()> { panic!("on purpose") })
        }));
        assert!(panicked.is_err());
        assert!(matches!(
            handles.with(one, |v| Ok(*v)),
            Err(Refusal::Failed(_))
        ));
        assert_eq!(handles.with(two, |v| Ok(*v)).unwrap(), 2);
        handles.free(two);
        assert!(matches!(
            handles.with(two, |v| Ok(*v)),
            Err(Refusal::Invalid(_))
        ));
    }
}
