//! What every table has in common: contestants, rounds in which each of them gets its turn, medians, and a Markdown
//! table on standard output.
//!
//! A program makes [`Group`]s of [`Entry`]s and hands them to [`run`]. All contestants of a group are measured in the
//! same run, turn by turn, in many short samples: whatever the machine does beside, it does to all of them.

pub mod helper;
pub mod lock;
pub mod memory;
pub mod ours;
pub mod peers;
pub mod ring;
pub mod sys;
pub mod zygote;

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// One part in this many of a sample runs before it, untimed.
const WARM_UP: u64 = 8;

/// What a contestant answers; the error is shown below the table and its row left out.
pub type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How long the limits with a "short spin" look before they sleep.
pub const SPIN: Duration = Duration::from_micros(2);

/// How long the limits with a "long spin" look: longer than a wake-up takes, so that once one side has slept both find
/// back into step. Right only while a core is free for each.
pub const LONG_SPIN: Duration = Duration::from_micros(50);

/// What is measured: one way to do the table's one thing.
pub trait Contestant {
    /// Does the thing `count` times and returns how long that took; setting up is not part of it.
    ///
    /// # Errors
    /// Whatever goes wrong; the contestant is then out of the race.
    fn run(&mut self, count: u64) -> Result<Duration>;
}

impl<F: FnMut(u64) -> Result<Duration>> Contestant for F {
    fn run(&mut self, count: u64) -> Result<Duration> {
        self(count)
    }
}

/// Times `count` calls of `once`.
///
/// # Errors
/// The first error of `once`.
pub fn repeat(count: u64, mut once: impl FnMut() -> Result) -> Result<Duration> {
    let began = Instant::now();
    for _ in 0..count {
        once()?;
    }
    Ok(began.elapsed())
}

/// Why a row is in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// What the machine can do at best, by a minimal program without a promise.
    Limit,
    /// Another crate that does it between processes.
    Peer,
    /// The same inside one process: for scale, no competitor.
    InProcess,
    /// What this project does.
    Phalanx,
}

impl Role {
    /// Returns how a table shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Peer => "peer",
            Self::InProcess => "in process",
            Self::Phalanx => "phalanx",
        }
    }
}

/// One row: a name and the contestant behind it, or why there is none.
pub struct Entry {
    name: &'static str,
    role: Role,
    against: Option<&'static str>,
    contestant: Result<Box<dyn Contestant>>,
}

impl Entry {
    /// Makes a row; `make` sets its contestant up, helper processes included.
    pub fn new<C: Contestant + 'static>(
        role: Role,
        name: &'static str,
        make: impl FnOnce() -> Result<C>,
    ) -> Self {
        sys::watch(name, 30);
        let contestant = make().map(|made| Box::new(made) as Box<dyn Contestant>);
        sys::watch("", 0);
        Self {
            name,
            role,
            against: None,
            contestant,
        }
    }

    /// Compares the row with another row than the group's.
    #[must_use]
    pub fn against(mut self, limit: &'static str) -> Self {
        self.against = Some(limit);
        self
    }
}

/// One table: rows that do the same thing.
pub struct Group {
    title: String,
    idle: &'static str,
    busy: &'static str,
    bytes: Option<u64>,
    entries: Vec<Entry>,
    notes: Vec<String>,
    weight: Option<Box<dyn FnOnce() -> Result<sys::Ballast>>>,
}

impl Group {
    /// Makes a table; `limit` names the row that the others are compared with.
    pub fn new(title: impl Into<String>, limit: &'static str, entries: Vec<Entry>) -> Self {
        Self {
            title: title.into(),
            idle: limit,
            busy: limit,
            bytes: None,
            entries,
            notes: Vec::new(),
            weight: None,
        }
    }

    /// Names the row to compare with when all cores are busy.
    #[must_use]
    pub fn when_busy(mut self, limit: &'static str) -> Self {
        self.busy = limit;
        self
    }

    /// Adds a column of GiB/s for messages of `bytes`.
    #[must_use]
    pub fn of_bytes(mut self, bytes: usize) -> Self {
        self.bytes = Some(bytes as u64);
        self
    }

