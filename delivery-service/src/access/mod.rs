//! Who calls, and on whose word: access tokens and the Authentication Services that sign them.
//!
//! | file | what it does |
//! |---|---|
//! | [`caller`] | from an access token to a caller that may call |
//! | [`tokens`] | tokens that were verified before |
//! | [`issuers`] | the roots and keys of the Authentication Services |
//! | [`domains`] | their numbers in the database |
//! | [`clock`] | the time that tokens are judged by |

pub mod caller;
pub mod clock;
pub mod domains;
pub mod issuers;
pub mod tokens;
