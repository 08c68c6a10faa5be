//! Who waits for whom, and who of them can never go on.
//!
//! A thread that waits needs either one other thread (the owner of a lock, a thread or process that is joined) or any of
//! a number of them (whoever puts into a queue, sets an event, gives a permit back). It is *stuck* if
//!
//! - it needs one thread, and that is stuck; or
//! - it needs any of several, and all of them are stuck, and they are all that there are.
//!
//! The stuck threads are the greatest set with this property: [`Graph::stuck`] begins with all that wait without a
//! deadline and takes out those that somebody can help, until nobody is taken out any more. What has one way out, however
//! long, is not in it.

use std::collections::{HashMap, HashSet};

/// Names a thread: its process's slot, and the kernel's id of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Thread {
    pub(crate) slot: u16,
    pub(crate) tid: u32,
}

/// Who can end a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// This thread alone.
    One(Thread),
    /// Any thread of this process.
    Process(u16),
    /// Any thread of any process.
    Tree,
}

/// All threads of a process that could do something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Population {
    pub(crate) threads: Vec<Thread>,
    /// There may be others.
    pub(crate) open: bool,
}

/// Threads that wait without an end in sight, and whom they need.
#[derive(Clone, Debug, Default)]
pub(crate) struct Graph {
    pub(crate) needs: HashMap<Thread, Needs>,
    pub(crate) processes: HashMap<u16, Population>,
}

impl Graph {
    fn all_stuck(&self, population: &Population, stuck: &HashSet<Thread>) -> bool {
        !population.open
            && population
                .threads
                .iter()
                .all(|thread| stuck.contains(thread))
    }

    /// Returns the threads that can never go on.
    pub(crate) fn stuck(&self) -> HashSet<Thread> {
        let mut stuck: HashSet<Thread> = self.needs.keys().copied().collect();
        loop {
            let whole: HashMap<u16, bool> = self
                .processes
                .iter()
                .map(|(slot, population)| (*slot, self.all_stuck(population, &stuck)))
                .collect();
            let tree = whole.values().all(|whole| *whole);
            let before = stuck.len();
            let left: Vec<Thread> = stuck
                .iter()
                .copied()
                .filter(|thread| match self.needs[thread] {
                    Needs::One(other) => !stuck.contains(&other),
                    Needs::Process(slot) => !whole.get(&slot).is_some_and(|whole| *whole),
                    Needs::Tree => !tree,
                })
                .collect();
            for thread in left {
                stuck.remove(&thread);
            }
            if stuck.len() == before {
                return stuck;
            }
        }
    }

    /// Returns those whom a stuck thread needs.
    fn needed(&self, thread: Thread) -> Vec<Thread> {
        match self.needs.get(&thread) {
            None => Vec::new(),
            Some(Needs::One(other)) => vec![*other],
            Some(Needs::Process(slot)) => self
                .processes
                .get(slot)
                .map_or_else(Vec::new, |population| population.threads.clone()),
            Some(Needs::Tree) => self
                .processes
                .values()
                .flat_map(|population| population.threads.iter().copied())
                .collect(),
        }
    }

    /// Returns the heart of the trouble that a stuck thread is in: the circle it runs into, in order; or, without one,
    /// everybody who would have to move first, sorted.
    pub(crate) fn core(&self, from: Thread) -> Vec<Thread> {
        if let Some(circle) = self.circle(from) {
            return circle;
        }
        let (mut seen, mut todo) = (HashSet::from([from]), vec![from]);
        let mut reached = Vec::new();
        while let Some(thread) = todo.pop() {
            for other in self.needed(thread) {
                if seen.insert(other) {
                    todo.push(other);
                }
                reached.push(other);
            }
        }
        reached.sort_unstable();
        reached.dedup();
        // A plain circle among them is what the others wait for.
        let mut circles: Vec<_> = reached
            .iter()
            .filter_map(|thread| self.circle(*thread))
            .collect();
        circles.sort_unstable();
        circles.into_iter().next().unwrap_or(reached)
    }

    /// Follows those who need one thread until somebody comes again.
    fn circle(&self, from: Thread) -> Option<Vec<Thread>> {
        let mut path = vec![from];
        let mut seen = HashMap::from([(from, 0)]);
        loop {
            let Some(Needs::One(next)) = path.last().and_then(|last| self.needs.get(last)) else {
                return None;
            };
            if let Some(begin) = seen.get(next) {
                let mut circle = path.split_off(*begin);
                // The same circle is the same, wherever one enters it.
                let least = circle
                    .iter()
                    .enumerate()
                    .min_by_key(|(_, thread)| **thread)?
                    .0;
                circle.rotate_left(least);
                return Some(circle);
            }
            seen.insert(*next, path.len());
            path.push(*next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small, fast generator of numbers (xorshift), so that a failure can be repeated.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, most: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % most as u64) as usize
        }
    }

    fn thread(slot: u16, tid: u32) -> Thread {
        Thread { slot, tid }
    }

    fn graph(needs: &[(Thread, Needs)]) -> Graph {
        let mut graph = Graph {
            needs: needs.iter().copied().collect(),
            ..Graph::default()
        };
        for (thread, _) in needs {
            let population = graph.processes.entry(thread.slot).or_default();
            population.threads.push(*thread);
        }
        graph
    }

