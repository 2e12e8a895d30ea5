// SPDX-License-Identifier: GPL-2.0-only
/*
 * vferry's control device: how a host tells this guest that it is being
 * migrated, and hears that its devices are ready for it. The protocol is in
 * docs/guest-protocol.md.
 */
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/pm.h>
#include <linux/reboot.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

#include "function.h"
#include "quiesce.h"
#include "table.h"
#include "track.h"
#include "vferry_regs.h"

static char *method = "table";
module_param(method, charp, 0444);
MODULE_PARM_DESC(method, "how the host learns which pages devices write: table (default) or touch; the other if the host does not offer it");

/* No request has it: bits 3:0 of one are zero. */
#define NO_REQUEST	1

struct control {
	struct pci_dev *pdev;
	void __iomem *regs;
	struct workqueue_struct *workqueue;
	struct work_struct work;
	struct notifier_block reboot;

	spinlock_t answer_lock;	/* one answer at a time */

	/* The work's own; the lock is for those who take its place. */
	struct mutex lock;
	bool left;
	u32 carried_out;
	enum vferry_method method;
	struct vferry_function *functions[VFERRY_DEVICES_MAX];
};

static bool can_track;

static u32 read_register(struct control *control, unsigned int offset)
{
	return ioread32(control->regs + offset);
}

static void write_register(struct control *control, unsigned int offset,
			   u32 value)
{
	iowrite32(value, control->regs + offset);
}

static u32 read_request(struct control *control)
{
	return read_register(control, VFERRY_REQUEST) & VFERRY_REQUEST_MASK;
}

static bool is_ours(struct control *control)
{
	u32 version = read_register(control, VFERRY_VERSION);

	return read_register(control, VFERRY_MAGIC) == VFERRY_MAGIC_VALUE &&
	       VFERRY_VERSION_MAJOR(version) == VFERRY_MAJOR;
}

static void write_table(struct control *control)
{
	u64 directory = vferry_table_directory();

	write_register(control, VFERRY_TABLE_LOW, lower_32_bits(directory));
	write_register(control, VFERRY_TABLE_HIGH, upper_32_bits(directory));
	write_register(control, VFERRY_TABLE_CHUNKS, vferry_table_chunks());
}

static bool promises_table(const struct vferry_answer *answer)
{
	return VFERRY_REQUEST_COMMAND(answer->request) == VFERRY_COMMAND_TRACK &&
	       (answer->result == VFERRY_RESULT_TABLE ||
		answer->result == VFERRY_RESULT_TABLE_AFTER_QUIESCE);
}

/* In the threads of functions. An answer to what is not asked any more is none. */
static void give_answer(void *context, unsigned int index,
			const struct vferry_answer *answer)
{
	struct control *control = context;

	spin_lock(&control->answer_lock);
	if (read_request(control) == answer->request) {
		if (promises_table(answer))
			write_table(control);
		write_register(control, VFERRY_DEVICE_DETAIL(index),
			       -answer->error);
		write_register(control, VFERRY_DEVICE_MICROS(index),
			       answer->micros);
		write_register(control, VFERRY_DEVICE_ACK(index),
			       answer->request | answer->result);
	}
	spin_unlock(&control->answer_lock);
}

static void answer_at_once(struct control *control, unsigned int index,
			   u32 request, u32 result, int error)
{
	const struct vferry_answer answer = {
		.request = request,
		.result = result,
		.error = error,
	};

	give_answer(control, index, &answer);
}

/* The device that the host means, or an ERR_PTR; a reference is taken. */
static struct pci_dev *find_device(struct control *control, unsigned int index)
{
	u32 where = read_register(control, VFERRY_DEVICE_FUNCTION(index));
	u32 identity = read_register(control, VFERRY_DEVICE_IDENTITY(index));
	struct pci_dev *pdev;

	if (where == VFERRY_FUNCTION_UNKNOWN)
		return ERR_PTR(-ENODEV);
	pdev = pci_get_domain_bus_and_slot(VFERRY_FUNCTION_SEGMENT(where),
					   VFERRY_FUNCTION_BUS(where),
					   VFERRY_FUNCTION_DEVFN(where));
	if (!pdev)
		return ERR_PTR(-ENODEV);
	if (pdev == control->pdev ||
	    VFERRY_IDENTITY(pdev->vendor, pdev->device) != identity) {
		pci_dev_put(pdev);
		return ERR_PTR(-ENODEV);
	}
	return pdev;
}

static void forget(struct control *control, unsigned int index)
{
	if (control->functions[index])
		vferry_function_destroy(control->functions[index]);
	control->functions[index] = NULL;
}

/* Makes functions[index] the one that the host means. */
static int look_up(struct control *control, unsigned int index)
{
	struct vferry_function *function = control->functions[index];
	struct pci_dev *pdev = find_device(control, index);
	int ret;

	if (function && !IS_ERR(pdev) &&
	    vferry_function_pdev(function) == pdev) {
		pci_dev_put(pdev);
		return 0;
	}
	forget(control, index);
	if (IS_ERR(pdev))
		return PTR_ERR(pdev);
	function = vferry_function_create(pdev, index, control->method,
					  give_answer, control);
	pci_dev_put(pdev);
	ret = PTR_ERR_OR_ZERO(function);
	if (!ret)
		control->functions[index] = function;
	return ret;
}

