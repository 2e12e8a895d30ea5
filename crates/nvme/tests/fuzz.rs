//! Nothing that a guest, a disk or a damaged state can do makes the controller panic, do more in
//! one call than it may, or fail to come to rest.

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn no_sequence_of_accesses_commands_and_loads_breaks_the_controller(
        bytes in proptest::collection::vec(any::<u8>(), 0..1_500)
    ) {
        nvme::fuzz::run(&bytes);
    }

    /// As above, but with queues that work from the start, and disks that answer late or at once.
    #[test]
    fn no_sequence_of_commands_breaks_a_controller_that_is_up(
        late: bool,
        bytes in proptest::collection::vec(any::<u8>(), 0..1_500)
    ) {
        let mut input = vec![4, 255, 19, 80 + u8::from(late)];
        for queue in 0..4 {
            input.extend([5, queue, queue]);
        }
        for list in 0..4 {
            input.extend([14, list, 9, 0, 0, 0, 0, (list + 1) % 4]);
        }
        input.extend(bytes);
        nvme::fuzz::run(&input);
    }
}
