// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which pages devices may have written.
 *
 * Two ways to let the host know: the DMA table, in which each page gets its bit
 * before it is given to the device, and the dummy write, by which the CPU
 * writes to each page after the device did, so that the hypervisor's own log
 * has it. Both need every mapping to be seen, so a device is only tracked if
 * its driver was bound while this module was there, and if nothing stands
 * between the addresses that it uses and memory's.
 */
#include <linux/cc_platform.h>
#include <linux/dma-map-ops.h>
#include <linux/iommu.h>
#include <linux/jump_label.h>
#include <linux/memory.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/swiotlb.h>
#include <linux/xarray.h>

#include "hooks.h"
#include "table.h"
#include "track.h"
#include "unseen.h"
#include "vferry_regs.h"

static bool always;
module_param(always, bool, 0444);
MODULE_PARM_DESC(always, "track all PCI devices from load on, so that the table needs nothing of a guest that hangs; costs throughput");

/* Serialises begin and end; what follows is read by hooks without it. */
static DEFINE_MUTEX(track_lock);
static struct device *tracked[VFERRY_DEVICES_MAX];
/* All slots from here on are empty. */
static unsigned int tracked_slots;
static unsigned int tracked_devices;
static enum vferry_method method;

/* Off while no migration runs: then hooks of allocations only keep the set. */
static DEFINE_STATIC_KEY_FALSE(tracking);
/* Set before the table is sized. */
static bool table_in_use;

/* Coherent memory of all PCI devices, by its first page. */
struct region {
	struct device *dev;
	size_t len;
};

static DEFINE_XARRAY_FLAGS(regions, XA_FLAGS_LOCK_IRQ);
static bool regions_lost;

/* Functions whose driver was bound while we watched, by address on the bus. */
static DEFINE_XARRAY(watched);

static bool available;

static bool is_tracked(struct device *dev)
{
	unsigned int i, slots = READ_ONCE(tracked_slots);

	if (always)
		return dev_is_pci(dev);
	for (i = 0; i < slots; i++)
		if (READ_ONCE(tracked[i]) == dev)
			return true;
	return false;
}

/* Whether its sync calls cost too much to show them before it is tracked. */
static bool synchronises_a_lot(struct device *dev)
{
	return to_pci_dev(dev)->class >> 16 == PCI_BASE_CLASS_NETWORK;
}

bool vferry_wants_sync_calls(struct device *dev)
{
	/* What the driver did is to be seen before add() shows sync calls. */
	smp_mb();
	return dev_is_pci(dev) &&
	       (!synchronises_a_lot(dev) || is_tracked(dev));
}

static void note(enum dma_event event, phys_addr_t phys, size_t len)
{
	if (method == VFERRY_METHOD_TABLE) {
		vferry_table_mark(phys, len);
		return;
	}
	switch (event) {
	case DMA_GIVEN:
	case DMA_ALLOCATED:
		vferry_table_mark(phys, len);
		break;
	case DMA_TAKEN:
		/* Part of a page may belong to another mapping. */
		vferry_table_clear_whole_pages(phys, len);
		fallthrough;
	case DMA_LOOKED_AT:
	case DMA_FREED:
		vferry_touch(phys, len);
		break;
	}
}

static void add_region(struct device *dev, phys_addr_t phys, size_t len)
{
	struct region *old, *region = kmalloc(sizeof(*region), GFP_ATOMIC);
	unsigned long flags;

	if (!region) {
		WRITE_ONCE(regions_lost, true);
		return;
	}
	region->dev = dev;
	region->len = len;
	xa_lock_irqsave(&regions, flags);
	old = __xa_store(&regions, PHYS_PFN(phys), region, GFP_ATOMIC);
	xa_unlock_irqrestore(&regions, flags);
	if (xa_is_err(old)) {
		WRITE_ONCE(regions_lost, true);
		old = region;
	}
	kfree(old);
}

static void remove_region(phys_addr_t phys)
{
	struct region *old;
	unsigned long flags;

	xa_lock_irqsave(&regions, flags);
	old = __xa_erase(&regions, PHYS_PFN(phys));
	xa_unlock_irqrestore(&regions, flags);
	kfree(old);
}

