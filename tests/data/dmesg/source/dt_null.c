// A crash, or something left behind, made on purpose: see ../make-logs.
#include <linux/module.h>
static noinline void dt_null_inner(volatile int *where) { *where = 1; }
static int __init dt_null_init(void) { dt_null_inner((void *)16); return 0; }
module_init(dt_null_init);
MODULE_LICENSE("GPL");
