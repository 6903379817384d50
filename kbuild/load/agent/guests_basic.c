// SPDX-License-Identifier: GPL-2.0-only
/* Guests that need nothing while they run, and those that user space has to answer: see guest_modes.S, guest_exits.S. */
#include "vm.h"

#include <errno.h>
#include <string.h>

CODE(real_mode);
CODE(protected_mode);
CODE(long_mode);
CODE(ports);
CODE(mmio);
CODE(cpuid);

#define MMIO_REGISTERS 16

int run_real_mode(struct vm *vm)
{
	struct vcpu *vcpu = &vm->vcpu[0];
	int error = vm_create(vm, false) ?: vcpu_create(vm, 0) ?: enter_real_mode(vm, vcpu, &real_mode);

	if (error)
		return error;
	put_u64(vm, GUEST_INPUT, vm->input);
	return vcpu_run_to_end(vm, vcpu);
}

int run_protected_mode(struct vm *vm)
{
	struct vcpu *vcpu = &vm->vcpu[0];
	int error = vm_create(vm, false) ?: vcpu_create(vm, 0) ?: enter_real_mode(vm, vcpu, &protected_mode);

	if (error)
		return error;
	put_input_behind_paging(vm);
	return vcpu_run_to_end(vm, vcpu);
}

int run_long_mode(struct vm *vm)
{
	return boot_long_mode(vm, &long_mode, false) ?: vcpu_run_to_end(vm, &vm->vcpu[0]);
}

/* Word n of the stream is the input times 2n + 1. */
static void stream(uint64_t input, size_t *at, uint8_t *to, size_t count)
{
	for (; count; count--, (*at)++) {
		uint64_t word = input * (2 * (*at / 8) + 1);

		*to++ = word >> (8 * (*at % 8));
	}
}

int run_ports(struct vm *vm)
{
	struct vcpu *vcpu = &vm->vcpu[0];
	size_t at = 0;
	int error = boot_long_mode(vm, &ports, false) ?: vcpu_run(vm, vcpu);

	while (!error && vcpu_is_at_port(vcpu, GUEST_STREAM, KVM_EXIT_IO_IN)) {
		struct kvm_run *run = vcpu->run;

		stream(vm->input, &at, (uint8_t *)run + run->io.data_offset, (size_t)run->io.size * run->io.count);
		error = vcpu_run(vm, vcpu);
	}
	return error ?: vcpu_is_done(vcpu);
}

int run_mmio(struct vm *vm)
{
	uint8_t registers[MMIO_REGISTERS] = { 0 };
	struct vcpu *vcpu = &vm->vcpu[0];
	int error = boot_long_mode(vm, &mmio, false);

	map_window(vm, 0, GUEST_MMIO);
	error = error ?: vcpu_run(vm, vcpu);
	while (!error && vcpu->run->exit_reason == KVM_EXIT_MMIO) {
		struct kvm_run *run = vcpu->run;
		uint64_t at = run->mmio.phys_addr - GUEST_MMIO;

		if (at > MMIO_REGISTERS || run->mmio.len > sizeof(run->mmio.data) || at + run->mmio.len > MMIO_REGISTERS)
			return EPROTO;
		for (unsigned int i = 0; i < run->mmio.len; i++) {
			if (run->mmio.is_write)
				registers[at + i] = run->mmio.data[i];
			else
				run->mmio.data[i] = ~registers[at + i];
		}
		error = vcpu_run(vm, vcpu);
	}
	return error ?: vcpu_is_done(vcpu);
}

/* Words n and n + 1 of the stream as the four registers. False: there is no room. */
static bool put_leaf(struct vm *vm, uint32_t leaf, uint32_t index, bool indexed, unsigned int n)
{
	uint64_t low = vm->input * (2 * n + 1), high = vm->input * (2 * n + 3);
	struct kvm_cpuid2 *cpuid = &vm->cpuid.head;
	unsigned int at = 0;

	while (at < cpuid->nent && (cpuid->entries[at].function != leaf || cpuid->entries[at].index != index))
		at++;
	if (at == MAX_CPUID)
		return false;
	if (at == cpuid->nent)
		cpuid->nent++;
	cpuid->entries[at] = (struct kvm_cpuid_entry2){
		.function = leaf,
		.index = index,
		.flags = indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
		.eax = low, .ebx = low >> 32, .ecx = high, .edx = high >> 32,
	};
	return true;
}

int run_cpuid(struct vm *vm)
{
	struct vcpu *vcpu = &vm->vcpu[0];
	int error = vm_create(vm, false);

	if (error)
		return error;
	if (!put_leaf(vm, CPUID_LEAF, 0, false, 0) || !put_leaf(vm, CPUID_INDEXED_LEAF, 0, true, 2) ||
	    !put_leaf(vm, CPUID_INDEXED_LEAF, CPUID_INDEX, true, 4))
		return E2BIG;
	return vcpu_create(vm, 0) ?: enter_long_mode(vm, vcpu, &cpuid) ?: vcpu_run_to_end(vm, vcpu);
}
