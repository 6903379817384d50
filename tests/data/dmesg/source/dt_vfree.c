// A crash, or something left behind, made on purpose: see ../make-logs.
#include <linux/module.h>
#include <linux/vmalloc.h>
static int __init dt_vfree_init(void) { vfree((void *)0xffffc90012345000UL); return -EIO; }
module_init(dt_vfree_init);
MODULE_LICENSE("GPL");
