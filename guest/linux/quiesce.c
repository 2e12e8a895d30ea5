// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stopping and restarting one PCI device while the system runs.
 *
 * Two ways: callbacks that the driver registered for this, or else the power
 * management that it has for hibernation. "Freeze" is what the kernel does
 * before it takes the image of a running system: the device stops, its
 * configuration is saved, its power stays on. "Restore" is how the kernel that
 * wakes up treats the device: in whatever state it is, initialise it anew. That
 * is what a device needs that was left behind on another host.
 *
 * The bus's callbacks are called, not the driver's: they save and restore the
 * configuration space, and handle runtime power management.
 */
#include <linux/delay.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/pm.h>
#include <linux/pm_runtime.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/suspend.h>

#include "quiesce.h"
#include "vferry.h"

struct registration {
	struct list_head list;
	struct pci_driver *driver;
	const struct vferry_ops *ops;
};

static LIST_HEAD(registrations);
static DEFINE_MUTEX(registrations_lock);

/* System sleep and stopped devices exclude each other. */
static DEFINE_MUTEX(sleep_lock);
static bool sleeping;
static unsigned int stopped_devices;

typedef int (*pm_callback)(struct device *dev);

/*
 * The callback of one phase as the kernel's own suspend finds it
 * (drivers/base/power/main.c): the bus's, else the driver's.
 */
#define CALL_PHASE(dev, phase)						\
	call_phase(dev,							\
		   (dev)->bus->pm ? (dev)->bus->pm->phase : NULL,	\
		   (dev)->driver->pm->phase)

static int call_phase(struct device *dev, pm_callback bus, pm_callback driver)
{
	pm_callback callback = bus ?: driver;

	return callback ? callback(dev) : 0;
}

static int freeze(struct device *dev)
{
	int ret;

	ret = CALL_PHASE(dev, freeze);
	if (ret)
		return ret;
	ret = CALL_PHASE(dev, freeze_late);
	if (ret)
		goto thaw;
	ret = CALL_PHASE(dev, freeze_noirq);
	if (ret)
		goto thaw_early;
	return 0;

thaw_early:
	CALL_PHASE(dev, thaw_early);
thaw:
	CALL_PHASE(dev, thaw);
	return ret;
}

/* The device kept its state: freeze() has just been. */
static void thaw(struct device *dev)
{
	CALL_PHASE(dev, thaw_noirq);
	CALL_PHASE(dev, thaw_early);
	CALL_PHASE(dev, thaw);
}

/* Nothing is left out after an error: a later phase may still help. */
static int restore(struct device *dev)
{
	int noirq, early, ret;

	noirq = CALL_PHASE(dev, restore_noirq);
	early = CALL_PHASE(dev, restore_early);
	ret = CALL_PHASE(dev, restore);
	return noirq ?: early ?: ret;
}

static bool has_sleep_callbacks(const struct dev_pm_ops *pm)
{
	return pm && (pm->freeze || pm->freeze_late || pm->freeze_noirq);
}

/* Buses that leave all to their drivers, as the auxiliary bus, do not count. */
static bool bus_sleeps(const struct bus_type *bus)
{
	return bus && has_sleep_callbacks(bus->pm) &&
	       bus->pm->freeze != pm_generic_freeze &&
	       bus->pm->freeze != pm_generic_suspend;
}

/* Such a bus calls the driver's suspend even to freeze it. */
static bool driver_sleeps(const struct device_driver *driver)
{
	return driver && driver->pm &&
	       (has_sleep_callbacks(driver->pm) || driver->pm->suspend);
}

/*
 * A child with power management of its own (a disk on a host adapter, a USB
 * device) has to be stopped before its parent, which is the whole system's
 * suspend in small, and not done here. Network interfaces and NVMe's
 * controllers have none: their PCI driver looks after them.
 */
static int child_sleeps(struct device *dev, void *unused)
{
	if (dev->pm_domain)
		return 1;
	if (dev->type && has_sleep_callbacks(dev->type->pm))
		return 1;
	if (dev->class && has_sleep_callbacks(dev->class->pm))
		return 1;
	if (bus_sleeps(dev->bus) || driver_sleeps(dev->driver))
		return 1;
	return device_for_each_child(dev, NULL, child_sleeps);
}

