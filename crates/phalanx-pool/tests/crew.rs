//! A crew whose workers die at every named point of its protocol, and while they steal, are timed out and cancelled.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use phalanx_channel::Queue;
use phalanx_pool::{Crew, CrewWorker, End, Leaving, Lot, LotSpec, News, Work};
use phalanx_prim::points;
use phalanx_shm::{BlockRef, Patience, session};
use phalanx_sys::clock::Deadline;
use phalanx_sys::event::EventFd;
use phalanx_testkit::{Child, Level, alone, in_child, watchdog};

const POINTS: [&str; 13] = [
    "crew.seated",
    "crew.cursor",
    "crew.claimed",
    "crew.ran",
    "crew.block-noted",
    "crew.result-stored",
    "crew.committed",
    "crew.counted",
    "crew.done",
    "crew.told",
    "queue.get.claimed",
    "queue.get.committed",
    "arena.allocated",
];

/// What a task is told: how long to sleep, and a number to answer with.
fn task(millis: u8, number: u8) -> Vec<u8> {
    vec![millis, number]
}

/// Long answers lie in blocks of their own now and then.
fn answer(number: u8) -> Vec<u8> {
    let len = match number % 7 {
        0 => 20_000,
        3 => 900,
        short => 1 + usize::from(short),
    };
    vec![number; len]
}

fn serve(crew: &Crew, number: u32) {
    let bell = crew.bell().as_fd().try_clone_to_owned().unwrap();
    let bell = Arc::new(EventFd::from_fd(bell));
    let leaving = Arc::new(Leaving::default());
    let held = crew.held().clone();
    let mut worker = CrewWorker::join(held, bell, number, leaving).unwrap();
    worker.ready();
    while worker.next(Patience::FOREVER).unwrap() == Work::Range {
        while let Some(index) = worker.begin() {
            let args = worker.args(index).to_vec();
            std::thread::sleep(Duration::from_millis(args[0].into()));
            let (end, bytes) = match args[1] {
                255 => (End::Error, b"no".to_vec()),
                number => (End::Value, answer(number)),
            };
            worker.finish(index, end, &bytes, &[]).unwrap();
        }
    }
}

struct Staff<'a> {
    crew: &'a Arc<Crew>,
    workers: HashMap<u32, Child>,
    hired: u32,
}

impl<'a> Staff<'a> {
    fn new(crew: &'a Arc<Crew>) -> Self {
        Self {
            crew,
            workers: HashMap::new(),
            hired: 0,
        }
    }

