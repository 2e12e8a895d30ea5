// SPDX-License-Identifier: GPL-2.0-only
/*
 * How the module learns of drivers' calls of the DMA API, on stock kernels.
 *
 * The functions that do the work behind the API's inline ones are exported and
 * traceable. ftrace calls us at their entry, in every context and without ever
 * leaving one out (a kprobe may miss a hit in an interrupt). What an allocation
 * returned is learnt by kretprobes, which count what they miss.
 *
 * Watching unmap and sync is not enough by itself. Since 6.10 the sync calls of
 * a coherent device are skipped inline, by a flag in struct device, and drivers
 * that recycle pages hardly ever unmap. So the flag has to be taken back. The
 * kernel itself does that at any time, when it first needs a bounce buffer, so
 * nobody may keep what it was for sync calls. dma_need_unmap() goes by it, too,
 * though, and would answer differently at unmap than it did at map. For devices
 * whose users ask that (the block layer) it is taken back where it is set, in
 * dma_set_mask(), in the driver's probe before it maps anything. NICs' users do
 * not ask, apart from RDMA's, and each packet would be synchronised: theirs is
 * taken back when they are tracked.
 */
#include <linux/dma-direct.h>
#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <linux/ftrace.h>
#include <linux/kprobes.h>
#include <linux/pci.h>
#include <linux/scatterlist.h>
#include <linux/version.h>

#include "hooks.h"

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
#define ARGUMENT(fregs, n)	ftrace_regs_get_argument(fregs, n)
#else
#define ARGUMENT(fregs, n)	regs_get_kernel_argument(&(fregs)->regs, n)
#endif

#ifdef CONFIG_DMA_NEED_SYNC
#define SYNC(name)		__dma_sync_##name
#else
#define SYNC(name)		dma_sync_##name
#endif

/* Compilers put no more than a landing pad before the call of ftrace. */
#define ENTRY_BYTES		16

/* What a function is called with, after the device. */
enum arguments {
	ADDRESS,	/* DMA address, size, direction, ... */
	PHYS,		/* physical address, size, direction, ... */
	PAGE,		/* page, offset, size, direction, ... */
	SG,		/* scatterlist, entries, direction, ... */
	SGTABLE,	/* table, direction, ... */
};

struct hook {
	void *function;
	enum arguments arguments;
	enum dma_event event;
};

static bool device_writes(unsigned long direction)
{
	return direction == DMA_FROM_DEVICE || direction == DMA_BIDIRECTIONAL;
}

static void each_entry(struct device *dev, struct scatterlist *sgl, int nents,
		       enum dma_event event,
		       void (*handle)(struct device *dev, enum dma_event event,
				      phys_addr_t phys, size_t len))
{
	struct scatterlist *sg;
	int i;

	for_each_sg(sgl, sg, nents, i)
		handle(dev, event, sg_phys(sg), sg->length);
}

/* This runs for each packet, a few times: no indirect call on its way. */
static __always_inline void streaming_event(const struct hook *hook,
					    struct ftrace_regs *fregs)
{
	struct device *dev = (struct device *)ARGUMENT(fregs, 0);
	unsigned long first = ARGUMENT(fregs, 1);
	struct sg_table *sgt;

	switch (hook->arguments) {
	case ADDRESS:
		if (device_writes((u32)ARGUMENT(fregs, 3)))
			vferry_dma_streaming(dev, hook->event,
					     dma_to_phys(dev, first),
					     ARGUMENT(fregs, 2));
		break;
	case PHYS:
		if (device_writes((u32)ARGUMENT(fregs, 3)))
			vferry_dma_streaming(dev, hook->event, first,
					     ARGUMENT(fregs, 2));
		break;
	case PAGE:
		if (device_writes((u32)ARGUMENT(fregs, 4)))
			vferry_dma_streaming(dev, hook->event,
					     page_to_phys((struct page *)first) +
					     ARGUMENT(fregs, 2),
					     ARGUMENT(fregs, 3));
		break;
	case SG:
		if (device_writes((u32)ARGUMENT(fregs, 3)))
			each_entry(dev, (struct scatterlist *)first,
				   ARGUMENT(fregs, 2), hook->event,
				   vferry_dma_streaming);
		break;
	case SGTABLE:
		sgt = (struct sg_table *)first;
		if (device_writes((u32)ARGUMENT(fregs, 2)))
			each_entry(dev, sgt->sgl, sgt->orig_nents, hook->event,
				   vferry_dma_streaming);
		break;
	}
}

