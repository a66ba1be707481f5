//! Where PostgreSQL's programs are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::OLDEST_MAJOR;
use super::error::{LocalPostgresError, Result};

/// Folders of distributions; a `*` stands for a version, and the newest is tried first.
const DISTRIBUTION_DIRS: &[&str] = &[
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/lib/postgresql*/bin",
    "/usr/libexec/postgresql*",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
    "/usr/local/pgsql/bin",
];

/// A matching pair of `initdb` and `postgres`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// The path of `initdb`.
    pub initdb: PathBuf,
    /// The path of `postgres`.
    pub postgres: PathBuf,
    /// The major version, such as 15.
    pub major: u32,
}

/// Finds PostgreSQL's programs: `option`, `CHANCERY_PG_BIN`, `PATH`, the distributions' folders, `.pg/` in this folder or above.
/// A named folder is the only place that is searched.
///
/// # Errors
/// `NotFound`, which says how to get PostgreSQL.
pub fn find_binaries(option: Option<&Path>) -> Result<Binaries> {
    Binaries::find(option, None)
}

impl Binaries {
    /// The programs for a data directory: of its own major version if it exists already.
    pub(super) fn for_data(option: Option<&Path>, data: &Path) -> Result<Self> {
        let wanted = fs::read_to_string(data.join("PG_VERSION"))
            .ok()
            .and_then(|text| text.trim().parse().ok());
        let found = Self::find(option, wanted)?;
        match wanted {
            Some(wanted) if wanted != found.major => Err(LocalPostgresError::WrongVersion {
                data: data.to_owned(),
                wanted,
                found: found.major,
            }),
            _ => Ok(found),
        }
    }

    /// The first usable pair; the first of the `wanted` version, if there is one.
    fn find(option: Option<&Path>, wanted: Option<u32>) -> Result<Self> {
        let named = option.map(Path::to_owned).or_else(|| {
            std::env::var_os("CHANCERY_PG_BIN")
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        });
        let places = named.map_or_else(everywhere, |named| vec![named.join("bin"), named]);
        let mut fallback = None;
        for place in &places {
            let Some(found) = Self::in_directory(place) else {
                continue;
            };
            if wanted.is_none_or(|wanted| wanted == found.major) {
                return Ok(found);
            }
            fallback.get_or_insert(found);
        }
        fallback.ok_or_else(|| LocalPostgresError::NotFound {
            searched: places
                .iter()
                .map(|place| place.display().to_string())
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    fn in_directory(directory: &Path) -> Option<Self> {
        // Links are resolved: PostgreSQL finds its libraries and templates from where the program really is.
        let program = |name: &str| {
            fs::canonicalize(directory.join(name))
                .ok()
                .filter(|path| path.is_file())
        };
        let (initdb, postgres) = (program("initdb")?, program("postgres")?);
        let output = Command::new(&postgres)
            .arg("--version")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let major = major(&String::from_utf8_lossy(&output.stdout))?;
        (major >= OLDEST_MAJOR).then_some(Self {
            initdb,
            postgres,
            major,
        })
    }
}

/// `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)` -> 15; `… 19devel` -> 19.
fn major(said: &str) -> Option<u32> {
    let version = said.split(')').nth(1)?.trim_start();
    let digits = version
        .find(|c: char| !c.is_ascii_digit())
        .map_or(version, |end| &version[..end]);
    digits.parse().ok()
}

fn everywhere() -> Vec<PathBuf> {
    let mut places: Vec<_> = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect())
        .unwrap_or_default();
    // An entry that is empty or relative would run programs out of the current folder.
    places.retain(|place| place.is_absolute() && place.join("initdb").exists());
    for pattern in DISTRIBUTION_DIRS {
        places.extend(expanded(pattern));
    }
    let here = std::env::current_dir().unwrap_or_default();
    places.extend(
        here.ancestors()
            .map(|above| above.join(".pg/bin"))
            .filter(|place| place.exists()),
    );
    places
}

/// Expands the one `*` of a pattern, the highest version first.
fn expanded(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else {
        return vec![PathBuf::from(pattern)];
    };
    let (parent, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let names = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut found: Vec<_> = names
        .filter_map(|name| Some((version(name.strip_prefix(prefix)?)?, name)))
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found
        .into_iter()
        .map(|(_, name)| PathBuf::from(format!("{parent}/{name}{after}")))
        .collect()
}

/// A folder's version, such as `15` or `-9.6`; an empty name is the unversioned folder.
fn version(text: &str) -> Option<u32> {
    let text = text.trim_start_matches('-');
    if text.is_empty() {
        return Some(0);
    }
    text.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions() {
        assert_eq!(
            major("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(major("postgres (PostgreSQL) 19devel\n"), Some(19));
        assert_eq!(major("something else"), None);
    }

    #[test]
    fn tries_the_newest_folder_first() {
        let root = tempfile::tempdir().expect("a temporary folder");
        for name in ["9.6", "14", "9", "101", "other"] {
            fs::create_dir_all(root.path().join("lib").join(name).join("bin")).expect("a folder");
        }
        let root = root.path().display().to_string();
        let found: Vec<_> = expanded(&format!("{root}/lib/*/bin"));
        let expected: Vec<_> = ["101", "14", "9.6", "9"]
            .iter()
            .map(|name| PathBuf::from(format!("{root}/lib/{name}/bin")))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_named_folder_is_the_only_one() {
        let empty = tempfile::tempdir().expect("a temporary folder");
        let error = find_binaries(Some(empty.path())).expect_err("nothing is there");
        let text = error.to_string();
        assert!(
            text.contains("apt-get install postgresql") && text.contains("--pg-bin"),
            "{text}"
        );
    }
}
