//! The QEMU arguments that go with a sidecar.

use std::path::Path;

/// Longest tag of a virtio file system, in bytes (virtio specification, "File System Device",
/// `tag[36]`).
const MAX_TAG: usize = 36;

/// The arguments that make QEMU use the sidecar at `socket` as a device with the file system tag
/// `tag` at PCI address `address` (as in `06.1`: see [`crate`] for the function number) of its root
/// bus.
///
/// QEMU must run with guest memory that can be shared (`memory-backend-memfd,share=on`), as
/// vfio-user devices want too. Without `reconnect-ms`, which the device refuses.
///
/// # Errors
/// When QEMU would refuse the tag, or an argument has no form that QEMU understands.
pub fn qemu_args(socket: &Path, tag: &str, address: &str) -> Result<[String; 4], ArgsError> {
    if tag.is_empty() || tag.len() > MAX_TAG {
        return Err(ArgsError::Tag(tag.into()));
    }
    let path = socket
        .to_str()
        .ok_or_else(|| ArgsError::Path(socket.to_string_lossy().into_owned()))?;
    // In QEMU's option syntax a comma ends a value, and two stand for one.
    let quoted = |value: &str| value.replace(',', ",,");
    Ok([
        "-chardev".into(),
        format!("socket,id=sidecar-socket,path={}", quoted(path)),
        "-device".into(),
        format!(
            "vhost-user-fs-pci,id=sidecar,chardev=sidecar-socket,tag={},addr={}",
            quoted(tag),
            quoted(address)
        ),
    ])
}

/// Why there are no arguments for QEMU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// The tag is empty or too long.
    #[error("the sidecar's tag `{0}` must be 1 to {MAX_TAG} bytes long")]
    Tag(String),
    /// The path is not text.
    #[error("the sidecar's socket path `{0}` is not UTF-8: choose another")]
    Path(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_name_the_socket_and_quote_commas() {
        let args = qemu_args(Path::new("/run/a,b.sock"), "vferry", "06.1").expect("all is good");
        assert_eq!(
            args,
            [
                "-chardev",
                "socket,id=sidecar-socket,path=/run/a,,b.sock",
                "-device",
                "vhost-user-fs-pci,id=sidecar,chardev=sidecar-socket,tag=vferry,addr=06.1",
            ]
        );
    }

    #[test]
    fn a_tag_that_qemu_refuses_is_refused_here() {
        let with = |tag: &str| qemu_args(Path::new("s"), tag, "06.1").map(drop);
        assert_eq!(with(""), Err(ArgsError::Tag(String::new())));
        assert!(with(&"t".repeat(36)).is_ok());
        assert!(with(&"t".repeat(37)).is_err());
    }
}
