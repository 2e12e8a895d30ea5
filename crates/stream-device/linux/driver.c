// SPDX-License-Identifier: GPL-2.0-only
/*
 * Driver of the streaming test device, for tests of who knows which pages a
 * device wrote.
 *
 * It has the device write in all the ways in which drivers map memory, one on
 * each channel, all at once:
 *
 *   coherent   buffers in coherent memory, as every channel's rings are
 *   recycled   mapped once, and handed to and fro by sync calls
 *   mapped     mapped and unmapped for each transfer, from the middle of one
 *              page to the middle of the next
 *   scattered  the same by scatterlists of four pages
 *   cyclic     mapped once and written for ever; synchronised only by the unmap
 *              when the device is stopped
 *
 * What the device writes says when it did and where to, and all of it is
 * checked: as it arrives, before the device gets the page anew, and whenever the
 * device is started again.
 *
 *   /sys/bus/pci/drivers/stream/ADDRESS/status   one line, see status_show()
 *   /sys/bus/pci/drivers/stream/ADDRESS/run      0 stops, 1 starts
 */
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/log2.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/pm.h>
#include <linux/sched.h>

#include "channel.h"
#include "vferry.h"

static unsigned int rate = 4000;
module_param(rate, uint, 0444);
MODULE_PARM_DESC(rate, "pages that the device writes per second, at most 1000000");

static unsigned int buffers = 256;
module_param(buffers, uint, 0444);
MODULE_PARM_DESC(buffers, "pages that each channel writes to, 64 to 1024; taken as the next power of two");

static bool ops;
module_param(ops, bool, 0444);
MODULE_PARM_DESC(ops, "let vferry stop and restart the device by callbacks for that, not by power management");

struct stream {
	struct pci_dev *pdev;
	void __iomem *regs;
	int irq;
	struct channel channels[MODES];

	/* Serialises start and stop, and protects what follows. */
	struct mutex lock;
	bool wanted;
	bool asleep;
	bool running;
};

static void halt_and_withdraw(struct stream *stream, int channels)
{
	int i;

	for (i = 0; i < channels; i++)
		channel_halt(&stream->channels[i]);
	/* Waits for the thread. What that gives meanwhile is withdrawn, too. */
	if (stream->running)
		disable_irq(stream->irq);
	for (i = 0; i < channels; i++)
		channel_withdraw(&stream->channels[i]);
	stream->running = false;
}

/* With the lock. The device may be blank, as after power-on. */
static int start(struct stream *stream)
{
	int i, ret;

	if (readl(stream->regs + STREAM_MAGIC) != STREAM_MAGIC_VALUE ||
	    readl(stream->regs + STREAM_CHANNELS) < MODES) {
		pci_err(stream->pdev, "there is no streaming device\n");
		return -ENODEV;
	}
	pci_set_master(stream->pdev);
	for (i = 0; i < MODES; i++)
		channel_check(&stream->channels[i]);
	writel(rate, stream->regs + STREAM_RATE);
	for (i = 0; i < MODES; i++) {
		ret = channel_start(&stream->channels[i]);
		if (ret) {
			halt_and_withdraw(stream, i);
			return ret;
		}
	}
	stream->running = true;
	enable_irq(stream->irq);
	return 0;
}

/* With the lock. */
static void stop(struct stream *stream)
{
	if (stream->running)
		halt_and_withdraw(stream, MODES);
}

static int stream_suspend(struct device *dev)
{
	struct stream *stream = dev_get_drvdata(dev);

	mutex_lock(&stream->lock);
	stop(stream);
	stream->asleep = true;
	mutex_unlock(&stream->lock);
	return 0;
}

static int stream_resume(struct device *dev)
{
	struct stream *stream = dev_get_drvdata(dev);
	int ret = 0;

	mutex_lock(&stream->lock);
	stream->asleep = false;
	if (stream->wanted && !stream->running)
		ret = start(stream);
	mutex_unlock(&stream->lock);
	return ret;
}

static DEFINE_SIMPLE_DEV_PM_OPS(stream_pm, stream_suspend, stream_resume);

static irqreturn_t interrupt(int irq, void *data)
{
	struct stream *stream = data;
	int i;

	/*
	 * An interrupt's thread has a processor to itself while there is work,
	 * and to look at what a fast device writes may take all of one.
	 */
	if (current->policy != SCHED_NORMAL)
		sched_set_normal(current, 0);
	for (i = 0; i < MODES; i++)
		if (i != CYCLIC)
			channel_poll(&stream->channels[i]);
	return IRQ_HANDLED;
}

/*
 * state=running|stopped|asleep ops=0|1 received=N wrong=N lost=N checked=N, and
 * for each mode the number of writes: MODE=N.
 *
 * received: pages that arrived, those of all modes together but the cyclic one,
 *	which are looked at only when the device is started again
 * wrong: pages or completions that did not hold what they should
 * lost: writes that the device did not tell of, or did not carry out
 * checked: pages that were looked at again, before the device got them anew, and
 *	with the last completions, when it was started again
 */