static void forget_all(struct control *control)
{
	struct vferry_order stop = { .request = VFERRY_COMMAND_IDLE };
	unsigned int i;

	/* All at the same time, then one after the other. */
	for (i = 0; i < VFERRY_DEVICES_MAX; i++)
		if (control->functions[i])
			vferry_function_order(control->functions[i], stop);
	for (i = 0; i < VFERRY_DEVICES_MAX; i++)
		forget(control, i);
}

static void begin_command(struct control *control, unsigned int index,
			  struct vferry_order order)
{
	int ret = look_up(control, index);

	if (!ret)
		vferry_function_order(control->functions[index], order);
	else if (ret == -ENODEV)
		answer_at_once(control, index, order.request,
			       VFERRY_RESULT_DECLINED, ret);
	else
		answer_at_once(control, index, order.request,
			       VFERRY_RESULT_FAILED, ret);
}

/* To the devices that are known: the list may be another one by now. */
static void end_command(struct control *control, unsigned int index,
			struct vferry_order order)
{
	if (control->functions[index])
		vferry_function_order(control->functions[index], order);
	else if (order.request)
		answer_at_once(control, index, order.request,
			       VFERRY_RESULT_DONE, 0);
}

static void carry_out(struct control *control, struct vferry_order order)
{
	u32 devices = min_t(u32, read_register(control, VFERRY_DEVICES),
			    VFERRY_DEVICES_MAX);
	unsigned int i;

	switch (VFERRY_REQUEST_COMMAND(order.request)) {
	case VFERRY_COMMAND_TRACK:
	case VFERRY_COMMAND_QUIESCE:
		for (i = 0; i < devices; i++)
			begin_command(control, i, order);
		break;
	case VFERRY_COMMAND_IDLE:
	case VFERRY_COMMAND_END:
		for (i = 0; i < VFERRY_DEVICES_MAX; i++)
			if (i < devices || control->functions[i])
				end_command(control, i, order);
		break;
	default:
		for (i = 0; i < devices; i++)
			answer_at_once(control, i, order.request,
				       VFERRY_RESULT_DECLINED, -EOPNOTSUPP);
	}
}

static void doorbell_work(struct work_struct *work)
{
	struct control *control = container_of(work, struct control, work);
	struct vferry_order order;
	u32 milliseconds;

	mutex_lock(&control->lock);
	if (control->left)
		goto unlock;
	if (!is_ours(control)) {
		dev_err_ratelimited(&control->pdev->dev,
				    "the control device is gone\n");
		forget_all(control);
		control->carried_out = NO_REQUEST;
		goto unlock;
	}
	milliseconds = read_register(control, VFERRY_DEADLINE);
	order.request = read_request(control);
	order.give_up = jiffies +
			msecs_to_jiffies(min_t(u32, milliseconds, 60000));
	if (order.request != control->carried_out) {
		control->carried_out = order.request;
		carry_out(control, order);
	}
unlock:
	mutex_unlock(&control->lock);
}

static irqreturn_t doorbell(int irq, void *data)
{
	struct control *control = data;

	queue_work(control->workqueue, &control->work);
	return IRQ_HANDLED;
}

/* Also after a reset, which has taken back all that the driver had written. */
static void get_ready(struct control *control)
{
	u32 offered = read_register(control, VFERRY_FEATURES);
	u32 take = offered & VFERRY_FEATURE_QUIESCE;
	u32 track = offered & (VFERRY_FEATURE_TABLE | VFERRY_FEATURE_TOUCH);
	enum vferry_method wanted;

	if (track == (VFERRY_FEATURE_TABLE | VFERRY_FEATURE_TOUCH))
		track = sysfs_streq(method, "touch") ? VFERRY_FEATURE_TOUCH :
						       VFERRY_FEATURE_TABLE;
	if (can_track)
		take |= track;
	wanted = track == VFERRY_FEATURE_TOUCH ? VFERRY_METHOD_TOUCH :
						 VFERRY_METHOD_TABLE;
	/* Those that are known answer by the method they were made with. */
	if (wanted != control->method)
		forget_all(control);
	control->method = wanted;
	control->carried_out = NO_REQUEST;
	write_register(control, VFERRY_DRIVER, VFERRY_DRIVER_READY | take);
}

static void get_ready_again(struct control *control)
{
	mutex_lock(&control->lock);
	if (!control->left && is_ours(control))
		get_ready(control);
	mutex_unlock(&control->lock);
	queue_work(control->workqueue, &control->work);
}

/* In this order: what is restarted after it was written no answer speaks of. */
static void leave(struct control *control)
{
	mutex_lock(&control->lock);
	if (!control->left) {
		write_register(control, VFERRY_DRIVER, 0);
		control->left = true;
		forget_all(control);
	}
	mutex_unlock(&control->lock);
}

/* A device that is stopped would hold up the system's way down. */
static int reboot_event(struct notifier_block *nb, unsigned long event,
			void *unused)
{
	leave(container_of(nb, struct control, reboot));
	return NOTIFY_DONE;
}

