//! A function in a new process: from the call to the result and the end of the process.

use std::process::ExitCode;

use phalanx_benches::zygote::{self, Zygote, function};
use phalanx_benches::{
    Contestant, Entry, Group, Options, Result, Role, ours, peers, program, repeat, run,
};

const ZYGOTE: &str = "bare zygote: its child is ours, result in shared memory, waited for";
const SPAWN: &str = "posix_spawn of self, result by pipe, waited for";

fn main() -> ExitCode {
    program(table)
}

fn table(options: &Options) -> Result {
    let title = "Spawn: a function in a new process";
    if options.wants(title) {
        run(
            Group::new(title, ZYGOTE, contestants()).note(peers::CROSSMIST),
            options,
        )?;
    }
    let title = "Spawn: the same with 1 GiB resident in the parent";
    if options.wants(title) {
        run(
            Group::new(title, ZYGOTE, contestants())
                .with_resident(1 << 30)
                .note(peers::CROSSMIST),
            options,
        )?;
    }
    Ok(())
}

/// All rows, set up before the parent grows. This project's own belong at the end, as `Role::Phalanx`; what re-executes
/// is compared `.against(SPAWN)`.
fn contestants() -> Vec<Entry> {
    vec![
        Entry::new(
            Role::Limit,
            "bare zygote: result in shared memory, end not waited for",
            || calls(Zygote::start(false)?),
        ),
        Entry::new(Role::Limit, ZYGOTE, || calls(Zygote::start(true)?)),
        Entry::new(Role::Limit, SPAWN, || {
            Ok(|count| repeat(count, || check(zygote::spawn_self(1)?)))
        }),
        Entry::new(
            Role::Limit,
            "plain fork, result by pipe, waited for",
            || Ok(|count| repeat(count, || check(zygote::fork_and_pipe(1)?))),
        ),
        Entry::new(Role::Peer, "procspawn: spawn + join", || {
            Ok(|count| {
                repeat(count, || {
                    check(procspawn::spawn!((1_u64 => value) || function(value)).join()?)
                })
            })
        })
        .against(SPAWN),
        Entry::new(Role::InProcess, "std::thread::spawn + join", || {
            Ok(|count| {
                repeat(count, || {
                    let thread = std::thread::spawn(|| function(1));
                    check(thread.join().map_err(|_| "the thread panicked")?)
                })
            })
        }),
        Entry::new(Role::Phalanx, "Process by zygote: spawn + join", || {
            ours::start(phalanx::StartMethod::Zygote)
        }),
        Entry::new(Role::Phalanx, "Process by spawn: spawn + join", || {
            ours::start(phalanx::StartMethod::Spawn)
        })
        .against(SPAWN),
    ]
}

fn calls(mut zygote: Zygote) -> Result<impl Contestant> {
    Ok(move |count| repeat(count, || check(zygote.call(1)?)))
}

fn check(result: u64) -> Result {
    if result == 2 {
        Ok(())
    } else {
        Err(format!("{result} is the wrong result").into())
    }
}
