// A crash, or something left behind, made on purpose: see ../make-logs.
#include <linux/module.h>
#include <linux/miscdevice.h>
#include <linux/fs.h>
static const struct file_operations fops = { .owner = THIS_MODULE };
static struct miscdevice dev = { .minor = KVM_MINOR, .name = "kvm", .fops = &fops };
static int __init dt_misc_init(void) { return misc_register(&dev); }
static void __exit dt_misc_exit(void) { misc_deregister(&dev); }
module_init(dt_misc_init);
module_exit(dt_misc_exit);
MODULE_LICENSE("GPL");
