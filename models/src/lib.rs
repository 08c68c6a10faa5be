//! How the models in `tests/protocols/` are run: loom tries every order (and what weak memory allows) within a bound, shuttle
//! many random ones. `cargo xtask model` runs both.
//!
//! A model is a closure that plays a few threads, each of a process of its own if it says so, on a fresh arena. It runs the
//! engine's own code. `fails` runs one on a machine with a fault, and wants it to be caught.
#![cfg(any(phalanx_loom, phalanx_shuttle))]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use phalanx_prim::model::{self, Fault};
use phalanx_shm::Arena;

pub use phalanx_prim::thread::spawn;

/// Processes that live when a model begins: 1 is its main thread's.
pub const PROCESSES: u16 = 5;

/// How thorough to be.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Loom: at most so many switches away from a thread that could go on.
    pub preemptions: usize,
    /// Shuttle: so many random orders, and half as many of few switches.
    pub orders: usize,
}

/// Enough for two or three threads of a dozen steps each.
pub const USUAL: Effort = Effort {
    preemptions: 4,
    orders: 1000,
};

/// For models with long threads.
pub const LONG: Effort = Effort {
    preemptions: 2,
    orders: 300,
};

/// Explores a model.
///
/// # Panics
///
/// When an order fails: an assertion, or everybody waits.
pub fn explore(effort: Effort, model: impl Fn(&'static Arena) + Send + Sync + 'static) {
    run(effort, Fault::None, Arc::new(model));
}

/// Explores a model on a machine with a fault and wants it to fail.
///
/// # Panics
///
/// When no order fails: then the model sees nothing.
pub fn fails(fault: Fault, effort: Effort, model: impl Fn(&'static Arena) + Send + Sync + 'static) {
    let explored = catch_unwind(AssertUnwindSafe(|| run(effort, fault, Arc::new(model))));
    assert!(
        explored.is_err(),
        "no order failed on a machine with {fault:?}: this model catches nothing"
    );
}

type Model = Arc<dyn Fn(&'static Arena) + Send + Sync>;

fn once(model: &Model, fault: Fault) {
    model::begin(fault);
    model(phalanx_shm::modelled::begin(PROCESSES));
}

#[cfg(phalanx_loom)]
fn run(effort: Effort, fault: Fault, model: Model) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(effort.preemptions);
    builder.max_branches = 50_000;
    builder.check(move || once(&model, fault));
}

#[cfg(not(phalanx_loom))]
fn run(effort: Effort, fault: Fault, model: Model) {
    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    use shuttle::{Config, FailurePersistence, Runner};
    // The same orders each time; others by PHALANX_MODEL_SEED, more by PHALANX_MODEL_TIMES.
    let number = |name: &str, otherwise: u64| {
        let given = std::env::var(name).ok().and_then(|text| text.parse().ok());
        given.unwrap_or(otherwise)
    };
    let seed = number("PHALANX_MODEL_SEED", 1);
    let orders = effort.orders * number("PHALANX_MODEL_TIMES", 1) as usize;
    let mut config = Config::new();
    config.stack_size = 512 * 1024;
    config.failure_persistence = FailurePersistence::None;
    let few = PctScheduler::new_from_seed(seed, 3, orders / 2);
    let any = RandomScheduler::new_from_seed(seed, orders);
    let again = Arc::clone(&model);
    Runner::new(any, config.clone()).run(move || once(&model, fault));
    Runner::new(few, config).run(move || once(&again, fault));
}
