// SPDX-License-Identifier: GPL-2.0
// Takes a mutex that it holds already: the task sleeps for ever, and the CPU idles.
#include <linux/module.h>
#include <linux/mutex.h>

static DEFINE_MUTEX(dt_deadlock_lock);

static int __init dt_deadlock_init(void)
{
	mutex_lock(&dt_deadlock_lock);
	mutex_lock(&dt_deadlock_lock);
	mutex_unlock(&dt_deadlock_lock);
	return 0;
}
module_init(dt_deadlock_init);
MODULE_LICENSE("GPL");