static int can_freeze(struct pci_dev *pdev)
{
	struct device *dev = &pdev->dev;
	const struct dev_pm_ops *pm = dev->driver->pm;

	/* Without both, the bus would disable the device under its driver. */
	if (!pm || !pm->freeze || !pm->restore)
		return -EOPNOTSUPP;
	if (dev->pm_domain || (dev->type && dev->type->pm) ||
	    device_for_each_child(dev, NULL, child_sleeps))
		return -EOPNOTSUPP;
	return 0;
}

/* The driver's callbacks, their module held; NULL if it has none. */
static const struct vferry_ops *ops_of(struct pci_dev *pdev)
{
	const struct vferry_ops *ops = NULL;
	struct registration *reg;

	mutex_lock(&registrations_lock);
	list_for_each_entry(reg, &registrations, list) {
		if (&reg->driver->driver != pdev->dev.driver)
			continue;
		if (try_module_get(reg->ops->owner))
			ops = reg->ops;
		break;
	}
	mutex_unlock(&registrations_lock);
	return ops;
}

static int stop(struct pci_dev *pdev, const struct vferry_ops *ops)
{
	int ret;

	if (!ops) {
		ret = can_freeze(pdev);
		return ret ?: freeze(&pdev->dev);
	}
	ret = ops->quiesce(pdev);
	if (ret)
		return ret;
	ret = pci_save_state(pdev);
	if (ret)
		ops->restart(pdev);
	return ret;
}

static int start(struct pci_dev *pdev, const struct vferry_ops *ops)
{
	if (!ops)
		return restore(&pdev->dev);
	/* Not of its own accord in D0 if it was reset. */
	pci_set_power_state(pdev, PCI_D0);
	pci_restore_state(pdev);
	return ops->restart(pdev);
}

static void undo_stop(struct pci_dev *pdev, const struct vferry_ops *ops)
{
	if (ops)
		start(pdev, ops);
	else
		thaw(&pdev->dev);
}

/* After the configuration was saved, so that restoring brings it back. */
static int clear_bus_master(struct pci_dev *pdev)
{
	u16 command;

	pci_clear_master(pdev);
	pci_read_config_word(pdev, PCI_COMMAND, &command);
	if (command & PCI_COMMAND_MASTER)	/* all ones, if it is gone */
		return -EIO;
	if (!pci_wait_for_pending_transaction(pdev))
		return -EBUSY;
	return 0;
}

static int lock_device(struct device *dev, unsigned long give_up)
{
	while (!device_trylock(dev)) {
		if (time_after(jiffies, give_up))
			return -EBUSY;
		usleep_range(500, 1000);
	}
	return 0;
}

/* Counts the device as stopped, unless the system is about to sleep. */
static int keep_awake(void)
{
	int ret = 0;

	mutex_lock(&sleep_lock);
	if (sleeping)
		ret = -EBUSY;
	else
		stopped_devices++;
	mutex_unlock(&sleep_lock);
	return ret;
}

static void allow_sleep(void)
{
	mutex_lock(&sleep_lock);
	stopped_devices--;
	mutex_unlock(&sleep_lock);
}

static int resume_runtime(struct device *dev)
{
	int ret = pm_runtime_get_sync(dev);

	/* Runtime power management may be off for the device; then it is on. */
	if (ret < 0 && ret != -EACCES) {
		pm_runtime_put_noidle(dev);
		return ret;
	}
	return 0;
}