    #[test]
    fn two_that_need_each_other_are_stuck_and_who_waits_behind_them_is_too() {
        let (a, b, c) = (thread(1, 1), thread(2, 2), thread(1, 3));
        let graph = graph(&[(a, Needs::One(b)), (b, Needs::One(a)), (c, Needs::One(a))]);
        assert_eq!(graph.stuck(), HashSet::from([a, b, c]));
        assert_eq!(graph.core(a), [a, b]);
        assert_eq!(graph.core(b), [a, b]);
        assert_eq!(graph.core(c), [a, b]);
    }

    #[test]
    fn a_chain_that_ends_at_somebody_who_runs_is_no_trouble() {
        let (a, b, c) = (thread(1, 1), thread(2, 2), thread(3, 3));
        let graph = graph(&[(a, Needs::One(b)), (b, Needs::One(c))]);
        assert!(graph.stuck().is_empty());
    }

    #[test]
    fn one_thread_that_runs_saves_all_who_need_anybody() {
        let (a, b, c) = (thread(1, 1), thread(1, 2), thread(2, 3));
        let mut all = graph(&[(a, Needs::Tree), (b, Needs::One(a)), (c, Needs::Process(2))]);
        assert_eq!(all.stuck(), HashSet::from([a, b, c]));
        assert_eq!(all.core(b), [a, b, c]);
        assert_eq!(all.core(c), [c]);
        // Somebody unknown in the second process: the third thread may be helped, and then the others.
        all.processes.get_mut(&2).unwrap().open = true;
        assert!(all.stuck().is_empty());
        all.processes.get_mut(&2).unwrap().open = false;
        all.processes
            .get_mut(&1)
            .unwrap()
            .threads
            .push(thread(1, 9));
        assert_eq!(all.stuck(), HashSet::from([c]));
    }

    #[test]
    fn who_needs_anybody_and_is_alone_is_stuck() {
        let a = thread(1, 1);
        let graph = graph(&[(a, Needs::Process(1))]);
        assert_eq!(graph.stuck(), HashSet::from([a]));
        assert_eq!(graph.core(a), [a]);
    }

    #[test]
    fn a_process_that_nobody_knows_anything_of_is_not_stuck() {
        let a = thread(1, 1);
        let mut graph = graph(&[(a, Needs::Process(2))]);
        graph.needs.insert(a, Needs::Process(2));
        assert!(graph.stuck().is_empty());
    }

    /// Each thread needs at most one other: stuck is who runs into a circle, by another way of reckoning.
    #[test]
    fn random_chains_are_judged_as_by_following_each() {
        let mut dice = Dice(0x5eed_0f70);
        let (mut found, mut free) = (0, 0);
        for _ in 0..2000 {
            let count = 2 + dice.below(30);
            let threads: Vec<_> = (0..count)
                .map(|i| thread((i % 4) as u16 + 1, i as u32))
                .collect();
            let next: Vec<Option<usize>> = (0..count)
                .map(|_| (dice.below(8) != 0).then(|| dice.below(count)))
                .collect();
            let needs: Vec<_> = (0..count)
                .filter_map(|i| Some((threads[i], Needs::One(threads[next[i]?]))))
                .collect();
            let graph = graph(&needs);
            let stuck = graph.stuck();
            for (i, one) in threads.iter().enumerate() {
                let mut at = Some(i);
                for _ in 0..=count {
                    at = at.and_then(|at| next[at]);
                }
                assert_eq!(stuck.contains(one), at.is_some(), "{needs:?}");
                if at.is_some() {
                    found += 1;
                    let core = graph.core(*one);
                    let last = core.last().unwrap();
                    assert_eq!(graph.needs[last], Needs::One(core[0]));
                } else {
                    free += 1;
                }
            }
        }
        assert!(found > 1000 && free > 1000, "{found} {free}");
    }

    /// Whoever is not stuck can be set free by running those who can run, one after the other; nobody else can.
    #[test]
    fn whoever_is_not_stuck_gets_free_when_the_others_run() {
        let mut dice = Dice(0xdead_10cc);
        for _ in 0..2000 {
            let count = 1 + dice.below(12);
            let threads: Vec<_> = (0..count)
                .map(|i| thread(dice.below(3) as u16 + 1, i as u32))
                .collect();
            let mut graph = Graph::default();
            for one in &threads {
                let population = graph.processes.entry(one.slot).or_default();
                population.threads.push(*one);
                population.open |= dice.below(12) == 0;
            }
            for one in &threads {
                let needs = match dice.below(5) {
                    0 => continue,
                    1 => Needs::Process(one.slot),
                    2 => Needs::Tree,
                    _ => Needs::One(threads[dice.below(count)]),
                };
                graph.needs.insert(*one, needs);
            }
            let stuck = graph.stuck();
            let mut free: HashSet<Thread> = threads
                .iter()
                .copied()
                .filter(|one| !graph.needs.contains_key(one))
                .collect();
            loop {
                let lively = |slot: &u16| {
                    let population = &graph.processes[slot];
                    population.open || population.threads.iter().any(|one| free.contains(one))
                };
                let more: Vec<_> = graph
                    .needs
                    .iter()
                    .filter(|(one, needs)| {
                        !free.contains(one)
                            && match needs {
                                Needs::One(other) => free.contains(other),
                                Needs::Process(slot) => lively(slot),
                                Needs::Tree => graph.processes.keys().any(lively),
                            }
                    })
                    .map(|(one, _)| *one)
                    .collect();
                if more.is_empty() {
                    break;
                }
                free.extend(more);
            }
            for one in &threads {
                assert_eq!(stuck.contains(one), !free.contains(one), "{graph:?}");
            }
        }
    }
}
