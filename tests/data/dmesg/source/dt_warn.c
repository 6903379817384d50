// A crash, or something left behind, made on purpose: see ../make-logs.
#include <linux/module.h>
static int dt_zero;
static noinline void dt_warn_inner(void) { WARN_ON(!dt_zero); WARN(!dt_zero, "dt_warn: counter is %d, address %px\n", 42, &dt_zero); }
static int __init dt_warn_init(void) { dt_warn_inner(); return 0; }
static void __exit dt_warn_exit(void) { }
module_init(dt_warn_init);
module_exit(dt_warn_exit);
MODULE_LICENSE("GPL");