    /// Says something below the table.
    #[must_use]
    pub fn note(mut self, note: &str) -> Self {
        self.notes.push(note.to_owned());
        self
    }

    /// Makes the parent big after all contestants are set up: `bytes` of memory in use.
    #[must_use]
    pub fn with_resident(mut self, bytes: usize) -> Self {
        self.weight = Some(Box::new(move || Ok(sys::Ballast::new(bytes)?)));
        self
    }
}

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Few rounds: shows that everything runs, not how fast.
    pub quick: bool,
    /// One endless loop per core runs beside.
    pub busy: bool,
    /// Everything runs under the round-robin policy, before whatever else the machine has to do.
    pub first: bool,
    /// Only groups whose title contains this.
    pub only: Option<String>,
}

impl Options {
    fn parse() -> std::result::Result<Self, String> {
        let mut options = Self {
            quick: false,
            busy: false,
            first: false,
            only: None,
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--quick" => options.quick = true,
                "--busy" => options.busy = true,
                "--first" => options.first = true,
                "--only" => {
                    options.only = Some(args.next().ok_or("give --only a part of a title")?);
                }
                _ => {
                    return Err(format!(
                        "{arg} is unknown: use --quick, --busy, --first, --only <part of a title>"
                    ));
                }
            }
        }
        Ok(options)
    }

    /// Returns whether groups of this title are asked for.
    pub fn wants(&self, title: &str) -> bool {
        self.only.as_deref().is_none_or(|part| title.contains(part))
    }

    fn rounds(&self) -> usize {
        match (self.quick, self.busy) {
            (true, _) => 7,
            (false, false) => 101,
            (false, true) => 41,
        }
    }

    /// With busy cores a sample must see many turns of the scheduler, which takes some milliseconds for each.
    fn sample(&self) -> Duration {
        Duration::from_millis(match (self.quick, self.busy) {
            (true, false) => 2,
            (false, false) | (true, true) => 10,
            (false, true) => 50,
        })
    }

    /// A table ends after this long even if rounds are missing: 64 MiB are not sent as often as 64 bytes.
    fn patience(&self) -> Duration {
        Duration::from_secs(if self.quick { 5 } else { 90 })
    }
}

