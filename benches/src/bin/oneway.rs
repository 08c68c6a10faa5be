//! One way: a process sends messages of one size, another receives them all. A message is received when one word of
//! each of its cache lines was read.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use phalanx_benches::helper::Ordered;
use phalanx_benches::ours::Waits;
use phalanx_benches::ring::{Ring, read_all};
use phalanx_benches::sys::{self, Map};
use phalanx_benches::{
    Contestant, Entry, Group, Options, Result, Role, SPIN, ours, peers, program, run,
};

const RING: &str = "minimal ring of records, 2 µs spin";
const SLEEPING: &str = "minimal ring of records, sleeps at once";
const MEMCPY: &str = "one memcpy + one read of every line, one thread";

fn main() -> ExitCode {
    program(table)
}

fn table(options: &Options) -> Result {
    for (name, size) in [
        ("64 B", 64),
        ("1 KiB", 1 << 10),
        ("1 MiB", 1 << 20),
        ("64 MiB", 64 << 20),
    ] {
        let title = format!("One way: messages of {name}");
        if options.wants(&title) {
            let (limit, busy) = if size < 1 << 16 {
                (RING, SLEEPING)
            } else {
                (MEMCPY, MEMCPY)
            };
            run(
                Group::new(title, limit, contestants(size))
                    .when_busy(busy)
                    .of_bytes(size)
                    .note(peers::CROSSMIST),
                options,
            )?;
        }
    }
    Ok(())
}

/// All rows of one size. This project's own belong at the end, as `Role::Phalanx`.
fn contestants(size: usize) -> Vec<Entry> {
    use peers::ipc::{OneWay, Way};
    let mut entries = if size < 1 << 16 {
        small(size)
    } else {
        large(size)
    };
    entries.extend([
        Entry::new(Role::Limit, "a pipe", move || pipe(size)),
        Entry::new(Role::Peer, "ipc-channel: IpcBytesSender", move || {
            OneWay::start(Way::Bytes, size)
        }),
        Entry::new(Role::Peer, "ipc-channel: IpcSender<Vec<u8>>", move || {
            OneWay::start(Way::Typed, size)
        }),
    ]);
    #[cfg(feature = "iceoryx2")]
    entries.push(Entry::new(
        Role::Peer,
        "iceoryx2: [u8] pub-sub, both sides poll",
        move || peers::iceoryx::OneWay::start(size),
    ));
    entries.extend([
        Entry::new(
            Role::Phalanx,
            "RawQueue, bounded, bytes read in place",
            move || ours::one_way_bytes(size, Waits::Usually),
        ),
        Entry::new(Role::Phalanx, "RawQueue, the same, spin off", move || {
            ours::one_way_bytes(size, Waits::AtOnce)
        }),
        Entry::new(Role::Phalanx, "Queue<Vec<u8>>, bounded", move || {
            ours::one_way_typed::<Vec<u8>>(size)
        }),
        Entry::new(Role::Phalanx, "Queue<ByteBuf>, bounded", move || {
            ours::one_way_typed::<phalanx::ByteBuf>(size)
        }),
    ]);
    entries
}

fn small(size: usize) -> Vec<Entry> {
    let capacity = (1 << 20) / size as u32;
    vec![
        Entry::new(Role::Limit, RING, move || {
            ring(Ring::new(size, capacity, SPIN)?, size, size)
        }),
        Entry::new(Role::Limit, SLEEPING, move || {
            ring(Ring::new(size, capacity, Duration::ZERO)?, size, size)
        }),
        Entry::new(
            Role::Limit,
            "minimal ring, 2 µs spin, each end remembers the other's counter",
            move || ring(Ring::new(size, capacity, SPIN)?.remembering(), size, size),
        ),
        Entry::new(
            Role::InProcess,
            "std::sync::mpsc::sync_channel(1024) of Vec<u8>",
            move || {
                let (sender, receiver) = std::sync::mpsc::sync_channel::<Vec<u8>>(1024);
                in_process(
                    size,
                    move |v| Ok(sender.send(v)?),
                    move || receiver.recv().ok(),
                )
            },
        ),
        Entry::new(
            Role::InProcess,
            "crossbeam-channel, bounded(1024) of Vec<u8>",
            move || {
                let (sender, receiver) = crossbeam_channel::bounded::<Vec<u8>>(1024);
                in_process(
                    size,
                    move |v| Ok(sender.send(v)?),
                    move || receiver.recv().ok(),
                )
            },
        ),
    ]
}

