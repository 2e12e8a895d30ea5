/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef VFERRY_UNSEEN_H
#define VFERRY_UNSEEN_H

struct device;

/*
 * Who may have mapped memory for the device for long, without a call that tells
 * of it later; NULL if nobody that we know of. May sleep.
 */
const char *vferry_unseen_mappings(struct device *dev);

#endif /* VFERRY_UNSEEN_H */
