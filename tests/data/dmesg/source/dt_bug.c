// A crash, or something left behind, made on purpose: see ../make-logs.
#include <linux/module.h>
static noinline void dt_bug_inner(void) { BUG(); }
static int __init dt_bug_init(void) { dt_bug_inner(); return 0; }
module_init(dt_bug_init);
MODULE_LICENSE("GPL");
