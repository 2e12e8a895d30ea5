/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef VFERRY_QUIESCE_H
#define VFERRY_QUIESCE_H

#include <linux/jiffies.h>
#include <linux/pci.h>

#include "interfaces.h"

struct vferry_ops;

/**
 * struct vferry_stopped - a device that is stopped, and how it was done
 * @pdev: the device; NULL while nothing is stopped
 * @ops: the driver's own callbacks, or NULL if it was stopped by power
 *	management
 * @interfaces: its network interfaces; vferry_interfaces_init() prepares them,
 *	and vferry_interfaces_settle() is due after either function
 *
 * Belongs to one thread: vferry_restart() must run in the thread that
 * vferry_quiesce() ran in, which holds the device's lock in between.
 */
struct vferry_stopped {
	struct pci_dev *pdev;
	const struct vferry_ops *ops;
	struct vferry_interfaces interfaces;
};

/**
 * vferry_quiesce() - stop one device while the system runs
 * @stopped: empty; filled in on success
 * @pdev: the device
 * @give_up: in jiffies; when to stop waiting for others to let go of the device
 *
 * On success the device does no DMA, Bus Master Enable is off, and neither
 * unbinding, nor user space's configuration accesses, nor system sleep get at
 * it before vferry_restart().
 *
 * Return: 0; -EOPNOTSUPP if the device cannot be stopped by itself, ever;
 * another negative errno if it could not be stopped now. It works as before
 * after a failure.
 */
int vferry_quiesce(struct vferry_stopped *stopped, struct pci_dev *pdev,
		   unsigned long give_up);

/**
 * vferry_restart() - start a device again, whatever happened to it meanwhile
 * @stopped: as vferry_quiesce() left it; empty afterwards
 *
 * Return: 0, or the negative errno of the driver's callback. The device is
 * released in any case.
 */
int vferry_restart(struct vferry_stopped *stopped);

int vferry_quiesce_init(void);
void vferry_quiesce_exit(void);

#endif /* VFERRY_QUIESCE_H */
