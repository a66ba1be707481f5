//! Answers, failures and bad usage onto stdout and stderr, with the exit code that says so: nothing ends in silence.

use std::{ffi::OsString, io};

use chancery_proto::command_line::write_json_line;
use clap::{
    Command, CommandFactory as _,
    error::{ContextKind, ErrorKind},
};
use serde_json::{Value, json};

use super::Cli;
use crate::failure::Failure;

/// Bad usage.
pub const USAGE: u8 = 2;
/// It was done, and the answer could not be printed.
pub const NOT_PRINTED: u8 = 13;

/// What a command has to print.
#[derive(Debug)]
pub enum Answer {
    /// One object.
    Json(Value),
    /// One object about what was done, and why the rest failed.
    Partly(Value, Failure),
    /// Another text than JSON, such as a completion script.
    Text(Vec<u8>),
    /// Everything was printed already.
    Printed,
    /// Lines were printed until stdout took no more.
    Unprinted(io::Error),
}

/// Prints an answer; the exit code.
pub fn answer(answer: &Answer, changed: bool) -> u8 {
    let mut stdout = io::stdout().lock();
    let (written, value) = match answer {
        Answer::Partly(value, why) => {
            return match write_json_line(&mut stdout, value) {
                Ok(()) => failure(why),
                Err(error) => not_printed(&error, value, changed),
            };
        }
        Answer::Json(value) => (write_json_line(&mut stdout, value), value),
        Answer::Text(text) => (
            io::Write::write_all(&mut stdout, text).and_then(|()| io::Write::flush(&mut stdout)),
            &Value::Null,
        ),
        Answer::Printed => return 0,
        Answer::Unprinted(error) => return not_printed(error, &Value::Null, false),
    };
    match written {
        Ok(()) => 0,
        Err(error) => not_printed(&error, value, changed),
    }
}

/// Says on stderr what stdout did not take. What was changed is in it, so that a script does not ask for it a second
/// time.
pub fn not_printed(error: &io::Error, answer: &Value, changed: bool) -> u8 {
    let done = if changed {
        "it was done, and the answer cannot be printed"
    } else {
        "nothing was changed, and the answer cannot be printed"
    };
    let mut said = json!({
        "exit": NOT_PRINTED,
        "code": "OK",
        "reason": "NOT_PRINTED",
        "message": format!("{done}: {error}"),
        "metadata": {},
        "request_id": null,
        "changed": changed,
    });
    if changed {
        for field in ["group", "message_id", "seq"] {
            if let Some(value) = answer.get(field) {
                said[field] = value.clone();
            }
        }
        said["answer"] = answer.clone();
    }
    complain(&json!({ "error": said }));
    NOT_PRINTED
}

/// Prints a failure; the exit code.
pub fn failure(failure: &Failure) -> u8 {
    complain(&failure.to_json());
    failure.exit_code()
}

/// Prints help, the version, or what is wrong with the arguments; the exit code.
pub fn usage(mut error: clap::Error, arguments: impl Iterator<Item = OsString>) -> u8 {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        return match error.print() {
            Ok(()) => 0,
            Err(error) => not_printed(&error, &Value::Null, false),
        };
    }
    let mut command = Cli::command();
    command.build();
    let arguments: Vec<String> = arguments
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let usage = usage_of(&mut command, &arguments);
    let message = if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        "a command is missing: --help lists them".to_owned()
    } else {
        // It names whatever was given, also by the environment, as if it were needed.
        let _inexact = error.remove(ContextKind::Usage);
        let text = error.to_string();
        let lines = text.lines().map(str::trim).filter(|line| {
            !line.is_empty() && !line.starts_with("Usage:") && !line.starts_with("For more")
        });
        let message = lines.collect::<Vec<_>>().join("; ");
        message.trim_start_matches("error: ").to_owned()
    };
    complain(&json!({ "error": {
        "exit": USAGE,
        "code": "INVALID_ARGUMENT",
        "reason": "USAGE",
        "message": message,
        "metadata": { "usage": usage },
        "request_id": null,
    }}));
    USAGE
}

/// The usage line of the command that the arguments name.
fn usage_of(command: &mut Command, arguments: &[String]) -> String {
    for (index, argument) in arguments.iter().enumerate() {
        if let Some(found) = command.find_subcommand_mut(argument) {
            return usage_of(found, &arguments[index + 1..]);
        }
    }
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:");
    usage.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// One line on stderr; there is nobody left to tell when that is gone too, and the exit code still says it.
fn complain(value: &Value) {
    let _gone = write_json_line(&mut io::stderr().lock(), value);
}
