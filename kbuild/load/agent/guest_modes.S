/* SPDX-License-Identifier: GPL-2.0-only */
/* Guests in each of the processor's modes: 16-bit, 32-bit and 64-bit. */
#include "guest_macros.h"

	.section .rodata

	.code16
	GUEST real_mode
	movw	GUEST_INPUT, %ax
	movw	$0x4f1b, %cx
	mulw	%cx
	addw	$0x3c21, %ax
	outw	%ax, $GUEST_PORT
	hlt
	END real_mode

	/* Begins in real mode and goes on by itself: GDT, CR0.PE, a far jump, page directory, CR0.PG. */
	GUEST protected_mode
	lgdtl	GUEST_CODE + gdt_pointer - guest_protected_mode
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$CODE_SELECTOR, $GUEST_CODE + protected - guest_protected_mode
	.code32
protected:
	movw	$DATA_SELECTOR, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$GUEST_PML4, %eax
	movl	%eax, %cr3
	movl	%cr0, %eax
	orl	$0x80000000, %eax
	movl	%eax, %cr0
	movl	GUEST_INPUT, %ebx
	movl	GUEST_INPUT + 4, %ecx
	/* Each half takes in the other one. */
	imull	$0x9e3779b9, %ebx, %ebx
	movl	%ecx, %eax
	roll	$7, %eax
	addl	%ebx, %eax
	outl	%eax, $GUEST_PORT
	imull	$0x9e3779b9, %ecx, %ecx
	roll	$7, %eax
	addl	%ecx, %eax
	outl	%eax, $GUEST_PORT
	hlt
gdt_pointer:
	.word	3 * 8 - 1
	.long	GUEST_GDT
	END protected_mode

	.code64
	/* Computes for ever: one answer after the other, each from the last one, most of the time without an exit. */
	GUEST counting
	START
1:	movl	$20000, %ecx
2:	decl	%ecx
	jnz	2b
	movq	%rbx, %rax
	MIX	%rbx, %rax
	ANSWER
	outb	%al, $GUEST_PAUSE
	jmp	1b
	END counting

	GUEST long_mode
	START
	movq	%rbx, %rax
	MIX	%rbx, %rax
	ANSWER
	hlt
	END long_mode

	.section .note.GNU-stack, "", @progbits
