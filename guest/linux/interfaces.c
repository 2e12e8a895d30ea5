// SPDX-License-Identifier: GPL-2.0-only
/*
 * The network interfaces of a device that is stopped while the system runs.
 *
 * A driver's power management counts on a system that stands still. Here it
 * runs, and two things must not reach the interfaces meanwhile:
 *
 * Calls of the driver that the stack makes whether an interface is detached or
 * not. A program that reads /proc/net/dev, say, has the driver add up counters
 * of rings that it has freed: ixgbevf knows how many rings there are before it
 * has them again. So a stopped interface has a copy of the driver's operations,
 * in which these are ours; its counters are the last ones.
 *
 * The loss of the link. The carrier goes when the driver stops, and comes back
 * some time after the interface can send again. A stack that looks in between
 * forgets its neighbours; what asks for them anew gets no answer, as there is no
 * link yet, and asks again after a second. IPv6's addresses are tentative as
 * long. So the stack does not look, unless the link stays away: its link watch
 * marks an interface that is in its queue, and does not queue it twice; one that
 * we have marked it does not queue.
 */
#include <linux/jiffies.h>
#include <linux/netdevice.h>
#include <linux/notifier.h>
#include <linux/rculist.h>
#include <linux/rtnetlink.h>
#include <linux/slab.h>
#include <linux/version.h>

#include "class.h"
#include "interfaces.h"

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 10, 0)
#include <net/netdev_queues.h>
#define HAVE_STAT_OPS
#endif

/*
 * A link that is not back so long after the start is lost: as long as the link
 * watch itself may take to look, and a virtual function needs some tens of
 * milliseconds.
 */
#define PATIENCE	HZ

struct cover {
	struct list_head list;		/* struct vferry_interfaces */
	struct list_head all;
	struct net_device *netdev;	/* held; NULL when it is over */
	bool in_place;
	const struct net_device_ops *original;
	struct net_device_ops ops;
	struct rtnl_link_stats64 stats;
#ifdef HAVE_STAT_OPS
	const struct netdev_stat_ops *original_stat_ops;
#endif
};

/* All that are not over: changed with rtnl_lock, read with RCU. */
static LIST_HEAD(covers);

/* With rtnl_lock, or RCU's. */
static struct cover *cover_of(struct net_device *netdev)
{
	struct cover *cover;

	list_for_each_entry_rcu(cover, &covers, all, lockdep_rtnl_is_held())
		if (cover->netdev == netdev && READ_ONCE(cover->in_place))
			return cover;
	return NULL;
}

static void covered_stats(struct net_device *netdev,
			  struct rtnl_link_stats64 *stats)
{
	const struct net_device_ops *ops;
	struct cover *cover;

	rcu_read_lock();
	cover = cover_of(netdev);
	if (cover)
		*stats = cover->stats;
	rcu_read_unlock();
	if (cover)
		return;
	/* It has been uncovered since the caller looked this function up. */
	ops = READ_ONCE(netdev->netdev_ops);
	if (ops->ndo_get_stats64 && ops->ndo_get_stats64 != covered_stats)
		ops->ndo_get_stats64(netdev, stats);
}

/* A driver that has detached the interface has nothing left to stop. */
static int covered_stop(struct net_device *netdev)
{
	struct cover *cover = cover_of(netdev);

	if (!cover || !netif_device_present(netdev))
		return 0;
	return cover->original->ndo_stop(netdev);
}

static int covered_bpf(struct net_device *netdev, struct netdev_bpf *bpf)
{
	struct cover *cover = cover_of(netdev);

	if (!cover || !netif_device_present(netdev))
		return -ENODEV;
	return cover->original->ndo_bpf(netdev, bpf);
}

#ifdef HAVE_STAT_OPS
static void no_rx_stats(struct net_device *netdev, int queue,
			struct netdev_queue_stats_rx *stats)
{
}

static void no_tx_stats(struct net_device *netdev, int queue,
			struct netdev_queue_stats_tx *stats)
{
}

static void no_base_stats(struct net_device *netdev,
			  struct netdev_queue_stats_rx *rx,
			  struct netdev_queue_stats_tx *tx)
{
}

