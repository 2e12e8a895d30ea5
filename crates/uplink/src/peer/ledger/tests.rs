use load_format::Seen;

use super::*;

const MS: u64 = 1_000_000;

fn packet(number: u64, seen: Option<Seen>) -> Numbered {
    Numbered {
        stream: 1,
        number,
        sent_nanos: 0,
        seen,
    }
}

/// One packet per millisecond each way; the guest sees each at once, and nothing gets through
/// either way from 100 to 160 ms.
fn with_outage() -> Ledger {
    let mut ledger = Ledger::new(0);
    for ms in 0..300 {
        ledger.udp_sent(ms * MS);
        if !(100..160).contains(&ms) {
            let seen = Some(Seen {
                number: ms,
                age_nanos: 0,
            });
            ledger.udp_received(&packet(ms, seen), ms * MS);
        }
    }
    ledger
}

fn millis(silence: Option<Silence>) -> Option<(u64, u64)> {
    silence.map(|silence| (silence.from_nanos / MS, silence.to_nanos / MS))
}

#[test]
fn an_outage_is_seen_in_its_window_and_in_no_other() {
    let ledger = with_outage();
    let window = ledger.window(90 * MS, 200 * MS, 300 * MS);
    assert_eq!(millis(window.udp_from_guest), Some((99, 160)));
    assert_eq!(millis(window.udp_to_guest), Some((99, 160)));
    assert_eq!(millis(window.outage()), Some((99, 160)));
    let silences = window.udp_silences.iter().copied().map(Some);
    let silences: Vec<_> = silences.map(millis).collect();
    assert_eq!(silences, [Some((99, 160)), Some((99, 160))], "one each way");
    assert_eq!(window.udp_lost_from_guest, 60);
    let before = ledger.window(10 * MS, 90 * MS, 300 * MS);
    assert_eq!(before.outage().map(|silence| silence.nanos()), Some(MS));
    assert_eq!(before.udp_lost_from_guest, 0);
    assert_eq!(before.udp_silences, [], "none is long enough");
}

#[test]
fn loss_within_the_outage_is_told_from_loss_elsewhere() {
    let mut ledger = with_outage();
    ledger.udp_received(&packet(305, None), 305 * MS);
    let outage = ledger
        .window(90 * MS, 200 * MS, 310 * MS)
        .outage()
        .expect("packets came");
    assert_eq!(
        ledger.loss_from_guest(&[outage], MS),
        Loss {
            inside: 60,
            outside: 5
        }
    );
    let runs = [
        Run {
            first: 100,
            last: 159,
        },
        Run {
            first: 200,
            last: 201,
        },
    ];
    assert_eq!(
        ledger.loss_to_guest(&runs, &[outage], MS),
        Loss {
            inside: 60,
            outside: 2
        }
    );
    assert_eq!(
        ledger.loss_to_guest(&runs, &[], MS),
        Loss {
            inside: 0,
            outside: 62
        }
    );
}

#[test]
fn what_the_guest_claims_beyond_what_was_sent_is_outside_and_harmless() {
    let mut ledger = with_outage();
    let outage = Silence {
        from_nanos: 0,
        to_nanos: u64::MAX,
    };
    let runs = [
        Run {
            first: 0,
            last: u64::MAX,
        },
        Run { first: 9, last: 3 },
    ];
    let loss = ledger.loss_to_guest(&runs, &[outage], u64::MAX);
    assert_eq!(
        loss,
        Loss {
            inside: 300,
            outside: u64::MAX - 300
        }
    );
    let seen = Some(Seen {
        number: 5000,
        age_nanos: u64::MAX,
    });
    ledger.udp_received(&packet(300, seen), 300 * MS);
    assert_eq!(ledger.activity().udp_to_guest, Some(299 * MS));
}

#[test]
fn silence_towards_the_guest_counts_from_its_receptions() {
    let mut ledger = Ledger::new(0);
    for number in 0..2 {
        ledger.udp_sent(number * MS);
    }
    let seen = |number, age| {
        Some(Seen {
            number,
            age_nanos: age * MS,
        })
    };
    ledger.udp_received(&packet(0, seen(0, 10)), 50 * MS);
    ledger.udp_received(&packet(1, seen(0, 60)), 100 * MS);
    ledger.udp_received(&packet(2, seen(1, 5)), 130 * MS);
    let silence = ledger
        .report(131 * MS, SwitchReport::default())
        .udp_to_guest;
    assert_eq!(millis(silence.longest_silence), Some((40, 125)));
}

#[test]
fn a_reset_counts_anew_but_still_misses_the_next_number() {
    let mut ledger = with_outage();
    ledger.start_window(300 * MS);
    let report = ledger.report(300 * MS, SwitchReport::default());
    assert_eq!(
        (report.udp_from_guest.received, report.udp_from_guest.lost),
        (0, 0)
    );
    assert_eq!(report.udp_to_guest.sent, 0);
    ledger.udp_received(&packet(303, None), 303 * MS);
    let report = ledger.report(303 * MS, SwitchReport::default());
    assert_eq!(
        (report.udp_from_guest.received, report.udp_from_guest.lost),
        (1, 3)
    );
    assert_eq!(
        ledger
            .window(90 * MS, 200 * MS, 303 * MS)
            .outage()
            .map(|s| s.nanos()),
        Some(61 * MS)
    );
}
