// SPDX-License-Identifier: GPL-2.0-only
/*
 * One channel of the streaming test device: gives it memory to write to, and
 * checks what it wrote.
 *
 * No buffer is ever written by the CPU, so that nothing but the device's write
 * makes its page dirty. What is there when the device was stopped is looked at
 * when it is started again, perhaps on another host: what each buffer and the
 * completion ring was left with.
 */
#include <linux/dma-mapping.h>
#include <linux/io.h>

#include "channel.h"

/* Descriptors of a channel, but of a cyclic one, that has one for each buffer. */
#define RING		64
#define BUFFER_SIZE	4096

const char * const mode_names[MODES] = {
	"coherent", "recycled", "mapped", "scattered", "cyclic",
};

/* Buffers that are mapped, and so posted and taken back, together. */
static unsigned int step_of(struct channel *ch)
{
	return ch->mode == SCATTERED ? GROUP : 1;
}

static struct buffer *buffer_of(struct channel *ch, u32 number)
{
	return &ch->buffers[number % ch->count];
}

static bool holds_what_it_should(struct channel *ch, struct buffer *buffer)
{
	u64 expected = stream_word(buffer->sequence, buffer->at);
	const u64 *word = buffer->cpu;
	size_t i;

	for (i = 0; i < BUFFER_SIZE / sizeof(*word); i++) {
		if (word[i] != expected) {
			dev_err_ratelimited(&ch->pdev->dev,
					    "%s: word %zu of %pad is %#llx, not %#llx of write %llu\n",
					    mode_names[ch->mode], i,
					    &buffer->at, word[i], expected,
					    buffer->sequence);
			return false;
		}
		expected += sizeof(*word) * STREAM_ADDRESS_FACTOR;
	}
	return true;
}

static void verify(struct channel *ch, struct buffer *buffer)
{
	if (!holds_what_it_should(ch, buffer))
		ch->wrong++;
}

/* Whether it still holds what was found in it when it was last taken back. */
static void verify_again(struct channel *ch, struct buffer *buffer)
{
	if (!buffer->sequence)
		return;
	verify(ch, buffer);
	ch->checked++;
}

static int map_kept(struct channel *ch)
{
	struct device *dev = &ch->pdev->dev;

	for (; ch->kept < ch->count; ch->kept++) {
		struct buffer *buffer = &ch->buffers[ch->kept];

		buffer->dma = dma_map_page(dev, virt_to_page(buffer->cpu), 0,
					   BUFFER_SIZE, DMA_FROM_DEVICE);
		if (dma_mapping_error(dev, buffer->dma))
			return -ENOMEM;
	}
	return 0;
}

static void unmap_kept(struct channel *ch)
{
	while (ch->kept) {
		struct buffer *buffer = &ch->buffers[--ch->kept];

		dma_unmap_page(&ch->pdev->dev, buffer->dma,
			       BUFFER_SIZE, DMA_FROM_DEVICE);
	}
}

/* By both of the interface's functions, in turns. */
static int map_group(struct channel *ch, u32 number)
{
	struct device *dev = &ch->pdev->dev;
	unsigned int group = number % ch->count / GROUP;
	struct sg_table *sgt = &ch->groups[group].sgt;
	struct buffer *buffer = buffer_of(ch, number);
	struct sg_dma_page_iter piece;
	int ret;

	if (group % 2) {
		ret = dma_map_sgtable(dev, sgt, DMA_FROM_DEVICE, 0);
		if (ret)
			return ret;
	} else {
		sgt->nents = dma_map_sg(dev, sgt->sgl, sgt->orig_nents,
					DMA_FROM_DEVICE);
		if (!sgt->nents)
			return -ENOMEM;
	}
	for_each_sgtable_dma_page(sgt, &piece, 0)
		(buffer++)->dma = sg_page_iter_dma_address(&piece);
	return 0;
}

/* Gives the device the buffers of one step, from buffer @number on. */
static int give(struct channel *ch, u32 number)
{
	struct device *dev = &ch->pdev->dev;
	struct buffer *buffer = buffer_of(ch, number);

	switch (ch->mode) {
	case RECYCLED:
		dma_sync_single_for_device(dev, buffer->dma, BUFFER_SIZE,
					   DMA_FROM_DEVICE);
		return 0;
	case MAPPED:
		buffer->dma = dma_map_page(dev, virt_to_page(buffer->cpu),
					   offset_in_page(buffer->cpu),
					   BUFFER_SIZE, DMA_FROM_DEVICE);
		return dma_mapping_error(dev, buffer->dma);
	case SCATTERED:
		return map_group(ch, number);
	default:
		return 0;
	}
}

/* Takes them back. */
static void take(struct channel *ch, u32 number)
{
	struct device *dev = &ch->pdev->dev;
	struct buffer *buffer = buffer_of(ch, number);
	struct sg_table *sgt;

	switch (ch->mode) {
	case RECYCLED:
		dma_sync_single_for_cpu(dev, buffer->dma, BUFFER_SIZE,
					DMA_FROM_DEVICE);
		break;
	case MAPPED:
		dma_unmap_page(dev, buffer->dma, BUFFER_SIZE, DMA_FROM_DEVICE);
		break;
	case SCATTERED:
		sgt = &ch->groups[number % ch->count / GROUP].sgt;
		dma_unmap_sg(dev, sgt->sgl, sgt->orig_nents, DMA_FROM_DEVICE);
		break;
	default:
		break;
	}
}

