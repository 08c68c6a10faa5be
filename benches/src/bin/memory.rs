//! What idle workers and many locks weigh.

use std::any::Any;
use std::process::ExitCode;

use phalanx_benches::lock::Pthreads;
use phalanx_benches::memory::{descendants, descriptors, pss_kib, pss_kib_of};
use phalanx_benches::{Options, Result, Role, ours, program, zygote};

/// How many idle workers.
const WORKERS: usize = 8;
/// How many locks.
const LOCKS: usize = 100_000;

/// What stays alive while it is weighed.
type Alive = Box<dyn Any>;

/// One row: a name and how to make what is weighed.
struct Weighed {
    role: Role,
    name: &'static str,
    make: fn() -> Result<Alive>,
}

fn main() -> ExitCode {
    program(table)
}

fn table(options: &Options) -> Result {
    let title = format!("Memory: {WORKERS} idle workers, beyond the parent");
    if options.wants(&title) {
        println!("### {title}\n\n| | | processes | PSS | PSS a worker |\n|---|---|---:|---:|---:|");
        for row in workers() {
            let alive = (row.make)()?;
            // Workers reply before they are idle: let them get there.
            std::thread::sleep(std::time::Duration::from_millis(200));
            let pids = descendants()?;
            let all = pss_kib_of(&pids)?;
            drop(alive);
            println!(
                "| {} | {} | {} | {} | {} |",
                row.name,
                row.role.name(),
                pids.len(),
                mib(all),
                mib(all / WORKERS as u64),
            );
        }
        println!();
    }
    let title = format!("Memory: {LOCKS} locks");
    if options.wants(&title) {
        println!(
            "### {title}\n\n| | | PSS | bytes a lock | descriptors |\n|---|---|---:|---:|---:|"
        );
        for row in locks() {
            let this = std::process::id();
            let before = (pss_kib(this)?, descriptors()?);
            let alive = (row.make)()?;
            let after = (pss_kib(this)?, descriptors()?);
            drop(alive);
            let grown = after.0.saturating_sub(before.0);
            println!(
                "| {} | {} | {} | {} | {} |",
                row.name,
                row.role.name(),
                mib(grown),
                grown * 1024 / LOCKS as u64,
                after.1.saturating_sub(before.1),
            );
        }
        println!();
    }
    Ok(())
}

/// All rows of idle workers: each makes [`WORKERS`] of them and has each do one task. This project's own belong at the
/// end, as `Role::Phalanx`.
fn workers() -> Vec<Weighed> {
    vec![
        Weighed {
            role: Role::Limit,
            name: "a bare zygote and its children",
            make: || Ok(Box::new(zygote::idle_children(WORKERS)?)),
        },
        Weighed {
            role: Role::Peer,
            name: "procspawn: Pool",
            make: || {
                let pool = procspawn::Pool::new(WORKERS)?;
                let handles: Vec<_> = (0..WORKERS)
                    .map(|_| procspawn::spawn!(in pool, () || std::process::id()))
                    .collect();
                for handle in handles {
                    handle.join()?;
                }
                Ok(Box::new(pool))
            },
        },
        Weighed {
            role: Role::Phalanx,
            name: "Pool, its zygote included",
            make: || Ok(Box::new(ours::idle_pool(WORKERS)?)),
        },
    ]
}

/// All rows of locks: each makes [`LOCKS`] and takes each once. This project's own belong at the end, as
/// `Role::Phalanx`.
fn locks() -> Vec<Weighed> {
    vec![
        Weighed {
            role: Role::Limit,
            name: "pthread mutexes (shared, robust), side by side",
            make: || {
                let locks = Pthreads::new(LOCKS)?;
                locks.use_all();
                Ok(Box::new(locks))
            },
        },
        Weighed {
            role: Role::InProcess,
            name: "Arc<std::sync::Mutex<()>>, one allocation each",
            make: || {
                let locks: Vec<_> = (0..LOCKS)
                    .map(|_| std::sync::Arc::new(std::sync::Mutex::new(())))
                    .collect();
                for lock in &locks {
                    drop(lock.lock());
                }
                Ok(Box::new(locks))
            },
        },
        Weighed {
            role: Role::Phalanx,
            name: "Lock (shared, robust)",
            make: || Ok(Box::new(ours::locks(LOCKS)?)),
        },
    ]
}

fn mib(kib: u64) -> String {
    format!("{:.2} MiB", kib as f64 / 1024.0)
}
