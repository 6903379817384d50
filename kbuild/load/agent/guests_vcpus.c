// SPDX-License-Identifier: GPL-2.0-only
/* Guests for vCPUs: see guest_vcpus.S. */
#include "vm.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#define MSR_LSTAR 0xc0000082
#define MSR_KERNEL_GS_BASE 0xc0000102
#define STATE_MSRS 2

CODE(registers);
CODE(two_vcpus);
CODE(ipi);
CODE(startup);
extern const char guest_ipi_stubs[];

/*
 * All of a vCPU that this guest can tell. No KVM_SET_FPU: where the kernel uses
 * XSAVE, a vCPU that never ran takes it and does not show it to the guest.
 */
struct state {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_xsave xsave;
	struct kvm_debugregs debugregs;
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entries[STATE_MSRS];
	} msrs;
};

static int save(struct vm *vm, struct vcpu *vcpu, struct state *state)
{
	int done = 0, error;

	/* Only another KVM_RUN ends the instruction that the guest paused with (api.rst, KVM_EXIT_IO). */
	vcpu->run->immediate_exit = 1;
	error = vcpu_run(vm, vcpu);
	if (error != EINTR)
		return error ? error : EIO;
	error = VM_CALL(vm, vcpu->fd, KVM_GET_REGS, &state->regs) ?:
		VM_CALL(vm, vcpu->fd, KVM_GET_SREGS, &state->sregs) ?:
		VM_CALL(vm, vcpu->fd, KVM_GET_XSAVE, &state->xsave) ?:
		VM_CALL(vm, vcpu->fd, KVM_GET_DEBUGREGS, &state->debugregs) ?:
		VM_CALL_FOR(vm, &done, vcpu->fd, KVM_GET_MSRS, &state->msrs);
	return error || done == STATE_MSRS ? error : EIO;
}

static int restore(struct vm *vm, const struct vcpu *vcpu, struct state *state)
{
	int done = 0, error;

	error = VM_CALL(vm, vcpu->fd, KVM_SET_SREGS, &state->sregs) ?:
		VM_CALL(vm, vcpu->fd, KVM_SET_REGS, &state->regs) ?:
		VM_CALL(vm, vcpu->fd, KVM_SET_XSAVE, &state->xsave) ?:
		VM_CALL(vm, vcpu->fd, KVM_SET_DEBUGREGS, &state->debugregs) ?:
		VM_CALL_FOR(vm, &done, vcpu->fd, KVM_SET_MSRS, &state->msrs);
	return error || done == STATE_MSRS ? error : EIO;
}

/* Stopped in the middle, and taken to a new virtual machine: only the memory is the same. */
int run_registers(struct vm *vm)
{
	struct vcpu *vcpu = &vm->vcpu[0];
	struct state state = {
		.msrs = {
			.head.nmsrs = STATE_MSRS,
			.entries = { { .index = MSR_LSTAR }, { .index = MSR_KERNEL_GS_BASE } },
		},
	};
	int error;

	error = boot_long_mode(vm, &registers, false) ?: vcpu_run_to_pause(vm, vcpu) ?: save(vm, vcpu, &state);
	if (error)
		return error;
	vm_destroy(vm);
	return vm_create(vm, false) ?: vcpu_create(vm, 0) ?: restore(vm, vcpu, &state) ?: vcpu_run_to_end(vm, vcpu);
}

struct second {
	struct vm *vm;
	pthread_t first_thread;
	int error;
};

/* KVM_RUN then returns EINTR: immediate_exit is for who was just about to enter the guest. */
static void stop(const struct vcpu *vcpu, pthread_t thread)
{
	vcpu->run->immediate_exit = 1;
	pthread_kill(thread, STOP_SIGNAL);
}

/* The second vCPU does not end by itself. */
static void *run_second(void *argument)
{
	struct second *second = argument;
	int error = vcpu_run(second->vm, &second->vm->vcpu[1]);

	second->error = error ? error : EIO;
	/* The first one would wait for its turn for ever. */
	stop(&second->vm->vcpu[0], second->first_thread);
	return NULL;
}

/* The limit on time stops the first vCPU, whoever is to blame. */
static int start_second(struct second *second, pthread_t *thread)
{
	sigset_t alarm;
	int error;

	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &alarm, NULL);
	second->vm->where = "pthread_create";
	error = pthread_create(thread, NULL, run_second, second);
	pthread_sigmask(SIG_UNBLOCK, &alarm, NULL);
	return error;
}

/* Both at once, until the first one is done. */
static int run_both(struct vm *vm)
{
	struct second second = { .vm = vm, .first_thread = pthread_self() };
	pthread_t thread;
	int error = start_second(&second, &thread);

	if (error)
		return error;
	error = vcpu_run_to_end(vm, &vm->vcpu[0]);
	stop(&vm->vcpu[1], thread);
	pthread_join(thread, NULL);
	if (second.error == EINTR)
		return error;
	vm->blamed = &vm->vcpu[1];
	return second.error;
}

int run_two_vcpus(struct vm *vm)
{
	return boot_long_mode(vm, &two_vcpus, false) ?:
		vcpu_create(vm, 1) ?:
		enter_long_mode(vm, &vm->vcpu[1], &two_vcpus) ?:
		run_both(vm);
}

/* The second vCPU is left as it is created: it waits for INIT and SIPI. */
int run_ipi(struct vm *vm)
{
	int error = boot_long_mode(vm, &ipi, true) ?: vcpu_create(vm, 1);

	if (error)
		return error;
	put_idt(vm, FIRST_VECTOR, VECTORS, &ipi, guest_ipi_stubs, STUB_BYTES);
	map_window(vm, 0, GUEST_LAPIC);
	memcpy(vm->memory + GUEST_STARTUP, startup.start, startup.end - startup.start);
	return run_both(vm);
}
