// A module whose exit forgets one thing: a state of CPU hotplug.
#include <linux/module.h>
#include <linux/cpuhotplug.h>
static int nothing(unsigned int cpu) { return 0; }
static int __init lo_cpuhp_init(void)
{
	int state = cpuhp_setup_state_nocalls(CPUHP_AP_ONLINE_DYN, "lo/cpuhp:online", nothing, nothing);

	return state < 0 ? state : 0;
}
static void __exit lo_cpuhp_exit(void) { }
module_init(lo_cpuhp_init);
module_exit(lo_cpuhp_exit);
MODULE_LICENSE("GPL");
