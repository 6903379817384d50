// A crash, or something left behind, made on purpose: see ../make-logs.
#include <linux/module.h>
static int __init dt_error_init(void)
{
	pr_err("dt_error: nobody knows this line, %d\n", 7);
	pr_warn("dt_error: nor this one, but it only warns\n");
	return -EIO;
}
module_init(dt_error_init);
MODULE_LICENSE("GPL");
