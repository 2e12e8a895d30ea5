/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The control device's registers, as docs/guest-protocol.md has them.
 *
 * Names and order are those of the document. All registers are 32 bits wide,
 * little endian, and accessed only as such.
 */
#ifndef VFERRY_REGS_H
#define VFERRY_REGS_H

#include <linux/bits.h>

/* The PCI function */
#define VFERRY_PCI_VENDOR		0x1234
#define VFERRY_PCI_DEVICE		0x5646
#define VFERRY_PCI_SUBVENDOR		0x1234
#define VFERRY_PCI_SUBDEVICE		0x0001

#define VFERRY_BAR_REGISTERS		0
#define VFERRY_BAR_SIZE			0x1000

/* Registers */
#define VFERRY_MAGIC			0x000
#define VFERRY_VERSION			0x004
#define VFERRY_FEATURES			0x008
#define VFERRY_DRIVER			0x00c
#define VFERRY_REQUEST			0x010
#define VFERRY_DEADLINE			0x014	/* ms */
#define VFERRY_DEVICES			0x018
#define VFERRY_TABLE_LOW		0x020
#define VFERRY_TABLE_HIGH		0x024
#define VFERRY_TABLE_CHUNKS		0x028

#define VFERRY_MAGIC_VALUE		0x59524656
#define VFERRY_VERSION_MAJOR(version)	((version) >> 16)
#define VFERRY_MAJOR			1

/* FEATURES and DRIVER */
#define VFERRY_FEATURE_TABLE		BIT(0)
#define VFERRY_FEATURE_TOUCH		BIT(1)
#define VFERRY_FEATURE_QUIESCE		BIT(2)
#define VFERRY_DRIVER_READY		BIT(31)

/* Per device */
#define VFERRY_DEVICES_MAX		32
#define VFERRY_DEVICE(n)		(0x100 + 0x20 * (n))
#define VFERRY_DEVICE_FUNCTION(n)	(VFERRY_DEVICE(n) + 0x00)
#define VFERRY_DEVICE_IDENTITY(n)	(VFERRY_DEVICE(n) + 0x04)
#define VFERRY_DEVICE_ACK(n)		(VFERRY_DEVICE(n) + 0x08)
#define VFERRY_DEVICE_DETAIL(n)		(VFERRY_DEVICE(n) + 0x0c)
#define VFERRY_DEVICE_MICROS(n)		(VFERRY_DEVICE(n) + 0x10)

#define VFERRY_FUNCTION_UNKNOWN		0xffffffff
#define VFERRY_FUNCTION_SEGMENT(f)	((f) >> 16)
#define VFERRY_FUNCTION_BUS(f)		(((f) >> 8) & 0xff)
#define VFERRY_FUNCTION_DEVFN(f)	((f) & 0xff)

#define VFERRY_IDENTITY(vendor, device)	((u32)(device) << 16 | (vendor))

/* REQUEST: epoch in 31:8, command in 7:4; ACK: the same with the result in 3:0 */
#define VFERRY_REQUEST_COMMAND(r)	(((r) >> 4) & 0xf)
#define VFERRY_REQUEST_MASK		0xfffffff0

#define VFERRY_COMMAND_IDLE		0
#define VFERRY_COMMAND_TRACK		1
#define VFERRY_COMMAND_QUIESCE		2
#define VFERRY_COMMAND_END		3

/* Results of TRACK */
#define VFERRY_RESULT_TABLE		1
#define VFERRY_RESULT_TABLE_AFTER_QUIESCE	2
#define VFERRY_RESULT_TOUCH_AFTER_QUIESCE	3
/* Result of QUIESCE and END */
#define VFERRY_RESULT_DONE		1
/* Results of every command */
#define VFERRY_RESULT_FAILED		14
#define VFERRY_RESULT_DECLINED		15

/* The DMA table */
#define VFERRY_PAGE_SHIFT		12
#define VFERRY_PAGE_SIZE		BIT(VFERRY_PAGE_SHIFT)
#define VFERRY_CHUNK_PAGES_SHIFT	15	/* pages per chunk, one bit each */
#define VFERRY_CHUNK_PAGES		BIT(VFERRY_CHUNK_PAGES_SHIFT)

#endif /* VFERRY_REGS_H */
