// A module whose exit forgets one thing: memory of vmalloc().
#include <linux/module.h>
#include <linux/vmalloc.h>
noinline int lo_take(void);
noinline int lo_take(void) { return vmalloc(5 * PAGE_SIZE) ? 0 : -ENOMEM; }
static int __init lo_vmalloc_init(void)
{
	return lo_take();
}
static void __exit lo_vmalloc_exit(void) { }
module_init(lo_vmalloc_init);
module_exit(lo_vmalloc_exit);
MODULE_LICENSE("GPL");
