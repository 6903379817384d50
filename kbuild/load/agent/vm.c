// SPDX-License-Identifier: GPL-2.0-only
/* Virtual machines: making them, running their processors, taking the answer. */
#include "vm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_EXITS 1000
#define IOAPIC_PINS 24

int vm_call_for(struct vm *vm, int *to, int fd, const char *name, unsigned long request, void *argument)
{
	int got;

	vm->where = name;
	got = ioctl(fd, request, argument);
	if (got < 0)
		return errno;
	*to = got;
	return 0;
}

int vm_call(struct vm *vm, int fd, const char *name, unsigned long request, void *argument)
{
	int ignored;

	return vm_call_for(vm, &ignored, fd, name, request, argument);
}

int vm_set_slot(struct vm *vm, unsigned int slot, uint64_t guest, size_t size, void *memory, unsigned int flags)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = guest,
		.memory_size = size,
		.userspace_addr = (uintptr_t)memory,
	};

	return VM_CALL(vm, vm->fd, KVM_SET_USER_MEMORY_REGION, &region);
}

static int create_memory(struct vm *vm)
{
	if (vm->memory)
		return 0;
	vm->where = "mmap";
	vm->memory = mmap(NULL, GUEST_MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (vm->memory != MAP_FAILED)
		return 0;
	vm->memory = NULL;
	return errno;
}

int vm_create(struct vm *vm, bool with_lapic)
{
	/* Intel only; elsewhere taken and ignored. At the top of 4 GiB, where firmware would be. */
	uint64_t identity_map = 0xfffbc000, tss = 0xfffbd000;
	/* A local APIC in the kernel and nothing more: in 7.2 KVM_CREATE_IRQCHIP needs KVM_IOAPIC. */
	struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { IOAPIC_PINS } };
	int size = 0, error;

	vm->cpuid.head.nent = MAX_CPUID;
	error = create_memory(vm) ?:
		VM_CALL_FOR(vm, &size, vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0) ?:
		VM_CALL(vm, vm->kvm, KVM_GET_SUPPORTED_CPUID, &vm->cpuid) ?:
		VM_CALL_FOR(vm, &vm->fd, vm->kvm, KVM_CREATE_VM, 0) ?:
		/* Without unrestricted guest, KVM needs both pages to run a guest that has no paging. */
		VM_CALL(vm, vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map) ?:
		VM_CALL(vm, vm->fd, KVM_SET_TSS_ADDR, tss) ?:
		vm_set_slot(vm, 0, 0, GUEST_MEMORY, vm->memory, 0);
	vm->run_size = size;
	return error || !with_lapic ? error : VM_CALL(vm, vm->fd, KVM_ENABLE_CAP, &split);
}

int vcpu_create(struct vm *vm, int index)
{
	struct vcpu *vcpu = &vm->vcpu[index];
	int error;

	error = VM_CALL_FOR(vm, &vcpu->fd, vm->fd, KVM_CREATE_VCPU, index) ?:
		/* Without it KVM may refuse long mode to the guest. */
		VM_CALL(vm, vcpu->fd, KVM_SET_CPUID2, &vm->cpuid);
	if (error)
		return error;
	vm->where = "mmap of the vcpu";
	vcpu->run = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run != MAP_FAILED)
		return 0;
	vcpu->run = NULL;
	return errno;
}

void vm_destroy(struct vm *vm)
{
	for (int i = 0; i < MAX_VCPUS; i++) {
		struct vcpu *vcpu = &vm->vcpu[i];

		if (vcpu->run)
			munmap(vcpu->run, vm->run_size);
		if (vcpu->fd >= 0)
			close(vcpu->fd);
		*vcpu = (struct vcpu){ .fd = -1 };
	}
	if (vm->fd >= 0)
		close(vm->fd);
	vm->fd = -1;
}

bool vcpu_is_at_port(const struct vcpu *vcpu, unsigned int port, unsigned int direction)
{
	const struct kvm_run *run = vcpu->run;

	return run->exit_reason == KVM_EXIT_IO && run->io.port == port && run->io.direction == direction;
}

/* False: more than an answer can have. */
static bool take_answer(struct vm *vm, const struct vcpu *vcpu)
{
	const struct kvm_run *run = vcpu->run;
	size_t bytes = (size_t)run->io.size * run->io.count;

	if (bytes > sizeof(vm->output) - vm->output_bytes)
		return false;
	memcpy((char *)&vm->output + vm->output_bytes, (const char *)run + run->io.data_offset, bytes);
	vm->output_bytes += bytes;
	return true;
}

int vcpu_run(struct vm *vm, struct vcpu *vcpu)
{
	while (vcpu->exits++ < MAX_EXITS) {
		int error = VM_CALL(vm, vcpu->fd, KVM_RUN, 0);

		/* Of a vCPU that waits for INIT or SIPI: it got one. */
		if (error == EAGAIN)
			continue;
		if (error)
			return error;
		vcpu->ran = true;
		if (!vcpu_is_at_port(vcpu, GUEST_PORT, KVM_EXIT_IO_OUT))
			return 0;
		if (!take_answer(vm, vcpu))
			return EPROTO;
	}
	return ELOOP;
}

static int judge(const struct vcpu *vcpu, unsigned int port)
{
	if (vcpu->run->exit_reason != KVM_EXIT_IO)
		return EIO;
	return vcpu_is_at_port(vcpu, port, KVM_EXIT_IO_OUT) ? 0 : EPROTO;
}

int vcpu_run_to_pause(struct vm *vm, struct vcpu *vcpu)
{
	return vcpu_run(vm, vcpu) ?: judge(vcpu, GUEST_PAUSE);
}

int vcpu_is_done(const struct vcpu *vcpu)
{
	return vcpu->run->exit_reason == KVM_EXIT_HLT ? 0 : judge(vcpu, GUEST_END);
}

int vcpu_run_to_end(struct vm *vm, struct vcpu *vcpu)
{
	return vcpu_run(vm, vcpu) ?: vcpu_is_done(vcpu);
}
