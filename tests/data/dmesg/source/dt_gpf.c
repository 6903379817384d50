// A crash, or something left behind, made on purpose: see ../make-logs.
#include <linux/module.h>
static noinline void dt_gpf_inner(volatile int *where) { *where = 1; }
static int __init dt_gpf_init(void) { dt_gpf_inner((void *)0xdead000000000122UL); return 0; }
module_init(dt_gpf_init);
MODULE_LICENSE("GPL");
