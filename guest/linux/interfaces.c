// SPDX-License-Identifier: GPL-2.0-only
/*
 * The network interfaces of a device that is stopped while the system runs.
 *
 * A driver's power management counts on a system that stands still, and network
 * drivers on two things that happen all the time when it does not:
 *
 * Nobody asks for counters. ixgbevf, for one, frees its rings when it is
 * suspended, and looks for counters in them: whoever reads /proc/net/dev then
 * crashes the kernel. Other calls the stack does not make while the driver has
 * its interface detached. So the counters of a stopped interface are those that
 * it had, which a copy of the driver's table of operations sees to.
 *
 * Nobody looks at the carrier, which goes and comes, and comes back some time
 * after the interface can send. The stack, if it looks in between, forgets its
 * neighbours. What asks for them anew gets no answer, as there is no link yet,
 * and asks again after a second; IPv6's addresses are tentative as long; routing
 * daemons tell their peers. So the stack is not told, unless the link stays away.
 * The kernel's link watch marks an interface that it has in its queue, and does
 * not queue it again: one that we have marked it does not queue.
 */
#include <linux/netdevice.h>
#include <linux/rculist.h>
#include <linux/rtnetlink.h>
#include <linux/slab.h>

#include "class.h"
#include "interfaces.h"

struct cover {
	struct list_head list;		/* struct vferry_interfaces */
	struct list_head all;
	struct net_device *netdev;
	const struct net_device_ops *original;
	struct net_device_ops ops;
	struct rtnl_link_stats64 stats;
};

/* All covered interfaces: changed with rtnl_lock, read with RCU. */
static LIST_HEAD(covers);

static void stats_of_covered(struct net_device *netdev,
			     struct rtnl_link_stats64 *stats)
{
	const struct net_device_ops *ops;
	struct cover *cover;

	rcu_read_lock();
	list_for_each_entry_rcu(cover, &covers, all) {
		if (cover->netdev != netdev)
			continue;
		*stats = cover->stats;
		rcu_read_unlock();
		return;
	}
	rcu_read_unlock();
	/* It has been started since the caller looked up this function. */
	ops = READ_ONCE(netdev->netdev_ops);
	if (ops->ndo_get_stats64 && ops->ndo_get_stats64 != stats_of_covered)
		ops->ndo_get_stats64(netdev, stats);
}

static int cover_one(struct net_device *netdev,
		     struct vferry_interfaces *interfaces)
{
	struct cover *cover;

	cover = kzalloc(sizeof(*cover), GFP_KERNEL);
	if (!cover)
		return -ENOMEM;
	cover->netdev = netdev;
	cover->original = netdev->netdev_ops;
	cover->ops = *netdev->netdev_ops;
	if (cover->ops.ndo_get_stats64) {
		cover->ops.ndo_get_stats64(netdev, &cover->stats);
		cover->ops.ndo_get_stats64 = stats_of_covered;
	}
	dev_hold(netdev);
	list_add(&cover->list, &interfaces->covered);
	list_add_rcu(&cover->all, &covers);
	set_bit(__LINK_STATE_LINKWATCH_PENDING, &netdev->state);
	/* With what it points to, for those that look without a lock. */
	smp_store_release(&netdev->netdev_ops, &cover->ops);
	return 0;
}

static int cover(struct device *dev, void *data)
{
	struct net_device *netdev;
	int ret;

	if (vferry_is_of_class(dev, "net")) {
		netdev = to_net_dev(dev);
		if (netdev->reg_state == NETREG_REGISTERED) {
			ret = cover_one(netdev, data);
			if (ret)
				return ret;
		}
	}
	return device_for_each_child(dev, data, cover);
}

static void uncover(struct vferry_interfaces *interfaces)
{
	struct cover *cover;

	list_for_each_entry(cover, &interfaces->covered, list) {
		/* Unless the driver has set others. */
		cmpxchg(&cover->netdev->netdev_ops, &cover->ops,
			cover->original);
		list_del_rcu(&cover->all);
		/* Nothing, if the link watch has it in its queue after all. */
		clear_bit(__LINK_STATE_LINKWATCH_PENDING,
			  &cover->netdev->state);
		/*
		 * What waits to be sent. Drivers start their queues without a
		 * look at it, for which there is no need after a reset.
		 */
		netif_tx_schedule_all(cover->netdev);
		dev_put(cover->netdev);
	}
	list_splice_init(&interfaces->covered, &interfaces->uncovered);
}

void vferry_interfaces_init(struct vferry_interfaces *interfaces)
{
	INIT_LIST_HEAD(&interfaces->covered);
	INIT_LIST_HEAD(&interfaces->uncovered);
}

int vferry_interfaces_cover(struct vferry_interfaces *interfaces,
			    struct device *dev)
{
	int ret;

	rtnl_lock();
	ret = device_for_each_child(dev, interfaces, cover);
	if (ret)
		uncover(interfaces);
	rtnl_unlock();
	/* Those who ask for counters hold rtnl_lock, or RCU's. */
	if (!ret && !list_empty(&interfaces->covered))
		synchronize_rcu_expedited();
	return ret;
}

void vferry_interfaces_uncover(struct vferry_interfaces *interfaces)
{
	if (list_empty(&interfaces->covered))
		return;
	rtnl_lock();
	uncover(interfaces);
	rtnl_unlock();
}

static int tell_link_loss(struct device *dev, void *unused)
{
	struct net_device *netdev;

	if (vferry_is_of_class(dev, "net")) {
		netdev = to_net_dev(dev);
		if (netdev->reg_state == NETREG_REGISTERED &&
		    !netif_carrier_ok(netdev))
			linkwatch_fire_event(netdev);
	}
	return device_for_each_child(dev, NULL, tell_link_loss);
}

void vferry_interfaces_settle(struct vferry_interfaces *interfaces,
			      struct device *dev)
{
	struct cover *cover, *next;

	rtnl_lock();
	device_for_each_child(dev, NULL, tell_link_loss);
	rtnl_unlock();
	if (list_empty(&interfaces->uncovered))
		return;
	synchronize_rcu();
	list_for_each_entry_safe(cover, next, &interfaces->uncovered, list)
		kfree(cover);
	INIT_LIST_HEAD(&interfaces->uncovered);
}
