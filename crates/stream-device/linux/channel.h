/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef STREAM_CHANNEL_H
#define STREAM_CHANNEL_H

#include <linux/pci.h>
#include <linux/scatterlist.h>

#include "stream_regs.h"

/* How a channel's buffers are mapped; one channel each. */
enum mode { COHERENT, RECYCLED, MAPPED, SCATTERED, CYCLIC, MODES };

extern const char * const mode_names[MODES];

/* Buffers of a scatterlist. */
#define GROUP		4

struct buffer {
	void *cpu;
	dma_addr_t dma;
	/* The last write that the device told of, and where to; 0: none. */
	u64 sequence;
	dma_addr_t at;
};

struct group {
	struct sg_table sgt;
	struct scatterlist sgl[GROUP];
};

struct channel {
	struct pci_dev *pdev;
	enum mode mode;
	void __iomem *regs;

	/* Coherent memory. */
	unsigned int entries;
	struct stream_descriptor *ring;
	dma_addr_t ring_dma;
	struct stream_completion *done;
	dma_addr_t done_dma;

	unsigned int count;
	struct buffer *buffers;
	struct group *groups;
	/* Buffers that are mapped for as long as the device runs. */
	unsigned int kept;

	/* Since the device was started. */
	u32 posted;
	u32 taken;
	u32 completed;
	u64 first;

	/* The number that the next write has. */
	u64 sequence;

	/* See status_show(). */
	u64 received;
	u64 wrong;
	u64 lost;
	u64 checked;
};

/* Allocates @count buffers, a power of two, and the rings; freed with the driver. */
int channel_init(struct channel *ch, struct pci_dev *pdev, enum mode mode,
		 void __iomem *regs, unsigned int count);

/* Looks at all that was left when the device was stopped. */
void channel_check(struct channel *ch);

/* Gives the device all that it has room for. It may be blank, as after power-on. */
int channel_start(struct channel *ch);

/* Takes back what has arrived, looks at it, and gives more. Not a cyclic one. */
void channel_poll(struct channel *ch);

/* When this returns, the device writes nothing more by this channel. */
void channel_halt(struct channel *ch);

/* Takes all back, after channel_halt(), and unmaps it. */
void channel_withdraw(struct channel *ch);

/* How many writes there were. With @live, the device may be asked. */
u64 channel_writes(struct channel *ch, bool live);

#endif /* STREAM_CHANNEL_H */
