// SPDX-License-Identifier: GPL-2.0-only
/*
 * Smoke: does a virtual machine really run?
 *
 * A user of /dev/kvm with one processor and 64 KiB of memory, see
 * Documentation/virt/kvm/api.rst. There is no in-kernel interrupt chip, so HLT
 * comes back here.
 */
#include "agent.h"
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#define MAX_EXITS 16
#define MAX_SECONDS 10
#define MAX_CPUID 256		/* KVM_MAX_CPUID_ENTRIES */

#define CR0_PE (1ull << 0)
#define CR0_ET (1ull << 4)
#define CR0_PG (1ull << 31)
#define CR4_PAE (1ull << 5)
#define EFER_LME (1ull << 8)
#define EFER_LMA (1ull << 10)
#define RFLAGS_FIXED 2
#define PTE_PRESENT_WRITABLE 3
#define CODE_SEGMENT 11		/* execute, read, accessed */
#define DATA_SEGMENT 3		/* read, write, accessed */

extern const char guest_real_mode[], guest_real_mode_end[];
extern const char guest_long_mode[], guest_long_mode_end[];

struct vm {
	int kvm, vm, vcpu;
	uint8_t *memory;
	struct kvm_run *run;
	size_t run_size;
	const char *where;	/* the call that is being made */
	bool ran;		/* run->exit_reason says something */
	uint64_t output;
	unsigned int output_bytes;
};

static int call(struct vm *vm, int fd, const char *name, unsigned long request, void *argument)
{
	vm->where = name;
	return ioctl(fd, request, argument);
}

#define CALL(vm, fd, request, argument) call(vm, fd, #request, request, (void *)(uintptr_t)(argument))

