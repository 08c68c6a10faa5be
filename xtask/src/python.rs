//! The Python face: a virtual environment of its own below the target folder, the wheel built and installed into it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::sh::{Outcome, Sh, root, target_dir};

/// The oldest interpreter the package runs on.
const OLDEST: (u32, u32) = (3, 10);

/// The variable that names another interpreter than `python3`.
const VARIABLE: &str = "PHALANX_PYTHON";

/// What the build and the tests need beside the package; installed into the environment, nowhere else.
const NEEDS: &str = "python/requirements.txt";

/// The crate whose tests are Python's.
pub(crate) const CRATE: &str = "phalanx-python";

/// The runner of CPython's own tests.
const CONFORMANCE: &str = "python/conformance/run.py";

/// An interpreter that was asked for its version.
pub(crate) struct Interpreter {
    program: String,
    version: String,
}

impl Interpreter {
    /// Finds the interpreter to use: `$PHALANX_PYTHON`, else `python3`.
    pub(crate) fn find() -> Outcome<Self> {
        let program = std::env::var(VARIABLE).unwrap_or_else(|_| "python3".to_owned());
        let ask =
            "import platform; print(platform.python_version(), platform.python_implementation())";
        let answer = Sh::new(&program, &["-c", ask]).read().map_err(|error| {
            format!("{error}; the Python face needs CPython {}.{} or newer: install one, or name it in {VARIABLE}", OLDEST.0, OLDEST.1)
        })?;
        let mut words = answer.split_whitespace();
        let version = words.next().unwrap_or_default().to_owned();
        let implementation = words.next().unwrap_or_default();
        let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
        let found: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if found < OLDEST || implementation != "CPython" {
            return Err(format!(
                "`{program}` is {implementation} {version}; the Python face needs CPython {}.{} or newer: name one in {VARIABLE}",
                OLDEST.0, OLDEST.1
            ));
        }
        Ok(Self { program, version })
    }

    /// Returns the version without its last number.
    pub(crate) fn minor(&self) -> &str {
        self.version
            .rsplit_once('.')
            .map_or(self.version.as_str(), |(minor, _)| minor)
    }

    /// Returns the variable that makes cargo build for this interpreter, if it is not the one cargo finds by itself.
    ///
    /// Not set without need: a change of it compiles the bindings again.
    pub(crate) fn for_cargo(&self) -> Option<(&'static str, &str)> {
        std::env::var_os(VARIABLE).map(|_| ("PYO3_PYTHON", self.program.as_str()))
    }
}

/// An environment with the package in it.
pub(crate) struct Venv {
    folder: PathBuf,
}

impl Venv {
    /// Returns the environment of the interpreter in use, made on first use, with the package as it is now.
    pub(crate) fn with_package() -> Outcome<Self> {
        let interpreter = Interpreter::find()?;
        let folder = target_dir().join("python").join(&interpreter.version);
        let venv = Self { folder };
        venv.make(&interpreter)?;
        venv.install_package()?;
        Ok(venv)
    }

    /// Begins a call of the environment's interpreter.
    pub(crate) fn python(&self, args: &[&str]) -> Sh {
        // Without the activation script a program that starts "phalanx" or "python" must still find these.
        let path = std::env::var("PATH").unwrap_or_default();
        let bin = self.folder.join("bin");
        Sh::new(&self.program("python"), args)
            .env_unseen("PATH", &format!("{}:{path}", bin.display()))
            .env_unseen("VIRTUAL_ENV", &self.folder.to_string_lossy())
    }

