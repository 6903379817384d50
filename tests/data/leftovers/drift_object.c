// A module that loses one object of kmalloc-64 each time it is loaded.
#include <linux/module.h>
#include <linux/slab.h>

static int __init drift_object_init(void) { return kmalloc(60, GFP_KERNEL) ? 0 : -ENOMEM; }
static void __exit drift_object_exit(void) { }
module_init(drift_object_init);
module_exit(drift_object_exit);
MODULE_LICENSE("GPL");
