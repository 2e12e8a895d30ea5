//! Memory that keeps changing, and that is checked before each change.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use load_format::DirtyReport;

use crate::now_nanos;

/// What was counted; shared with those who ask.
#[derive(Debug)]
pub(crate) struct Account {
    memory_bytes: u64,
    written_bytes: AtomicU64,
    wrong_words: AtomicU64,
}

/// Memory whose every word is known: it tells its place and the pass in which it was written.
#[derive(Debug)]
pub(crate) struct Memory {
    words: Vec<u64>,
    /// The page that is written next.
    page: usize,
    /// The pass in which the pages before `page` were written.
    pass: u64,
}

const MIB: usize = 1024 * 1024;
const PAGE: usize = 4096;
const WORDS_PER_PAGE: usize = PAGE / size_of::<u64>();

/// Between two bursts of writing.
const TICK_NANOS: u64 = 10_000_000;

impl Memory {
    /// Takes `mib` MiB and writes the first pattern into it.
    pub(crate) fn new(mib: usize) -> Result<Self> {
        ensure!(mib > 0, "there is nothing to write in 0 MiB");
        let len = mib
            .checked_mul(MIB / size_of::<u64>())
            .context("more MiB than addresses")?;
        let mut words = Vec::new();
        words
            .try_reserve_exact(len)
            .with_context(|| format!("there are no {mib} MiB left"))?;
        words.extend((0..len as u64).map(|index| pattern(index, 0)));
        Ok(Self {
            words,
            page: 0,
            pass: 1,
        })
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.words.len() * size_of::<u64>()) as u64
    }

    /// Writes `mib_per_second` whole pages at a time, in turn. Never returns.
    pub(crate) fn run(&mut self, mib_per_second: usize, account: &Account) {
        let rate = mib_per_second as u64 * (MIB / PAGE) as u64;
        let mut last = now_nanos();
        let mut due_billionths = 0_u64;
        loop {
            std::thread::sleep(Duration::from_nanos(TICK_NANOS));
            let now = now_nanos();
            // After a stall of the machine the rate is kept, not the sum.
            let passed = now.saturating_sub(last).min(10 * TICK_NANOS);
            last = now;
            due_billionths = due_billionths.saturating_add(passed.saturating_mul(rate));
            for _ in 0..due_billionths / 1_000_000_000 {
                account.note_page(self.turn_page());
            }
            due_billionths %= 1_000_000_000;
        }
    }

    /// Checks the next page and writes its new pattern; gives back how many words were wrong.
    fn turn_page(&mut self) -> u64 {
        let first = self.page * WORDS_PER_PAGE;
        // The compiler must believe that someone else may have changed the memory.
        let words = &mut black_box(&mut self.words[..])[first..first + WORDS_PER_PAGE];
        let mut wrong = 0;
        for (index, word) in (first as u64..).zip(words) {
            wrong += u64::from(*word != pattern(index, self.pass - 1));
            *word = pattern(index, self.pass);
        }
        self.page += 1;
        if self.page == self.words.len() / WORDS_PER_PAGE {
            self.page = 0;
            self.pass += 1;
        }
        wrong
    }
}

/// One multiplication: an emulated processor has to do it for every word.
fn pattern(index: u64, pass: u64) -> u64 {
    (index ^ pass << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Account {
    pub(crate) fn new(memory_bytes: u64) -> Self {
        Self {
            memory_bytes,
            written_bytes: AtomicU64::new(0),
            wrong_words: AtomicU64::new(0),
        }
    }

    pub(crate) fn report(&self) -> DirtyReport {
        DirtyReport {
            memory_bytes: self.memory_bytes,
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
            wrong_words: self.wrong_words.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn reset(&self) {
        self.written_bytes.store(0, Ordering::Relaxed);
        self.wrong_words.store(0, Ordering::Relaxed);
    }

    fn note_page(&self, wrong_words: u64) {
        self.written_bytes.fetch_add(PAGE as u64, Ordering::Relaxed);
        self.wrong_words.fetch_add(wrong_words, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_holds_is_right_on_every_pass() {
        let mut memory = Memory::new(1).expect("a MiB");
        assert_eq!((0..3 * 256).map(|_| memory.turn_page()).sum::<u64>(), 0);
    }

    #[test]
    fn a_word_or_a_page_from_another_time_is_noticed_once() {
        let mut memory = Memory::new(1).expect("a MiB");
        let old: Vec<u64> = memory.words[..WORDS_PER_PAGE].to_vec();
        for _ in 0..256 {
            memory.turn_page();
        }
        memory.words[..WORDS_PER_PAGE].copy_from_slice(&old);
        memory.words[WORDS_PER_PAGE] ^= 1;
        assert_eq!(memory.turn_page(), WORDS_PER_PAGE as u64);
        assert_eq!(memory.turn_page(), 1);
        assert_eq!((0..256).map(|_| memory.turn_page()).sum::<u64>(), 0);
    }
}