    /// Installs what one part needs beyond the tests, listed in a file; once per content of that file.
    pub(crate) fn add(&self, needs: &str) -> Outcome {
        let wanted =
            fs::read_to_string(root().join(needs)).map_err(|error| format!("{needs}: {error}"))?;
        // Below the environment: a new one has none of it.
        let stamp = self
            .folder
            .join(format!("{}.installed", needs.replace('/', "-")));
        if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
            return Ok(());
        }
        self.python(&[
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
            needs,
        ])
        .run()
        .map_err(|failure| {
            format!("{failure}; the needs come from the package index: is the network there?")
        })?;
        fs::write(&stamp, wanted).map_err(|error| format!("{}: {error}", stamp.display()))
    }

    fn program(&self, name: &str) -> String {
        self.folder
            .join("bin")
            .join(name)
            .to_string_lossy()
            .into_owned()
    }

    fn make(&self, interpreter: &Interpreter) -> Outcome {
        let needs =
            fs::read_to_string(root().join(NEEDS)).map_err(|error| format!("{NEEDS}: {error}"))?;
        let stamp = self.folder.join("installed.txt");
        if fs::read_to_string(&stamp).is_ok_and(|installed| installed == needs) {
            return Ok(());
        }
        let folder = self.folder.to_string_lossy().into_owned();
        Sh::new(&interpreter.program, &["-m", "venv", "--clear", &folder]).run()?;
        let quiet = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ];
        Sh::new(&self.program("python"), &quiet)
            .args(&["-r", NEEDS])
            .run()
            .map_err(|failure| {
                format!("{failure}; the needs come from the package index: is the network there?")
            })?;
        fs::write(&stamp, needs).map_err(|error| format!("{}: {error}", stamp.display()))
    }

    fn install_package(&self) -> Outcome {
        let wheels = self.folder.join("wheels");
        // Old ones would be found beside the new one.
        if wheels.is_dir() {
            fs::remove_dir_all(&wheels)
                .map_err(|error| format!("{}: {error}", wheels.display()))?;
        }
        let (python, out) = (
            self.program("python"),
            wheels.to_string_lossy().into_owned(),
        );
        Sh::new(
            &self.program("maturin"),
            &["build", "--release", "--locked"],
        )
        .args(&["--interpreter", &python, "--out", &out])
        .run()?;
        let wheel = only_wheel(&wheels)?;
        Sh::new(
            &python,
            &[
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ],
        )
        .args(&["--no-deps", "--force-reinstall", &wheel])
        .run()
    }
}

fn only_wheel(folder: &Path) -> Outcome<String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let wheel = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ending| ending == "whl"));
    wheel
        .map(|path| path.to_string_lossy().into_owned())
        .ok_or_else(|| format!("no wheel in {}", folder.display()))
}

/// Runs the Python face's own suite.
pub(crate) fn test() -> Outcome {
    let venv = Venv::with_package()?;
    venv.python(&["-m", "pytest", "--quiet", "python/tests"])
        .run()?;
    venv.python(&[CONFORMANCE, "--quick"]).run()?;
    chaos_in(&venv, 1.0, None, "both")
}

/// Runs CPython's own tests with the package and without it.
pub(crate) fn conformance(args: &[String]) -> Outcome {
    let venv = Venv::with_package()?;
    venv.python(&[CONFORMANCE]).args(args).run()
}

/// Runs the programs of `tests/pains`.
pub(crate) fn pains(args: &[String]) -> Outcome {
    let venv = Venv::with_package()?;
    if args.iter().any(|arg| arg == "peers" || arg == "all") {
        venv.add("tests/pains/peers/requirements.txt")?;
    }
    venv.python(&["tests/pains/run.py"]).args(args).run()
}

/// Runs trees of processes under a killer, in one face or in both by turns.
pub(crate) fn chaos(minutes: f64, seed: Option<u32>, face: &str) -> Outcome {
    let venv = Venv::with_package()?;
    chaos_in(&venv, minutes, seed, face)
}

fn chaos_in(venv: &Venv, minutes: f64, seed: Option<u32>, face: &str) -> Outcome {
    let minutes = minutes.to_string();
    let mut args = vec![
        "tests/chaos/chaos.py".to_owned(),
        format!("--minutes={minutes}"),
        format!("--face={face}"),
    ];
    if face != "python" {
        let package = ["--release", "--package", "phalanx-chaos"];
        Sh::cargo(&["build"]).args(&package).run()?;
        let tree = target_dir().join("release/phalanx-chaos");
        args.push(format!("--rust-tree={}", tree.display()));
    }
    args.extend(seed.map(|seed| format!("--seed={seed}")));
    venv.python(&[]).args(&args).run()
}

/// Runs others' programs on the standard library and on the package, in an environment that has them.
pub(crate) fn realworld(only: &[String], rounds: u32) -> Outcome {
    let venv = Venv::with_package()?;
    venv.add("python/realworld/requirements.txt")?;
    let rounds = rounds.to_string();
    let mut run = venv.python(&["python/realworld/run.py", "--rounds", &rounds]);
    for name in only {
        run = run.args(&["--only", name]);
    }
    run.run()
}

/// Measures the package beside the standard library and its peers.
pub(crate) fn bench(quick: bool) -> Outcome {
    let venv = Venv::with_package()?;
    venv.add("benches/python/requirements.txt")?;
    let mut run = venv.python(&["benches/python/bench.py"]);
    if quick {
        run = run.args(&["--quick"]);
    }
    run.run()
}
