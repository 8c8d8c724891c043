#include "textflag.h"

// SHA-256 of one message on from two states, with the SHA extensions. Intel,
// "New Instructions Supporting the Secure Hash Algorithm", has the method for one:
// a state is in two registers, ABEF and CDGH; SHA256RNDS2 does two rounds with the
// words of the schedule, plus their constants, in the low half of X0.
//
//	DI, SI   the states
//	DX, CX   the message and how many bytes of it are left
//	AX       the constants
//	X1, X2   ABEF and CDGH of the first state
//	X3, X4   of the second
//	X5-X8    16 words of the schedule
//	X9       what a step of the schedule needs besides
//	X10-X13  both states before the block
//	X15      the order of bytes

DATA order<>+0(SB)/8, $0x0405060700010203
DATA order<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL order<>(SB), RODATA|NOPTR, $16

DATA constants<>+0(SB)/8, $0x71374491428a2f98
DATA constants<>+8(SB)/8, $0xe9b5dba5b5c0fbcf
DATA constants<>+16(SB)/8, $0x59f111f13956c25b
DATA constants<>+24(SB)/8, $0xab1c5ed5923f82a4
DATA constants<>+32(SB)/8, $0x12835b01d807aa98
DATA constants<>+40(SB)/8, $0x550c7dc3243185be
DATA constants<>+48(SB)/8, $0x80deb1fe72be5d74
DATA constants<>+56(SB)/8, $0xc19bf1749bdc06a7
DATA constants<>+64(SB)/8, $0xefbe4786e49b69c1
DATA constants<>+72(SB)/8, $0x240ca1cc0fc19dc6
DATA constants<>+80(SB)/8, $0x4a7484aa2de92c6f
DATA constants<>+88(SB)/8, $0x76f988da5cb0a9dc
DATA constants<>+96(SB)/8, $0xa831c66d983e5152
DATA constants<>+104(SB)/8, $0xbf597fc7b00327c8
DATA constants<>+112(SB)/8, $0xd5a79147c6e00bf3
DATA constants<>+120(SB)/8, $0x1429296706ca6351
DATA constants<>+128(SB)/8, $0x2e1b213827b70a85
DATA constants<>+136(SB)/8, $0x53380d134d2c6dfc
DATA constants<>+144(SB)/8, $0x766a0abb650a7354
DATA constants<>+152(SB)/8, $0x92722c8581c2c92e
DATA constants<>+160(SB)/8, $0xa81a664ba2bfe8a1
DATA constants<>+168(SB)/8, $0xc76c51a3c24b8b70
DATA constants<>+176(SB)/8, $0xd6990624d192e819
DATA constants<>+184(SB)/8, $0x106aa070f40e3585
DATA constants<>+192(SB)/8, $0x1e376c0819a4c116
DATA constants<>+200(SB)/8, $0x34b0bcb52748774c
DATA constants<>+208(SB)/8, $0x4ed8aa4a391c0cb3
DATA constants<>+216(SB)/8, $0x682e6ff35b9cca4f
DATA constants<>+224(SB)/8, $0x78a5636f748f82ee
DATA constants<>+232(SB)/8, $0x8cc7020884c87814
DATA constants<>+240(SB)/8, $0xa4506ceb90befffa
DATA constants<>+248(SB)/8, $0xc67178f2bef9a3f7
GLOBL constants<>(SB), RODATA|NOPTR, $256

// LOAD reads four words of the message.
#define LOAD(i, w) \
	MOVOU i*16(DX), w \
	PSHUFB X15, w

// ROUNDS does four rounds of both states with four words of the schedule.
#define ROUNDS(i, w) \
	MOVOU i*16(AX), X0 \
	PADDD w, X0 \
	SHA256RNDS2 X0, X1, X2 \
	SHA256RNDS2 X0, X3, X4 \
	PSHUFD $0x0e, X0, X0 \
	SHA256RNDS2 X0, X2, X1 \
	SHA256RNDS2 X0, X4, X3

