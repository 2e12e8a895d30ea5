//! Bytes and descriptors that QEMU would never send: each ends its connection at most.

mod common;

use std::io::Read;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use common::{PATIENCE, Script, Served, memfd};
use proptest::collection::vec;
use proptest::prelude::*;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// One message whose header is right but for what proptest changes.
#[derive(Debug, Clone)]
struct Message {
    request: u32,
    flags: u32,
    /// Added to the size in the header.
    lie: i8,
    body: Vec<u64>,
    files: usize,
}

impl Message {
    fn bytes(&self) -> Vec<u8> {
        let body: Vec<u8> = self.body.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let size = u32::try_from(body.len()).expect("short");
        let size = size.wrapping_add_signed(self.lie.into());
        [self.request, self.flags, size]
            .iter()
            .flat_map(|w| w.to_ne_bytes())
            .chain(body)
            .collect()
    }
}

fn message() -> impl Strategy<Value = Message> {
    let word = prop_oneof![
        0u64..4,
        Just(4096u64),
        Just(1 << 30 | 1 << 32),
        Just(0xa800b),
        any::<u64>(),
    ];
    (
        0u32..48,
        prop_oneof![4 => Just(1u32), 4 => Just(9), 1 => any::<u32>()],
        prop_oneof![9 => Just(0i8), 1 => any::<i8>()],
        vec(word, 0..7),
        0usize..3,
    )
        .prop_map(|(request, flags, lie, body, files)| Message {
            request,
            flags,
            lie,
            body,
            files,
        })
}

/// Features and protocol features, so that more than the first messages is allowed.
fn negotiation() -> [Message; 4] {
    let plain = |request, body| Message {
        request,
        flags: 1,
        lie: 0,
        body,
        files: 0,
    };
    [
        plain(1, vec![]),
        plain(2, vec![1 << 30 | 1 << 32]),
        plain(15, vec![]),
        plain(16, vec![0x8800b]),
    ]
}

fn send(served: &Served, messages: &[Message]) {
    let mut raw = UnixStream::connect(&served.path).expect("it listens");
    raw.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let file = memfd(8192);
    for message in messages {
        let files = vec![file.as_raw_fd(); message.files];
        // The sidecar may have had enough already.
        if raw.send_with_fds(&[&message.bytes()[..]], &files).is_err() {
            break;
        }
    }
    let _ = raw.shutdown(Shutdown::Write);
    // The connection ends, with or without answers.
    match raw.read_to_end(&mut Vec::new()) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn garbage_is_survived(bytes in vec(any::<u8>(), 0..200)) {
        sidecar::fuzz::converse(&bytes);
    }

    #[test]
    fn messages_out_of_order_and_cut_short_are_survived(
        messages in vec(message(), 0..20),
        cut in 0usize..30,
    ) {
        let mut bytes: Vec<u8> = negotiation().iter().flat_map(Message::bytes).collect();
        bytes.extend(messages.iter().flat_map(Message::bytes));
        bytes.truncate(bytes.len().saturating_sub(cut));
        sidecar::fuzz::converse(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn descriptors_where_none_belong_are_survived(
        rounds in vec(vec(message(), 0..12), 1..6),
    ) {
        let served = Served::new(Script::default());
        for messages in rounds {
            let mut all = negotiation().to_vec();
            all.extend(messages);
            send(&served, &all);
        }
        // The proof that it lives: the whole conversation with a QEMU in its right mind.
        let mut qemu = common::Qemu::connect(&served);
        qemu.start();
        qemu.open_log(64);
        qemu.stop();
        assert!(qemu.save().is_ok());
    }
}