/* The ones that packets take come first. */
static const struct hook streaming_hooks[] = {
	{ SYNC(single_for_cpu), ADDRESS, DMA_LOOKED_AT },
	{ SYNC(single_for_device), ADDRESS, DMA_GIVEN },
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 18, 0)
	{ dma_map_phys, PHYS, DMA_GIVEN },
	{ dma_unmap_phys, ADDRESS, DMA_TAKEN },
#endif
	{ dma_map_page_attrs, PAGE, DMA_GIVEN },
	{ dma_unmap_page_attrs, ADDRESS, DMA_TAKEN },
	{ dma_map_sg_attrs, SG, DMA_GIVEN },
	{ dma_unmap_sg_attrs, SG, DMA_TAKEN },
	{ SYNC(sg_for_cpu), SG, DMA_LOOKED_AT },
	{ SYNC(sg_for_device), SG, DMA_GIVEN },
	{ dma_map_sgtable, SGTABLE, DMA_GIVEN },
};

static bool is_of(unsigned long ip, void *function)
{
	return ip - (unsigned long)function < ENTRY_BYTES;
}

static void notrace streaming_call(unsigned long ip, unsigned long parent,
				   struct ftrace_ops *ops,
				   struct ftrace_regs *fregs)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(streaming_hooks); i++) {
		if (is_of(ip, streaming_hooks[i].function)) {
			streaming_event(&streaming_hooks[i], fregs);
			return;
		}
	}
}

/* (dev, size, CPU address or page, DMA address, ...) or (dev, size, table, ...) */
static void notrace free_call(unsigned long ip, unsigned long parent,
			      struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct device *dev = (struct device *)ARGUMENT(fregs, 0);
	struct sg_table *sgt;

	if (is_of(ip, dma_free_noncontiguous)) {
		sgt = (struct sg_table *)ARGUMENT(fregs, 2);
		each_entry(dev, sgt->sgl, sgt->orig_nents, DMA_FREED,
			   vferry_dma_memory);
	} else {
		vferry_dma_memory(dev, DMA_FREED,
				  dma_to_phys(dev, ARGUMENT(fregs, 3)),
				  ARGUMENT(fregs, 1));
	}
}

/* Permanent: nobody switches ftrace off while they are in use. */
static struct ftrace_ops streaming_ops = {
	.func = streaming_call,
	.flags = FTRACE_OPS_FL_PERMANENT,
};

static struct ftrace_ops free_ops = {
	.func = free_call,
	.flags = FTRACE_OPS_FL_PERMANENT,
};

/* Finding the functions takes long, so it is done before a migration waits. */
static int find_functions(void)
{
	unsigned long streaming[ARRAY_SIZE(streaming_hooks)];
	unsigned long freeing[] = {
		(unsigned long)dma_free_attrs,
		(unsigned long)dma_free_pages,
		(unsigned long)dma_free_noncontiguous,
	};
	size_t i;
	int ret;

	for (i = 0; i < ARRAY_SIZE(streaming_hooks); i++)
		streaming[i] = (unsigned long)streaming_hooks[i].function;
	ret = ftrace_set_filter_ips(&streaming_ops, streaming,
				    ARRAY_SIZE(streaming), 0, 0);
	if (ret)
		return ret;
	return ftrace_set_filter_ips(&free_ops, freeing, ARRAY_SIZE(freeing),
				     0, 0);
}

int vferry_hook_streaming(void)
{
	return register_ftrace_function(&streaming_ops);
}

