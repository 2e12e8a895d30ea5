//! A worker makes room for one of another program, which serves or does not.

use std::process::Command;
use std::time::{Duration, Instant};

use keeper::{Ended, Event, GIVEN_UP, HANDED_OVER, Keeper, Rate, Which, Worker};

/// What the worker, which is this test program, is to do.
const PART: &str = "KEEPER_TEST_PART";
/// More than a socket takes that nobody reads.
const MANY: usize = 600;
/// Of one that goes on: it has found what another has left, and has not been told why that is so.
const GOES_ON: i32 = 40;
/// The same, and it has been told that the next program did not serve.
const GOES_ON_AGAIN: i32 = 50;

/// What the keeper starts; by itself it is no test.
#[test]
fn worker() {
    let Ok(part) = std::env::var(PART) else {
        return;
    };
    if part == "fails" {
        std::process::exit(1);
    }
    if part == "hangs at once" {
        loop {
            std::thread::park();
        }
    }
    let (keeper, held) = Worker::start().expect("started by a keeper");
    let code = match part.as_str() {
        "hands over" => {
            let left = std::fs::File::open("/dev/null").unwrap();
            keeper.hold("left", &left).unwrap();
            HANDED_OVER
        }
        "hands over much" => {
            let left = std::fs::File::open("/dev/null").unwrap();
            keeper.hold("left", &left).unwrap();
            for number in 0..MANY {
                keeper.hold(&format!("left/{number}"), &left).unwrap();
            }
            HANDED_OVER
        }
        "hangs" => loop {
            std::thread::park();
        },
        "hands over unready" => std::process::exit(HANDED_OVER),
        _ => {
            assert!(held.contains_key("left"), "{held:?}");
            let base = match Worker::refusal() {
                Some(_) => GOES_ON_AGAIN,
                None => GOES_ON,
            };
            base + i32::try_from(Worker::upgrades()).unwrap()
        }
    };
    keeper.ready().unwrap();
    std::process::exit(code);
}

fn part(part: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "worker", "--nocapture", "--quiet"]);
    command.env(PART, part);
    command.stdout(std::process::Stdio::null());
    command
}

/// How a keeper ends whose workers are these, one after the other, and which of them came to serve.
fn run(parts: &[(Which, Command)]) -> (Ended, Vec<Which>) {
    let mut parts = parts.iter();
    let mut served = Vec::new();
    let mut worker = |which| {
        let (expected, command) = parts.next().expect("no more are started");
        assert_eq!(which, *expected);
        let mut again = Command::new(command.get_program());
        again.args(command.get_args());
        again.envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
        Some(again)
    };
    let mut tell = |event| match event {
        Event::Serves { which } => served.push(which),
        Event::Died { status, .. } => panic!("none dies: {status}"),
        Event::Started { .. } | Event::Ended => {}
    };
    let rate = Rate {
        deaths: 0,
        ..Rate::default()
    };
    let ended = Keeper::new(rate).run(&mut worker, &mut tell).unwrap();
    assert!(parts.next().is_none(), "all are started");
    (ended, served)
}

#[test]
fn the_next_program_serves_where_it_can() {
    let ended = run(&[
        (Which::Same, part("hands over")),
        (Which::Next, part("hands over")),
        (Which::Next, part("goes on")),
    ]);
    let served = vec![Which::Same, Which::Next, Which::Next];
    assert_eq!(ended, (Ended::Exited(GOES_ON + 2), served));
}

#[test]
fn the_program_before_goes_on_where_the_next_cannot() {
    for next in [
        part("fails"),
        part("hands over unready"),
        Command::new("/no/such/program"),
    ] {
        let ended = run(&[
            (Which::Same, part("hands over")),
            (Which::Next, next),
            (Which::Same, part("goes on")),
        ]);
        let served = vec![Which::Same, Which::Same];
        assert_eq!(ended, (Ended::Exited(GOES_ON_AGAIN), served));
    }
}

#[test]
fn a_next_program_that_hangs_is_ended_in_time() {
    for (before, next) in [
        ("hands over", "hangs"),
        ("hands over much", "hangs at once"),
    ] {
        let began = Instant::now();
        let ended = run(&[
            (Which::Same, part(before)),
            (Which::Next, part(next)),
            (Which::Same, part("goes on")),
        ]);
        assert_eq!(ended.0, Ended::Exited(GOES_ON_AGAIN));
        // A VMM that waits for an answer does so for 5 s.
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn what_is_refused_once_may_serve_later() {
    let ended = run(&[
        (Which::Same, part("hands over")),
        (Which::Next, part("fails")),
        (Which::Same, part("hands over")),
        (Which::Next, part("goes on")),
    ]);
    assert_eq!(ended.0, Ended::Exited(GOES_ON + 1));
}

#[test]
fn whoever_gives_up_is_the_last_whatever_was_handed_over() {
    let mut gives_up = Command::new("sh");
    gives_up.args(["-c", &format!("exit {GIVEN_UP}")]);
    let mut next = Command::new("sh");
    next.args(["-c", &format!("exit {GIVEN_UP}")]);
    let ended = run(&[
        (Which::Same, part("hands over")),
        (Which::Next, next),
        (Which::Same, gives_up),
    ]);
    assert_eq!(ended.0, Ended::Exited(GIVEN_UP));
}
