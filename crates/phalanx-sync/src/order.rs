//! In which order this thread takes locks; noted while somebody wants to know, before it waits for one.
//!
//! What a thread noted before it need not note again: it remembers the last few hundred steps by their hashes, so that the
//! log of the tree is asked for new ones only.

use std::cell::Cell;

use phalanx_shm::{Arena, GATES_MOST, Node, StepText, mixed, session_if_any, thread_number};

/// Steps that a thread remembers.
const KNOWN: usize = 512;

thread_local! {
    // Each place has the hash that was noted last of those that belong there.
    static STEPS: [Cell<u64>; KNOWN] = const { [const { Cell::new(0) }; KNOWN] };
    /// The thread is in the middle of noting: whatever locks that takes are not the program's.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// Returns the arena if the order of locks is to be noted.
#[must_use]
pub fn order_wanted() -> Option<&'static Arena> {
    session_if_any().filter(|arena| arena.watch().order)
}

/// Notes that the calling thread, which holds `held`, is about to wait for `to` for as long as it takes. `say` is asked for
/// words about the step from one of them.
pub fn note_order(
    arena: &'static Arena,
    held: impl Iterator<Item = Node> + Clone,
    to: Node,
    say: impl Fn(Node) -> StepText,
) {
    let (mut all, mut count) = (0_u64, 0);
    for node in held.clone() {
        if node == to {
            // It has it already: no step.
            return;
        }
        all = all.wrapping_add(mixed(node.to_bits()));
        count += 1;
    }
    if count == 0 || count > GATES_MOST + 1 || BUSY.get() {
        return;
    }
    let who = mixed(thread_number() ^ to.to_bits().rotate_left(17));
    for from in held.clone() {
        let gates = all.wrapping_sub(mixed(from.to_bits()));
        let hash = mixed(who ^ from.to_bits()) ^ gates.rotate_left(31) | 1;
        let is_known = STEPS
            .try_with(|steps| {
                let at = (hash >> 40) as usize % KNOWN;
                steps[at].replace(hash) == hash
            })
            .unwrap_or(true);
        if is_known {
            continue;
        }
        BUSY.set(true);
        let _idle = Idle;
        let others: Vec<Node> = held.clone().filter(|node| *node != from).collect();
        arena.note_step(from, to, &others, || say(from));
    }
}

struct Idle;

impl Drop for Idle {
    fn drop(&mut self) {
        BUSY.set(false);
    }
}
