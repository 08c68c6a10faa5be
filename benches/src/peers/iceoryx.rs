//! iceoryx2: publish-subscribe services, as its examples use them; each contestant in a root folder of its own.
//!
//! Its subscribers poll; so that they do not burn a core while others are measured, the helper is told through its
//! standard input how many messages to expect and sleeps between samples.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use iceoryx2::port::backpressure_strategy::BackpressureStrategy;
use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;
use iceoryx2::service::port_factory::{event, publish_subscribe};

use crate::helper::Helper;
use crate::ring::read_all;
use crate::{Contestant, Result};

/// The role of the helper.
pub const HELPER: &str = "iceoryx2";

type Service = ipc::Service;

/// How a side waits for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Looks again and again.
    Poll,
    /// Sleeps until an event arrives beside the message.
    Event,
}

/// What the helper has to know, as text: its folder, what to do, and the size of a message.
struct Place {
    folder: String,
    task: String,
    size: usize,
}

impl Place {
    fn new(task: &str, size: usize) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("phalanx-bench-{}-{next}-", std::process::id()));
        Self {
            folder: folder.display().to_string(),
            task: task.to_owned(),
            size,
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let mut parts = text.split('|');
        let mut next = || parts.next().ok_or("half an address");
        Ok(Self {
            folder: next()?.to_owned(),
            task: next()?.to_owned(),
            size: next()?.parse()?,
        })
    }

    fn text(&self) -> String {
        format!("{}|{}|{}", self.folder, self.task, self.size)
    }

    fn node(&self) -> Result<Node<Service>> {
        set_log_level(LogLevel::Error);
        let mut config = Config::default();
        let root =
            Path::new(self.folder.as_bytes()).map_err(|error| format!("folder: {error:?}"))?;
        config.global.set_root_path(&root);
        // Shared memory has no folders: a prefix keeps what it leaves behind apart.
        let prefix = PathBuf::from(&self.folder);
        let prefix = prefix.file_name().ok_or("a folder without a name")?;
        config.global.prefix = FileName::new(prefix.as_encoded_bytes())
            .map_err(|error| format!("prefix: {error:?}"))?;
        Ok(NodeBuilder::new()
            .config(&config)
            .signal_handling_mode(SignalHandlingMode::Disabled)
            .create::<Service>()?)
    }

    fn numbers(
        &self,
        node: &Node<Service>,
        name: &str,
    ) -> Result<publish_subscribe::PortFactory<Service, u64, ()>> {
        Ok(node
            .service_builder(&name.try_into()?)
            .publish_subscribe::<u64>()
            .enable_safe_overflow(false)
            .subscriber_max_buffer_size(64)
            .open_or_create()?)
    }

    fn events(&self, node: &Node<Service>, name: &str) -> Result<event::PortFactory<Service>> {
        Ok(node
            .service_builder(&name.try_into()?)
            .event()
            .open_or_create()?)
    }

    fn slices(
        &self,
        node: &Node<Service>,
    ) -> Result<publish_subscribe::PortFactory<Service, [u8], ()>> {
        let depth = if self.size > 1 << 16 { 4 } else { 1024 };
        Ok(node
            .service_builder(&"bytes".try_into()?)
            .publish_subscribe::<[u8]>()
            .payload_alignment(Alignment::new(64).ok_or("64 is no alignment")?)
            .enable_safe_overflow(false)
            .subscriber_max_borrowed_samples(1)
            .history_size(0)
            .subscriber_max_buffer_size(depth)
            .open_or_create()?)
    }
}

/// The helper with its standard input and output, and the folder to remove after it.
struct Guided {
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    helper: Option<Helper>,
    folder: PathBuf,
}

impl Guided {
    /// Starts the helper and waits until it is ready.
    fn start(place: &Place) -> Result<Self> {
        let (helper, stdin, stdout) = Helper::guided(HELPER, &place.text())?;
        let mut guided = Self {
            stdin: Some(stdin),
            stdout,
            helper: Some(helper),
            folder: PathBuf::from(&place.folder),
        };
        guided.report()?;
        Ok(guided)
    }

    fn order(&mut self, count: u64) -> Result {
        let stdin = self.stdin.as_mut().ok_or("the helper is told to end")?;
        stdin.write_all(&count.to_ne_bytes())?;
        Ok(stdin.flush()?)
    }

