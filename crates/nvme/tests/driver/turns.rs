//! What one call does, where operations end at once.

use crate::queue_driver::{DATA, Driver, blocks};

const READ: u8 = 2;

#[test]
fn each_queue_has_its_vector_and_bursts_share_a_message() {
    let (mut m, mut driver) = Driver::up(3);
    for queue in [1, 3] {
        for _ in 0..4 {
            driver.submit(&m, queue, blocks(READ, 0, 1, DATA));
        }
        driver.ring(&mut m, queue);
    }
    m.settle();
    assert_eq!(m.signalled(), [1, 3]);
}

#[test]
fn a_call_is_bounded_and_queues_take_turns() {
    let (mut m, mut driver) = Driver::up(2);
    for _ in 0..8 {
        driver.submit(&m, 1, blocks(READ, 0, 2048, DATA));
    }
    driver.submit(&m, 2, blocks(READ, 0, 1, DATA));
    driver.ring(&mut m, 1);
    driver.ring(&mut m, 2);
    m.poll();
    assert!(m.controller.counters().bytes_read <= 2 << 20);
    assert_eq!(
        driver.take(&m, 2).len(),
        1,
        "a short command does not wait for long ones"
    );
    m.poll();
    m.settle();
    while m.poll() == device::Progress::More {}
    assert_eq!(driver.take(&m, 1).len(), 8);
}
