//! The control link, led through a place where the word to run can be stopped.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// How a message begins, after its length, that is the word.
const WORD: &[u8] = br#"{"message":"run","#;
/// How long a migration may take until the word.
const PATIENCE: Duration = Duration::from_mins(3);

/// Leads from a socket of its own to the destination's. Only the first word is stopped.
#[derive(Debug)]
pub(crate) struct Relay {
    /// As `vferry migrate --to` takes it.
    pub(crate) link: String,
    words: Receiver<Word>,
}

/// The word, which has been stopped. Neither side hears of the other until it goes on.
#[derive(Debug)]
pub(crate) struct Word {
    frame: Vec<u8>,
    source: UnixStream,
    destination: UnixStream,
}

impl Relay {
    /// Listens in `folder`, for the destination that listens at `link`.
    pub(crate) fn start(folder: &Path, link: &str) -> Result<Self> {
        let there = PathBuf::from(link.strip_prefix("unix:").context("a unix socket")?);
        let here = folder.join("relay.sock");
        let listener = UnixListener::bind(&here)?;
        let (stopped, words) = mpsc::channel();
        thread::spawn(move || {
            let mut first = Some(stopped);
            for source in listener.incoming() {
                let relayed = source.and_then(|source| {
                    let destination = UnixStream::connect(&there)?;
                    relay(&source, &destination, first.take())
                });
                if let Err(error) = relayed {
                    eprintln!("relay: {error}");
                }
            }
        });
        Ok(Self {
            link: format!("unix:{}", here.display()),
            words,
        })
    }

    /// Waits for the word.
    pub(crate) fn word(&self) -> Result<Word> {
        let word = self.words.recv_timeout(PATIENCE);
        word.context("the source gave no word")
    }
}

impl Word {
    /// The destination hears it. Says whether it still listens.
    pub(crate) fn pass(&mut self) -> bool {
        self.destination.write_all(&self.frame).is_ok()
    }

    /// Waits for the destination's answer, of which the source hears nothing.
    pub(crate) fn swallow_answer(&mut self) -> io::Result<()> {
        self.destination.set_read_timeout(Some(PATIENCE))?;
        read_frame(&mut self.destination).map(drop)
    }

    /// Both sides hear that the link has ended.
    pub(crate) fn cut(&self) {
        let _ = self.source.shutdown(Shutdown::Both);
        let _ = self.destination.shutdown(Shutdown::Both);
    }
}

/// With `stopped`, up to the word: from there on nothing passes either way.
fn relay(
    source: &UnixStream,
    destination: &UnixStream,
    stopped: Option<Sender<Word>>,
) -> io::Result<()> {
    let (mut to_source, mut answers) = (source.try_clone()?, destination.try_clone()?);
    let (mut questions, mut to_destination) = (source.try_clone()?, destination.try_clone()?);
    // One question, one answer: nothing is on its way back when the word comes.
    thread::spawn(move || -> io::Result<()> {
        while let Ok(frame) = read_frame(&mut questions) {
            if frame[4..].starts_with(WORD)
                && let Some(stopped) = stopped
            {
                let _ = stopped.send(Word {
                    frame,
                    source: questions,
                    destination: to_destination,
                });
                return Ok(());
            }
            to_destination.write_all(&frame)?;
            let Ok(answer) = read_frame(&mut answers) else {
                break;
            };
            to_source.write_all(&answer)?;
        }
        let _ = to_source.shutdown(Shutdown::Both);
        to_destination.shutdown(Shutdown::Both)
    });
    Ok(())
}

fn read_frame(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let mut frame = len.to_vec();
    frame.resize(4 + u32::from_be_bytes(len) as usize, 0);
    stream.read_exact(&mut frame[4..])?;
    Ok(frame)
}
