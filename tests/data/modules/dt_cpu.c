// SPDX-License-Identifier: GPL-2.0-only
/* A CPU that does not go, does not come back, or is waited for in vain: each because of a module's callback. */
#include <linux/completion.h>
#include <linux/cpuhotplug.h>
#include <linux/module.h>

static bool refuse, stay, stuck;
module_param(refuse, bool, 0644);
MODULE_PARM_DESC(refuse, "a CPU that comes is refused");
module_param(stay, bool, 0644);
MODULE_PARM_DESC(stay, "a CPU that goes is kept");
module_param(stuck, bool, 0644);
MODULE_PARM_DESC(stuck, "a CPU that comes waits for something that nobody does");

static DECLARE_COMPLETION(never);
static enum cpuhp_state state;

static int dt_cpu_online(unsigned int cpu)
{
	if (stuck)
		wait_for_completion(&never);
	return refuse ? -EIO : 0;
}

static int dt_cpu_offline(unsigned int cpu)
{
	return stay ? -EBUSY : 0;
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
