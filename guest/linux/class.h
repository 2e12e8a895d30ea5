/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef VFERRY_CLASS_H
#define VFERRY_CLASS_H

#include <linux/device.h>
#include <linux/string.h>

static inline bool vferry_is_of_class(struct device *dev, const char *name)
{
	return dev->class && !strcmp(dev->class->name, name);
}

#endif /* VFERRY_CLASS_H */
