/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef VFERRY_INTERFACES_H
#define VFERRY_INTERFACES_H

#include <linux/list.h>
#include <linux/types.h>

struct device;

/**
 * struct vferry_interfaces - a device's network interfaces
 * @covers: of those that are covered, or were until recently; with rtnl_lock
 * @patience_ends: in jiffies; when a link that is not back is lost
 */
struct vferry_interfaces {
	struct list_head covers;
	unsigned long patience_ends;
};

void vferry_interfaces_init(struct vferry_interfaces *interfaces);

/**
 * vferry_interfaces_cover() - keep the system from the interfaces of a device
 * @interfaces: this device's
 * @dev: the device, about to be stopped by its driver
 *
 * Until vferry_interfaces_uncover() the stack does not act on a link that is
 * lost, and the driver is not called where it does not expect it.
 *
 * Return: 0, or a negative errno; then vferry_interfaces_uncover() is due, too.
 */
int vferry_interfaces_cover(struct vferry_interfaces *interfaces,
			    struct device *dev);

/**
 * vferry_interfaces_uncover() - let the system at them again
 * @interfaces: this device's
 *
 * Those that the driver could not start stay covered.
 * vferry_interfaces_settle() is due afterwards, until it is done.
 */
void vferry_interfaces_uncover(struct vferry_interfaces *interfaces);

/**
 * vferry_interfaces_settle() - look after links that are not back yet
 * @interfaces: this device's
 *
 * To be called every few milliseconds.
 *
 * Return: whether it is done.
 */
bool vferry_interfaces_settle(struct vferry_interfaces *interfaces);

/* Nothing is covered any more, whatever state it is in. */
void vferry_interfaces_release(struct vferry_interfaces *interfaces);

int vferry_interfaces_watch(void);
void vferry_interfaces_unwatch(void);

#endif /* VFERRY_INTERFACES_H */
