/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef VFERRY_HOOKS_H
#define VFERRY_HOOKS_H

#include <linux/types.h>

struct device;

/* What a driver does to memory that a device may write. */
enum dma_event {
	DMA_GIVEN,	/* mapped, or synchronised for the device: it may write from now on */
	DMA_LOOKED_AT,	/* synchronised for the CPU: it may have written */
	DMA_TAKEN,	/* unmapped: it may have written, and does no more */
	DMA_ALLOCATED,	/* coherent memory: it may write until DMA_FREED */
	DMA_FREED,
};

/*
 * Called for DMA_GIVEN, DMA_LOOKED_AT and DMA_TAKEN of any device, in any
 * context, while these are hooked; track.c's.
 */
void vferry_dma_streaming(struct device *dev, enum dma_event event,
			  phys_addr_t phys, size_t len);

/* Likewise for DMA_ALLOCATED and DMA_FREED. */
void vferry_dma_memory(struct device *dev, enum dma_event event,
		       phys_addr_t phys, size_t len);

/* Called when a driver has set the device's DMA mask; track.c's. */
bool vferry_wants_sync_calls(struct device *dev);

/*
 * The streaming calls (DMA_GIVEN, DMA_LOOKED_AT, DMA_TAKEN) are hooked only on
 * demand: while they are not, their functions begin with a NOP.
 */
int vferry_hook_streaming(void);
void vferry_unhook_streaming(void);

/* Allocations are rare, and hooked as long as the module is there. */
int vferry_hook_allocations(void);
void vferry_unhook_allocations(void);

/* Whether an allocation, or a change of a device's DMA mask, was missed. */
bool vferry_hooks_missed(void);

/*
 * Has calls of dma_sync_*() for the device reach the hooked functions, until
 * its driver sets its DMA mask again.
 */
void vferry_show_sync_calls(struct device *dev);
bool vferry_sync_calls_seen(struct device *dev);

#endif /* VFERRY_HOOKS_H */