/// Prepares a table's program: answers as a helper if this process is one, else reads the command line, starts the
/// burners, and calls `table`.
pub fn program(table: impl FnOnce(&Options) -> Result) -> ExitCode {
    helper::answer();
    phalanx::enter();
    procspawn::init();
    let options = match Options::parse() {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    if options.first
        && let Err(error) = sys::go_first()
    {
        eprintln!("--first: {error}");
        return ExitCode::FAILURE;
    }
    let outcome = burners(&options).and_then(|burners| {
        let outcome = table(&options);
        drop(burners);
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts one endless loop per core, as a process of its own, if asked to.
fn burners(options: &Options) -> Result<Vec<sys::Forked>> {
    let cores = if options.busy { cores() } else { 0 };
    let burn = || loop {
        std::hint::spin_loop();
    };
    (0..cores)
        .map(|_| Ok(sys::Forked::start(&[], burn)?))
        .collect()
}

/// Returns how many cores this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

struct Runner {
    name: &'static str,
    role: Role,
    against: &'static str,
    contestant: Box<dyn Contestant>,
    count: u64,
    samples: Vec<f64>,
}

/// Measures one group and prints its table.
///
/// # Errors
/// If the limit itself cannot be measured, or the parent cannot be made big.
pub fn run(group: Group, options: &Options) -> Result {
    let limit = if options.busy { group.busy } else { group.idle };
    let mut notes = group.notes;
    let mut runners = Vec::new();
    for entry in group.entries {
        match entry.contestant {
            Ok(contestant) => runners.push(Runner {
                name: entry.name,
                role: entry.role,
                against: entry.against.unwrap_or(limit),
                contestant,
                count: 1,
                samples: Vec::new(),
            }),
            Err(error) => notes.push(format!("{}: not measured: {error}", entry.name)),
        }
    }
    let ballast = group.weight.map(|load| load()).transpose()?;
    // Each contestant finds out for itself how often it has to be called for one sample; this warms it up, too.
    runners.retain_mut(|runner| {
        match calibrate(runner.contestant.as_mut(), runner.name, options.sample()) {
            Ok(count) => {
                runner.count = count;
                true
            }
            Err(error) => {
                notes.push(format!("{}: gave up: {error}", runner.name));
                false
            }
        }
    });
    let mut probes = Vec::new();
    let mut dice = 1;
    let began = Instant::now();
    let mut rounds = 0;
    while rounds < options.rounds() && (rounds < 5 || began.elapsed() < options.patience()) {
        // Another order each round: nobody always follows the same one.
        shuffle(&mut runners, &mut dice);
        runners.retain_mut(|runner| {
            probes.push(probe());
            match sample(runner, options.sample()) {
                Ok(ns) => {
                    runner.samples.push(ns);
                    true
                }
                Err(error) => {
                    notes.push(format!("{}: gave up: {error}", runner.name));
                    false
                }
            }
        });
        rounds += 1;
    }
    sys::watch("ending the helpers", 30);
    let rows: Vec<_> = runners
        .into_iter()
        .map(|runner| {
            let mut samples = runner.samples;
            samples.sort_by(f64::total_cmp);
            Line {
                name: runner.name,
                role: runner.role,
                against: runner.against,
                samples,
            }
        })
        .collect();
    sys::watch("", 0);
    let text = table(&group.title, limit, group.bytes, rows, &notes)?;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    writeln!(
        out,
        "{rounds} rounds, {} cores{}{}{}; disturbed samples: {:.0} %.\n",
        cores(),
        if options.busy {
            ", all kept busy by other processes"
        } else {
            ""
        },
        if options.first {
            ", round-robin policy"
        } else {
            ""
        },
        ballast.map_or(String::new(), |b| format!(
            ", {} MiB resident in the parent",
            b.bytes() >> 20
        )),
        disturbed(&mut probes),
    )?;
    Ok(())
}

/// Tries that must all take long before a count is long enough: one start of a worker, or one wait for a turn on a busy
/// core, would make do for thousands of calls, and each sample would then be little else.
const TRIES: u32 = 5;

fn calibrate(contestant: &mut dyn Contestant, name: &'static str, sample: Duration) -> Result<u64> {
    let mut count = 1_u64;
    loop {
        let mut shortest = Duration::MAX;
        for _ in 0..TRIES {
            sys::watch(name, 60);
            shortest = shortest.min(contestant.run(count)?);
            if shortest * 2 < sample {
                break;
            }
        }
        if shortest * 2 >= sample {
            let each = shortest.as_secs_f64() / count as f64;
            return Ok(((sample.as_secs_f64() / each) as u64).max(1));
        }
        count *= 2;
    }
}

/// Takes one sample, in nanoseconds a call, and corrects the count for the next one: what mostly waits for its turn is far
/// slower than at its best, by which it was calibrated.
fn sample(runner: &mut Runner, wanted: Duration) -> Result<f64> {
    sys::watch(runner.name, 60);
    if runner.count >= WARM_UP {
        // Lets the scheduler forget who ran before.
        runner.contestant.run(runner.count / WARM_UP)?;
    }
    let time = runner.contestant.run(runner.count)?;
    let each = time.as_secs_f64() * 1e9 / runner.count as f64;
    if time > wanted * 4 {
        runner.count = (runner.count / 2).max(1);
    } else if time * 2 < wanted {
        runner.count *= 2;
    }
    Ok(each)
}

/// Brings `all` into another order; always the same orders, so that two runs differ by the machine only.
fn shuffle<T>(all: &mut [T], dice: &mut u64) {
    for last in (1..all.len()).rev() {
        // Knuth's multiplier; the upper bits are the random ones.
        *dice = dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        all.swap(last, (*dice >> 33) as usize % (last + 1));
    }
}

/// Times a fixed loop: longer than usual means that somebody else had the core.
fn probe() -> f64 {
    let began = Instant::now();
    for _ in 0..1000 {
        std::hint::spin_loop();
    }
    began.elapsed().as_secs_f64()
}

fn disturbed(probes: &mut [f64]) -> f64 {
    probes.sort_by(f64::total_cmp);
    let usual = quantile(probes, 0.1) * 1.15;
    let late = probes.iter().filter(|p| **p > usual).count();
    late as f64 * 100.0 / probes.len().max(1) as f64
}

struct Line {
    name: &'static str,
    role: Role,
    against: &'static str,
    samples: Vec<f64>,
}

impl Line {
    fn median(&self) -> f64 {
        quantile(&self.samples, 0.5)
    }
}

/// Returns the value below which `share` of the sorted samples lie.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((last as f64 * share).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

fn table(
    title: &str,
    limit: &str,
    bytes: Option<u64>,
    mut rows: Vec<Line>,
    notes: &[String],
) -> Result<String> {
    let median_of = |rows: &[Line], name: &str| {
        rows.iter()
            .find(|row| row.name == name)
            .map(Line::median)
            .ok_or_else(|| format!("the limit of the table, {name}, was not measured: {notes:?}"))
    };
    let mut ratios = Vec::new();
    for row in &rows {
        ratios.push((row.name, row.median() / median_of(&rows, row.against)?));
    }
    rows.sort_by(|a, b| a.median().total_cmp(&b.median()));
    let mut limits: Vec<&str> = rows.iter().map(|row| row.against).collect();
    limits.push(limit);
    let mut text = format!("### {title}\n\n");
    let rate = bytes.map_or("", |_| " GiB/s |");
    let rule = bytes.map_or("", |_| "---:|");
    writeln!(
        text,
        "| | | median | best | p90 | × limit |{rate}\n|---|---|---:|---:|---:|---:|{rule}"
    )?;
    let mut others = Vec::new();
    for row in &rows {
        let ratio = ratios
            .iter()
            .find(|(name, _)| *name == row.name)
            .map_or(f64::NAN, |(_, ratio)| *ratio);
        let name = if limits.contains(&row.name) {
            format!("**{}**", row.name)
        } else {
            row.name.to_owned()
        };
        let mark = if row.against == limit { "" } else { " ¹" };
        if row.against != limit && !others.contains(&row.against) {
            others.push(row.against);
        }
        write!(
            text,
            "| {name} | {} | {} | {} | {} | {}{mark} |",
            row.role.name(),
            shown(row.median()),
            shown(quantile(&row.samples, 0.0)),
            shown(quantile(&row.samples, 0.9)),
            times(ratio),
        )?;
        if let Some(bytes) = bytes {
            let rate = bytes as f64 / row.median() * 1e9 / f64::from(1 << 30);
            write!(text, " {rate:.2} |")?;
        }
        text.push('\n');
    }
    writeln!(text, "\n× limit: the median over that of **{limit}**.")?;
    for other in others {
        writeln!(text, "¹ over that of **{other}**.")?;
    }
    for note in notes {
        writeln!(text, "- {note}")?;
    }
    Ok(text)
}

/// Shows nanoseconds with three digits and a unit.
fn shown(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "µs"),
        ns => (ns / 1e6, "ms"),
    };
    let digits = if value < 10.0 {
        2
    } else {
        usize::from(value < 100.0)
    };
    format!("{value:.digits$} {unit}")
}

fn times(ratio: f64) -> String {
    if ratio < 10.0 {
        format!("{ratio:.2}")
    } else {
        format!("{ratio:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_samples() {
        let samples = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(quantile(&samples, 0.5), 3.0);
        assert_eq!(quantile(&samples, 0.0), 1.0);
        assert_eq!(quantile(&samples, 0.9), 5.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_shuffle_loses_nobody() {
        let mut all = [1, 2, 3, 4, 5];
        shuffle(&mut all, &mut 1);
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3, 4, 5]);
        shuffle::<u8>(&mut [], &mut 1);
    }

    #[test]
    fn a_row_is_compared_with_the_limit_it_names() {
        let line = |name, against, ns| Line {
            name,
            role: Role::Limit,
            against,
            samples: vec![ns],
        };
        let rows = vec![
            line("a", "a", 100.0),
            line("b", "a", 250.0),
            line("c", "b", 500.0),
        ];
        let text = table("t", "a", None, rows, &[]).expect("both limits are there");
        assert!(text.contains("| **b** | limit | 250 ns | 250 ns | 250 ns | 2.50 |"));
        assert!(text.contains("| c | limit | 500 ns | 500 ns | 500 ns | 2.00 ¹ |"));
    }
}