static void put_descriptor(struct channel *ch, u32 number)
{
	struct stream_descriptor *desc = &ch->ring[number % ch->entries];

	desc->address = cpu_to_le64(buffer_of(ch, number)->dma);
	desc->len = cpu_to_le32(BUFFER_SIZE);
}

/* Fills the ring. What cannot be mapped now is tried again next time. */
static void post(struct channel *ch)
{
	unsigned int i, step = step_of(ch);
	u32 before = ch->posted;

	while (ch->posted + step - ch->taken <= ch->entries) {
		for (i = 0; i < step; i++)
			verify_again(ch, buffer_of(ch, ch->posted + i));
		if (give(ch, ch->posted))
			break;
		for (i = 0; i < step; i++)
			put_descriptor(ch, ch->posted++);
	}
	/* writel() orders the descriptors before it. */
	if (ch->posted != before)
		writel(ch->posted, ch->regs + STREAM_TAIL);
}

static bool is_done(struct channel *ch, u32 number)
{
	struct stream_completion *done = &ch->done[number % ch->entries];

	return le32_to_cpu(READ_ONCE(done->count)) == number + 1;
}

/* What the device says of write @number, which is done. */
static bool was_written(struct channel *ch, u32 number)
{
	struct stream_completion *done = &ch->done[number % ch->entries];
	struct buffer *buffer = buffer_of(ch, number);
	u64 sequence = le64_to_cpu(done->sequence);

	ch->completed++;
	if (sequence != ch->sequence || done->status) {
		dev_err_ratelimited(&ch->pdev->dev,
				    "%s: write %llu, status %u, instead of write %llu\n",
				    mode_names[ch->mode], sequence,
				    le32_to_cpu(done->status), ch->sequence);
		ch->lost++;
	}
	ch->sequence = sequence + 1;
	if (done->status)
		return false;
	buffer->sequence = sequence;
	buffer->at = buffer->dma;
	ch->received++;
	return true;
}

/* Takes back what the device has done with, and has a look at it. */
static void receive(struct channel *ch)
{
	unsigned int i, step = step_of(ch);

	while (ch->taken != ch->posted && is_done(ch, ch->taken + step - 1)) {
		/* The count was written after all else. */
		dma_rmb();
		take(ch, ch->taken);
		for (i = 0; i < step; i++, ch->taken++)
			if (was_written(ch, ch->taken))
				verify(ch, buffer_of(ch, ch->taken));
	}
}

/*
 * Takes all back from a device that has stopped. What it holds is looked at
 * when the device is started again, perhaps elsewhere.
 */
static void withdraw(struct channel *ch)
{
	unsigned int i, step = step_of(ch);

	while (ch->taken != ch->posted) {
		take(ch, ch->taken);
		for (i = 0; i < step; i++, ch->taken++)
			if (is_done(ch, ch->taken))
				was_written(ch, ch->taken);
	}
}

static u64 device_sequence(struct channel *ch)
{
	u64 high = readl(ch->regs + STREAM_SEQUENCE_HIGH);

	return high << 32 | readl(ch->regs + STREAM_SEQUENCE_LOW);
}

/* The same for one that tells nothing but how far it came. */
static void withdraw_cyclic(struct channel *ch)
{
	u64 next = device_sequence(ch);
	u64 writes = next - ch->first;
	u64 i;

	for (i = writes - min_t(u64, writes, ch->count); i < writes; i++) {
		struct buffer *buffer = buffer_of(ch, i);

		buffer->sequence = ch->first + i;
		buffer->at = buffer->dma;
	}
	ch->sequence = next;
	ch->received += writes;
}

void channel_withdraw(struct channel *ch)
{
	if (ch->mode == CYCLIC)
		withdraw_cyclic(ch);
	else
		withdraw(ch);
	unmap_kept(ch);
}

void channel_check(struct channel *ch)
{
	u32 i;

	for (i = 0; i < ch->count; i++)
		verify_again(ch, &ch->buffers[i]);
	for (i = ch->completed - min(ch->completed, ch->entries);
	     i != ch->completed; i++) {
		struct stream_completion *done = &ch->done[i % ch->entries];

		ch->checked++;
		if (le32_to_cpu(done->count) == i + 1 &&
		    le64_to_cpu(done->sequence) == ch->first + i)
			continue;
		dev_err_ratelimited(&ch->pdev->dev,
				    "%s: completion %u is %u of write %llu, not of %llu\n",
				    mode_names[ch->mode], i + 1,
				    le32_to_cpu(done->count),
				    le64_to_cpu(done->sequence), ch->first + i);
		ch->wrong++;
	}
}