/* On return no handler runs any more. */
void vferry_unhook_streaming(void)
{
	unregister_ftrace_function(&streaming_ops);
}

struct allocation {
	struct device *dev;
	dma_addr_t *handle;
	size_t size;
};

/* (dev, size, DMA address *, ...) */
static int allocation_begins(struct kretprobe_instance *instance,
			     struct pt_regs *regs)
{
	struct allocation *allocation = (void *)instance->data;

	allocation->dev = (void *)regs_get_kernel_argument(regs, 0);
	allocation->size = regs_get_kernel_argument(regs, 1);
	allocation->handle = (void *)regs_get_kernel_argument(regs, 2);
	return 0;
}

/* dma_alloc_attrs() and dma_alloc_pages() */
static int allocation_ends(struct kretprobe_instance *instance,
			   struct pt_regs *regs)
{
	struct allocation *allocation = (void *)instance->data;
	struct device *dev = allocation->dev;

	if (regs_return_value(regs))
		vferry_dma_memory(dev, DMA_ALLOCATED,
				  dma_to_phys(dev, *allocation->handle),
				  allocation->size);
	return 0;
}

static int sgtable_allocation_ends(struct kretprobe_instance *instance,
				   struct pt_regs *regs)
{
	struct allocation *allocation = (void *)instance->data;
	struct sg_table *sgt = (void *)regs_return_value(regs);

	if (sgt)
		each_entry(allocation->dev, sgt->sgl, sgt->orig_nents,
			   DMA_ALLOCATED, vferry_dma_memory);
	return 0;
}

static int mask_set(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	struct allocation *allocation = (void *)instance->data;

	if (vferry_wants_sync_calls(allocation->dev))
		vferry_show_sync_calls(allocation->dev);
	return 0;
}

#define PROBE(name, end) {						\
	.kp.symbol_name = name,						\
	.entry_handler = allocation_begins,				\
	.handler = end,							\
	.data_size = sizeof(struct allocation),				\
	.maxactive = 256,						\
}

static struct kretprobe alloc_probe =
	PROBE("dma_alloc_attrs", allocation_ends);
static struct kretprobe alloc_pages_probe =
	PROBE("dma_alloc_pages", allocation_ends);
static struct kretprobe alloc_noncontiguous_probe =
	PROBE("dma_alloc_noncontiguous", sgtable_allocation_ends);
static struct kretprobe set_mask_probe = PROBE("dma_set_mask", mask_set);

/* Registered together: waiting for all costs as much as for one. */
static struct kretprobe *probes[] = {
	&alloc_probe,
	&alloc_pages_probe,
	&alloc_noncontiguous_probe,
	&set_mask_probe,
};

static void forget_functions(void)
{
	ftrace_free_filter(&streaming_ops);
	ftrace_free_filter(&free_ops);
}

int vferry_hook_allocations(void)
{
	int ret;

	ret = find_functions();
	if (ret)
		goto forget;
	ret = register_ftrace_function(&free_ops);
	if (ret)
		goto forget;
	ret = register_kretprobes(probes, ARRAY_SIZE(probes));
	if (ret)
		goto unregister;
	return 0;

unregister:
	unregister_ftrace_function(&free_ops);
forget:
	forget_functions();
	return ret;
}

void vferry_unhook_allocations(void)
{
	unregister_kretprobes(probes, ARRAY_SIZE(probes));
	unregister_ftrace_function(&free_ops);
	forget_functions();
}

bool vferry_hooks_missed(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(probes); i++)
		if (probes[i]->nmissed || probes[i]->kp.nmissed)
			return true;
	return false;
}

void vferry_show_sync_calls(struct device *dev)
{
#ifdef CONFIG_DMA_NEED_SYNC
	dma_reset_need_sync(dev);
#endif
}

bool vferry_sync_calls_seen(struct device *dev)
{
#ifdef CONFIG_DMA_NEED_SYNC
	return dma_dev_need_sync(dev);
#else
	return true;
#endif
}
