// SPDX-License-Identifier: GPL-2.0
// Says too much, or what nobody can read: how=log, how=console, how=agent, how=cut.
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/reboot.h>
#include <linux/slab.h>

#define LINES 1000000
#define RUBBISH 30000

static char *how = "";
module_param(how, charp, 0444);

/* Every byte there is, line ends among them, and then for long none: the same in every run. */
static void fill(char *bytes, size_t count)
{
	u32 value = 1;
	size_t i;

	for (i = 0; i < count; i++) {
		value = value * 1664525 + 1013904223;
		bytes[i] = value >> 24;
		if (i > count / 2 && bytes[i] == '\n')
			bytes[i] = 0;
	}
}

/* The line that belongs to the agent, and on which nobody else ought to write. */
static int write_to_agent_line(const char *bytes, size_t count)
{
	struct file *file = filp_open("/dev/ttyS1", O_WRONLY | O_NOCTTY, 0);
	ssize_t written = 0;

	if (IS_ERR(file))
		return PTR_ERR(file);
	while (count && written >= 0) {
		written = kernel_write(file, bytes, min_t(size_t, count, 1000), &file->f_pos);
		bytes += written;
		count -= written;
	}
	filp_close(file, NULL);
	return written < 0 ? written : 0;
}

static int __init dt_flood_init(void)
{
	static const char half[] = "{\"ev\":\"log\",\"id\":1,\"seq\":12,\"te";
	char *rubbish;
	int error = 0;
	u32 i;

	if (!strcmp(how, "log"))
		for (i = 0; i < LINES; i++) {
			pr_info("dt_flood: line %u of too many\n", i);
			cond_resched();
		}
	if (!strcmp(how, "cut")) {
		error = write_to_agent_line(half, sizeof(half) - 1);
		msleep(500);	/* until the serial port has sent it */
		emergency_restart();
	}
	rubbish = kmalloc(RUBBISH, GFP_KERNEL);
	if (!rubbish)
		return -ENOMEM;
	fill(rubbish, RUBBISH);
	if (!strcmp(how, "agent"))
		error = write_to_agent_line(rubbish, RUBBISH);
	if (!strcmp(how, "console"))
		for (i = 0; i < LINES; i++) {
			pr_emerg("%.200s\n", rubbish + i % (RUBBISH - 200));
			cond_resched();
		}
	kfree(rubbish);
	return error;
}

static void __exit dt_flood_exit(void) { }

module_init(dt_flood_init);
module_exit(dt_flood_exit);
MODULE_LICENSE("GPL");
