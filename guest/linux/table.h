/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef VFERRY_TABLE_H
#define VFERRY_TABLE_H

#include <linux/types.h>

/*
 * The bitmap over guest-physical memory that the host reads; its layout and
 * who may do what to it when are in docs/guest-protocol.md, "The DMA table".
 */

/**
 * vferry_table_prepare() - an empty table for all memory that there is now
 *
 * Not to be called while it is in use. It stays allocated until
 * vferry_table_free(), for the next time.
 *
 * Return: 0 or -ENOMEM.
 */
int vferry_table_prepare(void);
void vferry_table_free(void);

/* What the host is told: the directory's address, and its entries. */
phys_addr_t vferry_table_directory(void);
u32 vferry_table_chunks(void);

/* Whether pages up to @end (exclusive, in bytes) have a bit. */
bool vferry_table_covers(u64 end);

/*
 * From any context, on a table that is prepared. Addresses that have no bit
 * (they are no memory) are left out.
 */
void vferry_table_mark(phys_addr_t phys, size_t len);

/* Only for a table that the host does not read. */
void vferry_table_clear_whole_pages(phys_addr_t phys, size_t len);

/**
 * vferry_touch() - write to each page without changing it
 *
 * So that the hypervisor's own log has the pages that a device wrote before.
 * From any context.
 */
void vferry_touch(phys_addr_t phys, size_t len);

/* Touches each page whose bit is set. May sleep. */
void vferry_table_touch_marked(void);

#endif /* VFERRY_TABLE_H */
