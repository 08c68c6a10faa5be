//! A round trip: one side says something, the other answers, one at a time.

use std::process::ExitCode;
use std::time::Duration;

use phalanx_benches::ours::Waits;
use phalanx_benches::ring::Ring;
use phalanx_benches::sys::{self, Forked, Map};
use phalanx_benches::{
    Contestant, Entry, Group, LONG_SPIN, Options, Result, Role, SPIN, ours, peers, program, repeat,
    run,
};

const SLEEPING_WORD: &str = "shared word + futex, sleeps at once";
const SPINNING_RING: &str = "two rings in shared memory, 50 µs spin";

fn main() -> ExitCode {
    program(table)
}

fn table(options: &Options) -> Result {
    let title = "Ping-pong: one round trip of 8 bytes";
    if !options.wants(title) {
        return Ok(());
    }
    let group = Group::new(title, SPINNING_RING, contestants())
        .when_busy(SLEEPING_WORD)
        .note(peers::CROSSMIST);
    run(group, options)
}

/// All rows. This project's own belong at the end, as `Role::Phalanx`.
fn contestants() -> Vec<Entry> {
    let mut entries = vec![
        Entry::new(Role::Limit, SLEEPING_WORD, || word(Duration::ZERO)),
        Entry::new(Role::Limit, "shared word + futex, 2 µs spin", || {
            word(SPIN)
        }),
        Entry::new(
            Role::Limit,
            "two rings in shared memory, sleep at once",
            || rings(Duration::ZERO),
        ),
        Entry::new(
            Role::Limit,
            "two rings in shared memory, 2 µs spin",
            || rings(SPIN),
        ),
        Entry::new(Role::Limit, "shared word + futex, 50 µs spin", || {
            word(LONG_SPIN)
        }),
        Entry::new(Role::Limit, SPINNING_RING, || rings(LONG_SPIN)),
        Entry::new(Role::Limit, "two pipes", pipes),
        Entry::new(Role::Peer, "ipc-channel: two IpcSender<u64>", || {
            let mut echo = peers::ipc::Echo::start()?;
            Ok(move |count| {
                repeat(count, || {
                    echo.give(1)?;
                    expect(echo.take()?, 2)
                })
            })
        }),
    ];
    #[cfg(feature = "iceoryx2")]
    {
        use peers::iceoryx::{PingPong, Wait};
        entries.push(Entry::new(
            Role::Peer,
            "iceoryx2: pub-sub each way, both sides poll",
            || PingPong::start(Wait::Poll),
        ));
        entries.push(Entry::new(
            Role::Peer,
            "iceoryx2: pub-sub + event each way, sleeps",
            || PingPong::start(Wait::Event),
        ));
    }
    entries.extend([
        Entry::new(Role::InProcess, "std::sync::mpsc, two channels", std_mpsc),
        Entry::new(
            Role::InProcess,
            "crossbeam-channel, two bounded(64)",
            crossbeam,
        ),
        Entry::new(Role::Phalanx, "two Queue<u64>", || {
            ours::ping_pong(Waits::Usually)
        }),
        Entry::new(Role::Phalanx, "two Queue<u64>, spin off", || {
            ours::ping_pong(Waits::AtOnce)
        }),
    ]);
    entries
}

fn expect(got: u64, expected: u64) -> Result {
    if got == expected {
        Ok(())
    } else {
        Err(format!("{got} came back instead of {expected}").into())
    }
}

/// One word each way.
fn word(spin: Duration) -> Result<impl Contestant> {
    let map = std::rc::Rc::new(Map::new(4096)?);
    let echo = Forked::start(&[], || {
        let mut turn = 0_u32;
        loop {
            turn = turn.wrapping_add(1);
            map.line(0).wait_for(turn, spin);
            map.line(1).publish(turn);
        }
    })?;
    let mut turn = 0_u32;
    Ok(move |count| {
        let _ = &echo;
        repeat(count, || {
            turn = turn.wrapping_add(1);
            map.line(0).publish(turn);
            map.line(1).wait_for(turn, spin);
            Ok(())
        })
    })
}

/// A minimal ring each way.
fn rings(spin: Duration) -> Result<impl Contestant> {
    let mut there = Ring::new(64, 64, spin)?;
    let mut back = Ring::new(64, 64, spin)?;
    let echo = Forked::start(&[], || {
        loop {
            let value = there.pop();
            back.push(&(value + 1).to_ne_bytes());
        }
    })?;
    Ok(move |count| {
        let _ = &echo;
        repeat(count, || {
            there.push(&1_u64.to_ne_bytes());
            expect(back.pop(), 2)
        })
    })
}

fn pipes() -> Result<impl Contestant> {
    let (there_out, there_in) = sys::pipe()?;
    let (back_out, back_in) = sys::pipe()?;
    let echo = Forked::start(&[&there_out, &back_in], || {
        while let Ok(Some(value)) = sys::read_u64(&there_out) {
            let _ = sys::write_u64(&back_in, value + 1);
        }
    })?;
    Ok(move |count| {
        let _ = &echo;
        repeat(count, || {
            sys::write_u64(&there_in, 1)?;
            expect(sys::read_u64(&back_out)?.unwrap_or(0), 2)
        })
    })
}

fn std_mpsc() -> Result<impl Contestant> {
    let (there, requests) = std::sync::mpsc::channel::<u64>();
    let (back, answers) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while let Ok(value) = requests.recv() {
            let _ = back.send(value + 1);
        }
    });
    Ok(move |count| {
        repeat(count, || {
            there.send(1)?;
            expect(answers.recv()?, 2)
        })
    })
}

fn crossbeam() -> Result<impl Contestant> {
    let (there, requests) = crossbeam_channel::bounded::<u64>(64);
    let (back, answers) = crossbeam_channel::bounded(64);
    std::thread::spawn(move || {
        while let Ok(value) = requests.recv() {
            let _ = back.send(value + 1);
        }
    });
    Ok(move |count| {
        repeat(count, || {
            there.send(1)?;
            expect(answers.recv()?, 2)
        })
    })
}
