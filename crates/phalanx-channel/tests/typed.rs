//! Queues and pipes of values, by threads of one process.

use std::time::Duration;

use phalanx_channel::{GetError, JoinError, PutErrorKind, Queue, SimpleQueue, pipe, wait};
use phalanx_sync::{Event, Lock};

#[test]
fn values_come_out_as_they_went_in() {
    let queue = Queue::new().unwrap();
    let values: Vec<(String, Option<Vec<u64>>)> = (0..500)
        .map(|i| {
            (
                format!("value {i}"),
                (i % 3 > 0).then(|| (0..i * 5).collect()),
            )
        })
        .collect();
    for value in &values {
        queue.put(value.clone()).unwrap();
    }
    for value in &values {
        assert_eq!(&queue.get().unwrap(), value);
    }
    assert!(matches!(queue.try_get(), Err(GetError::Empty)));
    assert!(matches!(
        queue.get_timeout(Duration::from_millis(3)),
        Err(GetError::Empty)
    ));
}

#[test]
fn bounds_hold_and_give_the_item_back() {
    let queue = Queue::bounded(2).unwrap();
    queue.put("a".to_owned()).unwrap();
    queue.put("b".to_owned()).unwrap();
    assert!(queue.is_full());
    let error = queue.try_put("c".to_owned()).unwrap_err();
    assert!(matches!(error.kind, PutErrorKind::Full));
    assert_eq!(error.value, "c");
    assert!(
        queue
            .put_timeout(error.value, Duration::from_millis(3))
            .is_err()
    );
    assert_eq!(queue.get().unwrap(), "a");
    queue.try_put("c".to_owned()).unwrap();

    let small = Queue::<Vec<u8>>::builder()
        .bytes(100)
        .build::<Vec<u8>>()
        .unwrap();
    assert!(matches!(
        small.put(vec![0; 200]).unwrap_err().kind,
        PutErrorKind::TooLarge { most: 100, .. }
    ));
    small.put(vec![0; 60]).unwrap();
    assert!(matches!(
        small.try_put(vec![0; 60]).unwrap_err().kind,
        PutErrorKind::Full
    ));

    let error = Queue::<u8>::bounded(0).unwrap_err();
    assert!(
        error.to_string().contains("nothing would ever fit"),
        "{error}"
    );
}

#[test]
fn a_closed_queue_gives_what_is_left_then_says_so() {
    let queue = Queue::new().unwrap();
    queue.put(1_u8).unwrap();
    queue.close();
    let error = queue.put(2).unwrap_err();
    assert!(matches!(error.kind, PutErrorKind::Closed(_)));
    assert_eq!(error.value, 2);
    assert_eq!(queue.iter().map(Result::unwrap).collect::<Vec<_>>(), [1]);
    assert!(matches!(queue.get(), Err(GetError::Closed(_))));

    let queue = Queue::<u8>::new().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| queue.get());
        std::thread::sleep(Duration::from_millis(20));
        queue.close();
        assert!(matches!(waiting.join().unwrap(), Err(GetError::Closed(_))));
    });
}

#[test]
fn join_waits_for_what_is_not_done() {
    let queue = Queue::joinable().unwrap();
    queue.put(1).unwrap();
    queue.put(2).unwrap();
    assert_eq!(
        queue.task_done().unwrap_err().to_string().split('(').next(),
        Some("task_done")
    );
    queue.get().unwrap();
    queue.task_done().unwrap();
    assert_eq!(
        queue.join_timeout(Duration::from_millis(3)),
        Err(JoinError::TimedOut)
    );
    queue.get().unwrap();
    queue.task_done().unwrap();
    queue.join().unwrap();
}