static const struct netdev_stat_ops covered_stat_ops = {
	.get_queue_stats_rx = no_rx_stats,
	.get_queue_stats_tx = no_tx_stats,
	.get_base_stats = no_base_stats,
};

static void cover_queue_stats(struct cover *cover)
{
	struct net_device *netdev = cover->netdev;

	cover->original_stat_ops = netdev->stat_ops;
	if (netdev->stat_ops)
		WRITE_ONCE(netdev->stat_ops, &covered_stat_ops);
}

static void uncover_queue_stats(struct cover *cover)
{
	struct net_device *netdev = cover->netdev;

	if (netdev->stat_ops == &covered_stat_ops)
		WRITE_ONCE(netdev->stat_ops, cover->original_stat_ops);
}
#else
static void cover_queue_stats(struct cover *cover)
{
}

static void uncover_queue_stats(struct cover *cover)
{
}
#endif

/* All below with rtnl_lock, unless they say otherwise. */

static void put_in_place(struct cover *cover)
{
	struct net_device *netdev = cover->netdev;
	struct net_device_ops *ops = &cover->ops;

	cover->original = netdev->netdev_ops;
	*ops = *netdev->netdev_ops;
	if (ops->ndo_get_stats64) {
		ops->ndo_get_stats64(netdev, &cover->stats);
		ops->ndo_get_stats64 = covered_stats;
	}
	if (ops->ndo_stop)
		ops->ndo_stop = covered_stop;
	if (ops->ndo_bpf)
		ops->ndo_bpf = covered_bpf;
	cover_queue_stats(cover);
	cover->in_place = true;
	list_add_rcu(&cover->all, &covers);
	/* With what it points to, for those that look without a lock. */
	smp_store_release(&netdev->netdev_ops, ops);
}

static void tell_link_watch(struct net_device *netdev)
{
	if (netdev->reg_state == NETREG_REGISTERED)
		linkwatch_fire_event(netdev);
}

static void take_off(struct cover *cover)
{
	struct net_device *netdev = cover->netdev;

	/* Unless the driver has set others. */
	cmpxchg(&netdev->netdev_ops, &cover->ops, cover->original);
	uncover_queue_stats(cover);
	WRITE_ONCE(cover->in_place, false);
	/* Nothing, if the link watch has it in its queue after all. */
	clear_bit(__LINK_STATE_LINKWATCH_PENDING, &netdev->state);
	smp_mb__after_atomic();
	/* A link that has come meanwhile was not told either. */
	if (netif_carrier_ok(netdev) && !netif_oper_up(netdev))
		tell_link_watch(netdev);
}

/* To be freed after a grace period. */
static void let_go(struct cover *cover)
{
	list_del_rcu(&cover->all);
	dev_put(cover->netdev);
	cover->netdev = NULL;
}

static int cover_one(struct net_device *netdev,
		     struct vferry_interfaces *interfaces)
{
	struct cover *cover = cover_of(netdev);

	/* Still, if the driver could not start it the last time. */
	if (!cover) {
		cover = kzalloc(sizeof(*cover), GFP_KERNEL);
		if (!cover)
			return -ENOMEM;
		dev_hold(netdev);
		cover->netdev = netdev;
		put_in_place(cover);
		list_add(&cover->list, &interfaces->covers);
	}
	set_bit(__LINK_STATE_LINKWATCH_PENDING, &netdev->state);
	return 0;
}

static int cover_child(struct device *dev, void *interfaces)
{
	struct net_device *netdev;
	int ret;

	if (vferry_is_of_class(dev, "net")) {
		netdev = to_net_dev(dev);
		if (netdev->reg_state == NETREG_REGISTERED) {
			ret = cover_one(netdev, interfaces);
			if (ret)
				return ret;
		}
	}
	return device_for_each_child(dev, interfaces, cover_child);
}

/* Without rtnl_lock. */
static int is_interface(struct device *dev, void *unused)
{
	return vferry_is_of_class(dev, "net") ||
	       device_for_each_child(dev, NULL, is_interface);
}

