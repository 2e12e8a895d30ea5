/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef VFERRY_FUNCTION_H
#define VFERRY_FUNCTION_H

#include <linux/types.h>

#include "track.h"

struct pci_dev;
struct vferry_function;

/**
 * struct vferry_order - a command of the host
 * @request: the register's value, which the answer repeats
 * @give_up: in jiffies; when its deadline passes
 */
struct vferry_order {
	u32 request;
	unsigned long give_up;
};

/**
 * struct vferry_answer - what came of an order
 * @request: the order's
 * @result: VFERRY_RESULT_*
 * @error: a negative errno, or 0
 * @micros: how long it took
 */
struct vferry_answer {
	u32 request;
	u32 result;
	int error;
	u32 micros;
};

/* Called in the function's own thread; @context and @index as created. */
typedef void (*vferry_answer_fn)(void *context, unsigned int index,
				 const struct vferry_answer *answer);

/**
 * vferry_function_create() - a thread that carries out orders for one device
 * @pdev: the device; a reference is taken
 *
 * Return: the function or an ERR_PTR.
 */
struct vferry_function *vferry_function_create(struct pci_dev *pdev,
					       unsigned int index,
					       enum vferry_method method,
					       vferry_answer_fn answer,
					       void *context);

/* Restarts the device if it is stopped, ends tracking it, ends the thread. */
void vferry_function_destroy(struct vferry_function *function);

struct pci_dev *vferry_function_pdev(struct vferry_function *function);

/* Of orders that come while one is carried out only the last is kept. */
void vferry_function_order(struct vferry_function *function,
			   struct vferry_order order);

#endif /* VFERRY_FUNCTION_H */
