// A crash, or something left behind, made on purpose: see ../make-logs.
#include <linux/module.h>
static noinline void dt_fault_inner(volatile int *where) { *where = 1; }
static int __init dt_fault_init(void) { dt_fault_inner((void *)0xffffc90012345000UL); return 0; }
module_init(dt_fault_init);
MODULE_LICENSE("GPL");
