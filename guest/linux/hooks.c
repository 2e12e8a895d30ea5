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
 * that recycle pages hardly ever unmap. The flag is taken back where it is set,
 * in dma_set_mask(), that is in the driver's probe before it maps anything:
 * later, dma_need_unmap() would answer differently at unmap than it did at map.
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

/* Functions that one handler is for, at most */
#define HOOKS_MAX		16

struct hook {
	void *function;
	void (*handle)(struct device *dev, struct ftrace_regs *fregs,
		       enum dma_event event);
	enum dma_event event;
};

static bool device_writes(unsigned long direction)
{
	return direction == DMA_FROM_DEVICE || direction == DMA_BIDIRECTIONAL;
}

/* (dev, page, offset, size, direction, attrs) */
static void on_page(struct device *dev, struct ftrace_regs *fregs,
		    enum dma_event event)
{
	struct page *page = (struct page *)ARGUMENT(fregs, 1);

	if (device_writes((u32)ARGUMENT(fregs, 4)))
		vferry_dma_event(dev, event,
				 page_to_phys(page) + ARGUMENT(fregs, 2),
				 ARGUMENT(fregs, 3));
}

/* (dev, DMA address, size, direction, ...) */
static void on_address(struct device *dev, struct ftrace_regs *fregs,
		       enum dma_event event)
{
	if (device_writes((u32)ARGUMENT(fregs, 3)))
		vferry_dma_event(dev, event,
				 dma_to_phys(dev, ARGUMENT(fregs, 1)),
				 ARGUMENT(fregs, 2));
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 18, 0)
/* (dev, physical address, size, direction, attrs) */
static void on_phys(struct device *dev, struct ftrace_regs *fregs,
		    enum dma_event event)
{
	if (device_writes((u32)ARGUMENT(fregs, 3)))
		vferry_dma_event(dev, event, ARGUMENT(fregs, 1),
				 ARGUMENT(fregs, 2));
}
#endif

static void each_entry(struct device *dev, struct scatterlist *sgl, int nents,
		       enum dma_event event)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(sgl, sg, nents, i)
		vferry_dma_event(dev, event, sg_phys(sg), sg->length);
}

/* (dev, scatterlist, entries, direction, ...) */
static void on_sg(struct device *dev, struct ftrace_regs *fregs,
		  enum dma_event event)
{
	if (device_writes((u32)ARGUMENT(fregs, 3)))
		each_entry(dev, (struct scatterlist *)ARGUMENT(fregs, 1),
			   ARGUMENT(fregs, 2), event);
}

/* (dev, table, direction, attrs) */
static void on_sgtable(struct device *dev, struct ftrace_regs *fregs,
		       enum dma_event event)
{
	struct sg_table *sgt = (struct sg_table *)ARGUMENT(fregs, 1);

	if (device_writes((u32)ARGUMENT(fregs, 2)))
		each_entry(dev, sgt->sgl, sgt->orig_nents, event);
}

/* (dev, size, CPU address or page, DMA address, ...) */
static void on_free(struct device *dev, struct ftrace_regs *fregs,
		    enum dma_event event)
{
	vferry_dma_event(dev, event, dma_to_phys(dev, ARGUMENT(fregs, 3)),
			 ARGUMENT(fregs, 1));
}

/* (dev, size, table, direction) */
static void on_free_sgtable(struct device *dev, struct ftrace_regs *fregs,
			    enum dma_event event)
{
	struct sg_table *sgt = (struct sg_table *)ARGUMENT(fregs, 2);

	each_entry(dev, sgt->sgl, sgt->orig_nents, event);
}

/* The ones that packets take come first. */
static const struct hook streaming_hooks[] = {
	{ SYNC(single_for_cpu), on_address, DMA_LOOKED_AT },
	{ SYNC(single_for_device), on_address, DMA_GIVEN },
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 18, 0)
	{ dma_map_phys, on_phys, DMA_GIVEN },
	{ dma_unmap_phys, on_address, DMA_TAKEN },
#endif
	{ dma_map_page_attrs, on_page, DMA_GIVEN },
	{ dma_unmap_page_attrs, on_address, DMA_TAKEN },
	{ dma_map_sg_attrs, on_sg, DMA_GIVEN },
	{ dma_unmap_sg_attrs, on_sg, DMA_TAKEN },
	{ SYNC(sg_for_cpu), on_sg, DMA_LOOKED_AT },
	{ SYNC(sg_for_device), on_sg, DMA_GIVEN },
	{ dma_map_sgtable, on_sgtable, DMA_GIVEN },
};

static const struct hook free_hooks[] = {
	{ dma_free_attrs, on_free, DMA_FREED },
	{ dma_free_pages, on_free, DMA_FREED },
	{ dma_free_noncontiguous, on_free_sgtable, DMA_FREED },
};

static void dispatch(const struct hook *hooks, size_t count, unsigned long ip,
		     struct ftrace_regs *fregs)
{
	struct device *dev = (struct device *)ARGUMENT(fregs, 0);
	size_t i;

	for (i = 0; i < count; i++) {
		if (ip - (unsigned long)hooks[i].function < ENTRY_BYTES) {
			hooks[i].handle(dev, fregs, hooks[i].event);
			return;
		}
	}
}

static void notrace streaming_call(unsigned long ip, unsigned long parent,
				   struct ftrace_ops *ops,
				   struct ftrace_regs *fregs)
{
	dispatch(streaming_hooks, ARRAY_SIZE(streaming_hooks), ip, fregs);
}

static void notrace free_call(unsigned long ip, unsigned long parent,
			      struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	dispatch(free_hooks, ARRAY_SIZE(free_hooks), ip, fregs);
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
static int find(struct ftrace_ops *ops, const struct hook *hooks, size_t count)
{
	unsigned long ips[HOOKS_MAX];
	size_t i;

	for (i = 0; i < count; i++)
		ips[i] = (unsigned long)hooks[i].function;
	return ftrace_set_filter_ips(ops, ips, count, 0, 0);
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
		vferry_dma_event(dev, DMA_ALLOCATED,
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
			   DMA_ALLOCATED);
	return 0;
}

static int mask_set(struct kretprobe_instance *instance, struct pt_regs *regs)
{
#ifdef CONFIG_DMA_NEED_SYNC
	struct allocation *allocation = (void *)instance->data;
	struct device *dev = allocation->dev;

	if (dev_is_pci(dev))
		dma_reset_need_sync(dev);
#endif
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

	BUILD_BUG_ON(ARRAY_SIZE(streaming_hooks) > HOOKS_MAX ||
		     ARRAY_SIZE(free_hooks) > HOOKS_MAX);
	ret = find(&streaming_ops, streaming_hooks,
		   ARRAY_SIZE(streaming_hooks));
	if (ret)
		goto forget;
	ret = find(&free_ops, free_hooks, ARRAY_SIZE(free_hooks));
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

bool vferry_sync_calls_seen(struct device *dev)
{
#ifdef CONFIG_DMA_NEED_SYNC
	return dma_dev_need_sync(dev);
#else
	return true;
#endif
}