/* end() waits for it, begin() is over before it is called. */
void vferry_dma_streaming(struct device *dev, enum dma_event event,
			  phys_addr_t phys, size_t len)
{
	if (is_tracked(dev))
		note(event, phys, len);
}

void vferry_dma_memory(struct device *dev, enum dma_event event,
		       phys_addr_t phys, size_t len)
{
	if (event == DMA_ALLOCATED && dev_is_pci(dev))
		add_region(dev, phys, len);
	if (static_branch_unlikely(&tracking)) {
		/* end() waits for it. */
		rcu_read_lock();
		if (is_tracked(dev))
			note(event, phys, len);
		rcu_read_unlock();
	}
	if (event == DMA_FREED && dev_is_pci(dev))
		remove_region(phys);
}

/* What the device may write as long as its driver is bound. */
static void mark_regions(struct device *dev)
{
	struct region *region;
	unsigned long index, flags;

	xa_lock_irqsave(&regions, flags);
	xa_for_each(&regions, index, region)
		if (region->dev == dev)
			vferry_table_mark(PFN_PHYS(index), region->len);
	xa_unlock_irqrestore(&regions, flags);
}

static unsigned long watched_index(struct pci_dev *pdev)
{
	return (unsigned long)pci_domain_nr(pdev->bus) << 16 | pci_dev_id(pdev);
}

/* Why it cannot be known what the device writes; NULL if it can. */
static const char *why_not(struct pci_dev *pdev, enum vferry_method wanted)
{
	struct device *dev = &pdev->dev;
	struct iommu_domain *domain = iommu_get_domain_for_dev(dev);

	if (!available)
		return "the kernel's DMA calls cannot be watched";
	if (always && wanted != VFERRY_METHOD_TABLE)
		return "always=1 goes with the table only";
	if (!xa_load(&watched, watched_index(pdev)))
		return "its driver was bound before vferry was loaded";
	if (vferry_hooks_missed() || READ_ONCE(regions_lost))
		return "an allocation was missed";
	if (!vferry_sync_calls_seen(dev) &&
	    (is_tracked(dev) || !synchronises_a_lot(dev)))
		return "its driver's sync calls are skipped";
	if (get_dma_ops(dev) ||
	    (domain && domain->type != IOMMU_DOMAIN_IDENTITY))
		return "it is behind an IOMMU";
	if (cc_platform_has(CC_ATTR_MEM_ENCRYPT))
		return "memory is encrypted";
	if (is_swiotlb_force_bounce(dev) || !dev->dma_mask ||
	    min_not_zero(*dev->dma_mask, dev->bus_dma_limit) <
	    dma_get_required_mask(dev))
		return "it may need bounce buffers";
	return always ? NULL : vferry_unseen_mappings(dev);
}

/* With track_lock. */
static int begin(enum vferry_method wanted)
{
	int ret;

	WRITE_ONCE(table_in_use, true);
	/* Memory is either in the table's size, or memory_event() refuses it. */
	smp_mb();
	ret = vferry_table_prepare();
	if (ret)
		goto not_in_use;
	method = wanted;
	static_branch_enable(&tracking);
	ret = vferry_hook_streaming();
	if (ret)
		goto disable;
	return 0;

disable:
	static_branch_disable(&tracking);
	synchronize_rcu();
not_in_use:
	WRITE_ONCE(table_in_use, false);
	return ret;
}

/* With track_lock. */
static void end(void)
{
	vferry_unhook_streaming();
	static_branch_disable(&tracking);
	/* Hooks of allocations may be at the table, which begin() may replace. */
	synchronize_rcu();
	WRITE_ONCE(table_in_use, false);
}

static int free_slot(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(tracked); i++)
		if (!tracked[i])
			return i;
	return -ENOSPC;
}

static int add(struct device *dev, enum vferry_method wanted)
{
	int slot, ret;

	if (is_tracked(dev))
		return method == wanted ? 0 : -EBUSY;
	slot = free_slot();
	if (slot < 0)
		return slot;
	if (!tracked_devices) {
		ret = begin(wanted);
		if (ret)
			return ret;
	}
	tracked_devices++;
	WRITE_ONCE(tracked[slot], dev);
	if (slot >= tracked_slots)
		WRITE_ONCE(tracked_slots, slot + 1);
	/*
	 * Before the set is looked at: what is allocated meanwhile is in either.
	 * Before sync calls are shown: a driver that sets its DMA mask meanwhile
	 * either does that first, or finds the device tracked.
	 */
	smp_mb();
	vferry_show_sync_calls(dev);
	mark_regions(dev);
	return 0;
}

