// SPDX-License-Identifier: GPL-2.0-only
/* Guests before their first instruction: code, descriptor and page tables, registers. */
#include "vm.h"

#include <string.h>

#define CR0_PE (1ull << 0)
#define CR0_MP (1ull << 1)
#define CR0_ET (1ull << 4)
#define CR0_WP (1ull << 16)
#define CR0_PG (1ull << 31)
#define CR4_PAE (1ull << 5)
#define CR4_OSFXSR (1ull << 9)
#define EFER_LME (1ull << 8)
#define EFER_LMA (1ull << 10)
/*
 * Bit 1 is always set. Interrupts are on, though none comes unless a kind sees to
 * it: in a guest that has them off, Bochs 2.7 leaves out the exits for the host's
 * own as well, and one that waits in a loop would never be stopped.
 */
#define RFLAGS_FIXED_IF 0x202
#define PTE_PRESENT_WRITABLE 3
#define CODE_SEGMENT 11		/* execute, read, accessed */
#define DATA_SEGMENT 3		/* read, write, accessed */
#define GATE_INTERRUPT 0x8e00	/* present, 64-bit interrupt gate */

uint64_t get_u64(const struct vm *vm, size_t address)
{
	uint64_t value;

	memcpy(&value, vm->memory + address, sizeof(value));
	return value;
}

void put_u64(struct vm *vm, size_t address, uint64_t value)
{
	memcpy(vm->memory + address, &value, sizeof(value));
}

static void put_code(struct vm *vm, const struct code *code)
{
	memcpy(vm->memory + GUEST_CODE, code->start, code->end - code->start);
}

/* Null, code and data of 4 GiB: what user space gives each segment register in 64-bit mode as well. */
static void put_gdt(struct vm *vm, bool is_64_bit)
{
	put_u64(vm, GUEST_GDT + CODE_SELECTOR, is_64_bit ? 0x00af9b000000ffff : 0x00cf9b000000ffff);
	put_u64(vm, GUEST_GDT + DATA_SELECTOR, 0x00cf93000000ffff);
}

void put_idt(struct vm *vm, unsigned int first, unsigned int count, const struct code *code, const char *handler,
	     size_t stride)
{
	uint64_t to = GUEST_CODE + (handler - code->start);

	for (unsigned int i = 0; i < count; i++, to += stride)
		put_u64(vm, GUEST_IDT + 16 * (first + i),
			(to & 0xffff) | CODE_SELECTOR << 16 | (uint64_t)GATE_INTERRUPT << 32);
}

void map_window(struct vm *vm, unsigned int page, uint64_t to)
{
	put_u64(vm, GUEST_WINDOW_PT + 8 * page, to | PTE_PRESENT_WRITABLE);
}

void put_input_behind_paging(struct vm *vm)
{
	put_u64(vm, GUEST_REMAPPED, vm->input);
	put_u64(vm, GUEST_INPUT, ~vm->input);
}

static uint64_t page_behind(uint64_t page)
{
	return page == GUEST_INPUT ? GUEST_REMAPPED : page;
}

static void put_long_page_tables(struct vm *vm)
{
	put_u64(vm, GUEST_PML4, GUEST_PDPT | PTE_PRESENT_WRITABLE);
	put_u64(vm, GUEST_PDPT, GUEST_PD | PTE_PRESENT_WRITABLE);
	put_u64(vm, GUEST_PD, GUEST_PT | PTE_PRESENT_WRITABLE);
	put_u64(vm, GUEST_PD + 8, GUEST_WINDOW_PT | PTE_PRESENT_WRITABLE);
	for (uint64_t page = 0; page < GUEST_MEMORY; page += PAGE_BYTES)
		put_u64(vm, GUEST_PT + page / PAGE_BYTES * 8, page_behind(page) | PTE_PRESENT_WRITABLE);
}

/* Entries of 4 bytes. */
static void put_short_page_tables(struct vm *vm)
{
	uint32_t entry = GUEST_PT | PTE_PRESENT_WRITABLE;

	memcpy(vm->memory + GUEST_PML4, &entry, sizeof(entry));
	for (uint32_t page = 0; page < GUEST_MEMORY; page += PAGE_BYTES) {
		entry = page_behind(page) | PTE_PRESENT_WRITABLE;
		memcpy(vm->memory + GUEST_PT + page / PAGE_BYTES * 4, &entry, sizeof(entry));
	}
}

static int set_registers(struct vm *vm, struct vcpu *vcpu, struct kvm_sregs *sregs)
{
	struct kvm_regs regs = {
		.rip = GUEST_CODE,
		.rsp = GUEST_STACK_END,
		.rdi = vcpu - vm->vcpu,
		.rflags = RFLAGS_FIXED_IF,
	};

	return VM_CALL(vm, vcpu->fd, KVM_SET_SREGS, sregs) ?: VM_CALL(vm, vcpu->fd, KVM_SET_REGS, &regs);
}

int enter_real_mode(struct vm *vm, struct vcpu *vcpu, const struct code *code)
{
	struct kvm_sregs sregs;
	int error = VM_CALL(vm, vcpu->fd, KVM_GET_SREGS, &sregs);

	put_code(vm, code);
	put_gdt(vm, false);
	put_short_page_tables(vm);
	/* From the reset vector to where the memory is. */
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	return error ?: set_registers(vm, vcpu, &sregs);
}

/* What is not mapped is a page fault, and where the IDT has no entry for it a shutdown. */
int enter_long_mode(struct vm *vm, struct vcpu *vcpu, const struct code *code)
{
	struct kvm_segment cs = {
		.limit = 0xffffffff, .selector = CODE_SELECTOR, .type = CODE_SEGMENT,
		.present = 1, .s = 1, .l = 1, .g = 1,
	};
	struct kvm_segment data = {
		.limit = 0xffffffff, .selector = DATA_SELECTOR, .type = DATA_SEGMENT,
		.present = 1, .db = 1, .s = 1, .g = 1,
	};
	struct kvm_sregs sregs;
	int error = VM_CALL(vm, vcpu->fd, KVM_GET_SREGS, &sregs);

	put_code(vm, code);
	put_input_behind_paging(vm);
	put_gdt(vm, true);
	put_long_page_tables(vm);
	sregs.cr3 = GUEST_PML4;
	sregs.cr4 = CR4_PAE | CR4_OSFXSR;
	sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_WP | CR0_PG;
	sregs.efer = EFER_LME | EFER_LMA;
	sregs.gdt = (struct kvm_dtable){ .base = GUEST_GDT, .limit = 3 * 8 - 1 };
	sregs.idt = (struct kvm_dtable){ .base = GUEST_IDT, .limit = PAGE_BYTES - 1 };
	sregs.cs = cs;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	return error ?: set_registers(vm, vcpu, &sregs);
}

int boot_long_mode(struct vm *vm, const struct code *code, bool with_lapic)
{
	return vm_create(vm, with_lapic) ?: vcpu_create(vm, 0) ?: enter_long_mode(vm, &vm->vcpu[0], code);
}
