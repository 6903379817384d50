// A crash, or something left behind, made on purpose: see ../make-logs.
#include <linux/module.h>
#include <linux/debugfs.h>
static int __init dt_debugfs_init(void) { debugfs_create_dir("kvm", NULL); return 0; }
static void __exit dt_debugfs_exit(void) { }
module_init(dt_debugfs_init);
module_exit(dt_debugfs_exit);
MODULE_LICENSE("GPL");
