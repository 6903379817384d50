// SPDX-License-Identifier: GPL-2.0-only
/*
 * Smoke: does a virtual machine really run?
 *
 * Each kind of guest computes its answer from an input that the host draws, and
 * goes through another part of KVM for it. What each does is in docs/agent.md.
 */
#define _GNU_SOURCE		/* sched_setaffinity */
#include "agent.h"
#include "vm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#define MAX_SECONDS 10

static const struct kind {
	const char *name;
	int (*run)(struct vm *vm);
} kinds[] = {
	{ "real-mode", run_real_mode },
	{ "protected-mode", run_protected_mode },
	{ "long-mode", run_long_mode },
	{ "page-faults", run_page_faults },
	{ "aliases", run_aliases },
	{ "ports", run_ports },
	{ "mmio", run_mmio },
	{ "cpuid", run_cpuid },
	{ "timer", run_timer },
	{ "interrupts", run_interrupts },
	{ "registers", run_registers },
	{ "two-vcpus", run_two_vcpus },
	{ "ipi", run_ipi },
};

static const struct kind *find_kind(const char *name)
{
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (!strcmp(kinds[i].name, name))
			return &kinds[i];
	return NULL;
}

const char *check_smoke(const struct command *command)
{
	const char *number = command->argv[1];

	if (!find_kind(command->argv[0]))
		return "no such kind of guest";
	errno = 0;
	strtoull(number, NULL, 10);
	if (!*number || strspn(number, "0123456789") != strlen(number) || errno)
		return "the input is no decimal 64-bit number";
	return NULL;
}

static void interrupt(int signal)
{
	(void)signal;
}

/* KVM_RUN then returns EINTR. Again and again, for the first one may come between two calls. */
static void bound_time(void)
{
	struct sigaction action = { .sa_handler = interrupt };
	struct itimerval timer = { .it_value.tv_sec = MAX_SECONDS, .it_interval.tv_usec = 100000 };

	sigaction(STOP_SIGNAL, &action, NULL);
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
}

/* KVM's second word about an exit that failed; 0 if there is none. */
static uint64_t exit_detail(const struct kvm_run *run)
{
	switch (run->exit_reason) {
	case KVM_EXIT_FAIL_ENTRY:
		return run->fail_entry.hardware_entry_failure_reason;
	case KVM_EXIT_UNKNOWN:
		return run->hw.hardware_exit_reason;
	case KVM_EXIT_INTERNAL_ERROR:
		return run->internal.suberror;
	default:
		return 0;
	}
}

static void tell_exit(const struct vcpu *vcpu, struct line *result)
{
	if (!vcpu->ran)
		return;
	line_number(result, "exit_reason", vcpu->run->exit_reason);
	if (exit_detail(vcpu->run))
		line_number(result, "exit_detail", exit_detail(vcpu->run));
}

CODE(counting);

/* guest_macros.h, MIX: what the guest computes next. */
static uint64_t next_answer(uint64_t last)
{
	return last * 0x9e3779b97f4a7c15 + (last << 23 | last >> 41);
}

/* One round, however often it is interrupted: a suspend stops KVM_RUN as a signal does. */
static int count_once(struct vm *vm)
{
	int error;

	vm->output = vm->output_bytes = 0;
	do {
		vm->vcpu[0].exits = 0;
		error = vcpu_run_to_pause(vm, &vm->vcpu[0]);
	} while (error == EINTR);
	return error;
}

/* Where it is to run on one processor it goes back to that as soon as there is such a one again. */
static void stay(const cpu_set_t *home)
{
	if (CPU_COUNT(home) == 1)
		sched_setaffinity(0, sizeof(*home), home);
}

int run_counting(int told)
{
	static struct vm vm = { .fd = -1, .vcpu = { { .fd = -1 }, { .fd = -1 } }, .input = 0x1234567 };
	struct pollfd agent = { .fd = shared->alive[0], .events = POLLIN };
	uint64_t wanted = vm.input, after_stop = 0;
	cpu_set_t home;
	int error;

	sched_getaffinity(0, sizeof(home), &home);
	vm.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	error = vm.kvm < 0 ? errno : boot_long_mode(&vm, &counting, false);
	while (!error && after_stop < 2) {
		error = count_once(&vm);
		wanted = next_answer(wanted);
		if (!error && vm.output != wanted)
			error = EPROTO;
		if (error || poll(&agent, 1, 0) > 0)
			break;
		if (++shared->rounds == 1 && write(told, &error, sizeof(error)) != sizeof(error))
			break;
		after_stop += __atomic_load_n(&shared->stop, __ATOMIC_SEQ_CST);
		stay(&home);
	}
	if (!shared->rounds && write(told, &error, sizeof(error)) < 0)
		error = error ?: EIO;
	return error;
}

int verb_smoke(const struct command *command, struct answer *answer)
{
	static struct vm vm = { .fd = -1, .vcpu = { { .fd = -1 }, { .fd = -1 } }, .blamed = &vm.vcpu[0] };
	int error = 0;

	vm.input = strtoull(command->argv[1], NULL, 10);
	vm.where = "open";
	vm.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm.kvm < 0)
		error = errno;
	bound_time();
	if (!error)
		error = find_kind(command->argv[0])->run(&vm);
	tell_exit(vm.blamed, answer->result);
	if (error)
		line_string(answer->result, "where", vm.where);
	else
		line_number(answer->result, "output", vm.output);
	vm_destroy(&vm);
	if (vm.kvm >= 0)
		close(vm.kvm);
	return error;
}
