//! ipc-channel: two channels to a helper process, connected through its one-shot server.

use std::time::{Duration, Instant};

use ipc_channel::ipc::{
    self, IpcBytesSender, IpcOneShotServer, IpcReceiver, IpcSender, IpcSharedMemory,
};
use serde::{Deserialize, Serialize};

use crate::helper::Helper;
use crate::ring::read_all;
use crate::{Contestant, Result};

/// The helper that answers each number with the next.
pub const ECHO: &str = "ipc-echo";
/// The helper that reads messages and confirms them.
pub const SINK: &str = "ipc-sink";

/// A helper that answers each number with the next.
pub struct Echo {
    // Dropped in this order: the helper ends when its requests do.
    requests: IpcSender<u64>,
    answers: IpcReceiver<u64>,
    _helper: Helper,
}

impl Echo {
    /// Starts the helper and connects to it.
    ///
    /// # Errors
    /// The crate's.
    pub fn start() -> Result<Self> {
        let (server, name) = IpcOneShotServer::new()?;
        let helper = Helper::start(ECHO, &name)?;
        let (_, (requests, answers)) = server.accept()?;
        Ok(Self {
            requests,
            answers,
            _helper: helper,
        })
    }

    /// Sends a number.
    ///
    /// # Errors
    /// The crate's.
    pub fn give(&mut self, value: u64) -> Result {
        Ok(self.requests.send(value)?)
    }

    /// Waits for an answer.
    ///
    /// # Errors
    /// The crate's.
    pub fn take(&mut self) -> Result<u64> {
        Ok(self.answers.recv()?)
    }
}

/// What the helper of [`Echo`] does.
///
/// # Errors
/// The crate's.
pub fn echo(server: String) -> Result {
    let (requests, work) = ipc::channel::<u64>()?;
    let (results, answers) = ipc::channel::<u64>()?;
    IpcSender::connect(server)?.send((requests, answers))?;
    while let Ok(value) = work.recv() {
        results.send(value + 1)?;
    }
    Ok(())
}

/// One way to send bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `IpcBytesSender`: no serde.
    Bytes,
    /// `IpcSender<Vec<u8>>`.
    Typed,
    /// `IpcSender<IpcSharedMemory>`: a mapping made for each message.
    Mapped,
}

#[derive(Serialize, Deserialize)]
enum Message {
    Typed(Vec<u8>),
    Mapped(IpcSharedMemory),
    /// Asks for the number of messages since the last one of these.
    Count,
}

#[derive(Serialize, Deserialize)]
struct Connection {
    bytes: IpcBytesSender,
    messages: IpcSender<Message>,
    counts: IpcReceiver<u64>,
}

/// Sends messages of one size to a helper.
pub struct OneWay {
    connection: Connection,
    way: Way,
    payload: Vec<u8>,
    _helper: Helper,
}

impl OneWay {
    /// Starts the helper and connects to it.
    ///
    /// # Errors
    /// The crate's.
    pub fn start(way: Way, size: usize) -> Result<Self> {
        let (server, name) = IpcOneShotServer::new()?;
        let helper = Helper::start(SINK, &format!("{}{name}", u8::from(way == Way::Bytes)))?;
        let (_, connection) = server.accept()?;
        Ok(Self {
            connection,
            way,
            payload: vec![7; size],
            _helper: helper,
        })
    }
}

impl Contestant for OneWay {
    fn run(&mut self, count: u64) -> Result<Duration> {
        let to = &self.connection;
        let began = Instant::now();
        for _ in 0..count {
            match self.way {
                Way::Bytes => to.bytes.send(&self.payload)?,
                Way::Typed => to.messages.send(Message::Typed(self.payload.clone()))?,
                Way::Mapped => to
                    .messages
                    .send(Message::Mapped(IpcSharedMemory::from_bytes(&self.payload)))?,
            }
        }
        match self.way {
            Way::Bytes => to.bytes.send(&[])?,
            Way::Typed | Way::Mapped => to.messages.send(Message::Count)?,
        }
        let arrived = to.counts.recv()?;
        let time = began.elapsed();
        if arrived != count {
            return Err(format!("{arrived} of {count} messages arrived").into());
        }
        Ok(time)
    }
}

/// What the helper of [`OneWay`] does.
///
/// # Errors
/// The crate's.
pub fn sink(address: String) -> Result {
    let (way, server) = address.split_at(1);
    let (bytes, byte_receiver) = ipc::bytes_channel()?;
    let (messages, receiver) = ipc::channel::<Message>()?;
    let (count_sender, counts) = ipc::channel::<u64>()?;
    IpcSender::connect(server.to_owned())?.send(Connection {
        bytes,
        messages,
        counts,
    })?;
    let mut count = 0;
    loop {
        let end = if way == "1" {
            match byte_receiver.recv() {
                Ok(message) => {
                    read_all(&message);
                    message.is_empty()
                }
                Err(_) => return Ok(()),
            }
        } else {
            match receiver.recv() {
                Ok(Message::Typed(message)) => {
                    read_all(&message);
                    false
                }
                Ok(Message::Mapped(message)) => {
                    read_all(&message);
                    false
                }
                Ok(Message::Count) => true,
                Err(_) => return Ok(()),
            }
        };
        if end {
            count_sender.send(count)?;
            count = 0;
        } else {
            count += 1;
        }
    }
}
