// SPDX-License-Identifier: GPL-2.0
// An endless loop with interrupts off that calls the kernel over and over: no watchdog of the kernel's can tell of it.
#include <linux/delay.h>
#include <linux/module.h>

static int dt_spin_done;

static int __init dt_spin_init(void)
{
	unsigned long flags;

	local_irq_save(flags);
	while (!READ_ONCE(dt_spin_done))
		udelay(50);
	local_irq_restore(flags);
	return 0;
}
module_init(dt_spin_init);
MODULE_LICENSE("GPL");
