/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef VFERRY_TRACK_H
#define VFERRY_TRACK_H

#include <linux/types.h>

struct pci_dev;

/* How the host gets to know which pages devices write. */
enum vferry_method {
	VFERRY_METHOD_TABLE,
	VFERRY_METHOD_TOUCH,
};

/**
 * vferry_track_start() - begin to track what a device writes
 * @pdev: the device; nothing happens if it is tracked already
 * @method: the same for all devices that are tracked at a time
 *
 * The first device's start empties the table.
 *
 * Return: 0; -EOPNOTSUPP if it cannot be known what this device writes (the
 * log says why); another negative errno if tracking could not begin now.
 */
int vferry_track_start(struct pci_dev *pdev, enum vferry_method method);

/* Whether also what was mapped before vferry_track_start() is known. */
bool vferry_track_knows_all(void);

/**
 * vferry_track_stopped() - do what a promise needs after a device has stopped
 *
 * Touches the pages that it may have written and nobody has released since.
 * Nothing happens for a device that is not tracked.
 *
 * Return: 0, or -ENODATA if something was missed since vferry_track_start().
 */
int vferry_track_stopped(struct pci_dev *pdev);

/* The last device's end unhooks the DMA calls. May be called for any device. */
void vferry_track_end(struct pci_dev *pdev);

int vferry_track_init(void);
void vferry_track_exit(void);

#endif /* VFERRY_TRACK_H */
