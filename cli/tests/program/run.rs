//! Running the program as an operator would: its output, what it says besides, and how it ends.

use std::{
    ffi::OsStr,
    process::{Command, Output},
};

use serde_json::Value;

/// How a run of the program ended.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Its exit code.
    pub(crate) code: Option<i32>,
    /// Its stdout.
    pub(crate) out: String,
    /// Its stderr.
    pub(crate) err: String,
}

impl Ran {
    /// Asserts its exit code.
    #[track_caller]
    pub(crate) fn ends(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// Its stdout as one JSON document.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// Asserts that a text is on stderr.
    #[track_caller]
    pub(crate) fn says(&self, text: &str) -> &Self {
        assert!(self.err.contains(text), "not said: {text}: {self:#?}");
        self
    }

    /// Asserts that a text is on stdout.
    #[track_caller]
    pub(crate) fn tells(&self, text: &str) -> &Self {
        assert!(self.out.contains(text), "not told: {text}: {self:#?}");
        self
    }
}

/// Runs the program to its end.
pub(crate) fn tidings<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Ran {
    ran(command(args))
}

/// Runs it to its end as it was set up.
pub(crate) fn ran(mut command: Command) -> Ran {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    Ran {
        code: status.code(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

/// The program, with nothing of this process's surroundings that it would listen to.
pub(crate) fn command<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    for variable in [
        "TIDINGS_BROKER",
        "TIDINGS_MOVE_TO",
        "TIDINGS_DATABASE",
        "TIDINGS_SENSITIVE",
        "TIDINGS_AT",
        "TIDINGS_OPERATOR_TOKEN",
        "TIDINGS_OPERATOR_TOKEN_FILE",
        "PACT_BROKER_USERNAME",
        "PACT_BROKER_PASSWORD",
        "PACT_BROKER_TOKEN",
        "RUST_LOG",
    ] {
        command.env_remove(variable);
    }
    command.env("USER", "alice").args(args);
    command
}
