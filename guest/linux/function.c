// SPDX-License-Identifier: GPL-2.0-only
/*
 * One device that the control device speaks for.
 *
 * Each has a thread: drivers take their time to stop and to start, and one that
 * is slow or hangs must hold up neither the others nor the control device. The
 * thread also is the one that holds the device's lock while it is stopped.
 */
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

#include "function.h"
#include "quiesce.h"
#include "vferry_regs.h"

/* How often links that are not back are looked at, in jiffies. */
#define SETTLE_INTERVAL	msecs_to_jiffies(10)

struct vferry_function {
	struct pci_dev *pdev;
	unsigned int index;
	enum vferry_method method;
	vferry_answer_fn answer;
	void *context;
	struct task_struct *thread;
	wait_queue_head_t wait;

	spinlock_t lock;	/* for the next two */
	struct vferry_order order;
	bool ordered;

	/* The thread's own */
	struct vferry_stopped stopped;
	bool unsettled;		/* its interfaces, after a start */
};

static u32 declined_or_failed(int error)
{
	return error == -EOPNOTSUPP ? VFERRY_RESULT_DECLINED :
				      VFERRY_RESULT_FAILED;
}

static int restart(struct vferry_function *function)
{
	if (!function->stopped.pdev)
		return 0;
	function->unsettled = true;
	return vferry_restart(&function->stopped);
}

static u32 promise(struct vferry_function *function)
{
	if (function->method == VFERRY_METHOD_TOUCH)
		return VFERRY_RESULT_TOUCH_AFTER_QUIESCE;
	return vferry_track_knows_all() ? VFERRY_RESULT_TABLE :
					  VFERRY_RESULT_TABLE_AFTER_QUIESCE;
}

static u32 track(struct vferry_function *function, int *error)
{
	*error = restart(function) ?:
		 vferry_track_start(function->pdev, function->method);
	return *error ? declined_or_failed(*error) : promise(function);
}

static u32 quiesce(struct vferry_function *function, unsigned long give_up,
		   int *error)
{
	if (function->stopped.pdev)
		return VFERRY_RESULT_DONE;
	function->unsettled = true;	/* if it fails */
	*error = vferry_quiesce(&function->stopped, function->pdev, give_up);
	if (*error)
		return declined_or_failed(*error);
	/* Stopped without all of its pages known would be taken for more. */
	*error = vferry_track_stopped(function->pdev);
	if (*error) {
		vferry_restart(&function->stopped);
		return VFERRY_RESULT_FAILED;
	}
	return VFERRY_RESULT_DONE;
}

static bool is_over(u32 request)
{
	return VFERRY_REQUEST_COMMAND(request) == VFERRY_COMMAND_END ||
	       VFERRY_REQUEST_COMMAND(request) == VFERRY_COMMAND_IDLE;
}

static void carry_out(struct vferry_function *function,
		      const struct vferry_order *order)
{
	struct vferry_answer answer = { .request = order->request };
	ktime_t begun = ktime_get();

	switch (VFERRY_REQUEST_COMMAND(order->request)) {
	case VFERRY_COMMAND_TRACK:
		answer.result = track(function, &answer.error);
		break;
	case VFERRY_COMMAND_QUIESCE:
		answer.result = quiesce(function, order->give_up,
					&answer.error);
		break;
	case VFERRY_COMMAND_END:
	case VFERRY_COMMAND_IDLE:
		answer.error = restart(function);
		answer.result = answer.error ? VFERRY_RESULT_FAILED :
					       VFERRY_RESULT_DONE;
		break;
	default:
		answer.result = VFERRY_RESULT_DECLINED;
	}
	answer.micros = min_t(s64, ktime_us_delta(ktime_get(), begun), U32_MAX);
	/* The device runs: what follows takes long, and does not count. */
	if (is_over(order->request))
		vferry_track_end(function->pdev);
	if (order->request)
		function->answer(function->context, function->index, &answer);
}

static bool take_order(struct vferry_function *function,
		       struct vferry_order *order)
{
	bool ordered;

	spin_lock(&function->lock);
	ordered = function->ordered;
	*order = function->order;
	function->ordered = false;
	spin_unlock(&function->lock);
	return ordered;
}

static bool has_work(struct vferry_function *function)
{
	return READ_ONCE(function->ordered) || kthread_should_stop();
}

static void wait_for_work(struct vferry_function *function)
{
	struct vferry_interfaces *interfaces = &function->stopped.interfaces;

	if (!function->unsettled)
		wait_event_idle(function->wait, has_work(function));
	else if (!wait_event_idle_timeout(function->wait, has_work(function),
					  SETTLE_INTERVAL))
		function->unsettled = !vferry_interfaces_settle(interfaces);
}

static int run(void *data)
{
	struct vferry_function *function = data;
	struct vferry_order order;

	while (!kthread_should_stop()) {
		wait_for_work(function);
		if (take_order(function, &order))
			carry_out(function, &order);
	}
	restart(function);
	vferry_interfaces_release(&function->stopped.interfaces);
	vferry_track_end(function->pdev);
	return 0;
}

struct vferry_function *vferry_function_create(struct pci_dev *pdev,
					       unsigned int index,
					       enum vferry_method method,
					       vferry_answer_fn answer,
					       void *context)
{
	struct vferry_function *function;
	struct task_struct *thread;

	function = kzalloc(sizeof(*function), GFP_KERNEL);
	if (!function)
		return ERR_PTR(-ENOMEM);
	function->index = index;
	function->method = method;
	function->answer = answer;
	function->context = context;
	spin_lock_init(&function->lock);
	init_waitqueue_head(&function->wait);
	vferry_interfaces_init(&function->stopped.interfaces);
	function->pdev = pci_dev_get(pdev);

	thread = kthread_run(run, function, "vferry/%s", pci_name(pdev));
	if (IS_ERR(thread)) {
		pci_dev_put(pdev);
		kfree(function);
		return ERR_CAST(thread);
	}
	function->thread = thread;
	return function;
}

void vferry_function_destroy(struct vferry_function *function)
{
	kthread_stop(function->thread);
	pci_dev_put(function->pdev);
	kfree(function);
}

struct pci_dev *vferry_function_pdev(struct vferry_function *function)
{
	return function->pdev;
}

void vferry_function_order(struct vferry_function *function,
			   struct vferry_order order)
{
	spin_lock(&function->lock);
	function->order = order;
	function->ordered = true;
	spin_unlock(&function->lock);
	wake_up(&function->wait);
}
