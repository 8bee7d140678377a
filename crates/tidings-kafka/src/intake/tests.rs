//! What is handed out, what is counted as waiting, and who waits for room.

use super::*;

const LONG: Duration = Duration::from_secs(60);

fn place(number: i32) -> Place {
    ("topic".into(), number)
}

/// An intake with a stream and one partition, of which `leased` offsets may be handed out.
fn intake(prefetch: usize, leased: i64) -> (Arc<Intake>, u64) {
    let intake = Intake::new("queue".into(), false);
    let stream = intake.add_stream(prefetch).expect("a stream");
    assign(&intake, 0, leased);
    (intake, stream)
}

fn assign(intake: &Intake, number: i32, leased: i64) {
    let wanted = Wanted::everything();
    intake.assign(vec![(place(number), 0, Progress::default(), wanted)]);
    let mut state = intake.state.lock();
    let assignment = state.assignments[&place(number)];
    if let Some(partition) = state.partitions.get_mut(&assignment) {
        partition.lease = leased;
    }
}

fn put(intake: &Intake, number: i32, offsets: std::ops::Range<i64>) {
    let fetched = offsets.map(|offset| Fetched {
        place: place(number),
        offset,
        envelope: Arc::new(Envelope::new("noted.v1", vec![0; 100])),
        history: Vec::new(),
        failures: 0,
    });
    intake.put(fetched.collect());
}

fn take(intake: &Intake, stream: u64) -> Option<(u64, Held)> {
    match intake.hand_out(stream) {
        Next::Message(tag, held) => Some((tag, held)),
        _ => None,
    }
}

#[test]
fn who_waits_for_room_goes_on_when_half_of_it_was_taken() {
    let (intake, stream) = intake(10, i64::MAX);
    put(&intake, 0, 0..3000);
    assert!(intake.is_full());
    let began = Instant::now();
    intake.wait_for_room(Duration::from_millis(20));
    assert!(
        began.elapsed() >= Duration::from_millis(20),
        "nothing was taken"
    );
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            intake.wait_for_room(LONG);
            intake.state.lock().is_full(2)
        });
        while !intake.state.lock().wants_room {
            std::thread::yield_now();
        }
        for _ in 0..3000 {
            let (tag, _) = take(&intake, stream).expect("a message");
            intake.end(tag, End::Settled);
        }
        assert!(!waits.join().expect("it ends"), "there was no room yet");
    });
    assert!(began.elapsed() < LONG, "nobody was woken");
}

#[test]
fn what_goes_elsewhere_makes_room() {
    // Nothing is leased of the second.
    let (intake, stream) = intake(10, i64::MAX);
    for _ in 0..5 {
        assign(&intake, 1, 0);
        put(&intake, 0, 0..2000);
        put(&intake, 1, 0..2000);
        assert!(intake.is_full());
        let (tag, _) = take(&intake, stream).expect("a message");
        intake.end(tag, End::GivenBack);
        let (stale, held) = take(&intake, stream).expect("a message");
        assert!(held.redelivered);
        intake.unassign(&HashSet::from([place(0), place(1)]));
        assert!(!intake.end(stale, End::Settled), "it was not stale");
        assert!(take(&intake, stream).is_none());
        assign(&intake, 0, i64::MAX);
    }
    put(&intake, 0, 0..100);
    assert!(
        !intake.state.lock().is_full(2),
        "something is counted that has gone"
    );
    let taken = std::iter::from_fn(|| take(&intake, stream));
    assert_eq!(taken.count(), 10, "the prefetch");
}

#[test]
fn a_partition_that_leaves_hands_out_nothing_and_turns_are_kept() {
    let (intake, stream) = intake(10, 3);
    assign(&intake, 1, i64::MAX);
    put(&intake, 0, 0..5);
    put(&intake, 1, 0..2);
    let due = intake.commits_due();
    intake.committed(due);
    // What has waited for a lease comes before what came later.
    let taken: Vec<(u64, Held)> = std::iter::from_fn(|| take(&intake, stream)).collect();
    let turns: Vec<u64> = taken.iter().map(|(_, held)| held.turn).collect();
    assert!(turns.is_sorted() && turns.len() == 7);
    let sixth = taken[5].1.assignment;
    for (tag, _) in taken {
        intake.end(tag, End::GivenBack);
    }
    intake.drain(&HashSet::from([place(0)]), Instant::now());
    let left = std::iter::from_fn(|| take(&intake, stream));
    let left: Vec<u64> = left.map(|(_, held)| held.assignment).collect();
    assert_eq!(left, [sixth, sixth]);
}
