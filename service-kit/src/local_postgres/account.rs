//! PostgreSQL refuses to run as root. When we are root, an unprivileged account runs it, and must be able to enter its folder.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::error::{LocalPostgresError, Result, io_error};

/// An unprivileged account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Account {
    /// Who runs the server: nobody in particular unless we are root; then the owner of the data, `postgres`, or `nobody`.
    pub(super) fn for_cluster(data: &Path) -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let passwd =
            fs::read_to_string("/etc/passwd").map_err(io_error("cannot read /etc/passwd"))?;
        if let Some(owner) = fs::metadata(data).ok().filter(|data| data.uid() != 0) {
            let name = accounts(&passwd)
                .find(|account| account.uid == owner.uid())
                .map_or_else(|| owner.uid().to_string(), |account| account.name);
            return Ok(Some(Self {
                name,
                uid: owner.uid(),
                gid: owner.gid(),
            }));
        }
        let named =
            |name: &str| accounts(&passwd).find(|account| account.name == name && account.uid != 0);
        named("postgres")
            .or_else(|| named("nobody"))
            .map(Some)
            .ok_or(LocalPostgresError::NoAccount)
    }

    /// Checks the search permission of every folder on the way.
    pub(super) fn must_reach(&self, directory: &Path) -> Result<()> {
        let mut way: Vec<_> = directory.ancestors().collect();
        way.reverse();
        for step in way {
            let found =
                fs::metadata(step).map_err(io_error(format!("cannot read {}", step.display())))?;
            if !self.may_enter(found.uid(), found.gid(), found.permissions().mode()) {
                return Err(LocalPostgresError::Unreachable {
                    account: self.name.clone(),
                    blocked: step.to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Only the first class that fits counts, as in the kernel.
    fn may_enter(&self, uid: u32, gid: u32, mode: u32) -> bool {
        let bit = match (uid == self.uid, gid == self.gid) {
            (true, _) => 0o100,
            (false, true) => 0o010,
            (false, false) => 0o001,
        };
        mode & bit != 0
    }
}

/// Lets other accounts pass through a folder (not list it), when we are root; what is inside protects itself by its own modes.
///
/// # Errors
/// `Io`.
pub fn allow_passage(directory: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let mode = fs::metadata(directory)
        .map_err(io_error(format!("cannot read {}", directory.display())))?
        .permissions()
        .mode()
        & 0o7777;
    if mode & 0o011 == 0o011 {
        return Ok(());
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(mode | 0o011))
        .map_err(io_error(format!("cannot change {}", directory.display())))
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        Some(Account {
            name,
            uid,
            gid: fields.next()?.parse().ok()?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_accounts_and_skips_broken_lines() {
        let found: Vec<_> = accounts("root:x:0:0:root:/root:/bin/sh\n# comment\nbroken:x:no:1:\npostgres:x:101:104:,,,:/var/lib:/bin/sh\n").collect();
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[1],
            Account {
                name: "postgres".to_owned(),
                uid: 101,
                gid: 104
            }
        );
    }

    #[test]
    fn only_the_first_fitting_class_counts() {
        let account = Account {
            name: "postgres".to_owned(),
            uid: 101,
            gid: 104,
        };
        assert!(account.may_enter(0, 0, 0o711));
        assert!(!account.may_enter(0, 0, 0o700));
        assert!(account.may_enter(101, 0, 0o700));
        assert!(account.may_enter(0, 104, 0o710));
        assert!(
            !account.may_enter(0, 104, 0o701),
            "the group's bits hide the others'"
        );
        assert!(!account.may_enter(101, 0, 0o077));
    }
}
