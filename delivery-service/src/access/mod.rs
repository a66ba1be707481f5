//! Who calls, and on whose word: access tokens and the Authentication Services that sign them.
//!
//! | file | what it does |
//! |---|---|
//! | [`gate`] | from an access token to a caller |
//! | [`caller`] | who calls, and whether it may |
//! | [`tokens`] | tokens that were verified before |
//! | [`issuers`] | the roots and keys of the Authentication Services |
//! | [`domains`] | their numbers in the database |
//! | [`freshness`] | how old the news of an Authentication Service may be |
//! | [`clock`] | the time that tokens are judged by |

pub mod caller;
pub mod clock;
pub mod domains;
pub mod freshness;
pub mod gate;
pub mod issuers;
pub mod tokens;
