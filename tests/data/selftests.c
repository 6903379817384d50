// SPDX-License-Identifier: GPL-2.0-only
/* Ends as its name says: for what is told of a selftest. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	const char *name = strrchr(argv[0], '/') + 1;

	(void)argc;
	if (!strcmp(name, "says_much"))
		for (int i = 0; i < 20000; i++)
			printf("line %d\n", i);
	if (!strcmp(name, "fails")) {
		printf("first\n==== Test Assertion Failure ====\n  fails.c:7: one == two\n");
		return 254;
	}
	if (!strcmp(name, "skips")) {
		printf("1..0 # SKIP - Requirement not met: a moon\n");
		return 4;
	}
	if (!strcmp(name, "crashes"))
		*(volatile int *)8 = 0;
	/* As a triple fault does, and no word of it in the log. */
	if (!strcmp(name, "takes_the_machine_down"))
		reboot(RB_AUTOBOOT);
	if (!strcmp(name, "hangs"))
		for (;;)
			pause();
	/* A child that would keep the module busy for ever. */
	if (!strcmp(name, "leaves_a_child") && !fork()) {
		open("/dev/kvm", O_RDWR);
		for (;;)
			pause();
	}
	return 0;
}