int vferry_track_start(struct pci_dev *pdev, enum vferry_method wanted)
{
	const char *reason;
	int ret;

	mutex_lock(&track_lock);
	reason = why_not(pdev, wanted);
	if (reason) {
		pci_info(pdev, "vferry: not tracked: %s\n", reason);
		ret = -EOPNOTSUPP;
	} else {
		ret = add(&pdev->dev, wanted);
	}
	mutex_unlock(&track_lock);
	return ret;
}

bool vferry_track_knows_all(void)
{
	return always;
}

int vferry_track_stopped(struct pci_dev *pdev)
{
	int ret = 0;

	mutex_lock(&track_lock);
	if (is_tracked(&pdev->dev)) {
		if (why_not(pdev, method))
			ret = -ENODATA;
		else if (method == VFERRY_METHOD_TOUCH)
			vferry_table_touch_marked();
	}
	mutex_unlock(&track_lock);
	return ret;
}

void vferry_track_end(struct pci_dev *pdev)
{
	int i;

	mutex_lock(&track_lock);
	for (i = 0; i < ARRAY_SIZE(tracked); i++) {
		if (tracked[i] != &pdev->dev)
			continue;
		WRITE_ONCE(tracked[i], NULL);
		if (!--tracked_devices)
			end();
	}
	mutex_unlock(&track_lock);
}

static int driver_event(struct notifier_block *nb, unsigned long event,
			void *data)
{
	struct pci_dev *pdev = to_pci_dev(data);

	switch (event) {
	case BUS_NOTIFY_BIND_DRIVER:
		/* One that is not in the set is not tracked: safe without memory. */
		xa_store(&watched, watched_index(pdev), xa_mk_value(1),
			 GFP_KERNEL);
		break;
	case BUS_NOTIFY_DRIVER_NOT_BOUND:
	case BUS_NOTIFY_UNBOUND_DRIVER:
		xa_erase(&watched, watched_index(pdev));
		break;
	}
	return NOTIFY_DONE;
}

static struct notifier_block driver_notifier = {
	.notifier_call = driver_event,
};

/*
 * Memory that comes while the table is in use must have its bits. Not with
 * track_lock: this is called with locks held that begin() needs.
 */
static int memory_event(struct notifier_block *nb, unsigned long event,
			void *data)
{
	struct memory_notify *memory = data;
	u64 last = (u64)memory->start_pfn + memory->nr_pages;

	if (event == MEM_GOING_ONLINE && READ_ONCE(table_in_use) &&
	    !vferry_table_covers(PFN_PHYS(last)))
		return notifier_from_errno(-EBUSY);
	return NOTIFY_DONE;
}

static struct notifier_block memory_notifier = {
	.notifier_call = memory_event,
};

/* With nothing hooked any more. */
static void free_all(void)
{
	struct region *region;
	unsigned long index;

	vferry_table_free();
	xa_for_each(&regions, index, region)
		kfree(region);
	xa_destroy(&regions);
	xa_destroy(&watched);
}

/* Without what tracking needs, the module still stops and restarts devices. */
int vferry_track_init(void)
{
	int ret;

	ret = vferry_hook_allocations();
	if (ret)
		return ret;
	ret = register_memory_notifier(&memory_notifier);
	if (ret)
		goto unhook;
	if (always) {
		ret = begin(VFERRY_METHOD_TABLE);
		if (ret)
			goto unregister_memory;
	}
	ret = bus_register_notifier(&pci_bus_type, &driver_notifier);
	if (ret)
		goto end;
	available = true;
	return 0;

end:
	if (always)
		end();
unregister_memory:
	unregister_memory_notifier(&memory_notifier);
unhook:
	vferry_unhook_allocations();
	free_all();
	return ret;
}

void vferry_track_exit(void)
{
	if (!available)
		return;
	bus_unregister_notifier(&pci_bus_type, &driver_notifier);
	if (always)
		end();
	unregister_memory_notifier(&memory_notifier);
	vferry_unhook_allocations();
	free_all();
}
