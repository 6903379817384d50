// A module that loses nothing, but keeps the kernel busy: what it allocates it gives back, in another order.
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

static void *taken[64];

static int __init drift_not_init(void)
{
	for (int i = 0; i < 64; i++)
		taken[i] = i % 8 ? kmalloc(60 * (i % 7 + 1), GFP_KERNEL) : vmalloc(PAGE_SIZE);
	return 0;
}

static void __exit drift_not_exit(void)
{
	for (int i = 63; i >= 0; i--)
		kvfree(taken[i * 5 % 64]);
}

module_init(drift_not_init);
module_exit(drift_not_exit);
MODULE_LICENSE("GPL");