// EXTEND makes the four words after those of w3 from the last sixteen, w0 to w3,
// in the place of w0.
#define EXTEND(w0, w1, w2, w3) \
	SHA256MSG1 w1, w0 \
	MOVO w3, X9 \
	PALIGNR $4, w2, X9 \
	PADDD X9, w0 \
	SHA256MSG2 w3, w0

// UNPACK turns words a to h into ABEF and CDGH.
#define UNPACK(state, abef, cdgh) \
	MOVOU 0(state), abef \
	MOVOU 16(state), cdgh \
	PSHUFD $0xb1, abef, abef \
	PSHUFD $0x1b, cdgh, cdgh \
	MOVO abef, X9 \
	PALIGNR $8, cdgh, abef \
	PBLENDW $0xf0, X9, cdgh

// PACK turns them back.
#define PACK(abef, cdgh, state) \
	PSHUFD $0x1b, abef, abef \
	PSHUFD $0xb1, cdgh, cdgh \
	MOVO abef, X9 \
	PBLENDW $0xf0, cdgh, abef \
	PALIGNR $8, X9, cdgh \
	MOVOU abef, 0(state) \
	MOVOU cdgh, 16(state)

// func blocks(a, b *[8]uint32, p []byte)
TEXT ·blocks(SB), NOSPLIT, $0-40
	MOVQ a+0(FP), DI
	MOVQ b+8(FP), SI
	MOVQ p_base+16(FP), DX
	MOVQ p_len+24(FP), CX
	LEAQ constants<>(SB), AX
	MOVOU order<>(SB), X15
	UNPACK(DI, X1, X2)
	UNPACK(SI, X3, X4)
	JMP check

block:
	MOVO X1, X10
	MOVO X2, X11
	MOVO X3, X12
	MOVO X4, X13
	LOAD(0, X5)
	ROUNDS(0, X5)
	LOAD(1, X6)
	ROUNDS(1, X6)
	LOAD(2, X7)
	ROUNDS(2, X7)
	LOAD(3, X8)
	ROUNDS(3, X8)
	EXTEND(X5, X6, X7, X8)
	ROUNDS(4, X5)
	EXTEND(X6, X7, X8, X5)
	ROUNDS(5, X6)
	EXTEND(X7, X8, X5, X6)
	ROUNDS(6, X7)
	EXTEND(X8, X5, X6, X7)
	ROUNDS(7, X8)
	EXTEND(X5, X6, X7, X8)
	ROUNDS(8, X5)
	EXTEND(X6, X7, X8, X5)
	ROUNDS(9, X6)
	EXTEND(X7, X8, X5, X6)
	ROUNDS(10, X7)
	EXTEND(X8, X5, X6, X7)
	ROUNDS(11, X8)
	EXTEND(X5, X6, X7, X8)
	ROUNDS(12, X5)
	EXTEND(X6, X7, X8, X5)
	ROUNDS(13, X6)
	EXTEND(X7, X8, X5, X6)
	ROUNDS(14, X7)
	EXTEND(X8, X5, X6, X7)
	ROUNDS(15, X8)
	PADDD X10, X1
	PADDD X11, X2
	PADDD X12, X3
	PADDD X13, X4
	ADDQ $64, DX

check:
	SUBQ $64, CX
	JGE block
	PACK(X1, X2, DI)
	PACK(X3, X4, SI)
	RET

// func hasSHA() bool
TEXT ·hasSHA(SB), NOSPLIT, $0-1
	MOVB $0, ret+0(FP)
	XORL AX, AX
	CPUID
	CMPL AX, $7
	JLT  no
	MOVL $1, AX
	CPUID
	ANDL $(1<<9|1<<19), CX // SSSE3, SSE4.1
	CMPL CX, $(1<<9|1<<19)
	JNE  no
	MOVL $7, AX
	XORL CX, CX
	CPUID
	SHRL $29, BX
	ANDL $1, BX
	MOVB BX, ret+0(FP)

no:
	RET
