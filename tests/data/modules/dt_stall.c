// SPDX-License-Identifier: GPL-2.0
// Keeps its CPU for longer than the kernel's watchdog lets it, and then comes to its end. Says so before, and in time.
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/sched.h>

static unsigned int seconds = 15;
module_param(seconds, uint, 0444);

static int __init dt_stall_init(void)
{
	unsigned long end;

	pr_info("dt_stall: keeps its CPU\n");
	schedule_timeout_uninterruptible(HZ / 2); /* for who sends what the kernel says */
	end = jiffies + seconds * HZ;
	while (time_before(jiffies, end))
		cpu_relax();
	return 0;
}

static void __exit dt_stall_exit(void)
{
}
module_init(dt_stall_init);
module_exit(dt_stall_exit);
MODULE_LICENSE("GPL");
