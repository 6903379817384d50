// SPDX-License-Identifier: GPL-2.0-only
/* A module that does on demand what no healthy one does. */
#include <linux/debugfs.h>
#include <linux/module.h>

static char *how = "";
module_param(how, charp, 0444);

static unsigned int count;
module_param(count, uint, 0444);

static int __init misbehave_init(void)
{
	unsigned int i;

	pr_info("how=[%s]\n", how);
	if (!strcmp(how, "oops"))
		return *(volatile int *)NULL;
	if (!strcmp(how, "bytes"))
		pr_info("tab\t escape\x1b quote\" backslash\\ \xff two\nlines\n");
	if (!strcmp(how, "unended"))
		printk(KERN_INFO "no newline");
	if (!strcmp(how, "leak"))
		debugfs_create_dir("misbehave", NULL);
	for (i = 0; i < count; i++)
		pr_info("flood %u\n", i);
	return 0;
}

static void __exit misbehave_exit(void)
{
}

module_init(misbehave_init);
module_exit(misbehave_exit);
MODULE_LICENSE("GPL");
