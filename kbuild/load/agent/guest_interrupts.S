/* SPDX-License-Identifier: GPL-2.0-only */
/* Guests that wait for interrupts; the handlers compute the answer. */
#include "guest_macros.h"

	.section .rodata
	.code64

	.set LAPIC_EOI, 0xb0
	.set LAPIC_SPURIOUS, 0xf0
	.set LAPIC_TIMER, 0x320
	.set LAPIC_COUNT, 0x380
	.set LAPIC_DIVIDE, 0x3e0

	/* The local APIC's timer, one-shot: each vector follows from what the interrupt before has left in rbx. */
	GUEST timer
	cli
	START
	movl	$GUEST_WINDOW, %esi
	movl	$0x1ff, LAPIC_SPURIOUS(%rsi)	/* enables it */
	movl	$0xb, LAPIC_DIVIDE(%rsi)	/* by 1 */
	movl	$INTERRUPTS, %ebp
1:	movl	%ebx, %eax
	andl	$(VECTORS - 1), %eax
	addl	$FIRST_VECTOR, %eax
	movl	%eax, LAPIC_TIMER(%rsi)
	movl	$200000, LAPIC_COUNT(%rsi)	/* KVM's runs at 1 GHz */
	sti
	hlt
	cli
	testl	%ebp, %ebp
	jnz	1b
	ANSWER
	outb	%al, $GUEST_END
2:	HANDLE_INTERRUPT
	movl	$0, LAPIC_EOI(%rsi)
	SKIP_HLT
	iretq
	.globl guest_timer_stubs
	STUBS	2b
guest_timer_stubs = . - VECTORS * STUB_BYTES
	END timer

	/* User space injects them, each as soon as KVM says that the guest takes one. */
	GUEST interrupts
	cli
	START
	movl	$INTERRUPTS, %ebp
1:	movl	%ebp, %ecx
	outb	%al, $GUEST_PAUSE
	sti
2:	pause
	cmpl	%ecx, %ebp
	je	2b
	cli
	testl	%ebp, %ebp
	jnz	1b
	ANSWER
	hlt
3:	HANDLE_INTERRUPT
	iretq
	.globl guest_interrupts_stubs
	STUBS	3b
guest_interrupts_stubs = . - VECTORS * STUB_BYTES
	END interrupts

	.section .note.GNU-stack, "", @progbits
