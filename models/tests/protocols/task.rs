//! The pool's task word: one claim, one end, one who frees it.

use phalanx_models::{USUAL, explore, fails, spawn};
use phalanx_pool::modelled::Task;
use phalanx_prim::model::Fault;
use phalanx_shm::Arena;

/// Two workers find the same reference; the submitter waits.
fn claims() -> impl Fn(&'static Arena) + Send + Sync {
    |arena| {
        let task = Task::new(arena, b"args").unwrap();
        let work = move |slot: u16, seat: u32| {
            phalanx_prim::model::be(slot);
            let mine = task.claim(seat);
            if mine {
                task.set_result(&seat.to_le_bytes()).unwrap();
                assert_eq!(task.finish(), Some(false), "ended by somebody else");
            }
            mine
        };
        let workers = [(2, 20), (3, 30)].map(|(slot, seat)| spawn(move || work(slot, seat)));
        let (value, bytes) = task.wait();
        let ran = workers.map(|worker| worker.join().unwrap());
        assert!(value && ran[0] != ran[1], "run by {ran:?}");
        let seat = u32::from_le_bytes(bytes.try_into().unwrap());
        assert_eq!(seat, if ran[0] { 20 } else { 30 });
        assert_eq!(task.claimed_by(), seat);
        task.free();
        assert_eq!(arena.usage().blocks, 0);
    }
}

#[test]
fn one_worker_runs_it() {
    explore(USUAL, claims());
}

#[test]
fn fails_when_the_exchange_is_torn() {
    fails(Fault::TornExchange, USUAL, claims());
}

#[test]
fn fails_when_wakes_are_lost() {
    fails(Fault::LostWakes, USUAL, claims());
}

#[cfg(phalanx_loom)]
#[test]
fn fails_when_nothing_is_ordered() {
    fails(Fault::Relaxed, USUAL, claims());
}

/// A cancel races with a claim: it is one or the other.
#[test]
fn a_cancelled_task_never_runs() {
    explore(USUAL, |arena| {
        let task = Task::new(arena, b"").unwrap();
        let worker = spawn(move || {
            phalanx_prim::model::be(2);
            let mine = task.claim(20);
            if mine {
                task.set_result(b"done").unwrap();
                assert_eq!(task.finish(), Some(false));
            }
            mine
        });
        let cancelled = task.cancel();
        let (value, _) = task.wait();
        let ran = worker.join().unwrap();
        assert!(ran != cancelled, "ran: {ran}, cancelled: {cancelled}");
        assert_eq!((value, task.was_cancelled()), (ran, cancelled));
    });
}

/// The handle is dropped while the task ends: it is freed by exactly one.
#[test]
fn an_abandoned_task_is_freed_once() {
    explore(USUAL, |arena| {
        let task = Task::new(arena, b"").unwrap();
        let worker = spawn(move || {
            phalanx_prim::model::be(2);
            assert!(task.claim(20));
            task.set_result(&[7; 500]).unwrap();
            task.finish().expect("nobody else ends it")
        });
        let mine = task.let_go();
        let told = worker.join().unwrap();
        assert!(mine != told, "freed by both or by nobody");
        assert_eq!(task.is_orphan(), told);
        task.free();
        assert_eq!(arena.usage().blocks, 0, "a result is left behind");
    });
}

/// A worker ends its task while the supervisor, who takes it for dead, ends it too: one end counts.
#[test]
fn a_task_ends_once() {
    explore(USUAL, |arena| {
        let task = Task::new(arena, b"").unwrap();
        assert!(task.claim(20));
        let supervisor = spawn(move || task.finish_died());
        let mine = task.finish().is_some();
        let theirs = supervisor.join().unwrap();
        assert!(mine != theirs);
        let _ = task.wait();
    });
}

/// A retry: the task goes back and is claimed by another.
#[test]
fn a_task_that_goes_back_is_claimed_again() {
    explore(USUAL, |arena| {
        let task = Task::new(arena, b"").unwrap();
        assert!(task.claim(20));
        let second = spawn(move || {
            phalanx_prim::model::be(3);
            let mine = task.claim(30);
            if mine {
                assert_eq!(task.finish(), Some(false));
            }
            mine
        });
        task.requeue();
        if !second.join().unwrap() {
            assert!(task.claim(20));
            assert_eq!(task.finish(), Some(false));
        }
        let _ = task.wait();
    });
}
