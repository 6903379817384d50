// SPDX-License-Identifier: GPL-2.0-only
/* A CPU that does not go, does not come back, or is waited for in vain: each because of a module's callback. */
#include <linux/completion.h>
#include <linux/cpuhotplug.h>
#include <linux/module.h>

enum { FINE, KEEP, REFUSE, STUCK };

static int how = FINE;
module_param(how, int, 0444);
MODULE_PARM_DESC(how, "1: a CPU that goes is kept; 2: one that comes is refused; 3: one that comes waits for ever");

static DECLARE_COMPLETION(never);
static enum cpuhp_state state;

static int dt_cpu_online(unsigned int cpu)
{
	if (how == STUCK)
		wait_for_completion(&never);
	return how == REFUSE ? -EIO : 0;
}

static int dt_cpu_offline(unsigned int cpu)
{
	return how == KEEP ? -EBUSY : 0;
}

static int __init dt_cpu_init(void)
{
	int got = cpuhp_setup_state_nocalls(CPUHP_AP_ONLINE_DYN, "dt/cpu:online", dt_cpu_online, dt_cpu_offline);

	state = got;
	return got < 0 ? got : 0;
}
module_init(dt_cpu_init);

static void __exit dt_cpu_exit(void)
{
	cpuhp_remove_state_nocalls(state);
}
module_exit(dt_cpu_exit);

MODULE_DESCRIPTION("A CPU that does not come back");
MODULE_LICENSE("GPL");
