// A module whose exit forgets one thing: a misc device.
#include <linux/module.h>
#include <linux/miscdevice.h>
#include <linux/fs.h>
static const struct file_operations operations = { .owner = THIS_MODULE };
static struct miscdevice device = { MISC_DYNAMIC_MINOR, "lo_misc", &operations };
static int __init lo_misc_init(void)
{
	return misc_register(&device);
}
static void __exit lo_misc_exit(void) { }
module_init(lo_misc_init);
module_exit(lo_misc_exit);
MODULE_LICENSE("GPL");
