//! Counts the words of every text file below a directory: one after the other, with threads, with processes, with
//! processes × threads, and checks that all agree.

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use phalanx_examples::wordcount::count::{Batch, Counts};
use phalanx_examples::wordcount::discover::{batches, sources_of_this_build, text_files};
use phalanx_examples::wordcount::modes::{Failure, Mode, Processes, Sequential, Threads};

/// Counts the words of every text file below a directory, in several ways that must agree.
#[derive(Parser)]
#[command(name = "wordcount", version)]
struct Cli {
    /// Directories or files to count [default: the sources of the packages this program was built from]
    places: Vec<PathBuf>,

    /// The ways to count
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Way::value_variants().to_vec())]
    modes: Vec<Way>,

    /// How much to run at once [default: the processors this process may use]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,

    /// About how many KiB of text make one task
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,

    /// Stop looking for files after so many MiB of text
    #[arg(long)]
    limit: Option<u64>,

    /// Kill a random worker process every so many milliseconds while it runs (100 if not said); the result is still right
    #[arg(long, value_name = "MS", num_args = 0..=1, default_missing_value = "100", value_parser = clap::value_parser!(u64).range(1..))]
    chaos: Option<u64>,

    /// How many of the most frequent words to show
    #[arg(long, default_value_t = 5)]
    top: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    Sequential,
    Threads,
    Processes,
    Crossed,
}

/// A line of the table.
struct Measured {
    name: &'static str,
    width: String,
    took: Duration,
    counts: Counts,
    killed: u64,
}

#[phalanx::main]
fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("wordcount: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let input = find(cli)?;
    let mut table: Vec<Measured> = Vec::new();
    for way in &cli.modes {
        let measured = measure(mode(*way, cli).as_ref(), &input)?;
        if let Some(first) = table.first()
            && first.counts != measured.counts
        {
            return Err(format!("{} and {} do not agree", first.name, measured.name).into());
        }
        table.push(measured);
    }
    show(&table, cli.top);
    Ok(())
}

fn mode(way: Way, cli: &Cli) -> Box<dyn Mode> {
    let processors = || thread::available_parallelism().map_or(1, usize::from);
    let workers = cli.workers.map_or_else(processors, usize::from);
    let chaos = cli.chaos.map(Duration::from_millis);
    match way {
        Way::Sequential => Box::new(Sequential),
        Way::Threads => Box::new(Threads(workers)),
        Way::Processes => Box::new(Processes {
            workers,
            threads: 1,
            chaos,
            ..Processes::default()
        }),
        Way::Crossed => {
            // About as much at once as the others: half of the processors, at least two threads each.
            let threads = 2;
            Box::new(Processes {
                workers: workers.div_ceil(threads),
                threads,
                chaos,
                ..Processes::default()
            })
        }
    }
}

fn find(cli: &Cli) -> Result<Vec<Batch>, Failure> {
    let places = if cli.places.is_empty() {
        sources_of_this_build()?
    } else {
        cli.places.clone()
    };
    let mut files = text_files(&places)?;
    if let Some(limit) = cli.limit {
        let mut left = limit << 20;
        files.retain(|file| {
            let fits = file.bytes <= left;
            left -= if fits { file.bytes } else { 0 };
            fits
        });
    }
    let (number, bytes) = (
        files.len() as u64,
        files.iter().map(|file| file.bytes).sum(),
    );
    let input = batches(files, cli.batch << 10);
    let from = match cli.places.as_slice() {
        [] => format!("the {} packages of this build", places.len()),
        [place] => place.display().to_string(),
        places => format!("{} places", places.len()),
    };
    println!(
        "{} text files, {}, from {from}, in {} tasks\n",
        HumanCount(number),
        HumanBytes(bytes),
        HumanCount(input.len() as u64)
    );
    Ok(input)
}

fn measure(mode: &dyn Mode, input: &[Batch]) -> Result<Measured, Failure> {
    // Drawn on standard error, and only if that is a terminal.
    let bar = ProgressBar::new(input.iter().map(|batch| batch.bytes).sum())
        .with_message(mode.name())
        .with_style(ProgressStyle::with_template(
            "{msg:<22} {wide_bar} {bytes:>10} {bytes_per_sec:>13}",
        )?);
    let begun = Instant::now();
    let counts = mode.run(input, &|bytes| bar.inc(bytes));
    let took = begun.elapsed();
    bar.finish_and_clear();
    Ok(Measured {
        name: mode.name(),
        width: mode.width(),
        took,
        killed: mode.killed(),
        counts: counts.map_err(|failure| format!("{}: {failure}", mode.name()))?,
    })
}

fn show(table: &[Measured], top: usize) {
    let Some(first) = table.first() else { return };
    println!(
        "{:<22} {:>7} {:>10} {:>10} {:>8}",
        "mode", "width", "time", "MB/s", "ratio"
    );
    for Measured {
        name,
        width,
        took,
        counts,
        killed,
    } in table
    {
        let seconds = took.as_secs_f64();
        println!(
            "{name:<22} {width:>7} {:>8.2} s {:>10.0} {:>7.2}x",
            seconds,
            counts.bytes as f64 / 1e6 / seconds,
            first.took.as_secs_f64() / seconds
        );
        if *killed > 0 {
            println!("{:<22} {killed} workers were killed meanwhile", "");
        }
    }
    let counts = &first.counts;
    println!(
        "\nall agree: {} words in {} lines, {} of them different",
        HumanCount(counts.total()),
        HumanCount(counts.lines),
        HumanCount(counts.words.len() as u64)
    );
    for (word, times) in counts.top(top) {
        println!("  {:>12}  {word}", HumanCount(times).to_string());
    }
}