int channel_start(struct channel *ch)
{
	u32 control = STREAM_RUN;
	u32 i;
	int ret;

	ch->posted = 0;
	ch->taken = 0;
	ch->completed = 0;
	ch->first = ch->sequence;
	memset(ch->done, 0, ch->entries * sizeof(*ch->done));
	if (ch->mode == RECYCLED || ch->mode == CYCLIC) {
		ret = map_kept(ch);
		if (ret) {
			unmap_kept(ch);
			return ret;
		}
	}
	if (ch->mode == CYCLIC) {
		control |= STREAM_CYCLIC;
		for (i = 0; i < ch->entries; i++)
			put_descriptor(ch, i);
	}

	writel(0, ch->regs + STREAM_CONTROL);
	writel(lower_32_bits(ch->ring_dma), ch->regs + STREAM_RING_LOW);
	writel(upper_32_bits(ch->ring_dma), ch->regs + STREAM_RING_HIGH);
	writel(lower_32_bits(ch->done_dma), ch->regs + STREAM_DONE_LOW);
	writel(upper_32_bits(ch->done_dma), ch->regs + STREAM_DONE_HIGH);
	writel(ch->entries, ch->regs + STREAM_ENTRIES);
	writel(lower_32_bits(ch->first), ch->regs + STREAM_SEQUENCE_LOW);
	writel(upper_32_bits(ch->first), ch->regs + STREAM_SEQUENCE_HIGH);
	writel(control, ch->regs + STREAM_CONTROL);
	if (ch->mode != CYCLIC)
		post(ch);
	return 0;
}


void channel_poll(struct channel *ch)
{
	receive(ch);
	post(ch);
}

void channel_halt(struct channel *ch)
{
	writel(0, ch->regs + STREAM_CONTROL);
	/* The write is done when it is read back. */
	readl(ch->regs + STREAM_CONTROL);
}

u64 channel_writes(struct channel *ch, bool live)
{
	u64 writes = READ_ONCE(ch->received);

	/* Only its low half can be read in one piece. */
	if (live && ch->mode == CYCLIC)
		writes += (u32)(readl(ch->regs + STREAM_SEQUENCE_LOW) -
				lower_32_bits(ch->first));
	return writes;
}

static int alloc_pages_apart(struct channel *ch)
{
	/* Over the end of a page, if it is mapped for each transfer. */
	unsigned int order = ch->mode == MAPPED ? 1 : 0;
	unsigned int offset = ch->mode == MAPPED ? BUFFER_SIZE / 2 : 0;
	unsigned int i;

	for (i = 0; i < ch->count; i++) {
		unsigned long page = devm_get_free_pages(&ch->pdev->dev,
							 GFP_KERNEL, order);

		if (!page)
			return -ENOMEM;
		ch->buffers[i].cpu = (void *)(page + offset);
	}
	return 0;
}

static int alloc_coherent_buffers(struct channel *ch)
{
	dma_addr_t dma;
	unsigned int i;
	void *cpu;

	cpu = dmam_alloc_coherent(&ch->pdev->dev, ch->count * BUFFER_SIZE,
				  &dma, GFP_KERNEL);
	if (!cpu)
		return -ENOMEM;
	for (i = 0; i < ch->count; i++) {
		ch->buffers[i].cpu = cpu + i * BUFFER_SIZE;
		ch->buffers[i].dma = dma + i * BUFFER_SIZE;
	}
	return 0;
}

static int make_groups(struct channel *ch)
{
	unsigned int i, j;

	ch->groups = devm_kcalloc(&ch->pdev->dev, ch->count / GROUP,
				  sizeof(*ch->groups), GFP_KERNEL);
	if (!ch->groups)
		return -ENOMEM;
	for (i = 0; i < ch->count / GROUP; i++) {
		struct group *group = &ch->groups[i];

		sg_init_table(group->sgl, GROUP);
		for (j = 0; j < GROUP; j++)
			sg_set_page(&group->sgl[j],
				    virt_to_page(ch->buffers[i * GROUP + j].cpu),
				    BUFFER_SIZE, 0);
		group->sgt.sgl = group->sgl;
		group->sgt.orig_nents = GROUP;
	}
	return 0;
}

int channel_init(struct channel *ch, struct pci_dev *pdev, enum mode mode,
		 void __iomem *regs, unsigned int count)
{
	struct device *dev = &pdev->dev;
	int ret;

	ch->pdev = pdev;
	ch->mode = mode;
	ch->regs = regs;
	ch->count = count;
	ch->entries = mode == CYCLIC ? count : RING;
	ch->sequence = 1;
	ch->ring = dmam_alloc_coherent(dev, ch->entries * sizeof(*ch->ring),
				       &ch->ring_dma, GFP_KERNEL);
	ch->done = dmam_alloc_coherent(dev, ch->entries * sizeof(*ch->done),
				       &ch->done_dma, GFP_KERNEL);
	ch->buffers = devm_kcalloc(dev, count, sizeof(*ch->buffers),
				   GFP_KERNEL);
	if (!ch->ring || !ch->done || !ch->buffers)
		return -ENOMEM;
	ret = mode == COHERENT ? alloc_coherent_buffers(ch) :
				 alloc_pages_apart(ch);
	if (ret)
		return ret;
	return mode == SCATTERED ? make_groups(ch) : 0;
}
