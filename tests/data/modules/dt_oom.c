// SPDX-License-Identifier: GPL-2.0
// Takes memory until the kernel kills the process that loads it, and gives it all back. With thread=1 a thread of the
// kernel does so, which nobody can kill, and gives nothing back.
#include <linux/completion.h>
#include <linux/err.h>
#include <linux/gfp.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched/signal.h>

static bool thread;
module_param(thread, bool, 0444);

static DECLARE_COMPLETION(dt_oom_over);
static LIST_HEAD(dt_oom_pages);

static int dt_oom_take(void *unused)
{
	struct page *page;

	while (!fatal_signal_pending(current) && (page = alloc_page(GFP_KERNEL)))
		list_add(&page->lru, &dt_oom_pages);
	complete(&dt_oom_over);
	return 0;
}

static int __init dt_oom_init(void)
{
	struct page *page, *next;

	if (thread) {
		struct task_struct *task = kthread_run(dt_oom_take, NULL, "dt_oom");

		if (IS_ERR(task))
			return PTR_ERR(task);
		wait_for_completion(&dt_oom_over);
		return 0;
	}
	dt_oom_take(NULL);
	list_for_each_entry_safe(page, next, &dt_oom_pages, lru)
		__free_page(page);
	return -ENOMEM;
}
module_init(dt_oom_init);
MODULE_LICENSE("GPL");