fn large(size: usize) -> Vec<Entry> {
    vec![
        Entry::new(Role::Limit, MEMCPY, move || memcpy(size)),
        Entry::new(
            Role::Limit,
            "one memcpy into shared memory + one read, one thread",
            move || memcpy_shared(size),
        ),
        Entry::new(
            Role::Limit,
            "ring of two whole messages, read in place",
            move || ring(Ring::new(size, 2, SPIN)?, size, size),
        ),
        Entry::new(
            Role::Limit,
            "ring of 16 records of 64 KiB, read in place",
            move || ring(Ring::new(1 << 16, 16, SPIN)?, 1 << 16, size),
        ),
        Entry::new(
            Role::Peer,
            "ipc-channel: IpcSharedMemory, one per message",
            move || peers::ipc::OneWay::start(peers::ipc::Way::Mapped, size),
        ),
    ]
}

/// Messages of `size` through `ring`, in records of `record`.
fn ring(mut ring: Ring, record: usize, size: usize) -> Result<impl Contestant> {
    let records = (size / record) as u64;
    let payload = vec![7; size];
    // The child has its own copy of everything but the records: one end each.
    let mut receiver = Ordered::start(&[], || {
        |count: u64| {
            for _ in 0..count * records {
                std::hint::black_box(ring.pop());
            }
        }
    })?;
    Ok(move |count| {
        receiver.begin(count);
        let began = Instant::now();
        for _ in 0..count {
            for record in payload.chunks(record) {
                ring.push(record);
            }
        }
        receiver.end();
        Ok(began.elapsed())
    })
}

fn memcpy(size: usize) -> Result<impl Contestant> {
    let from = vec![7_u8; size];
    let mut to = vec![0_u8; size];
    Ok(move |count| {
        let began = Instant::now();
        for _ in 0..count {
            to.copy_from_slice(std::hint::black_box(&from));
            read_all(&to);
        }
        Ok(began.elapsed())
    })
}

fn memcpy_shared(size: usize) -> Result<impl Contestant> {
    let from = vec![7_u8; size];
    let mut to = Map::new(size)?;
    Ok(move |count| {
        let began = Instant::now();
        for _ in 0..count {
            to.fill(std::hint::black_box(&from));
            std::hint::black_box(to.read(size));
        }
        Ok(began.elapsed())
    })
}

fn pipe(size: usize) -> Result<impl Contestant> {
    let (out, into) = sys::pipe()?;
    let payload = vec![7_u8; size];
    let mut receiver = Ordered::start(&[&out], || {
        let mut buffer = vec![0; size];
        let out = &out;
        move |count: u64| {
            for _ in 0..count {
                if !matches!(sys::read_exact(out, &mut buffer), Ok(true)) {
                    sys::exit_now(1);
                }
                read_all(&buffer);
            }
        }
    })?;
    Ok(move |count| {
        receiver.begin(count);
        let began = Instant::now();
        for _ in 0..count {
            sys::write_all(&into, &payload)?;
        }
        receiver.end();
        Ok(began.elapsed())
    })
}

/// A thread that receives fresh vectors, as the crates' users would send them.
fn in_process(
    size: usize,
    send: impl Fn(Vec<u8>) -> Result,
    receive: impl Fn() -> Option<Vec<u8>> + Send + 'static,
) -> Result<impl Contestant> {
    let payload = vec![7_u8; size];
    let (done, all) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while let Some(message) = receive() {
            read_all(&message);
            // An empty one asks for the confirmation.
            if message.is_empty() && done.send(()).is_err() {
                return;
            }
        }
    });
    Ok(move |count| -> Result<Duration> {
        let began = Instant::now();
        for _ in 0..count {
            send(payload.clone())?;
        }
        send(Vec::new())?;
        all.recv()?;
        Ok(began.elapsed())
    })
}
