//! Named consumers of the journal: up to which entry of each group they were given everything. They outlive the
//! processes that read for them.

use super::records::{Done, GroupName};
use crate::store::Step;

const CONSUMERS: &str = "consumers";
const POSITIONS: &str = "consumer.positions";

fn key(consumer: &str, group: &GroupName) -> Vec<u8> {
    format!("{consumer}\0{group}").into_bytes()
}

/// Whether somebody has read under this name before.
///
/// # Errors
/// The store.
pub fn exists(step: &Step<'_>, consumer: &str) -> Done<bool> {
    let found: Option<()> = step.get(CONSUMERS, consumer.as_bytes())?;
    Ok(found.is_some())
}

/// Begins a consumer.
///
/// # Errors
/// The store.
pub fn create(step: &Step<'_>, consumer: &str) -> Done {
    step.put(CONSUMERS, consumer.as_bytes(), &())
}

/// The last entry of a group that the consumer was given; 0 before the first, also of a group that was joined while
/// nobody was reading.
///
/// # Errors
/// The store.
pub fn position(step: &Step<'_>, consumer: &str, group: &GroupName) -> Done<u64> {
    Ok(step.get(POSITIONS, &key(consumer, group))?.unwrap_or(0))
}

/// Moves a consumer on; never back, where two processes read under one name.
///
/// # Errors
/// The store.
pub fn advance(step: &Step<'_>, consumer: &str, group: &GroupName, seq: u64) -> Done {
    if position(step, consumer, group)? < seq {
        step.put(POSITIONS, &key(consumer, group), &seq)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, StoreError};

    #[test]
    fn a_position_belongs_to_one_name_and_one_group_and_never_goes_back() {
        let mut store = Store::in_memory().expect("in memory");
        let group = |id: u8| GroupName {
            domain: "a.example".into(),
            id: vec![id; 16],
        };
        let seen = store.step(|step| {
            create(step, "bot")?;
            advance(step, "bot", &group(1), 7)?;
            advance(step, "bot", &group(1), 3)?;
            Ok::<_, StoreError>((
                exists(step, "bot")?,
                exists(step, "bo")?,
                position(step, "bot", &group(1))?,
                position(step, "bot", &group(2))?,
                position(step, "bo", &group(1))?,
            ))
        });
        assert_eq!(seen.expect("readable"), (true, false, 7, 0, 0));
    }
}
