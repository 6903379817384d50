// A crash, or something left behind, made on purpose: see ../make-logs.
#include <linux/module.h>
#include <linux/kobject.h>
static struct kobject *one, *two;
static int __init dt_sysfs_init(void)
{
	one = kobject_create_and_add("dt_left_behind", kernel_kobj);
	two = kobject_create_and_add("dt_left_behind", kernel_kobj);
	return 0;
}
static void __exit dt_sysfs_exit(void) { kobject_put(one); kobject_put(two); }
module_init(dt_sysfs_init);
module_exit(dt_sysfs_exit);
MODULE_LICENSE("GPL");
