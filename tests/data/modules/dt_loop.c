// SPDX-License-Identifier: GPL-2.0
// An endless loop with interrupts on, in a function below init: it waits for what nobody does.
#include <linux/module.h>

static int dt_loop_done;

static noinline void dt_loop_wait(void)
{
	while (!READ_ONCE(dt_loop_done))
		cpu_relax();
}

static int __init dt_loop_init(void) { dt_loop_wait(); return 0; }
module_init(dt_loop_init);
MODULE_LICENSE("GPL");
