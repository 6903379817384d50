// SPDX-License-Identifier: GPL-2.0
// Kills the process that loads it, without a word in the log.
#include <linux/module.h>
#include <linux/sched/signal.h>

static int __init dt_kill_init(void)
{
	return send_sig(SIGKILL, current, 1);
}
module_init(dt_kill_init);
MODULE_LICENSE("GPL");
