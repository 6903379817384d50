/* SPDX-License-Identifier: GPL-2.0-only */
/* Guests that user space, or KVM in place of the processor, has to answer: ports, MMIO, CPUID. */
#include "guest_macros.h"

	.section .rodata
	.code64

	/* The input comes in pieces of 1, 2, 4 and 1 bytes, what follows as strings. The answer is a string too. */
	GUEST ports
	movabsq	$MULTIPLIER, %r8
	inb	$GUEST_STREAM, %al
	movzbl	%al, %ebx
	inw	$GUEST_STREAM, %ax
	movzwl	%ax, %eax
	shlq	$8, %rax
	orq	%rax, %rbx
	inl	$GUEST_STREAM, %eax
	movl	%eax, %eax
	shlq	$24, %rax
	orq	%rax, %rbx
	inb	$GUEST_STREAM, %al
	movzbl	%al, %eax
	shlq	$56, %rax
	orq	%rax, %rbx
	cld
	movl	$GUEST_STREAM, %edx
	movl	$GUEST_BUFFER, %edi
	movl	$4, %ecx
	rep insw
	movl	$2, %ecx
	rep insl
	MIX	%rbx, GUEST_BUFFER
	MIX	%rbx, GUEST_BUFFER + 8
	movq	%rbx, GUEST_BUFFER
	movl	$GUEST_PORT, %edx
	movl	$GUEST_BUFFER, %esi
	movl	$8, %ecx
	rep outsb
	hlt
	END ports

	/* A device whose registers read as the complement of what was written. All sizes; read-modify-write at the end. */
	GUEST mmio
	START
	movl	$GUEST_WINDOW, %esi
	movq	%rbx, (%rsi)
	movl	%ebx, 8(%rsi)
	movw	%bx, 12(%rsi)
	movb	%bl, 14(%rsi)
	movq	(%rsi), %rax
	MIX	%rbx, %rax
	movl	8(%rsi), %eax
	MIX	%rbx, %rax
	movzwl	12(%rsi), %eax
	MIX	%rbx, %rax
	movsbq	14(%rsi), %rax
	MIX	%rbx, %rax
	addl	%ebx, 8(%rsi)
	movl	8(%rsi), %eax
	MIX	%rbx, %rax
	ANSWER
	hlt
	END mmio

	.macro FOLD_CPUID leaf, index
	movl	$\leaf, %eax
	movl	$\index, %ecx
	cpuid
	shlq	$32, %rbx
	orq	%rbx, %rax
	shlq	$32, %rdx
	orq	%rdx, %rcx
	MIX	%r10, %rax
	MIX	%r10, %rcx
	.endm

	GUEST cpuid
	START
	movq	%rbx, %r10
	FOLD_CPUID CPUID_LEAF, 0
	FOLD_CPUID CPUID_INDEXED_LEAF, 0
	FOLD_CPUID CPUID_INDEXED_LEAF, CPUID_INDEX
	movq	%r10, %rbx
	ANSWER
	hlt
	END cpuid

	.section .note.GNU-stack, "", @progbits
