// SPDX-License-Identifier: GPL-2.0-only
/*
 * Users of a device that map memory for long and never ask for it back.
 *
 * A driver that keeps to the DMA API synchronises memory before the CPU looks
 * at it, and so tells of memory that was mapped before tracking began. On
 * coherent machines these do not: RDMA, whose memory regions belong to user
 * space, and AF_XDP, which leaves the calls out by a flag of its own. What they
 * mapped earlier is not known.
 */
#include <linux/netdevice.h>
#include <net/xdp_sock_drv.h>

#include "class.h"
#include "unseen.h"

static bool has_af_xdp(struct net_device *netdev)
{
	unsigned int queues = max(netdev->num_rx_queues, netdev->num_tx_queues);
	unsigned int i;

	/* Sockets that copy are taken for ones that do not. */
	for (i = 0; i < queues; i++)
		if (xsk_get_pool_from_qid(netdev, i))
			return true;
	return false;
}

static int look_at(struct device *dev, void *data)
{
	const char **why = data;

	if (vferry_is_of_class(dev, "infiniband"))
		*why = "RDMA is in use on it";
	else if (vferry_is_of_class(dev, "net") && has_af_xdp(to_net_dev(dev)))
		*why = "AF_XDP is in use on it";
	return *why ? 1 : device_for_each_child(dev, why, look_at);
}

const char *vferry_unseen_mappings(struct device *dev)
{
	const char *why = NULL;

	device_for_each_child(dev, &why, look_at);
	return why;
}
