// SPDX-License-Identifier: GPL-2.0
// Halts the only CPU with interrupts off: nothing will ever wake it.
#include <linux/module.h>

static int __init dt_halt_init(void) { asm volatile("cli; hlt"); return 0; }
module_init(dt_halt_init);
MODULE_LICENSE("GPL");
