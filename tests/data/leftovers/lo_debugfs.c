// A module whose exit forgets one thing: a folder in debugfs, with a file.
#include <linux/module.h>
#include <linux/debugfs.h>
static u32 value;
static int __init lo_debugfs_init(void)
{
	debugfs_create_u32("value", 0400, debugfs_create_dir("lo_debugfs", NULL), &value);
	return 0;
}
static void __exit lo_debugfs_exit(void) { }
module_init(lo_debugfs_init);
module_exit(lo_debugfs_exit);
MODULE_LICENSE("GPL");
