/* SPDX-License-Identifier: GPL-2.0-only */
/* A virtual machine and its processors, as a user of /dev/kvm has them: Documentation/virt/kvm/api.rst. */
#ifndef VM_H
#define VM_H

#include "guest.h"

#include <linux/kvm.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_CPUID 256		/* KVM_MAX_CPUID_ENTRIES */
#define MAX_VCPUS 2
#define PAGE_BYTES 4096
#define STOP_SIGNAL SIGUSR1	/* of no effect but EINTR, as SIGALRM */

struct cpuid {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entries[MAX_CPUID];
};

struct vcpu {
	int fd;
	struct kvm_run *run;
	bool ran;		/* run->exit_reason says something */
	unsigned int exits;
};

struct vm {
	int kvm, fd;
	struct vcpu vcpu[MAX_VCPUS];
	const struct vcpu *blamed;	/* whose exit is told when something fails */
	uint8_t *memory;	/* GUEST_MEMORY bytes, which outlive the machine */
	size_t run_size;
	const char *where;	/* the call that is being made */
	struct cpuid cpuid;	/* what each vCPU gets; may be changed before vcpu_create() */
	uint64_t input;
	uint64_t output;
	unsigned int output_bytes;
};

/* Each that returns an int: 0 or a positive errno. */

int vm_call(struct vm *vm, int fd, const char *name, unsigned long request, void *argument);
#define VM_CALL(vm, on, request, argument) vm_call(vm, on, #request, request, (void *)(uintptr_t)(argument))

/* For calls whose result is a number; *to stays as it is when they fail. */
int vm_call_for(struct vm *vm, int *to, int fd, const char *name, unsigned long request, void *argument);
#define VM_CALL_FOR(vm, to, on, request, argument) \
	vm_call_for(vm, to, on, #request, request, (void *)(uintptr_t)(argument))

/* vm->kvm is open; the memory is made when there is none yet. */
int vm_create(struct vm *vm, bool with_lapic);
int vm_set_slot(struct vm *vm, unsigned int slot, uint64_t guest, size_t size, void *memory, unsigned int flags);
int vcpu_create(struct vm *vm, int index);
/* Not at the end of the process only: the module must be unused when the host reads the result. */
void vm_destroy(struct vm *vm);

/* Runs a vCPU until an exit that is no part of the answer. ELOOP: there were too many. */
int vcpu_run(struct vm *vm, struct vcpu *vcpu);
/* The same, with the exit that has to come; another one is EIO, another port or size EPROTO. */
int vcpu_run_to_pause(struct vm *vm, struct vcpu *vcpu);
int vcpu_run_to_end(struct vm *vm, struct vcpu *vcpu);
int vcpu_is_done(const struct vcpu *vcpu);
bool vcpu_is_at_port(const struct vcpu *vcpu, unsigned int port, unsigned int direction);

/* setup.c: memory and registers before the first instruction. */
struct code {
	const char *start, *end;
};

#define CODE(name) \
	extern const char guest_##name[], guest_##name##_end[]; \
	static const struct code name = { guest_##name, guest_##name##_end }

uint64_t get_u64(const struct vm *vm, size_t address);
void put_u64(struct vm *vm, size_t address, uint64_t value);
/* Who ignores the page tables reads another input. */
void put_input_behind_paging(struct vm *vm);
/* A page of GUEST_WINDOW. */
void map_window(struct vm *vm, unsigned int page, uint64_t to);
/* handler: in the code; the vectors are as far apart as stride says. */
void put_idt(struct vm *vm, unsigned int first, unsigned int count, const struct code *code, const char *handler,
	     size_t stride);
int enter_real_mode(struct vm *vm, struct vcpu *vcpu, const struct code *code);
int enter_long_mode(struct vm *vm, struct vcpu *vcpu, const struct code *code);
/* A machine with one vCPU in 64-bit mode: what most kinds begin with. */
int boot_long_mode(struct vm *vm, const struct code *code, bool with_lapic);

/* The kinds, each in the file that prepares it. */
int run_real_mode(struct vm *vm);
int run_protected_mode(struct vm *vm);
int run_long_mode(struct vm *vm);
int run_page_faults(struct vm *vm);
int run_aliases(struct vm *vm);
int run_ports(struct vm *vm);
int run_mmio(struct vm *vm);
int run_cpuid(struct vm *vm);
int run_timer(struct vm *vm);
int run_interrupts(struct vm *vm);
int run_registers(struct vm *vm);
int run_two_vcpus(struct vm *vm);
int run_ipi(struct vm *vm);

#endif
