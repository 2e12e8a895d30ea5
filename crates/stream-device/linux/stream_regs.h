/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The streaming test device: the numbers of ../src/spec.rs, which explains
 * them.
 */
#ifndef STREAM_REGS_H
#define STREAM_REGS_H

#include <linux/types.h>

#define STREAM_VENDOR			0x1234
#define STREAM_DEVICE			0x5653
#define STREAM_BAR			0

#define STREAM_MAGIC			0x000
#define  STREAM_MAGIC_VALUE		0x4d525453	/* "STRM" */
#define STREAM_VERSION			0x004
#define STREAM_CHANNELS			0x008
#define STREAM_RATE			0x00c

#define STREAM_CHANNEL(n)		(0x100 + 0x40 * (n))
/* In a channel */
#define STREAM_CONTROL			0x00
#define  STREAM_RUN			(1 << 0)
#define  STREAM_CYCLIC			(1 << 1)
#define STREAM_STATUS			0x04
#define  STREAM_FAULT			(1 << 0)
#define STREAM_RING_LOW			0x08
#define STREAM_RING_HIGH		0x0c
#define STREAM_DONE_LOW			0x10
#define STREAM_DONE_HIGH		0x14
#define STREAM_ENTRIES			0x18
#define  STREAM_ENTRIES_MAX		1024
#define STREAM_TAIL			0x1c
#define STREAM_HEAD			0x20
#define STREAM_SEQUENCE_LOW		0x28
#define STREAM_SEQUENCE_HIGH		0x2c

struct stream_descriptor {
	__le64 address;
	__le32 len;
	__le32 reserved;
};

struct stream_completion {
	__le64 sequence;
	__le32 count;
	__le32 status;
#define STREAM_WRITTEN			0
};

#define STREAM_SEQUENCE_FACTOR		0x9e3779b97f4a7c15ULL
#define STREAM_ADDRESS_FACTOR		0xbf58476d1ce4e5b9ULL

/* What write number @sequence leaves at @address. */
static inline u64 stream_word(u64 sequence, u64 address)
{
	return sequence * STREAM_SEQUENCE_FACTOR +
	       address * STREAM_ADDRESS_FACTOR;
}

#endif /* STREAM_REGS_H */