static int create_memory(struct vm *vm)
{
	struct kvm_userspace_memory_region region = { .memory_size = GUEST_MEMORY };
	/* Intel only; elsewhere taken and ignored. At the top of 4 GiB, where firmware would be. */
	uint64_t identity_map = 0xfffbc000, tss = 0xfffbd000;

	vm->where = "mmap";
	vm->memory = mmap(NULL, GUEST_MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (vm->memory == MAP_FAILED)
		return errno;
	region.userspace_addr = (uintptr_t)vm->memory;
	/* Without unrestricted guest, KVM needs both pages to run a guest that has no paging. */
	if (CALL(vm, vm->vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map) < 0 ||
	    CALL(vm, vm->vm, KVM_SET_TSS_ADDR, tss) < 0 ||
	    CALL(vm, vm->vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		return errno;
	return 0;
}

static int create_vcpu(struct vm *vm)
{
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[MAX_CPUID];
	} cpuid = { .head.nent = MAX_CPUID };
	int size;

	vm->vcpu = CALL(vm, vm->vm, KVM_CREATE_VCPU, 0);
	if (vm->vcpu < 0)
		return errno;
	/* Without it KVM may refuse long mode to the guest. */
	if (CALL(vm, vm->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) < 0 ||
	    CALL(vm, vm->vcpu, KVM_SET_CPUID2, &cpuid) < 0)
		return errno;
	size = CALL(vm, vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (size < 0)
		return errno;
	vm->where = "mmap of the vcpu";
	vm->run_size = size;
	vm->run = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu, 0);
	return vm->run == MAP_FAILED ? errno : 0;
}

static int create(struct vm *vm)
{
	int error;

	vm->where = "open";
	vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm < 0)
		return errno;
	vm->vm = CALL(vm, vm->kvm, KVM_CREATE_VM, 0);
	if (vm->vm < 0)
		return errno;
	error = create_memory(vm);
	return error ? error : create_vcpu(vm);
}

static void put_code(struct vm *vm, const char *code, const char *end)
{
	memcpy(vm->memory + GUEST_CODE, code, end - code);
}

static void put_u64(struct vm *vm, size_t address, uint64_t value)
{
	memcpy(vm->memory + address, &value, sizeof(value));
}

static void prepare_real_mode(struct vm *vm, struct kvm_sregs *sregs, uint64_t input)
{
	put_code(vm, guest_real_mode, guest_real_mode_end);
	put_u64(vm, GUEST_INPUT, input);
	/* From the reset vector to where the memory is. */
	sregs->cs.base = 0;
	sregs->cs.selector = 0;
}

static void map_page(struct vm *vm, size_t from, size_t to)
{
	put_u64(vm, GUEST_PT + (from >> 12) * 8, to | PTE_PRESENT_WRITABLE);
}

/* Code and input only: anything else the guest touches is a page fault, and with no IDT a shutdown. */
static void prepare_long_mode(struct vm *vm, struct kvm_sregs *sregs, uint64_t input)
{
	struct kvm_segment code = {
		.limit = 0xffffffff, .selector = 8, .type = CODE_SEGMENT, .present = 1, .s = 1, .l = 1, .g = 1,
	};
	struct kvm_segment data = {
		.limit = 0xffffffff, .selector = 16, .type = DATA_SEGMENT, .present = 1, .db = 1, .s = 1, .g = 1,
	};

	put_code(vm, guest_long_mode, guest_long_mode_end);
	put_u64(vm, GUEST_PML4, GUEST_PDPT | PTE_PRESENT_WRITABLE);
	put_u64(vm, GUEST_PDPT, GUEST_PD | PTE_PRESENT_WRITABLE);
	put_u64(vm, GUEST_PD, GUEST_PT | PTE_PRESENT_WRITABLE);
	map_page(vm, GUEST_CODE, GUEST_CODE);
	map_page(vm, GUEST_INPUT, GUEST_REMAPPED);
	put_u64(vm, GUEST_REMAPPED, input);
	/* Whoever ignores the page table reads this. */
	put_u64(vm, GUEST_INPUT, ~input);

	sregs->cr3 = GUEST_PML4;
	sregs->cr4 = CR4_PAE;
	sregs->cr0 = CR0_PE | CR0_ET | CR0_PG;
	sregs->efer = EFER_LME | EFER_LMA;
	sregs->cs = code;
	sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
}

static void take_output(struct vm *vm)
{
	const struct kvm_run *run = vm->run;
	uint64_t value = 0;

	memcpy(&value, (const char *)run + run->io.data_offset, run->io.size);
	vm->output |= value << (8 * vm->output_bytes);
	vm->output_bytes += run->io.size;
}

static bool is_answer(const struct vm *vm)
{
	const struct kvm_run *run = vm->run;

	return run->io.direction == KVM_EXIT_IO_OUT && run->io.port == GUEST_PORT && run->io.count == 1 &&
	       vm->output_bytes + run->io.size <= sizeof(vm->output);
}

/* Runs until HLT. EIO: an exit that the guest's code has no reason for; EPROTO: another port or length. */
static int run(struct vm *vm)
{
	for (int exits = 0; exits < MAX_EXITS; exits++) {
		if (CALL(vm, vm->vcpu, KVM_RUN, 0) < 0)
			return errno;
		vm->ran = true;
		switch (vm->run->exit_reason) {
		case KVM_EXIT_IO:
			if (!is_answer(vm))
				return EPROTO;
			take_output(vm);
			break;
		case KVM_EXIT_HLT:
			return 0;
		default:
			return EIO;
		}
	}
	return ELOOP;
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

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
}

static int start(struct vm *vm, bool long_mode, uint64_t input)
{
	struct kvm_regs regs = { .rip = GUEST_CODE, .rflags = RFLAGS_FIXED };
	struct kvm_sregs sregs;

	if (CALL(vm, vm->vcpu, KVM_GET_SREGS, &sregs) < 0)
		return errno;
	if (long_mode)
		prepare_long_mode(vm, &sregs, input);
	else
		prepare_real_mode(vm, &sregs, input);
	if (CALL(vm, vm->vcpu, KVM_SET_SREGS, &sregs) < 0 || CALL(vm, vm->vcpu, KVM_SET_REGS, &regs) < 0)
		return errno;
	bound_time();
	return run(vm);
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

/* Here and not at the end of the process: the module must be unused when the host reads the result. */
static void destroy(struct vm *vm)
{
	if (vm->run && vm->run != MAP_FAILED)
		munmap(vm->run, vm->run_size);
	if (vm->vcpu >= 0)
		close(vm->vcpu);
	if (vm->vm >= 0)
		close(vm->vm);
	if (vm->kvm >= 0)
		close(vm->kvm);
}

int verb_smoke(const struct command *command, struct answer *answer)
{
	struct vm vm = { .kvm = -1, .vm = -1, .vcpu = -1 };
	bool long_mode = !strcmp(command->argv[0], "long-mode");
	uint64_t input = strtoull(command->argv[1], NULL, 10);
	int error = create(&vm);

	if (!error)
		error = start(&vm, long_mode, input);
	if (vm.ran) {
		line_number(answer->result, "exit_reason", vm.run->exit_reason);
		if (exit_detail(vm.run))
			line_number(answer->result, "exit_detail", exit_detail(vm.run));
	}
	if (error)
		line_string(answer->result, "where", vm.where);
	else
		line_number(answer->result, "output", vm.output);
	destroy(&vm);
	return error;
}
