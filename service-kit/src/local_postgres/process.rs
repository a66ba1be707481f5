//! What really runs in a data directory. PostgreSQL's processes have it as their working directory, so `/proc` knows the truth,
//! whatever a stale `postmaster.pid` says. A zombie has no working directory any more and counts as dead.

use std::fs;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::error::{LocalPostgresError, Result};

/// Sends a signal; a process that is gone already is fine.
pub(super) fn signal(pid: i32, signal: Signal) -> Result<()> {
    let Some(target) = Pid::from_raw(pid).filter(|_| pid > 1) else {
        return Ok(());
    };
    match kill_process(target, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(LocalPostgresError::Io {
            what: format!("cannot signal process {pid}"),
            source: error.into(),
        }),
    }
}

/// Whether `pid` is a live process of PostgreSQL that works in `directory`.
pub(super) fn runs_in(pid: i32, directory: &Path) -> bool {
    if Path::new("/proc/self/cwd").exists() {
        // Somebody's shell may stand in the folder too: the name must fit as well.
        return fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory)
            && fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.trim_end() == "postgres");
    }
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok())
}

/// The live postmaster that `postmaster.pid` names.
pub(super) fn postmaster(data: &Path) -> Option<i32> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid = text.lines().next()?.trim().parse::<i32>().ok()?;
    (pid > 1 && runs_in(pid, data)).then_some(pid)
}

/// Every live process of PostgreSQL that works in `directory`; empty where there is no `/proc`.
pub fn in_directory(directory: &Path) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| runs_in(*pid, directory)).collect()
}

/// Whether the postmaster `pid` says, in its pid file, that it accepts connections.
pub(super) fn is_ready(data: &Path, pid: i32) -> bool {
    let Ok(text) = fs::read_to_string(data.join("postmaster.pid")) else {
        return false;
    };
    let mut lines = text.lines();
    let named = lines
        .next()
        .and_then(|line| line.trim().parse::<i32>().ok());
    named == Some(pid) && lines.nth(6).is_some_and(|status| status.trim() == "ready")
}

/// The socket folder that the pid file names.
#[cfg(feature = "test-support")]
pub(super) fn socket_dir(data: &Path) -> Option<std::path::PathBuf> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    text.lines().nth(4).map(|line| line.trim().into())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn finds_who_works_in_a_folder_and_ignores_zombies() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = fs::canonicalize(folder.path()).expect("it exists");
        let program = folder.join("postgres");
        std::os::unix::fs::symlink("/bin/cat", &program).expect("a link");
        let mut shell = Command::new("/bin/cat")
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .spawn()
            .expect("cat starts");
        let mut child = Command::new(&program)
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .spawn()
            .expect("cat starts");
        let pid = child.id().cast_signed();
        assert_eq!(in_directory(&folder), [pid]);
        fs::write(folder.join("postmaster.pid"), format!("{pid}\n")).expect("written");
        assert_eq!(postmaster(&folder), Some(pid));

        signal(pid, Signal::KILL).expect("our own child");
        let mut state = String::new();
        while !state.contains(") Z ") {
            state = fs::read_to_string(format!("/proc/{pid}/stat")).expect("not collected yet");
        }
        assert_eq!(postmaster(&folder), None, "a zombie is dead");
        assert!(in_directory(&folder).is_empty());
        child.wait().expect("collected");
        shell.kill().expect("our own child");
        shell.wait().expect("collected");
    }

    #[test]
    fn a_foreign_process_under_a_stale_number_is_left_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(
            folder.path().join("postmaster.pid"),
            format!("{}\n", std::process::id()),
        )
        .expect("written");
        assert_eq!(postmaster(folder.path()), None);
    }

    #[test]
    fn reads_readiness_from_the_pid_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("postmaster.pid");
        assert!(!is_ready(folder.path(), 7));
        fs::write(
            &file,
            "7\n/data\n1700000000\n5432\n/run\n\n  123  4\nstarting\n",
        )
        .expect("written");
        assert!(!is_ready(folder.path(), 7));
        fs::write(
            &file,
            "7\n/data\n1700000000\n5432\n/run\n\n  123  4\nready   \n",
        )
        .expect("written");
        assert!(is_ready(folder.path(), 7));
        assert!(!is_ready(folder.path(), 8), "another server's file");
    }
}
