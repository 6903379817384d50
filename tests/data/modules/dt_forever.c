// SPDX-License-Identifier: GPL-2.0-only
/* Has no exit function: it cannot be unloaded. And a parameter of each kind. */
#include <linux/module.h>

static bool yes = true;
module_param(yes, bool, 0444);
static unsigned short small = 7;
module_param(small, ushort, 0444);
static int later;
module_param(later, int, 0444);

static int __init dt_forever_init(void)
{
	/* As a vendor's module, whose set-up refuses a value that the loader has taken. */
	return later ? -ENODEV : 0;
}
module_init(dt_forever_init);
MODULE_DESCRIPTION("stays");
MODULE_LICENSE("GPL");
