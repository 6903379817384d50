// SPDX-License-Identifier: GPL-2.0
// A triple fault: an exception with no descriptor table to handle it, nor the faults that follow.
#include <linux/module.h>
#include <asm/desc.h>

static int __init dt_triple_init(void)
{
	struct desc_ptr none = { };

	local_irq_disable();
	asm volatile("lidt %0\n\tint3" : : "m" (none));
	return 0;
}
module_init(dt_triple_init);
MODULE_LICENSE("GPL");
