//! A worker that is watched and hangs makes room for another; one that is not, or does not hang, is left alone.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use keeper::{Ended, Event, Keeper, MAX_HELD, Rate, Worker};
use rustix::process::{Resource, Rlimit, Signal, getpid, getrlimit, kill_process, setrlimit};

/// What the worker, which is this test program, is to do first.
const PART: &str = "KEEPER_TEST_PART";
/// Much longer than a machine under load takes to run a thread that is due.
const LIMIT: Duration = Duration::from_secs(1);
/// Of a worker that has come to its end by itself.
const ENDED: i32 = 40;

/// What the keeper starts; by itself it is no test.
#[test]
fn worker() {
    let Ok(part) = std::env::var(PART) else {
        return;
    };
    let (keeper, _) = Worker::start().expect("started by a keeper");
    keeper.ready().unwrap();
    // It comes to its end, should nobody notice.
    let hang = || sleep(LIMIT * 20);
    let be_silent = || sleep(LIMIT * 2);
    match (part.as_str(), Worker::deaths()) {
        ("hangs", 0) => {
            keeper.watch(Some(LIMIT)).unwrap();
            keeper.alive().unwrap();
            hang();
        }
        ("lives", 0) => {
            keeper.watch(Some(LIMIT)).unwrap();
            for _ in 0..50 {
                sleep(LIMIT / 20);
                keeper.alive().unwrap();
            }
        }
        ("asks for it no more", 0) => {
            keeper.watch(Some(LIMIT)).unwrap();
            keeper.watch(None).unwrap();
            // It says nothing to somebody who does not watch it.
            keeper.alive().unwrap();
            be_silent();
        }
        ("is silent after the one that hung", 0) => {
            keeper.watch(Some(LIMIT)).unwrap();
            hang();
        }
        ("is silent after the one that died watched", 0) => {
            keeper.watch(Some(LIMIT)).unwrap();
            kill_process(getpid(), Signal::KILL).unwrap();
            hang();
        }
        ("hangs each time", _) => {
            keeper.watch(Some(LIMIT)).unwrap();
            be_silent();
        }
        ("has left too much", 0) => {
            let file = std::fs::File::open("/dev/null").unwrap();
            for number in 0..=MAX_HELD {
                keeper.hold(&format!("irq/{number}"), &file).unwrap();
            }
            keeper.watch(Some(LIMIT)).unwrap();
            be_silent();
        }
        ("cannot be gone on with", 0) => {
            keeper.watch_no_more();
            keeper.watch(Some(LIMIT)).unwrap();
            be_silent();
        }
        (part, _) if part.starts_with("is silent after") => be_silent(),
        _ => {}
    }
    std::process::exit(ENDED);
}

#[test]
fn one_is_left_alone_where_no_other_could_take_its_place() {
    let limit = getrlimit(Resource::Nofile);
    // The keeper is this process.
    let all = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, all).unwrap();
    assert_eq!(deaths("has left too much"), 0);
    assert_eq!(deaths("cannot be gone on with"), 0);
    // One may die.
    assert_eq!(deaths("hangs each time"), 1);
}

/// How many have died before one ends by itself.
fn deaths(part: &str) -> u64 {
    let mut worker = |_| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "worker", "--nocapture", "--quiet"]);
        command.env(PART, part);
        command.stdout(std::process::Stdio::null());
        Some(command)
    };
    let mut died = 0;
    let mut tell = |event| {
        if let Event::Died { deaths, .. } = event {
            died = deaths;
        }
    };
    let rate = Rate {
        deaths: 1,
        ..Rate::default()
    };
    let ended = Keeper::new(rate).run(&mut worker, &mut tell).unwrap();
    assert_eq!(ended, Ended::Exited(ENDED), "{part}");
    died
}

#[test]
fn one_that_hangs_is_followed_by_another_which_is_watched_when_it_asks_for_it() {
    assert_eq!(deaths("hangs"), 1);
    assert_eq!(deaths("is silent after the one that hung"), 1);
    assert_eq!(deaths("is silent after the one that died watched"), 1);
}

#[test]
fn one_that_says_that_it_lives_or_is_not_watched_is_left_alone() {
    assert_eq!(deaths("lives"), 0);
    assert_eq!(deaths("asks for it no more"), 0);
}
