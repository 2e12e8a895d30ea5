/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef VFERRY_INTERFACES_H
#define VFERRY_INTERFACES_H

#include <linux/jiffies.h>
#include <linux/list.h>

struct device;

/*
 * How long an interface may take to have its link again: a physical one that
 * negotiates takes seconds.
 */
#define VFERRY_LINK_PATIENCE	(5 * HZ)

/**
 * struct vferry_interfaces - a device's network interfaces
 * @covered: those that are covered
 * @uncovered: what covered others before, and some reader may still be at
 */
struct vferry_interfaces {
	struct list_head covered;
	struct list_head uncovered;
};

void vferry_interfaces_init(struct vferry_interfaces *interfaces);

/**
 * vferry_interfaces_cover() - keep the system from the interfaces of a device
 * @interfaces: this device's
 * @dev: the device, about to be stopped by its driver
 *
 * Until vferry_interfaces_uncover() nobody hears of a link that is lost, and
 * the driver is not asked for its counters.
 *
 * Return: 0, or a negative errno; nothing is covered then.
 */
int vferry_interfaces_cover(struct vferry_interfaces *interfaces,
			    struct device *dev);

/**
 * vferry_interfaces_uncover() - let the system at them again
 * @interfaces: this device's
 *
 * To be followed by vferry_interfaces_settle(), %VFERRY_LINK_PATIENCE later.
 */
void vferry_interfaces_uncover(struct vferry_interfaces *interfaces);

/**
 * vferry_interfaces_settle() - have it heard where there is no link, and tidy up
 * @interfaces: this device's
 * @dev: the device
 */
void vferry_interfaces_settle(struct vferry_interfaces *interfaces,
			      struct device *dev);

#endif /* VFERRY_INTERFACES_H */