static int set_up_interrupt(struct control *control)
{
	struct pci_dev *pdev = control->pdev;
	int ret;

	ret = pci_alloc_irq_vectors(pdev, 1, 1, PCI_IRQ_MSIX);
	if (ret < 0)
		return ret;
	ret = request_irq(pci_irq_vector(pdev, 0), doorbell, 0, "vferry",
			  control);
	if (ret)
		pci_free_irq_vectors(pdev);
	return ret;
}

static int vferry_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct control *control;
	int ret;

	control = devm_kzalloc(&pdev->dev, sizeof(*control), GFP_KERNEL);
	if (!control)
		return -ENOMEM;
	control->pdev = pdev;
	spin_lock_init(&control->answer_lock);
	mutex_init(&control->lock);
	INIT_WORK(&control->work, doorbell_work);
	pci_set_drvdata(pdev, control);

	ret = pci_enable_device_mem(pdev);
	if (ret)
		return ret;
	ret = pci_request_mem_regions(pdev, "vferry");
	if (ret)
		goto disable;
	ret = -ENODEV;
	if (pci_resource_len(pdev, VFERRY_BAR_REGISTERS) < VFERRY_BAR_SIZE)
		goto release;
	/* Prefetchable only so that it may lie high: not to be combined. */
	control->regs = ioremap(pci_resource_start(pdev, VFERRY_BAR_REGISTERS),
				VFERRY_BAR_SIZE);
	if (!control->regs)
		goto release;
	if (!is_ours(control)) {
		pci_err(pdev, "not vferry's control device, or of an unknown version\n");
		goto unmap;
	}
	ret = -ENOMEM;
	control->workqueue = alloc_ordered_workqueue("vferry", WQ_HIGHPRI |
						     WQ_FREEZABLE);
	if (!control->workqueue)
		goto unmap;
	pci_set_master(pdev);
	ret = set_up_interrupt(control);
	if (ret)
		goto destroy;
	control->reboot.notifier_call = reboot_event;
	ret = register_reboot_notifier(&control->reboot);
	if (ret)
		goto free_irq;

	get_ready_again(control);
	return 0;

free_irq:
	free_irq(pci_irq_vector(pdev, 0), control);
	pci_free_irq_vectors(pdev);
destroy:
	destroy_workqueue(control->workqueue);
unmap:
	iounmap(control->regs);
release:
	pci_release_mem_regions(pdev);
disable:
	pci_disable_device(pdev);
	return ret;
}

static void vferry_remove(struct pci_dev *pdev)
{
	struct control *control = pci_get_drvdata(pdev);

	unregister_reboot_notifier(&control->reboot);
	leave(control);
	free_irq(pci_irq_vector(pdev, 0), control);
	pci_free_irq_vectors(pdev);
	destroy_workqueue(control->workqueue);
	iounmap(control->regs);
	pci_release_mem_regions(pdev);
	pci_disable_device(pdev);
}

static void vferry_reset_done(struct pci_dev *pdev)
{
	get_ready_again(pci_get_drvdata(pdev));
}

static const struct pci_error_handlers vferry_error_handlers = {
	.reset_done = vferry_reset_done,
};

static int vferry_suspend(struct device *dev)
{
	return 0;
}

/* The system slept, and the control device was perhaps reset meanwhile. */
static int vferry_resume(struct device *dev)
{
	get_ready_again(dev_get_drvdata(dev));
	return 0;
}

static DEFINE_SIMPLE_DEV_PM_OPS(vferry_pm, vferry_suspend, vferry_resume);

static const struct pci_device_id vferry_ids[] = {
	{ PCI_DEVICE_SUB(VFERRY_PCI_VENDOR, VFERRY_PCI_DEVICE,
			 VFERRY_PCI_SUBVENDOR, VFERRY_PCI_SUBDEVICE) },
	{ }
};
MODULE_DEVICE_TABLE(pci, vferry_ids);

static struct pci_driver vferry_driver = {
	.name = "vferry",
	.id_table = vferry_ids,
	.probe = vferry_probe,
	.remove = vferry_remove,
	.err_handler = &vferry_error_handlers,
	.driver.pm = pm_sleep_ptr(&vferry_pm),
};

static int __init vferry_init(void)
{
	int ret;

	ret = vferry_quiesce_init();
	if (ret)
		return ret;
	ret = vferry_track_init();
	if (ret)
		pr_warn("vferry: cannot track what devices write: %pe\n",
			ERR_PTR(ret));
	can_track = !ret;
	ret = pci_register_driver(&vferry_driver);
	if (ret) {
		vferry_track_exit();
		vferry_quiesce_exit();
	}
	return ret;
}
module_init(vferry_init);

static void __exit vferry_exit(void)
{
	pci_unregister_driver(&vferry_driver);
	vferry_track_exit();
	vferry_quiesce_exit();
}
module_exit(vferry_exit);

MODULE_DESCRIPTION("Helps the live migration of a virtual machine that owns PCI devices");
MODULE_AUTHOR("the vferry authors");
MODULE_LICENSE("GPL");
