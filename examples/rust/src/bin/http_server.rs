//! A pre-fork HTTP server: the parent listens, workers accept. A worker that crashes is replaced; connections wait in the
//! listener's backlog meanwhile, and none is lost.
//!
//! `/` answers with the worker's process id, `/crash` aborts the worker that gets it. `--requests N` makes the program its
//! own client: it sends N requests, some of them deadly, and ends.
#![expect(
    unsafe_code,
    reason = "workers are forks, so that they share the listening socket"
)]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use clap::Parser;
use phalanx::{Process, Waitable, wait};

#[derive(Parser)]
#[command(name = "http_server", version, about = "A pre-fork HTTP server")]
struct Cli {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// Worker processes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,

    /// Send so many requests to itself, then end
    #[arg(long)]
    requests: Option<u32>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cli = Cli::parse();
    let listener = TcpListener::bind(cli.listen)?;
    let address = listener.local_addr()?;
    println!("listening on http://{address} with {} workers", cli.workers);
    let mut workers = Vec::new();
    for number in 0..cli.workers {
        workers.push(start(&listener, number)?);
    }
    let client = cli
        .requests
        .map(|count| std::thread::spawn(move || talk_to(address, count)));
    let mut replaced = 0;
    loop {
        let all: Vec<&dyn Waitable> = workers.iter().map(|worker| worker as _).collect();
        // Whoever ends first; now and then a look at the client.
        wait(&all, Some(Duration::from_millis(100)));
        for (number, worker) in workers.iter_mut().enumerate() {
            if !worker.is_alive() {
                let end = worker
                    .exit_status()
                    .map_or_else(String::new, |status| status.to_string());
                eprintln!("worker {} {end}; it is replaced", worker.pid());
                *worker = start(&listener, number as u16)?;
                replaced += 1;
            }
        }
        if client
            .as_ref()
            .is_some_and(std::thread::JoinHandle::is_finished)
        {
            break;
        }
    }
    if let Some(client) = client {
        let (answered, crashed) = client.join().map_err(|_| "the client panicked")??;
        println!(
            "{answered} requests answered, {crashed} workers crashed on purpose, {replaced} replaced"
        );
    }
    // Daemons: they end with this process.
    for worker in &workers {
        worker.kill()?;
    }
    Ok(())
}

fn start(listener: &TcpListener, number: u16) -> Result<Process<()>, phalanx::StartError> {
    let builder = Process::builder().name(format!("worker-{number}")).daemon();
    // SAFETY: the closure uses the listener and allocates; the C library's allocator has its own at-fork handlers.
    unsafe { builder.fork(|| serve(listener)) }
}

fn serve(listener: &TcpListener) {
    for connection in listener.incoming().flatten() {
        // A client that went away is no reason to end.
        let _ = answer(connection);
    }
}

fn answer(mut connection: TcpStream) -> io::Result<()> {
    let mut request = String::new();
    let mut reader = BufReader::new(connection.try_clone()?);
    reader.read_line(&mut request)?;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header == "\r\n" {
            break;
        }
    }
    if request.starts_with("GET /crash ") {
        std::process::abort();
    }
    let body = format!("hello from worker {}\n", std::process::id());
    write!(
        connection,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Sends requests, every twentieth of them deadly; returns how many were answered and how many were deadly.
fn talk_to(address: SocketAddr, count: u32) -> io::Result<(u32, u32)> {
    let (mut answered, mut crashed) = (0, 0);
    for number in 1..=count {
        let path = if number % 20 == 0 { "/crash" } else { "/" };
        let mut connection = TcpStream::connect(address)?;
        write!(connection, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
        let mut response = String::new();
        let read = connection.read_to_string(&mut response);
        match path {
            "/crash" => crashed += 1,
            _ => {
                read?;
                if !response.starts_with("HTTP/1.1 200") {
                    return Err(io::Error::other(format!(
                        "request {number} was lost: {response:?}"
                    )));
                }
                answered += 1;
            }
        }
    }
    Ok((answered, crashed))
}
