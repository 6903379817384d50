// A crash, or something left behind, made on purpose: see ../make-logs.
#include <linux/module.h>
static int __init dt_initret_init(void) { return 3; }
static void __exit dt_initret_exit(void) { }
module_init(dt_initret_init);
module_exit(dt_initret_exit);
MODULE_LICENSE("GPL");
