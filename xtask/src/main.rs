//! Every check of the house as a name a person can type: `cargo xtask <name>`.
//!
//! Needs a Rust toolchain and the package registry, nothing else. What needs more (a nightly toolchain, another
//! target, cargo-fuzz) says so and how to get it. Each command prints the ordinary commands it runs, so that any of
//! them can be pasted.

mod bench;
mod check;
mod deep;
mod python;
mod rooms;
mod sh;
mod terrace;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The house's own commands", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Sets up, builds in release and runs the wordcount example, in Rust and in Python, on the sources of this build
    Demo {
        /// Arguments for the example (after `--`), for instance `-- --chaos`
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Sets up, then runs every test: unit, integration, examples, doc tests
    Test {
        /// Only these packages
        #[arg(short, long)]
        package: Vec<String>,
    },
    /// Runs CPython's own tests of processes, threads and queues with phalanx and without it, and compares
    Conformance {
        /// Arguments for the runner (after `--`), for instance `-- --suite queue,fork --method spawn`
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Runs the benchmark programs, one per table, in release
    Bench {
        /// Only this table
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(bench::TABLES))]
        table: Option<String>,
        /// Few rounds: shows that the programs run, not how fast
        #[arg(long)]
        quick: bool,
    },
    /// Runs others' Python programs, unchanged, on the standard library and on phalanx, and compares
    Realworld {
        /// Only these programs
        only: Vec<String>,
        /// Runs of each; the medians are shown
        #[arg(long, default_value_t = 3)]
        rounds: u32,
    },
    /// Runs the pains of other tools, each a program that must not hang, lose or leak, on the standard library and on phalanx
    Pains {
        /// Arguments for tests/pains/run.py (after `--`), for instance `-- --engine phalanx --only p07`
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Kills, stops and starves members of process trees under load in both faces, and checks that nothing hangs, is lost or leaks
    Chaos {
        /// How long
        #[arg(long, default_value_t = 1.0)]
        minutes: f64,
        /// Replays a run's decisions; random without
        #[arg(long)]
        seed: Option<u32>,
        /// Whose trees
        #[arg(long, default_value = "both", value_parser = ["rust", "python", "both"])]
        face: String,
    },
    /// Runs format, clippy, rustdoc, the aarch64 build, and the house's own rules (direction, unsafe rooms)
    Check {
        /// Only these steps
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(check::steps()))]
        only: Vec<String>,
    },
    /// Explores the protocols' interleavings with loom, then shuttle
    Model {
        /// Only models whose name contains this
        filter: Option<String>,
    },
    /// Runs the memory and lock crates' unit tests under Miri (needs nightly)
    Miri {
        /// Only this package
        package: Option<String>,
    },
    /// Fuzzes what reads bytes of another process, briefly (needs nightly and cargo-fuzz)
    Fuzz {
        /// Seconds per target
        #[arg(long, default_value_t = 30)]
        seconds: u32,
    },
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Demo { args } => test::demo(&args),
        Task::Conformance { args } => python::conformance(&args),
        Task::Test { package } => test::test(&package),
        Task::Bench { table, quick } => bench::bench(table.as_deref(), quick),
        Task::Realworld { only, rounds } => python::realworld(&only, rounds),
        Task::Pains { args } => python::pains(&args),
        Task::Chaos {
            minutes,
            seed,
            face,
        } => python::chaos(minutes, seed, &face),
        Task::Check { only } => check::check(&only),
        Task::Model { filter } => deep::model(filter.as_deref()),
        Task::Miri { package } => deep::miri(package.as_deref()),
        Task::Fuzz { seconds } => deep::fuzz(seconds),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("\nxtask: {failure}");
            ExitCode::FAILURE
        }
    }
}
