//! One round of chaos through the Rust face: a tree of processes under load, a killer, and a check of every promise at the
//! end. Ends with a line of JSON, and with code 0 if nothing was broken. `chaos.py` runs many of these and watches over them.

mod killer;
mod members;
mod tasks;
mod world;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use phalanx::prelude::*;
use phalanx::{GetError, JoinError};
use phalanx_testkit::Level;
use serde_json::json;

use crate::tasks::Tasks;
use crate::world::{
    ACCEPTED, Member, PARTIES, PERMITS, PRODUCERS, REFUSED, TRIED, World, is_alive,
};

#[derive(Clone, Debug, Parser)]
#[command(about = "One round of chaos through the Rust face")]
struct Options {
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 6.0)]
    seconds: f64,
    /// How members are started: by the zygote (`fork`, `forkserver`), or as programs of their own
    #[arg(long, default_value = "fork", value_parser = ["fork", "spawn", "forkserver"])]
    method: String,
    #[arg(long, default_value = "none", value_parser = ["none", "descriptors", "memory", "processes"])]
    limit: String,
    /// Seconds between two signals, on average
    #[arg(long, default_value_t = 0.08)]
    pause: f64,
    /// Seconds by which an operation may outlast its time-out
    #[arg(long, default_value_t = 10.0)]
    grace: f64,
    /// /dev/shm is this tree's alone
    #[arg(long)]
    own_shm: bool,
    /// A control group that bounds processes, for --limit=processes
    #[arg(long)]
    group: Option<PathBuf>,
}

impl Options {
    fn crowd(&self) -> Vec<String> {
        let mut crowd = vec![
            ("producer", PRODUCERS),
            ("consumer", 2),
            ("locker", 2),
            ("sitter", 3),
            ("giver", 1),
            ("taker", 2),
            ("meeter", PARTIES as usize),
            ("ringer", 1),
            ("hearer", 1),
            ("writer", 2),
            ("caller", 1),
            ("boss", 1),
        ];
        if matches!(self.limit.as_str(), "descriptors" | "memory") {
            crowd.push(("hog", 1));
        }
        let names = crowd
            .into_iter()
            .flat_map(|(role, count)| (0..count).map(move |number| format!("{role}-{number}")));
        names.collect()
    }

    /// Lets there be so many processes and threads more than now, and no others; `None`: any number.
    fn bound_processes(&self, room: Option<u64>) -> std::io::Result<()> {
        let Some(group) = &self.group else {
            return Ok(());
        };
        let now: u64 = std::fs::read_to_string(group.join("pids.current"))?
            .trim()
            .parse()
            .unwrap_or(0);
        let most = room.map_or("max".to_owned(), |room| (now + room).to_string());
        std::fs::write(group.join("pids.max"), most)
    }

    fn narrow(&self) -> std::io::Result<()> {
        use rustix::process::{Resource, Rlimit, setrlimit};
        if let Some(group) = &self.group {
            std::fs::write(group.join("cgroup.procs"), std::process::id().to_string())?;
        }
        let limit = |most| Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        setrlimit(Resource::Core, limit(0))?;
        if self.limit == "descriptors" {
            setrlimit(Resource::Nofile, limit(160))?;
        }
        Ok(())
    }
}

/// The members, started again when they die.
struct Crowd {
    world: World,
    names: Vec<String>,
    processes: BTreeMap<String, Process<()>>,
    deaths: BTreeMap<String, u64>,
    /// Starts that failed, and may have got as far as a process that ran for a moment.
    refused: u64,
}

impl Crowd {
    /// Collects the dead and starts others.
    fn tend(&mut self) {
        for (number, name) in self.names.iter().enumerate() {
            match self.processes.get(name) {
                Some(process) if process.is_alive() => continue,
                Some(_) => {
                    let role = name.rsplit_once('-').map_or(&**name, |(role, _)| role);
                    *self.deaths.entry(role.to_owned()).or_insert(0) += 1;
                    self.processes.remove(name);
                }
                None => {}
            }
            let member = Member {
                world: self.world.clone(),
                name: name.clone(),
                number,
            };
            let started = Process::builder()
                .name(name.clone())
                .start_method(self.world.method())
                .spawn(members::play, member);
            match started {
                Ok(process) => {
                    self.processes.insert(name.clone(), process);
                }
                // Something is short, or its zygote was killed. Later, then.
                Err(_) => self.refused += 1,
            }
        }
    }

