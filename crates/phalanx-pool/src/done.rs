//! Sleeping on a word until it says that something is done.

use phalanx_prim::{Ordering, Scope, Spin, Word};
use phalanx_shm::{Arena, Patience, Subject, WaitError, Waiting, place_of};

/// Blocks until `done` accepts the word. Before it sleeps it sets `waited` in it: whoever finishes wakes who set that.
///
/// # Errors
///
/// [`WaitError`] as `patience` says, unless it is done at that moment.
pub(crate) fn wait_done(
    word: &Word,
    waited: u32,
    patience: Patience,
    done: impl Fn(u32) -> bool,
) -> Result<(), WaitError> {
    let is_done = || done(word.load(Ordering::Acquire)).then_some(());
    if is_done().is_some() || Spin::until(is_done).is_some() {
        return Ok(());
    }
    let mut waiting = Waiting::new();
    loop {
        waiting.looks();
        let now = word.load(Ordering::Acquire);
        if done(now) {
            return Ok(());
        }
        let sleeping = now | waited;
        if now != sleeping
            && word
                .compare_exchange(now, sleeping, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
        {
            continue;
        }
        let at = |arena: &Arena| place_of(arena, word);
        let slept = waiting
            .sleeps(Subject::SharedGate, at, 0, patience)
            .and_then(|()| {
                patience.check(waiting.wait(word, sleeping, patience.deadline, Scope::Shared))
            });
        if let Err(error) = slept {
            return is_done().ok_or(error);
        }
    }
}
