//! A plain fork: returns twice.
#![expect(unsafe_code, reason = "fork")]

use phalanx::{Fork, When, at_fork, fork};

fn main() -> phalanx::Result<()> {
    at_fork(When::InChild, || {
        println!("at-fork hook: I am process {}", std::process::id())
    });
    println!("before: I am process {}", std::process::id());
    // SAFETY: this process has one thread of its own, and the child only prints and exits.
    match unsafe { fork() }? {
        Fork::Child => {
            println!("child: my parent is {:?}", phalanx::parent_pid());
            std::process::exit(7)
        }
        Fork::Parent(child) => {
            println!("parent: my child is {}", child.pid());
            println!("parent: it {}", child.join()?);
        }
    }
    Ok(())
}
