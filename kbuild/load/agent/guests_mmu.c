// SPDX-License-Identifier: GPL-2.0-only
/* Guests for KVM's MMU: see guest_paging.S. */
#define _GNU_SOURCE		/* mremap */
#include "vm.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE_FAULT 14
#define ALIASED_SLOT 1
#define WORDS (PAGE_BYTES / 8)

CODE(page_faults);
CODE(aliases);
extern const char guest_page_faults_handler[];

/* Word n is the input times 2n + 1. */
static void fill(uint64_t *words, size_t count, uint64_t input)
{
	for (size_t n = 0; n < count; n++)
		words[n] = input * (2 * n + 1);
}

int run_page_faults(struct vm *vm)
{
	int error = boot_long_mode(vm, &page_faults, false);

	if (error)
		return error;
	put_idt(vm, PAGE_FAULT, 1, &page_faults, guest_page_faults_handler, 0);
	fill((uint64_t *)(vm->memory + GUEST_DATA), DATA_PAGES * WORDS, vm->input);
	return vcpu_run_to_end(vm, &vm->vcpu[0]);
}

/*
 * The guest's page is first the one at pages, then the one behind it. Both stay
 * mapped there too: what a KVM that forgot an address reads or writes through
 * it is never memory that has become somebody else's.
 */
static int place(struct vm *vm, const uint64_t *pages, void *at)
{
	vm->where = "mremap";
	/* Of a shared mapping, an old size of 0 makes another one. KVM hears of what was there: mmu_notifier. */
	return mremap((void *)pages, 0, PAGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, at) == MAP_FAILED ? errno : 0;
}

/* What the guest wrote since the last look, bit 0 is its only page; the look clears it. */
static int take_dirty_log(struct vm *vm)
{
	uint64_t bitmap = 0;
	struct kvm_dirty_log log = { .slot = ALIASED_SLOT, .dirty_bitmap = &bitmap };
	int error = VM_CALL(vm, vm->fd, KVM_GET_DIRTY_LOG, &log);

	put_u64(vm, GUEST_WORD, bitmap);
	return error;
}

static int set_aliased(struct vm *vm, void *page, size_t size, unsigned int flags)
{
	return vm_set_slot(vm, ALIASED_SLOT, GUEST_ALIASED, size, page, flags);
}

static int steer_aliases(struct vm *vm, uint64_t *pages, void *page)
{
	struct vcpu *vcpu = &vm->vcpu[0];
	int error;

	error = place(vm, pages, page) ?:
		set_aliased(vm, page, PAGE_BYTES, 0) ?:
		vcpu_run_to_pause(vm, vcpu) ?:
		set_aliased(vm, page, PAGE_BYTES, KVM_MEM_LOG_DIRTY_PAGES);
	for (int round = 0; !error && round < DIRTY_ROUNDS; round++)
		error = vcpu_run_to_pause(vm, vcpu) ?: take_dirty_log(vm);
	return error ?:
		vcpu_run_to_pause(vm, vcpu) ?:
		place(vm, pages + WORDS, page) ?:
		vcpu_run_to_pause(vm, vcpu) ?:
		set_aliased(vm, page, 0, 0) ?:
		place(vm, pages, page) ?:
		set_aliased(vm, page, PAGE_BYTES, 0) ?:
		vcpu_run_to_end(vm, vcpu);
}

int run_aliases(struct vm *vm)
{
	int error = boot_long_mode(vm, &aliases, false);
	uint64_t *pages;
	void *page;

	if (error)
		return error;
	vm->where = "mmap";
	pages = mmap(NULL, 2 * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pages == MAP_FAILED || page == MAP_FAILED)
		return errno;
	fill(pages, WORDS, vm->input);
	fill(pages + WORDS, WORDS, ~vm->input);
	for (unsigned int alias = 0; alias < ALIASES; alias++)
		map_window(vm, alias, GUEST_ALIASED);
	return steer_aliases(vm, pages, page);
}