#[test]
fn handles_travel_through_queues_and_keep_their_identity() {
    let queue = Queue::<(Lock, Queue<u32>)>::new().unwrap();
    {
        let (lock, inner) = (Lock::named("traveller").unwrap(), Queue::new().unwrap());
        inner.put(5).unwrap();
        queue.put((lock, inner)).unwrap();
        // Both are dropped here: the message holds them.
    }
    let (lock, inner) = queue.get().unwrap();
    assert_eq!((lock.name(), inner.get().unwrap()), ("traveller", 5));

    let text = serde_json::to_string(&lock).unwrap_err().to_string();
    assert!(text.contains("same tree"), "{text}");
}

#[test]
fn an_item_of_another_type_is_an_error_and_no_more() {
    let queue = SimpleQueue::<Vec<String>>::new().unwrap();
    let bytes = Queue::<u64>::new().unwrap();
    bytes.put(77).unwrap();
    let message = bytes.raw().get(phalanx_sync::Patience::FOREVER).unwrap();
    assert!(phalanx_channel::codec::decode::<Vec<String>>(&message).is_err());
    queue.put(vec!["fine".to_owned()]).unwrap();
    assert_eq!(queue.get().unwrap(), ["fine"]);
}

#[test]
fn pipes_know_when_the_other_end_is_gone() {
    let (left, right) = pipe::<String, u64>().unwrap();
    left.send("one".to_owned()).unwrap();
    left.send("two".to_owned()).unwrap();
    assert!(right.poll());
    assert!(!left.poll_timeout(Duration::from_millis(3)));
    drop(left);
    assert_eq!(right.recv().unwrap(), "one");
    assert_eq!(right.recv().unwrap(), "two");
    assert!(matches!(right.recv(), Err(GetError::Closed(_))));
    assert_eq!(right.send(9).unwrap_err().value, 9);
    // A queue carries an end.
    let (left, right) = pipe::<u8, u8>().unwrap();
    let queue = Queue::new().unwrap();
    queue.put(left).unwrap();
    queue.get().unwrap().send(3).unwrap();
    assert_eq!(right.recv().unwrap(), 3);
}

#[test]
fn wait_says_which_are_ready() {
    let queues: Vec<_> = (0..200).map(|_| Queue::<usize>::new().unwrap()).collect();
    let (left, right) = pipe::<u8, u8>().unwrap();
    let mut all: Vec<&dyn phalanx_channel::Waitable> =
        queues.iter().map(|queue| queue as _).collect();
    all.push(&right);
    assert!(wait(&all, Some(Duration::from_millis(5))).is_empty());
    for index in [0, 150] {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(10));
                queues[index].put(index).unwrap();
            });
            assert_eq!(wait(&all, None), [index]);
        });
        queues[index].get().unwrap();
    }
    drop(left);
    assert_eq!(wait(&all, None), [200]);
}

#[test]
fn coroutines_share_queues_with_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    let (queue, answers) = (
        Queue::<u32>::bounded(4).unwrap(),
        Queue::<u32>::new().unwrap(),
    );
    let consumers: Vec<_> = (0..6)
        .map(|_| {
            let (queue, answers) = (queue.clone(), answers.clone());
            runtime.spawn(async move {
                while let Ok(item) = queue.get_async().await {
                    answers.put_async(item * 2).await.unwrap();
                }
            })
        })
        .collect();
    let producer = {
        let queue = queue.clone();
        runtime.spawn(async move {
            for item in 0..2000 {
                queue.put_async(item).await.unwrap();
            }
        })
    };
    let mut seen: Vec<u32> = (0..2000)
        .map(|_| {
            answers
                .get_timeout(Duration::from_secs(60))
                .expect("an answer is missing")
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..2000).map(|item| item * 2).collect::<Vec<_>>());
    queue.close();
    runtime.block_on(async {
        producer.await.unwrap();
        for consumer in consumers {
            consumer.await.unwrap();
        }
        let event = Event::local();
        let none = tokio::time::timeout(Duration::from_millis(10), answers.get_async()).await;
        assert!(none.is_err() && !event.is_set());
    });
}
