// SPDX-License-Identifier: GPL-2.0-only
/*
 * The DMA table: one bit for each page of guest memory.
 *
 * All chunks are allocated before tracking begins (32 KiB for each GiB of
 * memory), so that setting a bit is one atomic instruction in any context.
 */
#include <asm/asm.h>
#include <linux/bitops.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "table.h"
#include "vferry_regs.h"

static __le64 *directory;
static void **chunks;
static u32 chunk_count;

static size_t directory_bytes(u32 count)
{
	return PAGE_ALIGN(count * sizeof(*directory));
}

static int highest_end(struct resource *res, void *highest)
{
	u64 *end = highest;

	*end = max_t(u64, *end, res->end + 1);
	return 0;
}

static u32 chunks_of_memory(void)
{
	u64 end = 0;

	walk_iomem_res_desc(IORES_DESC_NONE,
			    IORESOURCE_SYSTEM_RAM | IORESOURCE_BUSY, 0, -1,
			    &end, highest_end);
	end = DIV_ROUND_UP_ULL(end, VFERRY_PAGE_SIZE);
	return DIV_ROUND_UP_ULL(end, VFERRY_CHUNK_PAGES);
}

void vferry_table_free(void)
{
	u32 i;

	for (i = 0; chunks && i < chunk_count; i++)
		free_page((unsigned long)chunks[i]);
	kvfree(chunks);
	if (directory)
		free_pages_exact(directory, directory_bytes(chunk_count));
	chunks = NULL;
	directory = NULL;
	chunk_count = 0;
}

static int allocate(u32 count)
{
	u32 i;

	chunk_count = count;
	directory = alloc_pages_exact(directory_bytes(count),
				      GFP_KERNEL | __GFP_ZERO);
	chunks = kvcalloc(count, sizeof(*chunks), GFP_KERNEL);
	if (!directory || !chunks)
		goto free;
	for (i = 0; i < count; i++) {
		chunks[i] = (void *)get_zeroed_page(GFP_KERNEL);
		if (!chunks[i])
			goto free;
		directory[i] = cpu_to_le64(virt_to_phys(chunks[i]));
	}
	return 0;
free:
	vferry_table_free();
	return -ENOMEM;
}

int vferry_table_prepare(void)
{
	u32 count = chunks_of_memory();
	u32 i;

	if (!count)
		return -ENOMEM;
	if (count != chunk_count) {
		vferry_table_free();
		return allocate(count);
	}
	for (i = 0; i < count; i++)
		memset(chunks[i], 0, VFERRY_PAGE_SIZE);
	return 0;
}

phys_addr_t vferry_table_directory(void)
{
	return virt_to_phys(directory);
}

u32 vferry_table_chunks(void)
{
	return chunk_count;
}

bool vferry_table_covers(u64 end)
{
	return DIV_ROUND_UP_ULL(end, VFERRY_PAGE_SIZE * VFERRY_CHUNK_PAGES) <=
	       chunk_count;
}

static void *chunk_of(u64 page)
{
	u64 index = page >> VFERRY_CHUNK_PAGES_SHIFT;

	return index < chunk_count ? chunks[index] : NULL;
}

static unsigned int bit_of(u64 page)
{
	return page & (VFERRY_CHUNK_PAGES - 1);
}

/*
 * A driver tells its device of the memory by writel(), or by memory with a
 * write barrier before it, and either is after the bit. A bit that is set
 * already stays set: nobody clears bits while the table is in use.
 */
void vferry_table_mark(phys_addr_t phys, size_t len)
{
	u64 page = phys >> VFERRY_PAGE_SHIFT;
	u64 end = (phys + len + VFERRY_PAGE_SIZE - 1) >> VFERRY_PAGE_SHIFT;

	for (; len && page < end; page++) {
		void *chunk = chunk_of(page);

		if (chunk && !test_bit_le(bit_of(page), chunk))
			set_bit_le(bit_of(page), chunk);
	}
}

void vferry_table_clear_whole_pages(phys_addr_t phys, size_t len)
{
	u64 page = (phys + VFERRY_PAGE_SIZE - 1) >> VFERRY_PAGE_SHIFT;
	u64 end = (phys + len) >> VFERRY_PAGE_SHIFT;

	for (; page < end; page++) {
		void *chunk = chunk_of(page);

		if (chunk)
			clear_bit_le(bit_of(page), chunk);
	}
}

/*
 * A page of which a part was given to a device once may be anything today: it
 * may be read-only (a module's code) or have no mapping at all (secret memory,
 * guard pages). What it holds, the CPU has written after the device then.
 */
static void touch_word(void *word)
{
	asm volatile("1:	lock orl $0, %0\n"
		     "2:\n"
		     _ASM_EXTABLE(1b, 2b)
		     : "+m" (*(u32 *)word) : : "memory", "cc");
}

static void touch_page(phys_addr_t phys)
{
	unsigned long pfn = PHYS_PFN(phys);
	struct page *page;

	/* A peer device's memory is not ours to write to. */
	if (!pfn_valid(pfn))
		return;
	page = pfn_to_page(pfn);
	if (is_zone_device_page(page))
		return;
	touch_word(page_address(page) + offset_in_page(ALIGN_DOWN(phys, 4)));
}

void vferry_touch(phys_addr_t phys, size_t len)
{
	phys_addr_t end = phys + len;

	while (phys < end) {
		touch_page(phys);
		phys = ALIGN_DOWN(phys, VFERRY_PAGE_SIZE) + VFERRY_PAGE_SIZE;
	}
}

void vferry_table_touch_marked(void)
{
	unsigned long bit;
	u32 i;

	for (i = 0; i < chunk_count; i++) {
		for (bit = find_next_bit_le(chunks[i], VFERRY_CHUNK_PAGES, 0);
		     bit < VFERRY_CHUNK_PAGES;
		     bit = find_next_bit_le(chunks[i], VFERRY_CHUNK_PAGES, bit + 1)) {
			u64 page = ((u64)i << VFERRY_CHUNK_PAGES_SHIFT) + bit;

			touch_page(page << VFERRY_PAGE_SHIFT);
		}
		cond_resched();
	}
}