    fn hire(&mut self, number: u32, armed: Option<(&'static str, u32)>) {
        let crew = self.crew;
        let child = in_child(|| {
            if let Some((point, nth)) = armed {
                points::arm(point, nth);
            }
            serve(crew, number);
        });
        self.crew.hired(number, child.pid());
        self.workers.insert(number, child);
        self.hired += 1;
    }

    /// Buries a worker as its parent does: what it held is free before its tasks are settled.
    fn bury(&mut self, number: u32) {
        let child = self.workers.remove(&number).unwrap();
        let pid = child.pid();
        child.wait();
        let arena = session().unwrap();
        for process in arena.processes() {
            if process.pid == pid {
                arena.sweep(process.slot);
            }
        }
    }

    /// Oversees until the lot is done; hires another for each that ends.
    fn oversee(&mut self, lot: &Lot) {
        while !lot.is_done() {
            for news in self
                .crew
                .look(Some(Deadline::after(Duration::from_millis(50))))
            {
                if let News::Ended(number) = news {
                    self.bury(number);
                    self.crew.settle(number, b"report");
                    self.hire(number, None);
                }
            }
        }
    }

    fn dismiss(mut self) {
        self.crew.dismiss();
        let numbers: Vec<u32> = self.workers.keys().copied().collect();
        for number in numbers {
            self.bury(number);
            self.crew.settle(number, b"");
        }
        self.crew.end_all(End::Terminated);
    }
}

fn spec(tasks: &[Vec<u8>]) -> LotSpec {
    let mut spec = LotSpec {
        streamed: true,
        ..LotSpec::default()
    };
    for task in tasks {
        spec.spans.push((spec.bytes.len(), task.len()));
        spec.bytes.extend_from_slice(task);
    }
    spec
}

fn blocks() -> usize {
    session().unwrap().usage().blocks
}

fn check(lot: &Lot, index: usize, number: u8) {
    assert_eq!(lot.end_of(index), Some(End::Value), "task {index}");
    assert_eq!(lot.with_result(index, <[u8]>::to_vec), answer(number));
}

/// What stays for good (this process's table of holds) is there.
fn warm_up() {
    let crew = Crew::new(1, 1).unwrap();
    let mut staff = Staff::new(&crew);
    staff.hire(0, None);
    let lot = crew.submit(&spec(&[task(0, 1)]), &[]).unwrap();
    staff.oversee(&lot);
    staff.dismiss();
}

#[test]
fn a_death_at_any_point_costs_no_result_and_no_memory() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(300));
    warm_up();
    for point in POINTS {
        for nth in [1, 2, 9] {
            let level = Level::now(blocks());
            let crew = Crew::new(2, 1).unwrap();
            let mut staff = Staff::new(&crew);
            staff.hire(0, Some((point, nth)));
            staff.hire(1, None);
            let tasks: Vec<_> = (0..60).map(|number| task(0, number)).collect();
            let many = LotSpec {
                retries: 2,
                ..spec(&tasks)
            };
            let many = crew.submit(&many, &[]).unwrap();
            let one = LotSpec {
                retries: 2,
                ..spec(&[task(0, 61)])
            };
            let one = crew.submit(&one, &[]).unwrap();
            staff.oversee(&many);
            staff.oversee(&one);
            for index in 0..60 {
                check(&many, index, index as u8);
            }
            check(&one, 0, 61);
            drop((many, one));
            staff.dismiss();
            drop(crew);
            eprintln!("{point} {nth}");
            level.assert_back_with(blocks);
        }
    }
}

#[test]
fn a_death_fails_the_task_that_ran_and_no_other() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let crew = Crew::new(1, 1).unwrap();
    let mut staff = Staff::new(&crew);
    staff.hire(0, Some(("crew.ran", 5)));
    let tasks: Vec<_> = (0..20).map(|number| task(0, number)).collect();
    let lot = crew.submit(&spec(&tasks), &[]).unwrap();
    staff.oversee(&lot);
    for index in 0..20 {
        if index == 4 {
            assert_eq!(lot.end_of(index), Some(End::Died));
            let report = lot.with_result(index, <[u8]>::to_vec);
            // After how long it ran and how many calls were done.
            assert_eq!(&report[16..], b"report");
        } else {
            check(&lot, index, index as u8);
        }
    }
    assert_eq!(staff.hired, 2);
    staff.dismiss();
}

#[test]
fn a_time_out_and_a_cancellation_kill_that_worker_only() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let crew = Crew::new(2, 1).unwrap();
    let mut staff = Staff::new(&crew);
    staff.hire(0, None);
    staff.hire(1, None);
    let slow = LotSpec {
        timeout_ns: 30_000_000,
        ..spec(&[task(250, 1), task(0, 2), task(0, 3)])
    };
    let slow = crew.submit(&slow, &[]).unwrap();
    staff.oversee(&slow);
    assert_eq!(slow.end_of(0), Some(End::TimedOut));
    check(&slow, 1, 2);
    check(&slow, 2, 3);
    let running = crew.submit(&spec(&[task(250, 1)]), &[]).unwrap();
    while !running.is_running(0) {
        std::thread::yield_now();
    }
    assert!(running.cancel(0, true));
    staff.oversee(&running);
    assert_eq!(running.end_of(0), Some(End::Cancelled));
    assert!(!running.cancel(0, true));
    assert_eq!(staff.hired, 4);
    staff.dismiss();
}

#[test]
fn idle_workers_take_from_a_range_that_is_long() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let crew = Crew::new(2, 1).unwrap();
    let mut staff = Staff::new(&crew);
    staff.hire(0, None);
    staff.hire(1, None);
    // One range of 24: without taking from it one worker would do it all.
    let tasks: Vec<_> = (0..192).map(|number| task(1, number)).collect();
    let lot = crew.submit(&spec(&tasks), &[]).unwrap();
    staff.oversee(&lot);
    for index in 0..192 {
        check(&lot, index, index as u8);
    }
    let runs = crew.runs();
    assert_eq!(runs.iter().map(|(count, _)| count).sum::<u64>(), 192);
    assert!(runs.iter().all(|(count, _)| *count > 0), "{runs:?}");
    staff.dismiss();
}

