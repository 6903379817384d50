// SPDX-License-Identifier: GPL-2.0-only
/* What loading a module can leave behind, as files of the kernel have it line by line. docs/agent.md has the items. */
#include "agent.h"
#include "items.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_BUFFER 65536	/* fewer reads: the kernel finds its place in such a file anew for each */
#define MAX_COUNTS 1024		/* different areas, modules with symbols */

typedef void on_line(struct items *items, const char *what, char *line);

/* Each line of a file, without its newline. Returns false when there is no such file. */
static bool add_lines(struct items *items, const char *what, const char *path, on_line *add)
{
	static char buffer[FILE_BUFFER];
	FILE *file = fopen(path, "re");
	char *line = NULL;
	size_t room = 0;

	if (!file)
		return false;
	setvbuf(file, buffer, _IOFBF, sizeof(buffer));
	while (getline(&line, &room, file) > 0) {
		line[strcspn(line, "\n")] = 0;
		add(items, what, line);
	}
	free(line);
	fclose(file);
	return true;
}

/* "kvm 1011712 1 kvm_intel, Live 0xffffffffc0000000 (O)": the address and the taint are left out. */
static void add_module(struct items *items, const char *what, char *line)
{
	char *end = line;

	for (int field = 0; field < 5 && end; field++)
		end = strchr(end + (field > 0), ' ');
	if (end)
		*end = 0;
	items_add(items, what, line);
}

bool add_modules(struct items *items, const char *what)
{
	return add_lines(items, what, "/proc/modules", add_module);
}

/* "kvm_vcpu  0  0  9408  3  8 : tunables …": name and object size. Two lines at the top are no caches. */
static void add_slab_size(struct items *items, const char *what, char *line)
{
	char name[256], item[300];
	unsigned long size;

	if (sscanf(line, "%255s %*u %*u %lu", name, &size) != 2)
		return;
	snprintf(item, sizeof(item), "%s %lu", name, size);
	items_add(items, what, item);
}

bool add_slab_sizes(struct items *items, const char *what)
{
	return add_lines(items, what, "/proc/slabinfo", add_slab_size);
}

/* " 87: x86/kvm:starting" */
static void add_cpuhp_state(struct items *items, const char *what, char *line)
{
	char *name = strstr(line, ": ");

	if (name)
		items_add(items, what, name + 2);
}

bool add_cpuhp(struct items *items, const char *what)
{
	return add_lines(items, what, "/sys/devices/system/cpu/hotplug/states", add_cpuhp_state);
}

/* "0-1,3": Documentation/admin-guide/cputopology.rst. */
bool add_cpus(struct items *items, const char *what)
{
	char text[256], *next = text, *range;

	if (host_read_file("/sys/devices/system/cpu/online", text, sizeof(text)) <= 0)
		return false;
	while ((range = strsep(&next, ","))) {
		char *end;
		unsigned long first = strtoul(range, &end, 10), last = *end == '-' ? strtoul(end + 1, NULL, 10) : first;

		for (; first <= last && last < MAX_COUNTS; first++) {
			char item[24];

			snprintf(item, sizeof(item), "%lu", first);
			items_add(items, what, item);
		}
	}
	return true;
}

/* How often something comes. */
struct count {
	char name[300];
	unsigned long count;
};

static struct count counts[MAX_COUNTS];
static size_t counted;

static void count_one(struct items *items, const char *name)
{
	size_t i;

	for (i = 0; i < counted; i++)
		if (!strcmp(counts[i].name, name))
			break;
	if (i == counted) {
		if (counted == MAX_COUNTS) {
			items->error = EOVERFLOW;
			return;
		}
		snprintf(counts[counted++].name, sizeof(counts[0].name), "%s", name);
		counts[i].count = 0;
	}
	counts[i].count++;
}

static void add_counts(struct items *items, const char *what)
{
	char item[ITEM_BYTES];

	for (size_t i = 0; i < counted; i++) {
		snprintf(item, sizeof(item), "%.299s %lu", counts[i].name, counts[i].count);
		items_add(items, what, item);
	}
	counted = 0;
}

/* Symbols of a module, and of what else has code of its own: "ffffffffa0000000 t kvm_init\t[kvm]". */
static void count_symbol(struct items *items, const char *what, char *line)
{
	char *module = strstr(line, "\t[");

	(void)what;
	if (!module)
		return;
	module[strcspn(module, "]")] = 0;
	count_one(items, module + 2);
}

bool add_kallsyms(struct items *items, const char *what)
{
	if (!add_lines(items, what, "/proc/kallsyms", count_symbol))
		return false;
	add_counts(items, what);
	return true;
}

/*
 * Areas that say nothing about who left something:
 * stacks of threads, kept for the next one (kernel/fork.c, alloc_thread_stack_node(); its caller is as the compiler has
 * inlined it, up to those of copy_process()); a thread that is left is told;
 * what the allocator of memory for each CPU keeps for later (mm/percpu.c, pcpu_balance_free());
 * areas on their way out, or of vm_map_ram(), which keeps no owner (mm/vmalloc.c, s_show(), show_purge_info()).
 */
static const char *const no_trace[] = {
	"alloc_thread_stack_node", "dup_task_struct", "copy_process",
	"kernel_clone", "fork_idle", "create_io_thread", "vhost_task_create",
	"pcpu_get_vm_areas", "pcpu_create_chunk",
	"unpurged", "vm_map_ram",
};

/* "0xffffc90000000000-0xffffc90000005000   20480 load_module+0x1b/0x2c [m] pages=4 vmalloc": who, and how many bytes. */
static void count_area(struct items *items, const char *what, char *line)
{
	char caller[256], name[300];
	unsigned long size;

	(void)what;
	if (sscanf(line, "%*s %lu %255s", &size, caller) != 2)
		return;
	caller[strcspn(caller, "+")] = 0;
	for (size_t i = 0; i < sizeof(no_trace) / sizeof(no_trace[0]); i++)
		if (!strcmp(caller, no_trace[i]))
			return;
	snprintf(name, sizeof(name), "%s %lu", caller, size);
	count_one(items, name);
}

bool add_vmalloc(struct items *items, const char *what)
{
	if (!add_lines(items, what, "/proc/vmallocinfo", count_area))
		return false;
	add_counts(items, what);
	return true;
}

bool add_taint(struct items *items, const char *what)
{
	char taint[32];

	if (host_read_file("/proc/sys/kernel/tainted", taint, sizeof(taint)) <= 0)
		return false;
	taint[strcspn(taint, "\n")] = 0;
	items_add(items, what, taint);
	return true;
}
