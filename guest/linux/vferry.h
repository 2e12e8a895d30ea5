/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * For drivers that know a faster way to stop and restart their device than
 * their power-management callbacks.
 */
#ifndef VFERRY_H
#define VFERRY_H

#include <linux/module.h>
#include <linux/pci.h>

/**
 * struct vferry_ops - how a driver stops and restarts one of its devices
 * @owner: the module that the callbacks are in; it is held while a device is
 *	stopped
 * @quiesce: Stop all DMA and interrupts of the device. Called in process
 *	context with the device's lock held. On return the device must have
 *	written to memory for the last time, and what it wrote must have been
 *	unmapped, or synchronised for the CPU. Returns 0, or a negative errno
 *	with the device working as before.
 * @restart: Initialise the device anew. It may be as @quiesce left it, or
 *	blank as after power-on, perhaps on another host. Its configuration
 *	space has been written back, bus mastering as it was before @quiesce.
 *	Called in process context with the device's lock held. Returns 0 or a
 *	negative errno.
 *
 * vferry saves the configuration space after @quiesce, clears Bus Master
 * Enable, and keeps everybody else away until @restart.
 */
struct vferry_ops {
	struct module *owner;
	int (*quiesce)(struct pci_dev *pdev);
	int (*restart)(struct pci_dev *pdev);
};

/**
 * vferry_register_ops() - let vferry use a driver's own callbacks
 * @driver: for all devices that are bound to this driver
 * @ops: must live until vferry_unregister_ops()
 *
 * Return: 0, -EINVAL if a callback is missing, -EEXIST if @driver has some
 * already, -ENOMEM.
 */
int vferry_register_ops(struct pci_driver *driver, const struct vferry_ops *ops);

/**
 * vferry_unregister_ops() - go back to the power-management callbacks
 * @driver: as registered; nothing happens for one that is not
 *
 * To be called from the exit function of the module that is ops->owner, or
 * later: that does not run while one of its devices is stopped.
 */
void vferry_unregister_ops(struct pci_driver *driver);

#endif /* VFERRY_H */
