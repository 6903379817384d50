// A module that loses a page each time it is loaded.
#include <linux/module.h>
#include <linux/gfp.h>

static int __init drift_page_init(void) { return __get_free_page(GFP_KERNEL) ? 0 : -ENOMEM; }
static void __exit drift_page_exit(void) { }
module_init(drift_page_init);
module_exit(drift_page_exit);
MODULE_LICENSE("GPL");
