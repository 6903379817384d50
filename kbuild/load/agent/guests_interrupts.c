// SPDX-License-Identifier: GPL-2.0-only
/* Guests that wait for interrupts: see guest_interrupts.S. */
#include "vm.h"

#include <errno.h>

CODE(timer);
CODE(interrupts);
extern const char guest_timer_stubs[], guest_interrupts_stubs[];

int run_timer(struct vm *vm)
{
	int error = boot_long_mode(vm, &timer, true);

	if (error)
		return error;
	put_idt(vm, FIRST_VECTOR, VECTORS, &timer, guest_timer_stubs, STUB_BYTES);
	map_window(vm, 0, GUEST_LAPIC);
	return vcpu_run_to_end(vm, &vm->vcpu[0]);
}

static int inject(struct vm *vm, struct vcpu *vcpu, unsigned int vector)
{
	struct kvm_interrupt interrupt = { .irq = vector };
	int error;

	vcpu->run->request_interrupt_window = 1;
	error = vcpu_run(vm, vcpu);
	vcpu->run->request_interrupt_window = 0;
	if (!error && vcpu->run->exit_reason != KVM_EXIT_IRQ_WINDOW_OPEN)
		return EIO;
	return error ?: VM_CALL(vm, vcpu->fd, KVM_INTERRUPT, &interrupt);
}

int run_interrupts(struct vm *vm)
{
	struct vcpu *vcpu = &vm->vcpu[0];
	int error = boot_long_mode(vm, &interrupts, false);

	if (error)
		return error;
	put_idt(vm, FIRST_VECTOR, VECTORS, &interrupts, guest_interrupts_stubs, STUB_BYTES);
	for (int i = 0; !error && i < INTERRUPTS; i++)
		error = vcpu_run_to_pause(vm, vcpu) ?:
			inject(vm, vcpu, FIRST_VECTOR + (vm->input >> (8 * i)) % VECTORS);
	return error ?: vcpu_run_to_end(vm, vcpu);
}
