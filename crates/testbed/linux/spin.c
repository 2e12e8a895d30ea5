// SPDX-License-Identifier: GPL-2.0-only
/*
 * A guest that is stuck for tests: when the module is loaded, all processors spin with their interrupts
 * off, until somebody writes to a byte of the clock's memory from outside, which moves with the VM.
 */
#include <linux/init.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/stop_machine.h>

/* Index and data port of the clock's memory, and a byte that neither firmware nor Linux uses. */
#define INDEX 0x70
#define DATA 0x71
#define BYTE 0x50

static int spin(void *unused)
{
	do {
		cpu_relax();
		outb(BYTE, INDEX);
	} while (inb(DATA) == 0);
	return 0;
}

static int __init spin_init(void)
{
	outb(BYTE, INDEX);
	outb(0, DATA);
	stop_machine(spin, NULL, cpu_online_mask);
	return 0;
}
module_init(spin_init);

MODULE_DESCRIPTION("Spins with interrupts off, for vferry's tests");
MODULE_LICENSE("GPL");
