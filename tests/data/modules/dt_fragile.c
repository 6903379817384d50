// SPDX-License-Identifier: GPL-2.0
// Takes memory five times, and is ready for the failure of the first and the last only.
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/panic.h>
#include <linux/slab.h>

static void *dt_fragile_taken[5];

static noinline int dt_fragile_first(void)
{
	dt_fragile_taken[0] = kmalloc(32, GFP_KERNEL);
	return dt_fragile_taken[0] ? 0 : -ENOMEM;
}

static noinline void dt_fragile_panics(void)
{
	dt_fragile_taken[1] = kmalloc(32, GFP_KERNEL);
	if (!dt_fragile_taken[1])
		panic("dt_fragile: cannot go on");
}

static noinline void dt_fragile_oopses(void)
{
	dt_fragile_taken[2] = kmalloc(32, GFP_KERNEL);
	*(volatile int *)dt_fragile_taken[2] = 1;
}

static noinline void dt_fragile_hangs(void)
{
	dt_fragile_taken[3] = kmalloc(32, GFP_KERNEL);
	while (!READ_ONCE(dt_fragile_taken[3]))
		cpu_relax();
}

static noinline int dt_fragile_last(void)
{
	dt_fragile_taken[4] = kmalloc(32, GFP_KERNEL);
	return dt_fragile_taken[4] ? 0 : -ENOMEM;
}

static void dt_fragile_free(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(dt_fragile_taken); i++)
		kfree(dt_fragile_taken[i]);
}

static int __init dt_fragile_init(void)
{
	int error = dt_fragile_first();

	if (!error) {
		dt_fragile_panics();
		dt_fragile_oopses();
		dt_fragile_hangs();
		error = dt_fragile_last();
	}
	if (error)
		dt_fragile_free();
	return error;
}

static void __exit dt_fragile_exit(void)
{
	dt_fragile_free();
}
module_init(dt_fragile_init);
module_exit(dt_fragile_exit);
MODULE_LICENSE("GPL");
