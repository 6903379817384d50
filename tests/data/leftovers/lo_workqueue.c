// A module whose exit forgets one thing: a workqueue with a rescuer.
#include <linux/module.h>
#include <linux/workqueue.h>

static int __init lo_workqueue_init(void)
{
	return alloc_workqueue("lo_workqueue", WQ_MEM_RECLAIM, 0) ? 0 : -ENOMEM;
}
static void __exit lo_workqueue_exit(void) { }
module_init(lo_workqueue_init);
module_exit(lo_workqueue_exit);
MODULE_LICENSE("GPL");