static ssize_t status_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	struct stream *stream = dev_get_drvdata(dev);
	u64 received = 0, wrong = 0, lost = 0, checked = 0;
	u64 writes[MODES];
	int i, len;

	mutex_lock(&stream->lock);
	for (i = 0; i < MODES; i++) {
		struct channel *ch = &stream->channels[i];

		writes[i] = channel_writes(ch, stream->running);
		if (i != CYCLIC)
			received += writes[i];
		wrong += READ_ONCE(ch->wrong);
		lost += READ_ONCE(ch->lost);
		checked += READ_ONCE(ch->checked);
	}
	len = sysfs_emit(buf, "state=%s ops=%d received=%llu wrong=%llu lost=%llu checked=%llu",
			 stream->asleep ? "asleep" :
			 stream->running ? "running" : "stopped",
			 ops, received, wrong, lost, checked);
	mutex_unlock(&stream->lock);
	for (i = 0; i < MODES; i++)
		len += sysfs_emit_at(buf, len, " %s=%llu", mode_names[i],
				     writes[i]);
	return len + sysfs_emit_at(buf, len, "\n");
}
static DEVICE_ATTR_RO(status);

static ssize_t run_show(struct device *dev, struct device_attribute *attr,
			char *buf)
{
	struct stream *stream = dev_get_drvdata(dev);

	return sysfs_emit(buf, "%d\n", READ_ONCE(stream->wanted));
}

static ssize_t run_store(struct device *dev, struct device_attribute *attr,
			 const char *buf, size_t count)
{
	struct stream *stream = dev_get_drvdata(dev);
	bool wanted;
	int ret;

	ret = kstrtobool(buf, &wanted);
	if (ret)
		return ret;
	mutex_lock(&stream->lock);
	stream->wanted = wanted;
	if (!wanted)
		stop(stream);
	else if (!stream->asleep && !stream->running)
		ret = start(stream);
	mutex_unlock(&stream->lock);
	return ret ?: count;
}
static DEVICE_ATTR_RW(run);

static struct attribute *stream_attrs[] = {
	&dev_attr_status.attr,
	&dev_attr_run.attr,
	NULL
};
ATTRIBUTE_GROUPS(stream);

static int stream_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	unsigned int count = roundup_pow_of_two(clamp(buffers, 64U, 1024U));
	struct stream *stream;
	int i, ret;

	stream = devm_kzalloc(&pdev->dev, sizeof(*stream), GFP_KERNEL);
	if (!stream)
		return -ENOMEM;
	stream->pdev = pdev;
	mutex_init(&stream->lock);
	stream->wanted = true;
	pci_set_drvdata(pdev, stream);

	ret = pcim_enable_device(pdev);
	if (ret)
		return ret;
	ret = pcim_iomap_regions(pdev, BIT(STREAM_BAR), KBUILD_MODNAME);
	if (ret)
		return ret;
	stream->regs = pcim_iomap_table(pdev)[STREAM_BAR];
	ret = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	if (ret)
		return ret;
	for (i = 0; i < MODES; i++) {
		ret = channel_init(&stream->channels[i], pdev, i,
				   stream->regs + STREAM_CHANNEL(i), count);
		if (ret)
			return ret;
	}
	ret = pci_alloc_irq_vectors(pdev, 1, 1, PCI_IRQ_MSIX);
	if (ret < 0)
		return ret;
	stream->irq = pci_irq_vector(pdev, 0);
	ret = devm_request_threaded_irq(&pdev->dev, stream->irq, NULL,
					interrupt,
					IRQF_ONESHOT | IRQF_NO_AUTOEN,
					KBUILD_MODNAME, stream);
	if (ret)
		return ret;

	mutex_lock(&stream->lock);
	ret = start(stream);
	mutex_unlock(&stream->lock);
	return ret;
}

static void stream_remove(struct pci_dev *pdev)
{
	stream_suspend(&pdev->dev);
}

static const struct pci_device_id stream_ids[] = {
	{ PCI_DEVICE(STREAM_VENDOR, STREAM_DEVICE) },
	{ }
};
MODULE_DEVICE_TABLE(pci, stream_ids);

static struct pci_driver stream_driver = {
	.name = KBUILD_MODNAME,
	.id_table = stream_ids,
	.probe = stream_probe,
	.remove = stream_remove,
	.shutdown = stream_remove,
	.dev_groups = stream_groups,
	.driver.pm = pm_sleep_ptr(&stream_pm),
};

static int quiesce(struct pci_dev *pdev)
{
	return stream_suspend(&pdev->dev);
}

static int restart(struct pci_dev *pdev)
{
	return stream_resume(&pdev->dev);
}

static const struct vferry_ops stream_ops = {
	.owner = THIS_MODULE,
	.quiesce = quiesce,
	.restart = restart,
};

/* By name, so that this module loads where vferry's is not. */
static void register_ops(void)
{
	typeof(&vferry_register_ops) register_them;
	int ret = -ENOENT;

	register_them = symbol_get(vferry_register_ops);
	if (register_them) {
		ret = register_them(&stream_driver, &stream_ops);
		if (ret)
			symbol_put(vferry_register_ops);
	}
	if (ret) {
		pr_err("no callbacks for vferry: %pe\n", ERR_PTR(ret));
		ops = false;
	}
}

static void unregister_ops(void)
{
	typeof(&vferry_unregister_ops) unregister_them;

	unregister_them = symbol_get(vferry_unregister_ops);
	if (unregister_them) {
		unregister_them(&stream_driver);
		symbol_put(vferry_unregister_ops);
	}
	symbol_put(vferry_register_ops);
}

static int __init stream_init(void)
{
	int ret;

	if (ops)
		register_ops();
	ret = pci_register_driver(&stream_driver);
	if (ret && ops)
		unregister_ops();
	return ret;
}

static void __exit stream_exit(void)
{
	pci_unregister_driver(&stream_driver);
	if (ops)
		unregister_ops();
}

module_init(stream_init);
module_exit(stream_exit);

MODULE_DESCRIPTION("Streaming test device: a device that writes memory in all the ways that drivers map it");
MODULE_LICENSE("GPL");
