//! The client of the published `vfio_user` crate, which Cloud Hypervisor uses, as a judge.
//!
//! It sends version 0.1, reads replies without looking at errors, and would wait for ever for a
//! body that an error does not have: so every call here is one that must succeed.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::thread;

use vfio_user::{Ended, Server};
use vfio_user_published::Client;

use crate::device::{BAR0, BAR2_OFFSET, BAR2_SPARSE, BAR3_MAPPED, CONFIG, Device, MSIX, ROM};
use crate::device::{REGIONS, VECTORS};
use crate::peer::{eventfds, same_file, signalled};

#[test]
fn the_published_client_uses_the_whole_device() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = Server::bind(&path).unwrap();
    let mut device = Device::default();
    let memory = device.memory();
    let serving = thread::spawn(move || {
        let ended = server.serve_one(&mut device);
        (device, ended)
    });

    let mut client = Client::new(&path).unwrap();
    // Its flag is inverted: a device that can be reset is not `resettable`.
    assert!(!client.resettable());

    let sizes: Vec<_> = (0..REGIONS)
        .map(|i| client.region(i).unwrap().size)
        .collect();
    assert_eq!(sizes, [4096, 4096, 0x8000, 4096, 0, 0, 4096, 256, 0]);
    assert_eq!(client.region(ROM).unwrap().flags, 1);
    let sparse = client.region(BAR2_SPARSE).unwrap();
    let areas: Vec<_> = sparse
        .sparse_areas
        .iter()
        .map(|a| (a.offset, a.size))
        .collect();
    assert_eq!(areas, [(0x2000, 0x1000), (0x4000, 0x2000)]);
    let file = sparse.file_offset.as_ref().unwrap();
    assert_eq!(file.start(), BAR2_OFFSET);
    assert!(same_file(file.file(), &memory));
    let mapped = client.region(BAR3_MAPPED).unwrap();
    assert!(mapped.file_offset.is_some() && mapped.sparse_areas.is_empty());

    client.region_write(BAR0, 0x40, &[1, 2, 3, 4]).unwrap();
    let mut data = [0; 4];
    client.region_read(BAR0, 0x40, &mut data).unwrap();
    assert_eq!(data, [1, 2, 3, 4]);
    let mut config = [0; 256];
    client.region_read(CONFIG, 0, &mut config).unwrap();
    assert_eq!(config, [0x87; 256]);

    let info = client.get_irq_info(MSIX).unwrap();
    assert_eq!((info.index, info.count), (MSIX, VECTORS));
    let eventfds = eventfds(16);
    let raw: Vec<_> = eventfds.iter().map(AsRawFd::as_raw_fd).collect();
    client.set_irqs(MSIX, 4 | 32, 3, 16, &raw).unwrap();
    client.set_irqs(MSIX, 1 | 32, 4, 1, &[]).unwrap();
    let told: Vec<_> = eventfds.iter().map(signalled).collect();
    assert_eq!(told[..3], [0, 1, 0]);

    let ram = File::from(Device::default().memory().try_clone().unwrap());
    ram.write_at(b"guest", 0x1000).unwrap();
    client
        .dma_map(0x1000, 0x10_0000, 0x2000, ram.as_raw_fd())
        .unwrap();
    client
        .dma_map(0x4000, 0x20_0000, 0x1000, ram.as_raw_fd())
        .unwrap();
    client.dma_unmap(0x20_0000, 0x1000).unwrap();
    client.reset().unwrap();

    client.shutdown().unwrap();
    let (device, ended) = serving.join().unwrap();
    assert_eq!(ended, Ok(Ended::Disconnected));
    assert_eq!(
        (device.connects, device.disconnects, device.resets),
        (1, 1, 1)
    );
    assert!(
        device.maps.is_empty() && device.vectors.is_empty(),
        "all is let go of"
    );
}
