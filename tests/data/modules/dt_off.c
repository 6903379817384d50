// SPDX-License-Identifier: GPL-2.0
// Powers the machine off: what a crash looks like to somebody who trusts an emulator's exit status.
#include <linux/module.h>
#include <linux/reboot.h>

static int __init dt_off_init(void) { kernel_power_off(); return 0; }
module_init(dt_off_init);
MODULE_LICENSE("GPL");
