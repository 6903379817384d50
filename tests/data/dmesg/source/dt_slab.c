// A crash, or something left behind, made on purpose: see ../make-logs.
#include <linux/module.h>
#include <linux/slab.h>
static struct kmem_cache *cache;
static int __init dt_slab_init(void)
{
	cache = kmem_cache_create("kvm_vcpu", 640, 64, SLAB_ACCOUNT, NULL);
	if (!cache)
		return -ENOMEM;
	kmem_cache_alloc(cache, GFP_KERNEL);
	return 0;
}
static void __exit dt_slab_exit(void) { kmem_cache_destroy(cache); }
module_init(dt_slab_init);
module_exit(dt_slab_exit);
MODULE_LICENSE("GPL");
