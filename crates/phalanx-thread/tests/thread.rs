//! Threads: names, list, ends.

use std::sync::mpsc;
use std::time::Duration;

use phalanx_thread::{Builder, JoinError, Run, Thread, current, enumerate, join_all, main_thread};

#[test]
fn values_and_panics_come_back() {
    assert_eq!(Thread::spawn(|| 5).unwrap().join().unwrap(), 5);
    let thread = Builder::new()
        .name("unlucky")
        .spawn(|| -> u8 { panic!("out of luck") })
        .unwrap();
    let Err(JoinError::Panicked(report)) = thread.join() else {
        panic!("no panic came back")
    };
    assert_eq!(
        (report.message.as_str(), report.thread.as_str()),
        ("out of luck", "unlucky")
    );
    assert!(
        report
            .location
            .as_deref()
            .unwrap_or("")
            .contains("thread.rs")
    );
    assert!(matches!(thread.join(), Err(JoinError::Taken(_))));
}

#[test]
fn names_are_given_and_can_be_changed() {
    let thread = Thread::spawn(|| current().name()).unwrap();
    let name = thread.name();
    assert!(name.starts_with("Thread-"), "{name}");
    assert_eq!(thread.join().unwrap(), name);
    let (sender, receiver) = mpsc::channel::<()>();
    let thread = Builder::new().name("before").spawn(move || {
        let _ = receiver.recv();
        current().name()
    });
    let thread = thread.unwrap();
    thread.set_name("after");
    drop(sender);
    assert_eq!(thread.join().unwrap(), "after");
    assert!(main_thread().is_main());
    let foreign = std::thread::spawn(|| current().name()).join().unwrap();
    assert!(foreign.starts_with("Dummy-"), "{foreign}");
    assert!(Builder::new().name("a\0b").spawn(|| ()).is_err());
}

#[test]
fn the_list_holds_threads_between_start_and_end_only() {
    let (sender, receiver) = mpsc::channel::<()>();
    let thread = Builder::new()
        .name("listed")
        .spawn(move || receiver.recv().is_err())
        .unwrap();
    let listed = || enumerate().iter().any(|thread| thread.name() == "listed");
    assert!(listed() && thread.is_alive());
    let Err(JoinError::TimedOut { name, .. }) = thread.join_timeout(Duration::from_millis(5))
    else {
        panic!("it ended by itself")
    };
    assert_eq!(name, "listed");
    drop(sender);
    assert!(thread.join().unwrap());
    assert!(!listed() && !thread.is_alive());
}

#[test]
fn a_thread_cannot_join_itself() {
    let (sender, receiver) = mpsc::channel::<std::sync::Arc<Thread<bool>>>();
    let thread = Thread::spawn(move || {
        let me = receiver.recv().unwrap();
        matches!(me.join(), Err(JoinError::Current))
    });
    let thread = std::sync::Arc::new(thread.unwrap());
    sender.send(std::sync::Arc::clone(&thread)).unwrap();
    assert!(thread.join().unwrap());
}

#[test]
fn structs_run_daemons_are_not_waited_for_and_values_are_awaited() {
    struct Task(u32);
    impl Run for Task {
        type Output = u32;
        fn run(self) -> u32 {
            self.0 + 1
        }
    }
    assert_eq!(Builder::new().run(Task(1)).unwrap().join().unwrap(), 2);
    let (sender, receiver) = mpsc::channel::<()>();
    let _daemon = Builder::new()
        .daemon()
        .spawn(move || receiver.recv().is_err())
        .unwrap();
    let slow = Thread::spawn(|| std::thread::sleep(Duration::from_millis(20))).unwrap();
    join_all();
    assert!(!slow.is_alive());
    drop(sender);

    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut thread = Thread::spawn(|| 9).unwrap();
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let value = loop {
        match std::pin::Pin::new(&mut thread).poll(&mut context) {
            std::task::Poll::Ready(value) => break value,
            std::task::Poll::Pending => std::thread::park(),
        }
    };
    assert_eq!(value.unwrap(), 9);
}
