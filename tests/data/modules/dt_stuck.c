// SPDX-License-Identifier: GPL-2.0
// Its exit waits for what never comes.
#include <linux/completion.h>
#include <linux/module.h>

static DECLARE_COMPLETION(dt_stuck_never);

static int __init dt_stuck_init(void)
{
	return 0;
}

static void __exit dt_stuck_exit(void)
{
	wait_for_completion(&dt_stuck_never);
	pr_info("dt_stuck: woken\n");	/* so that the call is none that gcc makes a jump of */
}
module_init(dt_stuck_init);
module_exit(dt_stuck_exit);
MODULE_LICENSE("GPL");
