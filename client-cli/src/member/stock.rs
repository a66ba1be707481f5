//! Keeping this device's stock of KeyPackages filled.

use chancery_proto::{
    delivery::v1::Stock,
    mutants::{self, Mutant},
};

use super::Member;
use crate::{core::group, failure::Failure};

/// One-time KeyPackages are filled up to this by default.
pub const KEY_PACKAGES: u32 = 20;

/// Whether a suite wants another last resort: there is none, or it was given out. One that was is used again and again,
/// and whoever gets it meets the same key as everybody before.
pub fn needs_last_resort(stock: Option<&Stock>) -> bool {
    let renewed = !mutants::is_on(Mutant::UsedLastResortStays);
    stock.is_none_or(|stock| !stock.last_resort || renewed && stock.last_resort_claims > 0)
}

impl Member {
    /// Refills what this device has published: the first suite when half of it is gone or it wants another last resort,
    /// the others when their last resort was used.
    ///
    /// # Errors
    /// The refusal, or no answer.
    pub async fn refill_key_packages(&self) -> Result<(), Failure> {
        let stock = self.key_package_stock().await?;
        for suite in group::SUITES {
            let code = u32::from(u16::from(suite));
            let own = stock.iter().find(|s| s.suite == code);
            let last_resort = needs_last_resort(own);
            if suite == group::SUITES[0] {
                if last_resort || own.is_none_or(|s| s.one_time < KEY_PACKAGES / 2) {
                    self.fill_key_packages(suite, KEY_PACKAGES).await?;
                }
            } else if last_resort && own.is_some_and(|s| s.last_resort) {
                self.publish_key_packages(suite, 0, true).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_resort_is_published_where_there_is_none_and_where_it_was_given_out() {
        let stock = |last_resort: bool, last_resort_claims: u32| Stock {
            suite: 1,
            one_time: 20,
            last_resort,
            last_resort_claims,
        };
        assert!(needs_last_resort(None));
        assert!(needs_last_resort(Some(&stock(false, 0))));
        assert!(needs_last_resort(Some(&stock(true, 1))));
        assert!(!needs_last_resort(Some(&stock(true, 0))));
    }
}
