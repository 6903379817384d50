// SPDX-License-Identifier: GPL-2.0-only
/* Loads and unloads in which one allocation fails; and a look at what is there afterwards. */
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define DEBUGFS "/sys/kernel/debug/"
/* Kept of a file that is only looked at. */
#define LOOK_BYTES 4096
#define MAX_DEPTH 12

/* Of a cache that is there from the boot on. */
#define SOME_CACHE "/sys/kernel/slab/kmalloc-64/failslab"

/*
 * mm/failslab.c and mm/page_alloc.c (later mm/fail_page_alloc.c): by default neither an allocation that may sleep fails
 * nor one of a single page, and these are nearly all that a module's init makes.
 *
 * Objects of the slab allocator have the same numbers in each load, but for nodes of radix trees: whether one is needed
 * depends on the number that kernfs has come to (fs/kernfs/dir.c, __kernfs_new_node(), idr_alloc_cyclic()). And pages
 * depend on how full the slabs are. So there are two kinds, and what moves does not move the others. With cache-filter
 * only caches with SLAB_FAILSLAB count, which `slub_debug=A;-,radix_tree_node` gives to all but one.
 */
struct setting {
	const char *path, *value;
};

static const struct setting objects[] = {
	{ DEBUGFS "failslab/ignore-gfp-wait", "N" },
	{ DEBUGFS "failslab/cache-filter", "Y" },
	{ DEBUGFS "fail_page_alloc/min-order", "100" },
	{ NULL, NULL },
};

/* And of the slab allocator's what may not sleep, for that is how a radix tree asks. */
static const struct setting pages[] = {
	{ DEBUGFS "failslab/ignore-gfp-wait", "Y" },
	{ DEBUGFS "failslab/cache-filter", "N" },
	{ DEBUGFS "fail_page_alloc/ignore-gfp-wait", "N" },
	{ DEBUGFS "fail_page_alloc/ignore-gfp-highmem", "N" },
	{ DEBUGFS "fail_page_alloc/min-order", "0" },
	{ NULL, NULL },
};

static const struct setting *of_kind(const char *kind)
{
	return !strcmp(kind, "objects") ? objects : !strcmp(kind, "pages") ? pages : NULL;
}

/* lib/fault-inject.c, should_fail_ex(): the count is the task's own, and goes down with each allocation that could fail. */
long fault_syscall(struct answer *answer, long number, long a, long b, long c)
{
	char left[32];
	ssize_t length;
	long result;
	int error;

	if (!answer->fail_nth)
		return syscall(number, a, b, c);
	if (write(answer->fault_fd, answer->fail_nth, strlen(answer->fail_nth)) < 0)
		return -1;
	result = syscall(number, a, b, c);
	error = errno;
	length = pread(answer->fault_fd, left, sizeof(left) - 1, 0);
	if (write(answer->fault_fd, "0", 1) < 0 || length <= 0)
		_exit(1);	/* what came of it can not be told */
	left[length] = 0;
	line_number(answer->result, "left", strtoull(left, NULL, 10));
	errno = error;
	return result;
}

const char *check_fault_target(const char *kind, const char *name)
{
	if (!of_kind(kind))
		return "neither objects nor pages";
	if (strchr(name, '/') || name[0] == '.')
		return "not a plain name";
	return NULL;
}

const char *check_fault(const struct command *command)
{
	char *end;
	unsigned long nth = strtoul(command->argv[1], &end, 10);

	if (*end || !nth || nth > INT32_MAX)
		return "not a number from 1 to 2147483647";
	if (strcmp(command->argv[2], "load") && strcmp(command->argv[2], "unload"))
		return "neither load nor unload";
	return check_fault_target(command->argv[0], command->argv[3]);
}

int fault_set_up(const char *kind, struct answer *answer)
{
	char flagged[8];
	int error;

	for (const struct setting *one = of_kind(kind); one->path; one++) {
		error = host_write_file(one->path, one->value);
		if (error) {
			line_string(answer->result, "where", one->path);
			return error;
		}
	}
	if (host_read_file(SOME_CACHE, flagged, sizeof(flagged)) <= 0 || flagged[0] != '1') {
		line_string(answer->result, "where", SOME_CACHE);
		return EOPNOTSUPP;
	}
	answer->fault_fd = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	if (answer->fault_fd < 0) {
		line_string(answer->result, "where", "/proc/thread-self/fail-nth");
		return errno;
	}
	return 0;
}

int verb_fault(const struct command *command, struct answer *answer)
{
	struct command inner = { .id = command->id, .verb = command->argv[2], .argc = command->argc - 3 };
	int error = fault_set_up(command->argv[0], answer);

	if (error)
		return error;
	answer->fail_nth = command->argv[1];
	memcpy(inner.argv, command->argv + 3, sizeof(inner.argv[0]) * inner.argc);
	error = strcmp(inner.verb, "load") ? verb_unload(&inner, answer) : verb_load(&inner, answer);
	answer->fail_nth = NULL;
	return error;
}

/*
 * Reads the beginning of each file below a folder, as a person or a monitoring tool would, sooner or later.
 * What some file belongs to may be gone by now.
 */
static void look_below(int parent, const char *name, int depth, uint64_t *files)
{
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct dirent *entry;
	DIR *folder;

	folder = fd < 0 ? NULL : fdopendir(fd);
	if (!folder)
		return;
	while ((entry = readdir(folder))) {
		static char bytes[LOOK_BYTES];
		int file;

		if (entry->d_name[0] == '.' && (!entry->d_name[1] || entry->d_name[1] == '.'))
			continue;
		if (entry->d_type == DT_DIR && depth < MAX_DEPTH)
			look_below(fd, entry->d_name, depth + 1, files);
		/* What waits for more to come never ends, and takes it from its reader. */
		if (entry->d_type != DT_REG || strstr(entry->d_name, "pipe"))
			continue;
		file = openat(fd, entry->d_name, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
		if (file < 0)
			continue;
		if (read(file, bytes, sizeof(bytes)) >= 0)
			++*files;
		close(file);
	}
	closedir(folder);
}

int verb_look(const struct command *command, struct answer *answer)
{
	static const char *const below[] = { "/sys/kernel/debug", "/sys/module", "/sys/class", "/sys/kernel/slab",
					     "/sys/devices/virtual", "/sys/devices/system" };
	uint64_t files = 0;

	(void)command;
	for (size_t i = 0; i < sizeof(below) / sizeof(below[0]); i++)
		look_below(AT_FDCWD, below[i], 0, &files);
	line_number(answer->result, "output", files);
	return files ? 0 : ENOENT;
}
