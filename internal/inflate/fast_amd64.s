#include "go_asm.h"
#include "textflag.h"

// symbolsGo in assembly: the same symbols in the same order with the same
// refills, so that both stop with the same state.
//
//	AX  d, for its tables   SI  &in[pos]    R8   &in[lastIn]
//	BX  bits                DI  &out[n]     R9   &out[lastOut]
//	DX  nbits               CX  entry       R10  &out[lo]
//	R11 the next literal's or length's entry, then the match's length
//	R12 the next distance's entry, then the distance
//	R13 scratch
//	R14 bits before the entry was consumed; scratch
//
// As in Go, nbits is good modulo 64 and has garbage above.
//
// What keeps it in bounds, whatever input and tables are: between two checks of
// SI against R8 and of DI against R9 there are two refills, which move SI by 7
// at most, and three literals and a match, whose length is checked; the index
// into a table is masked; no match begins before R10.

// REFILL ors eight bytes of input into bits and makes nbits 56 to 63.
#define REFILL \
	MOVQ  (SI), R13    \
	SHLXQ DX, R13, R13 \
	ORQ   R13, BX      \
	MOVL  DX, R13      \
	NOTL  R13          \
	SHRL  $3, R13      \
	ANDL  $7, R13      \
	ADDQ  R13, SI      \
	ORL   $56, DX

// CONSUME takes an entry's bits; SHRXQ looks at the low 6 bits of it only.
#define CONSUME(entry) \
	SHRXQ entry, BX, BX \
	SUBL  entry, DX

// LOOKUP loads the entry of the next literal or length.
#define LOOKUP(entry) \
	MOVL BX, entry             \
	ANDL $const_litMask, entry \
	MOVL inflater_lit(AX)(entry*4), entry

// SYMBOL consumes the entry in CX and loads both that may follow, before it is
// known which: after a branch that was predicted wrong they are there already.
#define SYMBOL \
	MOVQ    BX, R14     \
	CONSUME(CX)         \
	LOOKUP(R11)         \
	MOVBLZX BX, R12     \
	MOVL    inflater_dist(AX)(R12*4), R12

// LITERAL writes a literal, bits 8-15 of its entry, and goes on to the next.
#define LITERAL \
	MOVB CH, (DI) \
	INCQ DI       \
	MOVL R11, CX

// VALUE makes an entry its base and extra bits, which are in R14. BZHIQ keeps
// the bits that the entry consumes, SHRXQ drops those of its code.
#define VALUE(entry) \
	BZHIQ entry, R14, R14 \
	RORXL $8, entry, R13  \
	SHRXQ R13, R14, R14   \
	SHRL  $16, entry      \
	ADDQ  R14, entry

// SUBTABLE consumes the index of an entry that leads to a sub-table and makes
// the entry the place in it.
#define SUBTABLE(entry, indexBits, size) \
	SHRQ  $indexBits, BX \
	SUBL  $indexBits, DX \
	RORXL $8, entry, R13 \
	ANDL  $15, R13       \
	BZHIQ R13, BX, R13   \
	SHRL  $16, entry     \
	ADDL  R13, entry     \
	ANDL  $(size-1), entry

// func symbolsAsm(d *inflater, lastIn, lastOut int) (why stop, length, distance int)
TEXT ·symbolsAsm(SB), NOSPLIT, $0-48
	MOVQ d+0(FP), AX
	MOVQ inflater_in(AX), SI
	MOVQ lastIn+8(FP), R8
	ADDQ SI, R8
	ADDQ inflater_pos(AX), SI
	MOVQ inflater_out(AX), DI
	MOVQ lastOut+16(FP), R9
	ADDQ DI, R9
	MOVQ inflater_lo(AX), R10
	ADDQ DI, R10
	ADDQ inflater_n(AX), DI
	MOVQ inflater_bits(AX), BX
	MOVQ inflater_nbits(AX), DX
	XORL R11, R11
	XORL R12, R12
	REFILL
	LOOKUP(CX)

	PCALIGN $32
loop:
	CMPQ  SI, R8
	JHI   edge
	CMPQ  DI, R9
	JHI   edge
	REFILL
	SYMBOL
	TESTL CX, CX // the sign is litFlag
	JPL   match
	LITERAL
	SYMBOL
	TESTL CX, CX
	JPL   refill
	LITERAL
	SYMBOL
	TESTL CX, CX
	JPL   refill
	LITERAL
	SYMBOL
	TESTL CX, CX
	JPL   refill
	LITERAL
	JMP   loop

	// A refill as it is before the entry is consumed, which it was: by as many
	// bytes as were missing then.
	PCALIGN $32
