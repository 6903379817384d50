// A crash, or something left behind, made on purpose: see ../make-logs.
#include <linux/module.h>
static int __init dt_panic_init(void) { panic("dt_panic: nothing works at %px", &dt_panic_init); }
module_init(dt_panic_init);
MODULE_LICENSE("GPL");