int vferry_quiesce(struct vferry_stopped *stopped, struct pci_dev *pdev,
		   unsigned long give_up)
{
	const struct vferry_ops *ops;
	struct device *dev = &pdev->dev;
	unsigned int noio;
	int ret;

	ret = keep_awake();
	if (ret)
		return ret;
	ret = lock_device(dev, give_up);
	if (ret)
		goto allow_sleep;
	/* Virtual functions would stop with it; a bridge is no device. */
	ret = -EOPNOTSUPP;
	if (!dev->driver || pdev->subordinate || pci_num_vf(pdev))
		goto unlock;
	ret = resume_runtime(dev);
	if (ret)
		goto unlock;

	/* What is allocated here must not wait for a disk that is stopped, too. */
	noio = memalloc_noio_save();
	ops = ops_of(pdev);
	ret = vferry_interfaces_cover(&stopped->interfaces, dev);
	if (ret)
		goto put_ops;
	ret = stop(pdev, ops);
	if (ret)
		goto put_ops;
	/* First, so that nobody else sets the bit again. */
	pci_cfg_access_lock(pdev);
	ret = clear_bus_master(pdev);
	if (ret)
		goto undo_stop;
	memalloc_noio_restore(noio);
	stopped->pdev = pdev;
	stopped->ops = ops;
	return 0;

undo_stop:
	/* Drivers may take it themselves. */
	pci_cfg_access_unlock(pdev);
	undo_stop(pdev, ops);
put_ops:
	if (ops)
		module_put(ops->owner);
	vferry_interfaces_uncover(&stopped->interfaces);
	memalloc_noio_restore(noio);
	pm_runtime_put(dev);
unlock:
	device_unlock(dev);
allow_sleep:
	allow_sleep();
	return ret;
}

int vferry_restart(struct vferry_stopped *stopped)
{
	const struct vferry_ops *ops = stopped->ops;
	struct pci_dev *pdev = stopped->pdev;
	unsigned int noio;
	int ret;

	pci_cfg_access_unlock(pdev);
	noio = memalloc_noio_save();
	ret = start(pdev, ops);
	vferry_interfaces_uncover(&stopped->interfaces);
	memalloc_noio_restore(noio);
	if (ret)
		pci_err(pdev, "vferry: the driver could not restart it: %pe\n",
			ERR_PTR(ret));
	if (ops)
		module_put(ops->owner);
	pm_runtime_put(&pdev->dev);
	device_unlock(&pdev->dev);
	allow_sleep();
	stopped->pdev = NULL;
	stopped->ops = NULL;
	return ret;
}

int vferry_register_ops(struct pci_driver *driver, const struct vferry_ops *ops)
{
	struct registration *reg, *other;
	int ret = 0;

	if (!ops->quiesce || !ops->restart)
		return -EINVAL;
	reg = kzalloc(sizeof(*reg), GFP_KERNEL);
	if (!reg)
		return -ENOMEM;
	reg->driver = driver;
	reg->ops = ops;

	mutex_lock(&registrations_lock);
	list_for_each_entry(other, &registrations, list)
		if (other->driver == driver)
			ret = -EEXIST;
	if (!ret)
		list_add(&reg->list, &registrations);
	mutex_unlock(&registrations_lock);
	if (ret)
		kfree(reg);
	return ret;
}
EXPORT_SYMBOL_GPL(vferry_register_ops);

void vferry_unregister_ops(struct pci_driver *driver)
{
	struct registration *reg, *next;

	mutex_lock(&registrations_lock);
	list_for_each_entry_safe(reg, next, &registrations, list) {
		if (reg->driver != driver)
			continue;
		list_del(&reg->list);
		kfree(reg);
	}
	mutex_unlock(&registrations_lock);
}
EXPORT_SYMBOL_GPL(vferry_unregister_ops);

static int sleep_event(struct notifier_block *nb, unsigned long event,
		       void *unused)
{
	int ret = NOTIFY_DONE;

	mutex_lock(&sleep_lock);
	switch (event) {
	case PM_HIBERNATION_PREPARE:
	case PM_SUSPEND_PREPARE:
	case PM_RESTORE_PREPARE:
		if (stopped_devices)
			ret = notifier_from_errno(-EBUSY);
		else
			sleeping = true;
		break;
	case PM_POST_HIBERNATION:
	case PM_POST_SUSPEND:
	case PM_POST_RESTORE:
		sleeping = false;
		break;
	}
	mutex_unlock(&sleep_lock);
	return ret;
}

static struct notifier_block sleep_notifier = {
	.notifier_call = sleep_event,
};

int vferry_quiesce_init(void)
{
	int ret;

	ret = vferry_interfaces_watch();
	if (ret)
		return ret;
	ret = register_pm_notifier(&sleep_notifier);
	if (ret)
		vferry_interfaces_unwatch();
	return ret;
}

void vferry_quiesce_exit(void)
{
	unregister_pm_notifier(&sleep_notifier);
	vferry_interfaces_unwatch();
}