refill:
	TESTL $const_litException, CX
	JNZ   exceptionRefill
	MOVQ  (SI), R13
	SHLXQ DX, R13, R13
	ORQ   R13, BX
	LEAL  (DX)(CX*1), R13
	NOTL  R13
	SHRL  $3, R13
	ANDL  $7, R13
	ADDQ  R13, SI
	LEAL  (DX)(R13*8), DX
	JMP   length

	PCALIGN $32
match:
	TESTL $const_litException, CX
	JNZ   exception

length:
	VALUE(CX)
	MOVQ  CX, R11
	TESTL R12, R12 // the sign is distException
	JMI   distException

distance:
	MOVQ BX, R14
	CONSUME(R12)
	LOOKUP(CX)
	VALUE(R12)
	MOVQ DI, R13
	SUBQ R10, R13
	CMPQ R12, R13
	JHI  farBack
	LEAQ -3(R11), R13
	CMPQ R13, $(const_maxMatch-3)
	JHI  noLit // no entry of a table that was built says so
	MOVQ DI, R13
	SUBQ R12, R13         // from
	LEAQ (DI)(R11*1), R14 // where n will be
	CMPQ R12, $16
	JCS  near
	MOVOU (R13), X0
	MOVOU X0, (DI)
	MOVOU 16(R13), X1 // may be what was just written
	MOVOU X1, 16(DI)
	CMPQ R11, $32
	JHI  long
	MOVQ R14, DI
	JMP  loop

long:
	ADDQ  $32, R13
	ADDQ  $32, DI
	MOVOU (R13), X0
	MOVOU X0, (DI)
	MOVOU 16(R13), X1
	MOVOU X1, 16(DI)
	LEAQ  32(DI), R12
	CMPQ  R12, R14
	JCS   long
	MOVQ  R14, DI
	JMP   loop

	// From less than 16 bytes before: those over and over, as many whole times
	// as 16 bytes hold, which is 15 less the pattern's last index.
near:
	MOVOU   (R13), X0
	SHLL    $4, R12
	LEAQ    ·patterns(SB), R13
	MOVOU   (R13)(R12*1), X1
	MOVBLZX 15(R13)(R12*1), R12
	PSHUFB  X1, X0
	XORL    $15, R12

repeat:
	MOVOU X0, (DI)
	ADDQ  R12, DI
	CMPQ  DI, R14
	JCS   repeat
	MOVQ  R14, DI
	JMP   loop

	// Not consumed is what Go does not consume.
exceptionRefill:
	MOVQ R14, BX
	ADDL CX, DX
	REFILL
	JMP  unconsumed

exception:
	MOVQ R14, BX
	ADDL CX, DX

unconsumed:
	TESTL $const_litSub, CX
	JZ    noSub
	SUBTABLE(CX, const_litBits, const_litSize)
	MOVL  inflater_lit(AX)(CX*4), CX
	TESTL CX, CX
	JPL   noSub
	SYMBOL
	LITERAL
	JMP   loop

noSub:
	TESTL $const_litEnd, CX
	JNZ   end
	TESTL $const_litException, CX
	JNZ   noLit
	SYMBOL
	JMP   length

distException:
	TESTL $const_distBad, R12
	JNZ   noDist
	SUBTABLE(R12, const_distBits, const_distSize)
	MOVL  inflater_dist(AX)(R12*4), R12
	TESTL R12, R12
	JPL   distance

noDist:
	MOVQ $const_stopNoDist, R13
	JMP  return

noLit:
	MOVQ $const_stopNoLit, R13
	JMP  return

end:
	CONSUME(CX)
	MOVQ $const_stopEnd, R13
	JMP  return

farBack:
	MOVQ $const_stopFarBack, R13
	JMP  return

edge:
	MOVQ $const_stopEdge, R13

return:
	SUBQ inflater_in(AX), SI
	MOVQ SI, inflater_pos(AX)
	SUBQ inflater_out(AX), DI
	MOVQ DI, inflater_n(AX)
	MOVQ BX, inflater_bits(AX)
	MOVQ DX, inflater_nbits(AX)
	MOVQ R13, why+24(FP)
	MOVQ R11, length+32(FP)
	MOVQ R12, distance+40(FP)
	RET