/* Without rtnl_lock. Nobody may be at what is over. */
static void free_covers(struct list_head *over)
{
	struct cover *cover, *next;

	if (list_empty(over))
		return;
	synchronize_rcu();
	list_for_each_entry_safe(cover, next, over, list)
		kfree(cover);
}

void vferry_interfaces_init(struct vferry_interfaces *interfaces)
{
	INIT_LIST_HEAD(&interfaces->covers);
}

int vferry_interfaces_cover(struct vferry_interfaces *interfaces,
			    struct device *dev)
{
	int ret;

	/* A disk does not wait for those who configure the network. */
	if (!device_for_each_child(dev, NULL, is_interface))
		return 0;
	rtnl_lock();
	ret = device_for_each_child(dev, interfaces, cover_child);
	rtnl_unlock();
	/*
	 * The stack asks for counters with rtnl_lock or RCU's, but for Open
	 * vSwitch and the network LED trigger, which may just be in the driver.
	 */
	synchronize_rcu_expedited();
	return ret;
}

void vferry_interfaces_uncover(struct vferry_interfaces *interfaces)
{
	struct cover *cover;

	if (list_empty(&interfaces->covers))
		return;
	rtnl_lock();
	list_for_each_entry(cover, &interfaces->covers, list)
		if (cover->netdev && cover->in_place &&
		    netif_device_present(cover->netdev)) {
			take_off(cover);
			/*
			 * What waits to be sent: a driver that starts its
			 * queues does not look, and whoever waits for room in
			 * them sends no more. Virtual functions send before
			 * they show a link.
			 */
			netif_tx_schedule_all(cover->netdev);
		}
	rtnl_unlock();
	interfaces->patience_ends = jiffies + PATIENCE;
}

/* Whether that was all there was to do for it. */
static bool settle(struct cover *cover, bool patient)
{
	struct net_device *netdev = cover->netdev;

	if (netif_carrier_ok(netdev))
		netif_tx_schedule_all(netdev);
	else if (patient)
		return false;
	else
		tell_link_watch(netdev);
	let_go(cover);
	return true;
}

bool vferry_interfaces_settle(struct vferry_interfaces *interfaces)
{
	bool patient = time_before(jiffies, interfaces->patience_ends);
	struct cover *cover, *next;
	LIST_HEAD(over);
	bool done = true;

	if (list_empty(&interfaces->covers))
		return true;
	/* The next order must not wait for it. */
	if (!rtnl_trylock())
		return false;
	list_for_each_entry_safe(cover, next, &interfaces->covers, list) {
		if (cover->netdev && !cover->in_place)
			done &= settle(cover, patient);
		if (!cover->netdev)
			list_move(&cover->list, &over);
	}
	rtnl_unlock();
	free_covers(&over);
	return done;
}

void vferry_interfaces_release(struct vferry_interfaces *interfaces)
{
	struct cover *cover;

	rtnl_lock();
	list_for_each_entry(cover, &interfaces->covers, list) {
		if (!cover->netdev)
			continue;
		if (cover->in_place)
			take_off(cover);
		settle(cover, false);
	}
	rtnl_unlock();
	free_covers(&interfaces->covers);
	INIT_LIST_HEAD(&interfaces->covers);
}

/* An interface that goes is not held up. */
static int netdev_event(struct notifier_block *nb, unsigned long event,
			void *info)
{
	struct net_device *netdev = netdev_notifier_info_to_dev(info);
	struct cover *cover, *next;

	if (event != NETDEV_UNREGISTER)
		return NOTIFY_DONE;
	list_for_each_entry_safe(cover, next, &covers, all) {
		if (cover->netdev != netdev)
			continue;
		if (cover->in_place)
			take_off(cover);
		let_go(cover);
	}
	return NOTIFY_DONE;
}

static struct notifier_block netdev_notifier = {
	.notifier_call = netdev_event,
};

int vferry_interfaces_watch(void)
{
	return register_netdevice_notifier(&netdev_notifier);
}

void vferry_interfaces_unwatch(void)
{
	unregister_netdevice_notifier(&netdev_notifier);
}