#[test]
fn errors_are_tried_again_and_the_end_ends_what_waits() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let crew = Crew::new(1, 1).unwrap();
    let mut staff = Staff::new(&crew);
    staff.hire(0, None);
    let failing = LotSpec {
        retries: 2,
        ..spec(&[task(0, 255)])
    };
    let failing = crew.submit(&failing, &[]).unwrap();
    staff.oversee(&failing);
    assert_eq!(failing.end_of(0), Some(End::Error));
    assert_eq!(failing.tries(0), 3);
    staff.dismiss();
    let crew = Crew::new(1, 1).unwrap();
    let never = crew.submit(&spec(&[task(0, 1), task(0, 2)]), &[]).unwrap();
    crew.end_all(End::Terminated);
    assert!(never.is_done());
    assert_eq!(never.end_of(1), Some(End::Terminated));
    assert!(crew.submit(&spec(&[task(0, 1)]), &[]).is_err());
}

/// Waits for a crew's name, takes a task of it, tells of it, and finishes it when it may.
fn work_late(crews: &Queue<u64>, begun: &Queue<bool>, go: &Queue<()>) {
    let block = BlockRef::from_bits(crews.get().unwrap()).unwrap();
    let held = session().unwrap().hold(block).unwrap();
    let bell = Arc::new(EventFd::new().unwrap());
    let mut worker = CrewWorker::join(held, bell, 0, Arc::default()).unwrap();
    worker.ready();
    assert_eq!(worker.next(Patience::FOREVER).unwrap(), Work::Range);
    let index = worker.begin().unwrap();
    let what = worker.with_function(|_, bytes| bytes.to_vec()).unwrap();
    begun.put(true).unwrap();
    go.get().unwrap();
    assert_eq!(worker.args(index), task(0, 5).repeat(1000));
    assert_eq!(worker.with_function(|_, bytes| bytes.to_vec()), Some(what));
    worker.finish(index, End::Value, &[7; 20_000], &[]).unwrap();
    // Nothing more of it is begun.
    assert_eq!(worker.begin().map(|_| ()), None);
}

/// A worker is in the middle of a task while the submitter dies and is swept: the lot is there until the worker has gone,
/// whatever else needs memory meanwhile.
#[test]
fn a_submitters_death_takes_no_lot_from_under_a_worker() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    warm_up();
    let (crews, begun, go) = (
        Queue::new().unwrap(),
        Queue::new().unwrap(),
        Queue::new().unwrap(),
    );
    let worker = in_child(|| work_late(&crews, &begun, &go));
    let before = blocks();
    let submitter = in_child(|| {
        let crew = Crew::new(1, 1).unwrap();
        crews.put(crew.held().block().to_bits()).unwrap();
        let known = LotSpec {
            function: crew.know(b"a function", &[]).unwrap(),
            ..spec(&[task(0, 5).repeat(1000)])
        };
        let lots = [(); 3].map(|()| crew.submit(&known, &[]).unwrap());
        lots[2].wait(Patience::FOREVER).unwrap();
    });
    assert!(begun.get().unwrap());
    submitter.kill();
    let sweep = |pid| {
        let arena = session().unwrap();
        for process in arena.processes() {
            if process.pid == pid {
                arena.sweep(process.slot);
            }
        }
    };
    let pid = submitter.pid();
    submitter.wait();
    sweep(pid);
    let others: Vec<_> = (0..500)
        .map(|number| {
            let arena = session().unwrap();
            let loan = phalanx_channel::Loan::new(arena, 64 << (number % 6), &[]);
            let mut loan = loan.unwrap();
            loan.fill(0xee);
            loan
        })
        .collect();
    go.put(()).unwrap();
    let pid = worker.pid();
    assert!(worker.wait().is_success());
    sweep(pid);
    assert!(
        others
            .iter()
            .all(|loan| loan.iter().all(|byte| *byte == 0xee)),
        "the worker wrote into memory of others"
    );
    drop(others);
    assert_eq!(blocks(), before);
}