    fn report(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.stdout.read_exact(&mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

impl Drop for Guided {
    fn drop(&mut self) {
        // The end of its input ends the helper.
        drop(self.stdin.take());
        drop(self.helper.take());
        let _ = std::fs::remove_dir_all(&self.folder);
        let Some(prefix) = self.folder.file_name() else {
            return;
        };
        // The crate leaves the node's management segment behind.
        for file in std::fs::read_dir("/dev/shm")
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = file.file_name();
            if name
                .as_encoded_bytes()
                .starts_with(prefix.as_encoded_bytes())
            {
                let _ = std::fs::remove_file(file.path());
            }
        }
    }
}

/// Both services of a round trip, from one side.
struct Ends {
    publisher: Publisher<Service, u64, ()>,
    subscriber: Subscriber<Service, u64, ()>,
    notifier: Notifier<Service>,
    listener: Listener<Service>,
    wait: Wait,
    _node: Node<Service>,
}

impl Ends {
    fn open(place: &Place, out: &str, back: &str) -> Result<Self> {
        let node = place.node()?;
        let strategy = BackpressureStrategy::RetryUntilDelivered;
        Ok(Self {
            publisher: place
                .numbers(&node, out)?
                .publisher_builder()
                .backpressure_strategy(strategy)
                .create()?,
            subscriber: place.numbers(&node, back)?.subscriber_builder().create()?,
            notifier: place.events(&node, out)?.notifier_builder().create()?,
            listener: place.events(&node, back)?.listener_builder().create()?,
            wait: if place.task == "event" {
                Wait::Event
            } else {
                Wait::Poll
            },
            _node: node,
        })
    }

    fn give(&self, value: u64) -> Result {
        self.publisher.send_copy(value)?;
        if self.wait == Wait::Event {
            self.notifier.notify()?;
        }
        Ok(())
    }

    fn take(&self) -> Result<u64> {
        loop {
            if let Some(sample) = self.subscriber.receive()? {
                return Ok(*sample);
            }
            match self.wait {
                Wait::Poll => std::hint::spin_loop(),
                Wait::Event => {
                    self.listener.blocking_wait(|_| {})?;
                }
            }
        }
    }
}

/// A round trip between two processes.
pub struct PingPong {
    ends: Ends,
    helper: Guided,
}

impl PingPong {
    /// Starts the helper and connects to it.
    ///
    /// # Errors
    /// The crate's.
    pub fn start(wait: Wait) -> Result<Self> {
        let place = Place::new(if wait == Wait::Event { "event" } else { "poll" }, 8);
        let ends = Ends::open(&place, "there", "back")?;
        let helper = Guided::start(&place)?;
        Ok(Self { ends, helper })
    }
}

impl Contestant for PingPong {
    fn run(&mut self, count: u64) -> Result<Duration> {
        self.helper.order(count)?;
        let began = Instant::now();
        for _ in 0..count {
            self.ends.give(1)?;
            if self.ends.take()? != 2 {
                return Err("a wrong answer came back".into());
            }
        }
        Ok(began.elapsed())
    }
}

/// Sends messages of one size, read in place.
pub struct OneWay {
    publisher: Publisher<Service, [u8], ()>,
    payload: Vec<u8>,
    _node: Node<Service>,
    helper: Guided,
}

impl OneWay {
    /// Starts the helper and connects to it.
    ///
    /// # Errors
    /// The crate's.
    pub fn start(size: usize) -> Result<Self> {
        let place = Place::new("sink", size);
        let node = place.node()?;
        let publisher = place
            .slices(&node)?
            .publisher_builder()
            .initial_max_slice_len(size)
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            .create()?;
        let helper = Guided::start(&place)?;
        Ok(Self {
            publisher,
            payload: vec![7; size],
            _node: node,
            helper,
        })
    }
}

impl Contestant for OneWay {
    fn run(&mut self, count: u64) -> Result<Duration> {
        self.helper.order(count)?;
        let began = Instant::now();
        for _ in 0..count {
            self.publisher
                .loan_slice_uninit(self.payload.len())?
                .write_from_slice(&self.payload)
                .send()?;
        }
        let arrived = self.helper.report()?;
        let time = began.elapsed();
        if arrived != count {
            return Err(format!("{arrived} of {count} messages arrived").into());
        }
        Ok(time)
    }
}

/// What the helper does.
///
/// # Errors
/// The crate's.
pub fn helper(address: &str) -> Result {
    let place = Place::parse(address)?;
    if place.task == "sink" {
        sink(&place)
    } else {
        echo(&place)
    }
}

/// Waits for the next order; `None` when there will be none.
fn next_order() -> Option<u64> {
    let mut bytes = [0; 8];
    std::io::stdin().read_exact(&mut bytes).ok()?;
    Some(u64::from_ne_bytes(bytes))
}

fn report(count: u64) -> Result {
    let mut out = std::io::stdout();
    out.write_all(&count.to_ne_bytes())?;
    Ok(out.flush()?)
}

fn echo(place: &Place) -> Result {
    let ends = Ends::open(place, "back", "there")?;
    report(0)?;
    while let Some(count) = next_order() {
        for _ in 0..count {
            let value = ends.take()?;
            ends.give(value + 1)?;
        }
    }
    Ok(())
}

fn sink(place: &Place) -> Result {
    let node = place.node()?;
    let subscriber = place.slices(&node)?.subscriber_builder().create()?;
    report(0)?;
    while let Some(count) = next_order() {
        let mut arrived = 0;
        while arrived < count {
            match subscriber.receive()? {
                Some(sample) => {
                    read_all(sample.payload());
                    arrived += 1;
                }
                None => std::hint::spin_loop(),
            }
        }
        report(arrived)?;
    }
    Ok(())
}
