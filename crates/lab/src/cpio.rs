//! The archive format of a kernel's initial file system: "newc", as in the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.

const REGULAR: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const LINK: u32 = 0o120_000;

/// An archive in the making. Paths have no leading slash, and a folder comes before its content.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub(crate) fn folder(&mut self, path: &str) {
        self.entry(path, FOLDER | 0o755, &[]);
    }

    pub(crate) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.entry(path, REGULAR | permissions, content);
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.entry(path, LINK | 0o777, target.as_bytes());
    }

    pub(crate) fn into_bytes(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = |length: usize| u32::try_from(length).expect("the lab's files are below 4 GiB");
        // inode, mode, uid, gid, links, mtime, size, device ×2, device node ×2, path size, checksum
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size(content.len()),
            0,
            0,
            0,
            0,
            size(path.len() + 1),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_laid_out_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.file("init", 0o755, b"hello");
        let bytes = archive.into_bytes();
        let field = |entry: usize, index: usize| {
            let start = entry + 6 + index * 8;
            let text = std::str::from_utf8(&bytes[start..start + 8]).unwrap();
            u32::from_str_radix(text, 16).unwrap()
        };
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!((field(0, 1), field(0, 6), field(0, 11)), (0o100_755, 5, 5));
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..124], b"hello\0\0\0");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(field(124, 11), 11);
        assert_eq!(&bytes[234..245], b"TRAILER!!!\0");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn links_carry_their_target_and_folders_nothing() {
        let mut archive = Archive::default();
        archive.folder("bin");
        archive.link("bin/sh", "busybox");
        let bytes = archive.into_bytes();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains(&format!("{:08x}", 0o120_777)) && text.contains("bin/sh\0"));
        assert!(text.contains("busybox"));
        assert!(text.contains(&format!("{:08x}", 0o040_755)));
    }
}
