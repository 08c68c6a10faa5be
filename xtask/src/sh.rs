//! Running commands: shown before they run, with a failure that names them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// A failure, as the sentence to show.
pub(crate) type Outcome<T = ()> = Result<T, String>;

/// Returns the folder of the root manifest.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the root folder")
}

/// Returns the cargo that runs this program.
fn cargo_path() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Returns the folder in which cargo builds, so that builds with other flags can have one of their own inside it.
pub(crate) fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// One command of the project, run in its root folder.
pub(crate) struct Sh {
    command: Command,
    shown: String,
}

impl Sh {
    /// Begins a call of the cargo that runs this program.
    pub(crate) fn cargo(args: &[&str]) -> Self {
        Self::with(cargo_path(), "cargo", args)
    }

    /// Begins a call of the nightly toolchain's cargo, through rustup.
    pub(crate) fn nightly(args: &[&str]) -> Self {
        let mut sh = Self::new("rustup", &["run", "nightly", "cargo"]).args(args);
        // `cargo xtask` runs under one toolchain and says so in these; left in, the other would build with it.
        for name in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"] {
            sh.command.env_remove(name);
        }
        sh
    }

    /// Begins a call of any program.
    pub(crate) fn new(program: &str, args: &[&str]) -> Self {
        Self::with(program.into(), program, args)
    }

    fn with(program: OsString, shown: &str, args: &[&str]) -> Self {
        let sh = Self {
            command: Command::new(program),
            shown: shown.to_owned(),
        };
        sh.args(args)
    }

    /// Adds arguments.
    pub(crate) fn args<S: AsRef<str>>(mut self, args: &[S]) -> Self {
        for arg in args {
            self.command.arg(arg.as_ref());
            self.shown.push(' ');
            self.shown.push_str(arg.as_ref());
        }
        self
    }

    /// Sets a variable, and shows it before the command.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self.shown = format!("{name}={value:?} {}", self.shown);
        self
    }

    /// Sets a variable that is of no interest to whoever pastes the command.
    pub(crate) fn env_unseen(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Shows the command, runs it, and fails with its name when it fails.
    pub(crate) fn run(mut self) -> Outcome {
        println!("\n$ {}", self.shown);
        let begun = Instant::now();
        let status = self
            .command
            .current_dir(root())
            .status()
            .map_err(|error| format!("cannot run `{}`: {error}", self.shown))?;
        if !status.success() {
            return Err(format!("`{}` failed ({status})", self.shown));
        }
        println!("  ok, {:.1} s", begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// Shows the command, runs it, shows what it prints and returns it, and fails with its name when it fails.
    pub(crate) fn run_and_read(mut self) -> Outcome<String> {
        println!("\n$ {}", self.shown);
        let output = self
            .command
            .current_dir(root())
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| format!("cannot run `{}`: {error}", self.shown))?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        print!("{printed}");
        if !output.status.success() {
            return Err(format!("`{}` failed ({})", self.shown, output.status));
        }
        Ok(printed)
    }

    /// Runs the command unseen and returns what it printed, or its complaint.
    pub(crate) fn read(mut self) -> Outcome<String> {
        let output = self
            .command
            .current_dir(root())
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("cannot run `{}`: {error}", self.shown))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            let complaint = String::from_utf8_lossy(&output.stderr);
            Err(format!("`{}` failed: {}", self.shown, complaint.trim()))
        }
    }

    /// Returns `true` if the command runs and succeeds; prints nothing.
    pub(crate) fn works(self) -> bool {
        self.read().is_ok()
    }
}