    /// Waits for all to end by themselves.
    fn dismiss(&mut self, root: &Member, patience: Duration) {
        let until = Instant::now() + patience;
        for (name, process) in std::mem::take(&mut self.processes) {
            let left = until.saturating_duration_since(Instant::now());
            let _ = process.join_timeout(left.max(Duration::from_millis(100)));
            if process.is_alive() {
                root.complain(&format!("{name} ({}) does not end", process.pid()));
                let _ = process.kill();
                let _ = process.join();
            }
        }
    }
}

fn blocks() -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for (kind, holder) in phalanx_shm::session()
        .map(phalanx_shm::Arena::census)
        .unwrap_or_default()
    {
        // This process's own tables grow with the handles it has at once and the places it waits at, and stay.
        if holder == phalanx_shm::current_slot()
            && matches!(
                kind,
                phalanx_shm::Kind::Holds | phalanx_shm::Kind::Waits | phalanx_shm::Kind::Place
            )
        {
            continue;
        }
        // Which process it is does not matter: a zygote that was killed has a successor.
        let holder = if usize::from(holder) <= phalanx_shm::MAX_PROCESSES {
            "a process"
        } else {
            "an object"
        };
        *all.entry(format!("{kind:?} of {holder}")).or_insert(0) += 1;
    }
    all
}

