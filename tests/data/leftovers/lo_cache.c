// A module whose exit forgets one thing: a slab cache that nobody uses.
#include <linux/module.h>
#include <linux/slab.h>

static int __init lo_cache_init(void)
{
	return kmem_cache_create("lo_cache", 72, 0, 0, NULL) ? 0 : -ENOMEM;
}
static void __exit lo_cache_exit(void) { }
module_init(lo_cache_init);
module_exit(lo_cache_exit);
MODULE_LICENSE("GPL");