fn shm() -> Vec<String> {
    let all = std::fs::read_dir("/dev/shm")
        .into_iter()
        .flatten()
        .flatten();
    all.map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// What there is of what leaks: descriptors and children, blocks by kind and holder, files.
type Left = (Level, BTreeMap<String, usize>, Vec<String>);

fn left() -> Left {
    let blocks = blocks();
    (Level::now(0), blocks, shm())
}

/// Counts once nothing has changed for a while.
fn settled() -> Left {
    let (mut before, mut calm) = (left(), 0);
    while calm < 10 {
        std::thread::sleep(Duration::from_millis(20));
        let now = left();
        calm = if now == before { calm + 1 } else { 0 };
        before = now;
    }
    before
}

fn differences(now: &Left, before: &Left, own_shm: bool) -> Vec<String> {
    let mut found = Vec::new();
    if now.0.descriptors > before.0.descriptors || now.0.children > before.0.children {
        found.push(format!("{:?}, was {:?}", now.0, before.0));
    }
    for (what, count) in &now.1 {
        let was = before.1.get(what).copied().unwrap_or(0);
        if *count > was {
            found.push(format!("blocks: {} more of {what}", count - was));
        }
    }
    if !found.is_empty() {
        let processes = phalanx_shm::session().map(phalanx_shm::Arena::processes);
        for one in processes.unwrap_or_default() {
            let lives = if is_alive(one.pid) {
                "lives"
            } else {
                "is gone"
            };
            found.push(format!(
                "in the table: {} {:?}, below {}, {lives}",
                one.pid, one.state, one.parent
            ));
        }
    }
    if own_shm && now.2 != before.2 {
        found.push(format!("/dev/shm: {:?}, was {:?}", now.2, before.2));
    }
    found
}

type Failure = Box<dyn std::error::Error>;

/// A tree's life: `seconds` long, with a killer if there is to be one.
fn live(options: &Options, seconds: f64, killed: bool) -> Result<serde_json::Value, Failure> {
    let names = options.crowd();
    let world = World::new(names.len() + 1, options.method != "spawn", options.grace)?;
    let root = Member {
        world: world.clone(),
        name: "root".to_owned(),
        number: names.len(),
    };
    let mut crowd = Crowd {
        world: world.clone(),
        names,
        processes: BTreeMap::new(),
        deaths: BTreeMap::new(),
        refused: 0,
    };
    let mut tasks = Tasks::new(root.clone())?;
    crowd.tend();
    let (over, ended) = std::sync::mpsc::channel();
    let killer = killed.then(|| {
        let (seed, pause) = (options.seed, options.pause);
        std::thread::spawn(move || killer::run(seed, pause, &ended))
    });
    if killed {
        println!("up");
        options.bound_processes(Some(options.seed % 4))?;
    }
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    while Instant::now() < until {
        crowd.tend();
        tasks.submit();
        tasks.settle(false);
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(over);
    let signals = killer.map(|killer| killer.join().unwrap_or_default());
    options.bound_processes(None)?;
    world.stop.set();
    world.condition.notify_all();
    crowd.dismiss(&root, Duration::from_secs(60));
    tasks.end();
    let mut items = drain(&root);
    locks_are_free(&root);
    let died = |role| crowd.deaths.get(role).copied().unwrap_or(0) + crowd.refused;
    let item = |name: &str| items.get(name).copied().unwrap_or(0);
    if item("in doubt") > died("producer") {
        root.complain(&format!(
            "{} items in doubt of {} dead producers",
            item("in doubt"),
            died("producer")
        ));
    }
    if item("lost") > item("reported lost") || item("reported lost") > died("consumer") {
        root.complain(&format!(
            "{} lost, {} reported, {} consumers died",
            item("lost"),
            item("reported lost"),
            died("consumer")
        ));
    }
    items.retain(|_, count| *count > 0);
    let counts = world.counts.with(|counts| counts.to_vec());
    let operations: BTreeMap<_, _> = crowd.names.iter().zip(counts).collect();
    Ok(json!({
        "signals": signals.unwrap_or_default(),
        "items": items,
        "tasks": tasks.outcomes,
        "operations": operations,
        "deaths": crowd.deaths,
        "worst delay": world.late.with(|late| late.iter().copied().max().unwrap_or(0)) as f64 / 1000.0,
        "broken": world.broken.with(|broken| broken.iter().sum::<u64>()),
    }))
}

/// Takes what is left; every accepted item came, or was lost with whoever had taken it.
fn drain(root: &Member) -> BTreeMap<String, u64> {
    let world = &root.world;
    loop {
        match world.queue.get_timeout(Duration::from_millis(500)) {
            Ok(item) => {
                members::note_item(root, &item);
                if world.queue.task_done().is_err() {
                    root.complain("task_done of what was taken is refused");
                }
            }
            Err(GetError::Empty) => break,
            Err(error) => {
                root.complain(&format!("get: {error}"));
                break;
            }
        }
    }
    let joined = root.within(10.0, "Queue::join", || {
        world.queue.join_timeout(Duration::from_secs(10))
    });
    let mut figures = BTreeMap::new();
    match joined {
        Ok(()) => {}
        Err(JoinError::Lost(count)) => {
            figures.insert("reported lost".to_owned(), count);
        }
        Err(error) => root.complain(&format!("Queue::join: {error}")),
    }
    for (state, got) in world.state.iter().zip(&world.got) {
        let (state, got) = (
            state.with(|state| state.to_vec()),
            got.with(|got| got.to_vec()),
        );
        for (at, times) in state.iter().zip(got) {
            let names: &[&str] = match (*at, times) {
                (ACCEPTED, 0) => &["accepted", "lost"],
                (ACCEPTED, _) => &["accepted", "delivered"],
                (TRIED, 0) => &["in doubt"],
                (TRIED, _) => &["in doubt", "delivered"],
                (REFUSED, 0) => &["refused"],
                (REFUSED, _) => {
                    root.complain("a refused item came");
                    &["refused"]
                }
                _ => &[],
            };
            for name in names {
                *figures.entry((*name).to_owned()).or_insert(0) += 1;
            }
        }
    }
    figures
}

/// Takes everything once: whoever held it and died holds nothing any more.
fn locks_are_free(root: &Member) {
    let world = &root.world;
    let patience = Duration::from_secs(10);
    let locks = [&world.lock, &world.condition_lock, &world.array_lock];
    for lock in locks {
        if root
            .have(lock.name(), |_| lock.lock_timeout(patience))
            .is_none()
        {
            root.complain(&format!("{} is not free: {:?}", lock.name(), lock.owner()));
        }
    }
    if root
        .have("RLock", |_| world.rlock.lock_timeout(patience))
        .is_none()
    {
        root.complain(&format!("the RLock is not free: {:?}", world.rlock.owner()));
    }
    let permits: Vec<_> = (0..PERMITS)
        .map_while(|_| world.seats.acquire_timeout(patience))
        .collect();
    if permits.len() != PERMITS as usize || world.seats.try_acquire().is_some() {
        root.complain(&format!(
            "{} of {PERMITS} permits are left, or too many",
            permits.len()
        ));
    }
    world.event.clear();
    world.event.set();
    if !world.event.wait_timeout(Duration::from_secs(5)) {
        root.complain("the event is not set");
    }
}

#[phalanx::main]
fn main() -> Result<(), Failure> {
    let options = Options::parse();
    options.narrow()?;
    // Once in peace: what stays for good (the zygote, tables) is there then.
    live(&options, 0.3, false)?;
    let level = settled();
    let mut figures = live(&options, options.seconds, true)?;
    let until = Instant::now() + Duration::from_secs(20);
    let mut found = differences(&left(), &level, options.own_shm);
    while !found.is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
        found = differences(&left(), &level, options.own_shm);
    }
    let failed = figures["broken"] != 0 || !found.is_empty();
    figures["leaks"] = json!(found);
    println!("{figures}");
    if failed {
        std::process::exit(1);
    }
    Ok(())
}
